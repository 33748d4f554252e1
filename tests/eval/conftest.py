"""One Ray session for all tests of the evaluator: starting it takes seconds."""

import os
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def ray_session():
    """Ray with two simulators; its processes can import this folder's ``toy`` module."""
    from eval.cluster import local_cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    try:
        with local_cluster(2) as ray:
            yield ray
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
