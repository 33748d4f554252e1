"""Times a policy in JAX beside its export in PyTorch: ``python tests/benchmarks/inference_speed.py --preset tiny``.

Each runs in a process of its own, on the same cores; the two take turns, one observation at a time, so that whatever
else the machine does meets both. Other programs on the machine still cost PyTorch far more than JAX, whose threads do
not wait in a loop for each other: set ``OMP_WAIT_POLICY=PASSIVE`` there, and look at the processor time. What is timed
is all of it: two 256-pixel images, a sentence and a state in, actions for the controller out. Weights are random,
unless ``--checkpoint`` and ``--torch`` name a network and its export.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

INSTRUCTION = "pick up the alphabet soup and place it in the basket"
SIDES = ("jax", "torch")


def observations(count, views, state_dim):
    rng = np.random.default_rng(0)
    return [
        {
            "images": rng.integers(0, 256, (views, 256, 256, 3), dtype=np.uint8),
            "state": rng.uniform(-0.5, 0.5, state_dim).astype(np.float32),
            "prompt": INSTRUCTION,
        }
        for _ in range(count)
    ]


def load_jax(folder, dtype):
    """A function from an observation to actions; weights are stored in ``dtype``, as they are in PyTorch."""
    import jax

    from pokevla_jax import checkpoints
    from pokevla_jax.data.normalize import Statistics
    from pokevla_jax.data.tokenize import from_json
    from pokevla_jax.interop.jax_outputs import TRAINING_PARTS
    from pokevla_jax.policy import Policy

    config, params, assets = checkpoints.load_policy_checkpoint(folder, skip=TRAINING_PARTS)
    config = dataclasses.replace(config, model=without_training_parts(dataclasses.replace(config.model, dtype=dtype)))
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    policy = Policy(config, params, Statistics.from_json(assets.statistics), from_json(assets.tokenizer_json))
    policy.warm_up()
    device = jax.devices()[0].device_kind
    return lambda observation: policy.infer([observation])[0], device


def without_training_parts(model):
    from pokevla_jax.interop import jax_outputs

    return jax_outputs.without_training_parts(model)


def load_torch(folder, dtype):
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=getattr(torch, dtype)).eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def act(observation):
        row = (observation["images"], observation["prompt"], observation["state"])
        return model.predict_actions([row], environment=True)[0]

    return act, torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def child(side, folder, dtype, warm_up):
    """Answers every line on the standard input with the seconds of one observation."""
    start = time.perf_counter()
    act, device = (load_jax if side == "jax" else load_torch)(folder, dtype)
    rows = observations(8, 2, 8)
    for _ in range(warm_up):
        actions = act(rows[0])
    ready = {"device": device, "start": time.perf_counter() - start, "shape": list(np.shape(actions))}
    print(json.dumps(ready), flush=True)
    for index, _ in enumerate(sys.stdin):
        begin, cpu = time.perf_counter(), time.process_time()
        act(rows[index % len(rows)])
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        print(json.dumps({"seconds": seconds, "cpu": cpu, **memory()}), flush=True)


def memory():
    """Resident memory of this process now and at most, GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":") for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name: int(value.split()[0]) / 2**20 for name, value in values.items()}


def random_network(preset, tokenizer, folder):
    """A checkpoint of random weights and its export; the seconds that the export took."""
    from pokevla_jax.interop import torch_export
    from pokevla_jax.models import presets
    from tests.interop import random_network

    random_network.write_random(without_training_parts(presets.get_preset(preset)), tokenizer, folder / "run")
    start = time.perf_counter()
    torch_export.export(folder / "run", folder / "export", check=False)
    return folder / "run", folder / "export", time.perf_counter() - start


class Side:
    """One of the two processes."""

    def __init__(self, name, folder, dtype, warm_up):
        command = [sys.executable, __file__, "--child", name, "--folder", str(folder), "--dtypes", dtype]
        command += ["--warm-up", str(warm_up)]
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "PYTHONPATH": root}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )
        self.seconds, self.cpu, self.last = [], [], {}
        self.ready = self._answer()

    def _answer(self):
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a process ended with status {self.process.wait()}; its message stands above")

    def look(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.last = self._answer()
        self.seconds.append(self.last["seconds"])
        self.cpu.append(self.last["cpu"])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(folders, dtype, repeats, warm_up, separate):
    """One row per side."""
    if separate:
        rows = {}
        for name in SIDES:
            side = Side(name, folders[name], dtype, warm_up)
            for _ in range(repeats):
                side.look()
            side.close()
            rows[name] = row(side)
        return rows
    with contextlib.ExitStack() as stack:
        sides = {}
        for name in SIDES:
            sides[name] = Side(name, folders[name], dtype, warm_up)
            stack.callback(sides[name].close)
        for index in range(repeats):
            for name in SIDES if index % 2 else SIDES[::-1]:
                sides[name].look()
    return {name: row(side) for name, side in sides.items()}


def row(side):
    p50, p95 = np.percentile(side.seconds, [50, 95])
    chunks = 1 / statistics.mean(side.seconds)
    return {
        "device": side.ready["device"],
        "start_s": side.ready["start"],
        "p50_ms": 1e3 * p50,
        "p95_ms": 1e3 * p95,
        "cpu_ms": 1e3 * float(np.median(side.cpu)),
        "chunks_per_s": chunks,
        "actions_per_s": chunks * side.ready["shape"][0],
        "memory_gib": side.last["VmRSS"],
        "peak_gib": side.last["VmHWM"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--tokenizer", default="compact", help="for the full presets, a folder with Qwen2.5's")
    parser.add_argument("--checkpoint", type=Path, help="a trained network instead of random weights")
    parser.add_argument("--torch", type=Path, help="its export")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument(
        "--separate", action="store_true", help="one after the other, where memory does not hold both at a time"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.folder, arguments.dtypes[0], arguments.warm_up)
        return
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.checkpoint:
            folders, seconds = {"jax": arguments.checkpoint, "torch": arguments.torch}, None
        else:
            run, export, seconds = random_network(arguments.preset, arguments.tokenizer, Path(temporary))
            folders = {"jax": run, "torch": export}
        results = {
            d: measure(folders, d, arguments.repeats, arguments.warm_up, arguments.separate) for d in arguments.dtypes
        }
    if arguments.json:
        print(json.dumps({"export_s": seconds, "load": os.getloadavg(), **results}))
        return
    if seconds is not None:
        print(f"export without check: {seconds:.0f} s; load average {os.getloadavg()[0]:.1f}")
    print("dtype     side   p50 ms  p95 ms  cpu ms  chunks/s  actions/s  GiB  peak GiB  start s  device")
    for dtype, rows in results.items():
        for side, r in rows.items():
            speed = f"{r['p50_ms']:7.1f} {r['p95_ms']:7.1f} {r['cpu_ms']:7.1f}"
            speed += f" {r['chunks_per_s']:9.2f} {r['actions_per_s']:10.1f}"
            size = f"{r['memory_gib']:4.1f} {r['peak_gib']:9.1f} {r['start_s']:8.1f}"
            print(f"{dtype:9} {side:5} {speed} {size}  {r['device']}")


if __name__ == "__main__":
    main()
