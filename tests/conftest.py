"""What all tests share: eight virtual CPU devices, software rendering, markers, no network.

By default the fast tier runs: everything but the markers in ``OPTIONAL``. ``--all`` or an own ``-m`` runs more.
"""

import importlib.util
import os
from pathlib import Path

# Both are read once, when JAX and MuJoCo are first imported. Without a GPU test asked for, a GPU stays untouched.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("MUJOCO_GL", "osmesa")
# A test that reaches for the network is a defect: the hub's libraries then fail at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Compiled programs are kept between runs, and shared by the processes of one run: most of a test's time is compilation.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))

import pytest

OPTIONAL = ("slow", "full_size", "tpu_compiler", "gpu")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help=f"also run the tests marked {', '.join(OPTIONAL)}")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    """Leaves the optional tiers out, unless --all, -m or a test's own id asks for them."""
    # Whichever of TensorFlow and the OpenGL software renderer comes second crashes: each brings an LLVM of its own.
    apart = [item for item in items if item.get_closest_marker("tensorflow")]
    if len(apart) < len(items):
        config.hook.pytest_deselected(items=apart)
        items[:] = [item for item in items if item not in set(apart)]
    if config.getoption("--all") or config.getoption("-m") or any("::" in argument for argument in config.args):
        return
    optional = [item for item in items if any(item.get_closest_marker(name) for name in OPTIONAL)]
    if optional:
        config.hook.pytest_deselected(items=optional)
        items[:] = [item for item in items if item not in set(optional)]


@pytest.fixture(autouse=True)
def _needs_gpu(request):
    """Skips a test marked gpu where there is none."""
    if request.node.get_closest_marker("gpu"):
        import jax

        if jax.default_backend() != "gpu":
            pytest.skip("needs a CUDA device: run with JAX_PLATFORMS=cuda on a machine that has one")


@pytest.fixture(autouse=True)
def _needs_tpu_compiler(request):
    """Skips a test marked tpu_compiler where the compiler is not installed."""
    if request.node.get_closest_marker("tpu_compiler") and importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install -r requirements-plan.txt")
