"""A plan as a JSON-ready dictionary and as text."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pokevla_jax import flops
from pokevla_jax.config import Config
from pokevla_jax.data.schema import teacher_features
from pokevla_jax.plan import calibrate
from pokevla_jax.plan import cost
from pokevla_jax.plan import hlo
from pokevla_jax.plan import kernels
from pokevla_jax.plan.compile import CompiledStep
from pokevla_jax.plan.compile import Memory
from pokevla_jax.plan.compile import OutOfMemoryError
from pokevla_jax.plan.compile import largest_replicated
from pokevla_jax.plan.topologies import Topology
from pokevla_jax.sharding import flatten
from pokevla_jax.training.objective import Objective
from pokevla_jax.training.optimizer import frozen_names

CAVEATS = (
    "This is a prediction: no TPU has run the program. It leaves out contention between collectives and compute, "
    "the host and its data, stragglers, checkpoints and restarts."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found out about one configuration on one slice."""

    report: dict[str, Any]
    tally: cost.Tally | None  # None where the program does not fit


def make_plan(config: Config, objective: Objective, topology: Topology, compiled: CompiledStep) -> Plan:
    """The plan of a compiled train step."""
    tally = cost.analyze(hlo.parse(compiled.text), topology, compiled.coordinates)
    report = _base(config, objective, topology) | {"hbm_gib": _memory(compiled.memory), "fits": True}
    report["largest_replicated_mib"] = round(largest_replicated(compiled.state), 3)
    student = 1e12 * report["model_tflops_per_step"]
    peak = topology.num_chips * topology.chip.peak_flops
    mfu = student / (peak * tally.seconds)
    calibration = calibrate.load(topology.chip)
    report |= {
        "collectives": [
            {"kind": kind, "count": int(tally.counts[kind]), "gib": round(tally.bytes[kind] / 2**30, 4)}
            for kind in cost.KINDS
            if tally.counts[kind]
        ],
        "predicted_compute_ms": round(1e3 * tally.compute, 3),
        "predicted_collective_ms": round(1e3 * sum(tally.wire.values()), 3),
        "predicted_step_ms": round(1e3 * tally.seconds, 3),
        "predicted_mfu": round(mfu, 4),
        "calibration": calibration,
        "calibrated_mfu": None if calibration is None else round(mfu / calibration["factor"], 4),
        "samples_per_second": round(config.batch_size / tally.seconds, 2),
        "days": round(config.num_steps * tally.seconds / 86400, 3),
    }
    return Plan(_ordered(report), tally)


def make_refusal(config: Config, objective: Objective, topology: Topology, error: OutOfMemoryError) -> Plan:
    """The plan of a program that does not fit."""
    memory = dict.fromkeys(field.name for field in dataclasses.fields(Memory))
    report = _base(config, objective, topology) | {
        "hbm_gib": _memory_keys(memory) | {"total": round(error.needed, 3), "limit": error.limit},
        "fits": False,
    }
    return Plan(_ordered(report), None)


KEYS = (
    *("topology", "chips", "per_chip_batch", "params_total", "params_trainable", "hbm_gib", "fits"),
    *("largest_replicated_mib", "teacher_tflops_per_step", "teachers", "collectives", "model_tflops_per_step"),
    *("predicted_compute_ms", "predicted_collective_ms", "predicted_step_ms", "predicted_mfu"),
    *("calibration", "calibrated_mfu", "samples_per_second", "days"),
)


def _ordered(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: report.get(key) for key in KEYS}


def _base(config: Config, objective: Objective, topology: Topology) -> dict[str, Any]:
    """What is known without compiling."""
    sizes = {name: leaf.size for name, leaf in flatten(objective.abstract_params).items()}
    frozen = frozen_names(objective.trainable, config.optimizer.freeze)
    counted = flops.train_flops(config, sizes, frozen)
    return {
        "topology": topology.name,
        "chips": topology.num_chips,
        "per_chip_batch": config.batch_size / topology.num_chips,
        "params_total": sum(sizes.values()),
        "params_trainable": sum(size for name, size in sizes.items() if name not in frozen),
        "teacher_tflops_per_step": round(counted.teachers * config.batch_size / 1e12, 4),
        "teachers": _teachers(config, counted),
        "model_tflops_per_step": round(counted.student * config.batch_size / 1e12, 4),
    }


