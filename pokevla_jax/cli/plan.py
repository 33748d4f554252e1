"""``pokevla-plan``: memory, collectives, step time and MFU of a training run on a TPU slice, without a TPU.

The very train step that would run is compiled with the TPU compiler (``pip install -r requirements-plan.txt``). Exit
status: 0 when the program fits, 1 when it does not, 2 when something is wrong with the command line.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from pokevla_jax.cli import flags
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.plan import topologies

EXAMPLES = (
    "pokevla-plan --config=configs/posttrain_pokevla.py --topology=v5e:4x4",
    "pokevla-plan --config=configs/posttrain_pokevla_pod.py --topology=v5e:16x16 --top 20",
    "pokevla-plan --config=configs/pretrain_pokevlm_pod.py --topology=v5p:4x4x8 --search --json",
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; the process's exit status."""
    parser = flags.make_parser(__doc__.partition("\n")[0], EXAMPLES)
    flags.add_config(parser, required=False)
    parser.add_argument("--topology", required=True, metavar="CHIP:SIZES", help="a slice, such as v5e:16x16")
    parser.add_argument("--search", action="store_true", help="find the largest batch and cheapest remat that fit")
    parser.add_argument(
        "--top", type=int, default=0, metavar="N", help="list the N longest source operations (default: none)"
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="instead of a configuration, predict a decoder whose speed on this chip is published, and keep the factor",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of text")
    parser.add_argument("--out", metavar="DIR", help="also write plan.json and the compiled program's text there")
    return flags.run(parser, _plan, argv)


def _plan(arguments: argparse.Namespace) -> int:
    topology = topologies.parse(arguments.topology)
    if arguments.config is None and not arguments.calibrate:
        raise ConfigError("--config is missing; give a file of configs/ (or --calibrate without one)")
    topologies.require_compiler()
    with _quiet():
        if arguments.calibrate:
            return _calibrate(arguments, topology)
        from pokevla_jax.plan import report
        from pokevla_jax.plan import search

        if arguments.search:
            planner = search.cached(functools.partial(_report, topology=topology), topology, _cache())
            say = functools.partial(print, file=sys.stderr, flush=True)
            candidates = search.search(arguments.config, topology, planner, say)
            best = candidates[0].report
            _print(arguments, {"search": [vars(c) for c in candidates]}, search.as_text(candidates))
            return 0 if best is not None and best["fits"] else 1
        plan, text = _compile(arguments.config, topology)
        _print(arguments, plan.report, report.as_text(plan, top=arguments.top))
        if arguments.out and text:
            Path(arguments.out, "step.hlo.txt").write_text(text)
        return 0 if plan.report["fits"] else 1


def _calibrate(arguments: argparse.Namespace, topology: topologies.Topology) -> int:
    """Runs the predictor on the published reference of the slice's chip generation, on the reference's own slice."""
    from pokevla_jax.plan import calibrate
    from pokevla_jax.plan import search

    reference = calibrate.REFERENCES.get(topology.chip.name)
    if reference is None:
        raise ConfigError(f"--calibrate knows no published decoder on {topology.chip.name}")
    plan, _ = _compile(calibrate.configuration(reference), topologies.parse(reference.topology))
    if plan.tally is None:
        raise ConfigError(f"{reference.name} does not fit as this project trains it: {plan.report['hbm_gib']}")
    values = calibrate.entry(reference, plan.tally.seconds, search.versions())
    calibrate.save(topology, values)
    _print(arguments, values, "\n".join(f"{key}: {value}" for key, value in values.items()))
    return 0


def _report(config: Config, topology: topologies.Topology) -> dict[str, Any]:
    return _compile(config, topology)[0].report


def _compile(config: Config, topology: topologies.Topology) -> tuple[Any, str]:
    """The plan of one configuration and the text of its program (empty where it does not fit)."""
    from pokevla_jax.plan import compile as compiling
    from pokevla_jax.plan import report

    objective, spec = compiling.what_runs(config)
    try:
        compiled = compiling.compile_step(objective, config, spec, topology)
    except compiling.OutOfMemoryError as error:
        return report.make_refusal(config, objective, topology, error), ""
    return report.make_plan(config, objective, topology, compiled), compiled.text


def _print(arguments: argparse.Namespace, report: dict[str, Any], text: str) -> None:
    as_json = json.dumps(report, indent=2)
    print(as_json if arguments.json else text)
    if arguments.out:
        folder = Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"plan.json.{os.getpid()}.tmp"
        temporary.write_text(as_json + "\n")
        temporary.replace(folder / "plan.json")


def _cache() -> Path:
    return Path(os.environ.get("POKEVLA_PLAN_CACHE") or Path.home() / ".cache" / "pokevla_jax" / "plan")


@contextlib.contextmanager
def _quiet():
    """What libtpu writes about the hosts that it misses goes nowhere; an error is raised and seen all the same."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    visible = os.fdopen(os.dup(kept), "w", buffering=1)
    before, sys.stderr = sys.stderr, visible
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        sys.stderr = before
        visible.close()


if __name__ == "__main__":
    sys.exit(main())
