"""Ray: embedded in this process on loopback, or a cluster that runs already.

Embedded it has no dashboard and no telemetry, and stops at the end. On a cluster the actors get this project's code by
``runtime_env``, whatever the hosts have installed of it.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from eval.errors import EvaluationError

ROOT = Path(__file__).resolve().parent.parent
OBJECT_STORE_BYTES = 256 * 2**20
# What the actors import of this project.
PACKAGES = ("eval", "pokevla_jax")
# What decides pixels and must be the same on every host; the driver has chosen it before.
FORWARDED = ("MUJOCO_GL", "LP_NUM_THREADS")


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Declares the options that say where and with how many processes episodes are run; no result depends on them."""
    add = group.add_argument
    workers = "simulator processes, about 1.3 GB each (default: one per core, of all hosts)"
    add("--workers", type=int, metavar="N", help=workers)
    add("--address", metavar="auto|HOST:PORT", help="join this Ray cluster (default: Ray on this machine alone)")
    actors = "policy processes (default: one per GPU or TPU chip, or one)"
    add("--policy-actors", type=int, metavar="N", help=actors)
    retries = "further attempts for an episode that ends in an error (default: %(default)s)"
    add("--retries", type=int, default=2, metavar="N", help=retries)
    stopped = "an episode that takes longer is stopped and tried again (default: 300 and 1 per step of its budget)"
    add("--episode-timeout", type=float, metavar="SECONDS", help=stopped)
    replaced = "a simulator process is replaced after so many episodes (default: %(default)s)"
    add("--recycle-episodes", type=int, default=200, metavar="N", help=replaced)
    grown = "a simulator process that has taken more is replaced after its episode (default: %(default)g)"
    add("--recycle-memory", type=float, default=4.0, metavar="GIB", help=grown)


@contextmanager
def connect(address: str | None, workers: int | None) -> Iterator[ModuleType]:
    """Ray at ``address``, or embedded with room for ``workers`` simulators where there is none; initialised."""
    with local_cluster(workers or 1) if address is None else joined_cluster(address) as ray:
        yield ray


@contextmanager
def joined_cluster(address: str) -> Iterator[ModuleType]:
    """The Ray cluster at ``address`` (``auto``: the one that this host belongs to).

    Raises:
        EvaluationError: when there is none, or it runs other versions.
    """
    os.environ["RAY_usage_stats_enabled"] = "0"  # noqa: SIM112  (its name)
    import ray

    variables = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    # Without this Ray hides accelerators from processes that did not ask for one; simulators may render on a GPU.
    variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    code: dict[str, Any] = {"py_modules": [str(ROOT / package) for package in PACKAGES], "env_vars": variables}
    try:
        ray.init(address=address, runtime_env=code, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EvaluationError(
            f"--address {address}: no Ray cluster could be joined ({lines[0] if lines else type(error).__name__}); run "
            f"this on one of its hosts, with Ray {ray.__version__} and this Python on all of them"
        ) from error
    try:
        yield ray
    finally:
        sys.stdout.flush()
        ray.shutdown()


@contextmanager
def local_cluster(workers: int) -> Iterator[ModuleType]:
    """Ray with room for ``workers`` simulators; the module itself, initialised.

    Ray's processes inherit the environment and find the project through ``PYTHONPATH``, whatever the current folder.

    A Ray that this process has started already is used and left running.

    Raises:
        EvaluationError: when Ray cannot be started.
    """
    os.environ["RAY_usage_stats_enabled"] = "0"  # noqa: SIM112  (its name)
    # On Linux Ray listens on every network interface; this switch (named for the systems where it is off by default)
    # keeps it on loopback.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Without this Ray hides accelerators from processes that did not ask for one, the policy among them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # An address in the environment would join someone's cluster instead of starting one.
    os.environ.pop("RAY_ADDRESS", None)
    # Ray warns at each start that it protects itself with a token; that is as it should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        yield ray
        return
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        ray.init(
            address="local",
            num_cpus=max(workers, 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:
        raise EvaluationError(f"Ray could not be started on this machine: {error}") from error
    finally:
        # Ray's processes have inherited it; a runtime_env would say the same but take a second per process.
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    try:
        yield ray
    finally:
        sys.stdout.flush()
        ray.shutdown()


def living_nodes(ray: ModuleType) -> list[dict[str, Any]]:
    """Ray's descriptions of the hosts that are there now, that of the driver first."""
    here = ray.get_runtime_context().get_node_id()
    return sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"] != here)


def kill_process(ray: ModuleType, node: str, pid: int) -> None:
    """SIGKILL on whatever host it runs: Ray's own request needs a process that still listens."""
    if not pid:
        return
    if node == ray.get_runtime_context().get_node_id():
        _kill(pid)
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.remote(_kill).options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
