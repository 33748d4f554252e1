"""Checkpoints of the published size: what an import takes, that its bytes are right, that an export computes the same.

Run it on an otherwise idle machine: ``python -m pytest -s tests/interop/test_full_size.py -m full_size``.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pokevla_jax.interop import names
from pokevla_jax.interop.check import check
from pokevla_jax.interop.jax_outputs import without_teacher
from pokevla_jax.interop.torch_export import export
from pokevla_jax.models import presets
from tests.interop import fakes
from tests.interop import published
from tests.interop import random_network
from tests.interop.published import Shapes

ROOT = Path(__file__).resolve().parents[2]
SAFETENSORS = {"float32": "F32", "bfloat16": "BF16"}
# Half as much memory again as the checkpoint, whatever its size. Two minutes on two cores; what is held to it is the
# processors' time, for a test cannot know whether the machine is its own.
MEMORY, SECONDS = 1.5, 120

PROGRAM = """
import json, resource, sys
from pathlib import Path
from pokevla_jax.cli import convert
source, out, preset = sys.argv[1:]
assert convert.main(["from-torch", "--source", source, "--out", out, "--preset", preset]) == 0
usage = resource.getrusage(resource.RUSAGE_SELF)
# The peak that getrusage knows may be that of the process that started this one.
(peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"cpu": usage.ru_utime + usage.ru_stime, "peak": int(peak) * 1024}))
"""

_RNG = np.random.default_rng(0)
NORMAL = _RNG.standard_normal(2**22, dtype=np.float32)


def values(name: str, shape, dtype: str) -> np.ndarray:
    """Normal numbers that depend on the name, cheaply: one block, begun at another place."""
    size, block = int(np.prod(shape)), NORMAL.astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    # A copy: what numpy returns keeps the whole block alive.
    return np.resize(np.roll(block, -(zlib.crc32(name.encode()) % len(block))), size).reshape(shape).copy()


def write_safetensors(path: Path, shapes: Shapes, dtype: str) -> None:
    """A file of any size with one tensor in memory."""
    itemsize, offset, header = np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize, 0, {}
    for name, shape in shapes.items():
        end = offset + int(np.prod(shape)) * itemsize
        header[name] = {"dtype": SAFETENSORS[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(values(name, shape, dtype).tobytes())


def vla_adapter(folder: Path, dtype: str) -> None:
    """A released folder, Pro head, in its files."""
    folder.mkdir()
    model = {
        **published.under("vision_backbone.featurizer.", published.dinov2(scale="scale_factor")),
        **published.under("vision_backbone.fused_featurizer.", published.siglip()),
        **published.under("projector.", published.projector()),
        **published.under("language_model.", published.qwen()),
        "action_queries.weight": (64, 896),
    }
    write_safetensors(folder / "model.safetensors", model, dtype)
    for part, shapes in (
        ("action_head", published.action_head(pro=True)),
        ("proprio_projector", published.proprio_projector()),
    ):
        tensors = {name: values(f"{part}.{name}", shape, "float32") for name, shape in shapes.items()}
        fakes.save_torch(folder / f"{part}--100000_checkpoint.pt", tensors, prefix="module.")


def pokevla(folder: Path, dtype: str) -> None:
    """Every part of PokeVLA with both teachers, under the names it has here, in one file."""
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", names.table(presets.pokevla()).torch_shapes(), dtype)


@pytest.mark.full_size
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("preset", "write", "dtype"),
    [
        ("vla_adapter_pro", vla_adapter, "bfloat16"),
        ("vla_adapter_pro", vla_adapter, "float32"),
        ("pokevla", pokevla, "float32"),
    ],
)
def test_import_of_a_published_size(tmp_path, preset, write, dtype):
    source, out = tmp_path / "source", tmp_path / "out"
    try:
        write(source, dtype)
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        start = time.perf_counter()
        command = [sys.executable, "-c", PROGRAM, str(source), str(out), preset]
        result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        seconds = time.perf_counter() - start
        used = json.loads(result.stdout.splitlines()[-1])
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        sys.stdout.write(
            f"\n{preset} {dtype}: {size / 2**30:.2f} GiB in {seconds:.0f} s ({used['cpu']:.0f} s of CPU), "
            f"peak memory {used['peak'] / 2**30:.2f} GiB\n{result.stdout}"
        )
        check_values(out, preset, dtype)
        assert used["peak"] < MEMORY * size
        assert used["cpu"] < SECONDS
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)


def check_values(out: Path, preset: str, dtype: str) -> None:
    """Two parameters, stacked over layers and not, are made of the right tensors."""
    params = out / "checkpoints" / "0" / "params"
    table = {entry.path: entry for entry in names.table(presets.get_preset(preset)).entries}
    handler = ocp.PyTreeCheckpointHandler()
    for path in ("vision/siglip/blocks/attention/qkv/kernel", "language/embed_tokens"):
        tree: dict = {}
        node = tree
        for group in path.split("/")[:-1]:
            node = node.setdefault(group, {})
        node[path.split("/")[-1]] = np.empty(0)
        restored = handler.restore(params, args=ocp.args.PyTreeRestore(tree, partial_restore=True))
        for group in path.split("/"):
            restored = restored[group]
        for name, tensor in table[path].to_torch(np.asarray(restored)):
            np.testing.assert_array_equal(tensor, values(name, tensor.shape, dtype), err_msg=name)


@pytest.mark.full_size
@pytest.mark.timeout(1800)
def test_an_export_of_the_published_size_computes_the_same(tmp_path):
    """Every part of ``pokevla`` but the frozen geometry teacher, SAM's encoder at its own 1024 pixels included."""
    tokenizer = os.environ.get("QWEN_TOKENIZER")
    if not tokenizer:
        pytest.skip("needs Qwen2.5's tokenizer: set QWEN_TOKENIZER to its folder")
    try:
        random_network.write_random(without_teacher(presets.pokevla()), tokenizer, tmp_path / "run")
        export(tmp_path / "run", tmp_path / "export", include_training_parts=True, check=False)
        report = check(tmp_path / "run", tmp_path / "export", frames=1, tokenizer=tokenizer)
        sys.stdout.write("\n" + "\n".join(map(str, report.rows)) + "\n")
        assert report.passed, report.exceeded
        assert {"mask logits", "align projector"} <= {row.part for row in report.rows}
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)
