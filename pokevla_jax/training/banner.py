"""What a run says before its first step: hosts, mesh, batch, parameters, memory, data, and its first batch drawn."""

import io
import math
import socket
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from pokevla_jax import flops
from pokevla_jax import sharding
from pokevla_jax.config import Config
from pokevla_jax.training import distributed
from pokevla_jax.training.state import TrainState
from pokevla_jax.typing import Batch

FIRST_BATCH = "first_batch.png"
_MAX_ROWS = 16


def hosts() -> str:
    """``2 processes of 4 devices: a (0), b (1)``; every process must ask."""
    names = distributed.gather_text(socket.gethostname()) if jax.process_count() > 1 else [socket.gethostname()]
    shown = ", ".join(f"{name} ({index})" for index, name in enumerate(names[:8]))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    plural = "es" if len(names) > 1 else ""
    return f"{len(names)} process{plural} of {jax.local_device_count()} devices: {shown}{more}"


def batch_formula(config: Config, mesh: Mesh) -> str:
    """``64 = 2 rows x 8 parts x 4 accumulation steps``."""
    accumulation, parts = config.optimizer.accumulation_steps, sharding.batch_shards(mesh)
    rows = config.batch_size // parts // accumulation
    return f"{config.batch_size} = {rows} rows x {parts} parts x {accumulation} accumulation steps"


def parameters(abstract: TrainState) -> str:
    """Millions of parameters by the first part of their paths, trained and frozen ones apart."""
    groups: dict[str, list[int]] = {}
    for place, tree in enumerate((abstract.trained, abstract.frozen)):
        for name, leaf in sharding.flatten(tree).items():
            groups.setdefault(name.split("/")[0], [0, 0])[place] += leaf.size
    total = [sum(sizes[place] for sizes in groups.values()) for place in (0, 1)]
    described = ", ".join(f"{name} {_millions(*sizes)}" for name, sizes in groups.items())
    return f"{total[0] / 1e6:.2f} M trained and {total[1] / 1e6:.2f} M frozen: {described}"


def _millions(trained: int, frozen: int) -> str:
    if trained and frozen:
        return f"{(trained + frozen) / 1e6:.2f} ({frozen / 1e6:.2f} frozen)"
    return f"{(trained + frozen) / 1e6:.2f}{' frozen' if frozen else ''}"


def memory(abstract: TrainState, compiled: Any) -> str:
    """MiB on one device: the state by kind, what the compiled step needs besides, and what the device has."""
    kinds = {
        "trained": abstract.trained,
        "frozen": abstract.frozen,
        "optimizer": abstract.opt_state,
        "average": abstract.ema,
    }
    sizes = {name: bytes_on_device(tree) for name, tree in kinds.items() if tree is not None}
    parts = [f"{name} {size / 2**20:.1f}" for name, size in sizes.items()]
    analysis = compiled.memory_analysis()
    temporary = getattr(analysis, "temp_size_in_bytes", 0)
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    of = f" of {limit / 2**20:.0f} MiB" if limit else ""
    return f"MiB per device: {', '.join(parts)}; step {temporary / 2**20:.1f}; {_total(sizes, temporary)}{of}"


def _total(sizes: Mapping[str, int], temporary: int) -> str:
    return f"in all {(sum(sizes.values()) + temporary) / 2**20:.1f}"


def bytes_on_device(tree: Any) -> int:
    """Bytes of the shards that one device holds of a tree of ``ShapeDtypeStruct``s with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def speed_formula(config: Config, counted: flops.TrainFlops) -> str:
    """FLOPs of a sample and what MFU is measured against."""
    kind = jax.devices()[0].device_kind
    peak = flops.peak_flops(kind)
    measured = f"MFU = {flops.FORMULA}, peak {peak / 1e12:.0f} TFLOP/s" if peak else f"no MFU: peak of {kind!r} unknown"
    teachers = f" and {counted.teachers / 1e9:.1f} of frozen teachers" if counted.teachers else ""
    return (
        f"{counted.student / 1e9:.3g} GFLOP{teachers} and {flops.sequence_length(config)} tokens a sample; {measured}"
    )


def write_first_batch(workdir: epath.Path, batch: Batch) -> str | None:
    """Draws this host's images as ``first_batch.png``, a row per sample; its path, or None where there are none."""
    if "images" not in batch or jax.process_index():
        return None
    path = workdir / FIRST_BATCH
    path.write_bytes(grid_png(np.asarray(batch["images"])[:_MAX_ROWS]))
    return str(path)


def grid_png(images: np.ndarray, gap: int = 4) -> bytes:
    """A PNG of uint8 [rows, columns, h, w, 3]."""
    from PIL import Image

    rows, columns, h, w, _ = images.shape
    canvas = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i in range(rows):
        for j in range(columns):
            canvas[i * (h + gap) :, j * (w + gap) :][:h, :w] = images[i, j]
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG")
    return buffer.getvalue()


def compose(lines: Sequence[tuple[str, str]]) -> str:
    """Named lines, aligned."""
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in lines)
