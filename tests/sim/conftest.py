"""Environments that several tests of the simulator share, because compiling a scene takes seconds."""

import pytest


@pytest.fixture(scope="session")
def libero_assets():
    """The assets that are there: LIBERO_ASSETS, otherwise the project's own stand-ins; no test changes them."""
    from pokevla_jax.sim import assets

    found = assets.resolve_assets()
    yield found
    assets._inspect.cache_clear()
    assert assets.inspect_assets(found.root).sha256 == found.sha256, f"a test has written into {found.root}"


@pytest.fixture(scope="session")
def whole_assets(libero_assets):
    """The assets of every suite; skips where there are only generated ones."""
    if libero_assets.kind == "standins":
        pytest.skip("the generated stand-ins cover libero_object only")
    return libero_assets


@pytest.fixture(scope="session")
def soup_states():
    """The 50 stored initial states of the first libero_object task."""
    from pokevla_jax.sim import tasks

    return tasks.load_init_states(tasks.load_task("libero_object", 0))


@pytest.fixture(scope="session")
def soup_environment(libero_assets):
    """The first libero_object task with the fast renderer; every test resets it before use."""
    from pokevla_jax.sim.environment import LiberoEnvironment
    from pokevla_jax.sim.tasks import load_task

    environment = LiberoEnvironment(load_task("libero_object", 0), assets=libero_assets)
    yield environment
    environment.close()
