"""``pokevla-train``: trains what a configuration file describes, and continues where it was stopped.

The same command runs on one host and on many; how a host finds the others is said by the environment that the
launchers of ``launch/`` set (see docs/training_on_tpu.md).

Exit status: 0 when all steps are done, 75 when SIGTERM or SIGINT stopped the run after a save (start the same command
again to continue), 2 when something is wrong with the command line, the data or a checkpoint (one sentence says what).
"""

import argparse
import hashlib
import logging
import os
import platform
import sys
import time
import traceback
from pathlib import Path

from pokevla_jax.cli import flags
from pokevla_jax.config import ConfigError

STARTED = time.time()
# Exit status after a save on request, as ``training.preemption`` has it; importing that here would start JAX.
PREEMPTED = 75
EXAMPLES = (
    "pokevla-train --config=configs/libero_object_quickstart.py --workdir=runs/a --config.data.path=data/moved",
    "pokevla-train --config=configs/libero_object_small.py --workdir=runs/b --init-from=runs/a",
    "pokevla-train --config=configs/posttrain_pokevla.py --workdir=runs/c --init-from=STAGE1,TEACHERS",
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; the process's exit status."""
    parser = flags.make_parser(__doc__.partition("\n")[0], EXAMPLES)
    flags.add_config(parser)
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder of the run; an existing one is continued"
    )
    parser.add_argument(
        "--init-from",
        type=_paths,
        metavar="CKPT[,CKPT]",
        help="start a new run with the parameters of these checkpoints, each parameter from the first that has it: "
        "stage 2 takes its frozen teachers from one of their own",
    )
    parser.add_argument("--cpu-devices", type=int, metavar="N", help="split the CPU into N devices (N <= cores)")
    parser.add_argument(
        "--profile-steps",
        "--profile_steps",
        metavar="FIRST:LAST",
        help="trace these steps into the run's folder",
    )
    parser.add_argument("--no-tensorboard", action="store_true", help="write no event files beside metrics.jsonl")
    parser.add_argument("--wandb", metavar="PROJECT", help="send the figures to this project of Weights & Biases too")
    parser.add_argument("--explain", action="store_true", help="print how each parameter is sharded, and stop")
    try:
        status = flags.run(parser, _train, argv)
    except BaseException:
        if _has_company():
            traceback.print_exc()
            _leave(1)
        raise
    if status not in (0, PREEMPTED) and _has_company():
        _leave(status)
    return status


def _paths(text: str) -> tuple[str, ...]:
    paths = tuple(text.split(","))
    if not all(paths):
        raise argparse.ArgumentTypeError(f"{text!r} names an empty checkpoint; separate checkpoints by single commas")
    return paths


def _has_company() -> bool:
    """Whether this process is one of several of a run; an ordinary exit then waits for all of them to end well."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def _leave(status: int) -> None:
    from pokevla_jax.training import distributed

    distributed.leave(status)


def _train(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Orbax narrates every save through absl; what matters is said by the loop.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if arguments.cpu_devices is not None:
        if arguments.cpu_devices < 1:
            raise ConfigError(f"--cpu-devices {arguments.cpu_devices} is too few; give at least 1")
        # Read once, when JAX starts its backend: hence the imports below.
        count = f"--xla_force_host_platform_device_count={arguments.cpu_devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()

    _cache_compilations()
    from pokevla_jax import sharding
    from pokevla_jax.training import distributed
    from pokevla_jax.training import loop
    from pokevla_jax.training import profiling
    from pokevla_jax.training import stages
    from pokevla_jax.training import workdir

    config = arguments.config
    profile_steps = profiling.parse_steps(arguments.profile_steps) if arguments.profile_steps else None
    distributed.initialize()
    objective = stages.make_objective(config)
    if arguments.explain:
        mesh = sharding.make_mesh(config.mesh)
        placed = sharding.param_shardings(objective.abstract_params, objective.logical_axes, mesh)
        print(f"{sharding.describe(mesh)}\n{sharding.explain(objective.abstract_params, placed)}")
        return 0
    options = loop.Options(
        tensorboard=not arguments.no_tensorboard,
        wandb=arguments.wandb,
        profile_steps=profile_steps,
        started=STARTED,
    )
    with workdir.held(arguments.workdir) as folder:  # before the dataset is read
        data = stages.make_data(config)
        result = loop.train(config, folder, objective, data, init_from=arguments.init_from or (), options=options)
    return PREEMPTED if result.stopped_by else 0


def _cache_compilations() -> None:
    """Keeps what is compiled for a restart or a control run, unless JAX was told where ("" for nowhere)."""
    # XLA's CPU code is made for one processor's instructions, and a home folder may be shared by several kinds.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    kind = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    name = f"xla-{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "pokevla_jax" / name))


if __name__ == "__main__":
    sys.exit(main())
