"""The one place that imports hf-libero and robosuite, made quiet and non-interactive.

Importing them as they are has side effects that a worker process cannot afford: hf-libero calls ``input()`` when its
configuration file is missing and imports gymnasium for a vector environment nobody uses here, its benchmark module
imports torch, robosuite prints three warnings, and both decide for themselves which OpenGL back-end to load.
"""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from pokevla_jax.sim.errors import SimulationError


def libero_package() -> Path:
    """The folder of the installed ``libero.libero`` package, found without importing it."""
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise SimulationError(
            "The LIBERO benchmark is not installed; run `pip install --no-deps -r requirements-sim.txt`."
        )
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def choose_gl() -> str:
    """The OpenGL back-end in use: ``MUJOCO_GL`` if set, else EGL beside an NVIDIA driver, else software (OSMesa).

    MuJoCo reads the variable once, at import, so this runs before it. The software driver then draws in the calling
    thread (``LP_NUM_THREADS=0``): one simulator uses one core, and there are usually as many simulators as cores.
    """
    os.environ.setdefault("LP_NUM_THREADS", "0")
    return os.environ.setdefault("MUJOCO_GL", "egl" if Path("/dev/nvidiactl").exists() else "osmesa")


def import_libero(assets: Path) -> ModuleType:
    """Returns ``libero.libero.envs``, which from now on loads its meshes and scenes from ``assets``.

    hf-libero remembers its asset folder in a module variable; setting that redirects every object and arena built
    afterwards in this process, and nothing is written into the installed package.
    """
    # robosuite reports a missing private macro file through this logger, at import, by a deprecated method.
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="The 'warn' method is deprecated", module="robosuite")
    if "libero.libero" not in sys.modules:
        _configure(libero_package())
    import libero.libero

    libero.libero._assets_path_cache = str(assets)
    # The vector environment needs gymnasium and is not used: an empty module stands in for it.
    if "libero.libero.envs.venv" not in sys.modules:
        stand_in = types.ModuleType("libero.libero.envs.venv")
        stand_in.SubprocVectorEnv = stand_in.DummyVectorEnv = None  # type: ignore[attr-defined]
        sys.modules["libero.libero.envs.venv"] = stand_in
    import libero.libero.envs

    _free_contexts_in_their_own_context()
    return libero.libero.envs


def _configure(package: Path) -> None:
    """Points ``LIBERO_CONFIG_PATH`` at a complete configuration, without which the import waits for an answer."""
    folder = Path(tempfile.mkdtemp(prefix="pokevla-libero-"))
    keys = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": folder / "datasets",
        "assets": package / "assets",
    }
    config = folder / "config.yaml"
    config.write_text("".join(f"{key}: {path}\n" for key, path in keys.items()))
    previous = os.environ.get("LIBERO_CONFIG_PATH")
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    try:
        import libero.libero  # noqa: F401
    finally:
        # Only the import asks; the paths it could give later are never used here.
        config.unlink()
        folder.rmdir()
        if previous is None:
            del os.environ["LIBERO_CONFIG_PATH"]
        else:
            os.environ["LIBERO_CONFIG_PATH"] = previous


def _free_contexts_in_their_own_context() -> None:
    """Makes robosuite free a render context's OpenGL objects where they live, and silently at interpreter exit.

    Its ``__del__`` frees textures and buffers by number in whichever OpenGL context is current: with a second renderer
    in the process, those of the other one. At exit, with OpenGL gone, it prints a traceback per context.
    """
    from robosuite.utils import binding_utils

    original = binding_utils.MjRenderContext.__del__
    if original.__module__ != binding_utils.__name__:
        return

    def free(self: Any) -> None:
        with contextlib.suppress(Exception):
            self.gl_ctx.make_current()
            original(self)

    binding_utils.MjRenderContext.__del__ = free


def package_versions() -> dict[str, str]:
    """Versions of what decides the physics and the pixels."""
    return {name: importlib.metadata.version(name) for name in ("mujoco", "robosuite", "hf-libero", "bddl", "numpy")}
