"""One Ray session for all tests of the evaluator: starting it takes seconds."""

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """Ray with room for two simulators."""
    from eval.cluster import local_cluster

    with local_cluster(2) as ray:
        yield ray
