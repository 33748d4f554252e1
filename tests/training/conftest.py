"""Compiles quickly: these tests compile many programs and run each for a moment."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def _compile_quickly():
    """XLA without its expensive passes, here and in the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