def _teachers(config: Config, counted: flops.TrainFlops) -> list[dict[str, Any]]:
    """Every frozen teacher: where its features come from, their bytes, and what computing them in the step costs."""
    if config.stage == "vlm":
        return []
    samples = config.batch_size * config.num_steps
    found = []
    for part, shape in teacher_features(config.model).values():
        teacher = {"segmentation": "sam", "geometry": "vggt"}[part]
        size = math.prod(shape) * np.dtype(np.float16).itemsize
        per_sample = counted.forward.get(f"teacher/{teacher}", 0.0)
        found.append({
            "teacher": teacher,
            "source": getattr(config.model, part).source,
            "tflops_per_step": round(per_sample * config.batch_size / 1e12, 4),
            "mib_per_sample": round(size / 2**20, 4),
            # Of every sample that is drawn. A dataset without augmentation holds each of its frames once.
            "tib_per_run": round(size * samples / 2**40, 4),
        })  # fmt: skip
    return found


def _memory(memory: Memory) -> dict[str, Any]:
    values = _memory_keys(dataclasses.asdict(memory)) | {"total": memory.total, "limit": memory.limit}
    return {name: round(value, 3) for name, value in values.items()}


def _memory_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "params": values["params"],
        "optimizer": values["optimizer"],
        "ema": values["ema"],
        "batch": values["batch"],
        "activations": values["temporary"],
    }


def as_text(plan: Plan, *, top: int = 0) -> str:
    """The plan for people, with its formulas and what it assumes."""
    report, memory = plan.report, plan.report["hbm_gib"]
    lines = [
        f"{report['topology']}: {report['chips']} chips, {report['per_chip_batch']:g} samples per chip and step",
        f"parameters      {report['params_total']:,} ({report['params_trainable']:,} trained)",
    ]
    if not report["fits"]:
        lines.append(
            f"does not fit: it needs {memory['total']:.2f} GiB of HBM per chip and the limit is {memory['limit']:.2f} "
            "GiB; take a smaller batch, more remat (model.remat), more fsdp or tensor, or more chips"
        )
        return "\n".join(lines)
    assert plan.tally is not None
    parts = ("params", "optimizer", "ema", "batch", "activations")
    listed = ", ".join(f"{name} {memory[name]:.2f}" for name in parts if memory[name])
    lines += [
        f"memory per chip {memory['total']:.2f} of {memory['limit']:.2f} GiB ({listed})",
        f"replicated      largest array whole on every chip: {report['largest_replicated_mib']:.2f} MiB",
        f"student         {report['model_tflops_per_step']:.3f} TFLOP per step; teachers inside "
        f"{report['teacher_tflops_per_step']:.3f} TFLOP per step",
        f"compute         {report['predicted_compute_ms']:.2f} ms, of which Pallas kernels "
        f"{1e3 * plan.tally.kernels:.2f} ms and instructions without an estimate {1e3 * plan.tally.by_bytes:.2f} ms",
        f"collectives     {report['predicted_collective_ms']:.2f} ms on the links, "
        f"{1e3 * plan.tally.exposed:.2f} ms of them not hidden behind compute",
    ]
    lines += [
        f"                {c['count']:>7,} x {c['kind']:<20} {c['gib']:.3f} GiB sent per chip"
        for c in report["collectives"]
    ]
    lines.append(f"step            {report['predicted_step_ms']:.2f} ms; {report['samples_per_second']:,.1f} samples/s")
    lines.append(f"MFU             {report['predicted_mfu']:.1%} predicted; {_calibrated(report)}")
    lines += [_teacher_line(teacher, report["samples_per_second"]) for teacher in report["teachers"]]
    lines.append(f"run             {report['days']:.2f} days without interruptions")
    if top:
        lines += ["", *top_sources(plan.tally, top)]
    lines += [
        "",
        f"MFU = {flops.FORMULA}",
        *((flops.__doc__ or "").split("\n\n")[1].splitlines()),
        f"{kernels.ASSUMPTION}.",
        CAVEATS,
    ]
    return "\n".join(lines)


