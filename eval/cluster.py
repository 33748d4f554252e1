"""Ray on this machine: started embedded, on loopback, without dashboard or telemetry, and stopped at the end."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from eval.errors import EvaluationError

ROOT = Path(__file__).resolve().parent.parent
OBJECT_STORE_BYTES = 256 * 2**20


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
