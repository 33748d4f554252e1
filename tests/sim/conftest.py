"""Environments that several tests of the simulator share, because compiling a scene takes seconds."""

import pytest


@pytest.fixture(scope="session")
def libero_assets():
    """The assets that are there: those of LIBERO_ASSETS, otherwise the project's own stand-ins."""
    from pokevla_jax.sim.assets import resolve_assets

    return resolve_assets()


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