def _teacher_line(teacher: Mapping[str, Any], samples_per_second: float) -> str:
    """What a teacher costs where its features come from now; inside, also what they would weigh as data."""
    size = f"{teacher['mib_per_sample']:.2f} MiB a sample"
    if teacher["source"] == "inside":
        cost = f"inside: {teacher['tflops_per_step']:,.3f} TFLOP per step; precomputed it would be {size}"
    else:
        rate = teacher["mib_per_sample"] * samples_per_second / 2**10
        run = f"{teacher['tib_per_run']:,.2f} TiB read in the run"
        cost = f"precomputed: {size}, {rate:,.2f} GiB/s over all hosts, {run}"
    return f"{'teacher ' + teacher['teacher']:<15} {cost}"


def _calibrated(report: Mapping[str, Any]) -> str:
    calibration = report["calibration"]
    if calibration is None:
        return "not calibrated: no measured figure was compared for this chip"
    return (
        f"{report['calibrated_mfu']:.1%} calibrated (this predictor gave {calibration['name']} "
        f"{calibration['predicted_mfu']:.1%}, measured {calibration['measured_mfu']:.1%}: it flatters by "
        f"{calibration['factor']:.2f})"
    )


def top_sources(tally: cost.Tally, count: int) -> list[str]:
    """Lines that say where the step's time goes, by source operation."""
    grouped: dict[tuple[str, str], float] = collections.defaultdict(float)
    for name, seconds in tally.sources.items():
        grouped[source(name)] += seconds
    for name, seconds in tally.waits.items():
        scope, direction = source(name)
        grouped[f"{scope} (waiting)", direction] += seconds
    lines = [f"{'ms':>10} {'share':>6}  pass       source"]
    longest = sorted(grouped.items(), key=lambda item: item[1], reverse=True)[:count]
    for (scope, direction), seconds in longest:
        lines.append(f"{1e3 * seconds:10.3f} {seconds / tally.seconds:6.1%}  {direction:<9}  {scope}")
    rest = sum(grouped.values()) - sum(seconds for _, seconds in longest)
    lines.append(f"{1e3 * rest:10.3f} {rest / tally.seconds:6.1%}             everything else")
    return lines


# What JAX's transformations and control flow add to the name of an operation.
_WRAPPED = re.compile(
    r"^(?:jit|jvp|transpose|vmap|custom_vjp_call|custom_jvp_call|remat|checkpoint|shard_map)\((.*)\)$"
)
_CONTROL = {"while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "remat", "scan", "shard_map"}
_CONTROL |= {"custom_vjp_call", "custom_jvp_call", "pjit", "core_call", "branch_0_fun", "branch_1_fun", ""}


def source(op_name: str) -> tuple[str, str]:
    """The named scopes and primitive of an operation, and the pass it belongs to: forward, backward or recompute."""
    if "rematted_computation" in op_name:
        direction = "recompute"
    else:
        direction = "backward" if "transpose(" in op_name else "forward"
    if op_name.startswith("("):
        return op_name, ""
    scopes = []
    for segment in _split(op_name):
        inner = segment
        while found := _WRAPPED.match(inner):
            inner = found[1]
        scopes += [part for part in _split(inner) if part not in _CONTROL and not part.endswith("train_step")]
    return "/".join(scopes), "" if "/optimizer/" in op_name else direction


def _split(name: str) -> list[str]:
    """Splits at the slashes that stand outside of parentheses."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(name):
        depth += (char == "(") - (char == ")")
        if char == "/" and not depth:
            parts.append(name[start:i])
            start = i + 1
    return [*parts, name[start:]]
