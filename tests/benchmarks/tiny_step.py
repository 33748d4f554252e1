"""Times the parts of a preset, forward and forward + backward: ``python tests/benchmarks/tiny_step.py --threads 1 2``.

Each number of threads runs in a process of its own, pinned to that many cores before JAX starts. Times are medians;
the CPU column is process time, which another job on the machine disturbs less than the clock.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

REPEATS = 7


def parts(config, params, batch):
    """Name -> (function of the part's parameters and inputs, parameters, inputs)."""
    import jax
    import jax.numpy as jnp

    from pokevla_jax.models import attention
    from pokevla_jax.models import stacking

    b = batch["images"].shape[0]
    width, n = config.language.width, config.num_vision_tokens
    length = n + config.max_prompt_length + 1 + config.action_head.num_queries
    valid = jnp.ones((b, length), bool)
    sequence = jax.random.normal(jax.random.key(1), (b, length, width))
    vision, seg, queries = sequence[:, :n], sequence[:, n], sequence[:, -config.action_head.num_queries :]
    if config.action_head.context == "layerwise":
        layers = config.action_head.num_layers
        vision, seg, queries = (jnp.stack([x] * layers) for x in (vision, seg, queries))

    def model(params):
        return stacking.bind(config, params)

    def language(params, x):
        positions, segments = attention.positions(valid), valid.astype(jnp.int32)
        return model(params).language(x, positions, segments, remat=config.remat)[0]

    return {
        "vision": (lambda p, x: model(p).vision(x), (batch["images"],)),
        "language": (language, (sequence,)),
        "segmentation": (lambda p, x: model(p).segment(x, batch), (sequence[:, n],)),
        "action_head": (lambda p, *x: model(p).action_head(*x, batch["proprio"]), (vision, seg, queries)),
        "everything": (lambda p, x: model(p)(x, train=True), (batch,)),
    }


def measure(function, *arguments):
    """Median wall and process seconds of a compiled function, and its compile seconds."""
    import jax

    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*arguments))
    walls, cpus = [], []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus), compile_seconds


def run(preset: str, batch_size: int, only: list[str]) -> None:
    """Prints one table."""
    import jax
    import jax.numpy as jnp

    from pokevla_jax.config import Config
    from pokevla_jax.data.schema import fake_batch
    from pokevla_jax.models import presets
    from pokevla_jax.models import stacking

    config = presets.get_preset(preset)
    params = stacking.initialize(config, jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, fake_batch(Config(model=config), batch_size))
    for name, (function, inputs) in parts(config, params, batch).items():
        if only and name not in only:
            continue

        def loss(params, inputs, function=function):
            return sum(jnp.square(x).mean() for x in jax.tree.leaves(function(params, *inputs)))

        # Inputs that are floats come from another part, which needs their gradient.
        floats = all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(inputs))
        gradient = jax.grad(loss, argnums=(0, 1) if floats else 0)
        for label, f in {"forward": loss, "forward+backward": gradient}.items():
            wall, cpu, compile_seconds = measure(f, params, inputs)
            print(
                f"{os.cpu_count()} cores, {len(os.sched_getaffinity(0))} used, batch {batch_size:3d}  {name:13s} "
                f"{label:17s} {1e3 * wall:8.1f} ms  cpu {1e3 * cpu:8.1f} ms  {batch_size / wall:7.1f} samples/s  "
                f"compile {compile_seconds:5.1f} s",
                flush=True,
            )


def main() -> None:
    """Parses the command line; starts one pinned process per number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--pinned", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.pinned:
        for threads in args.threads:
            subprocess.run([sys.executable, *sys.argv, "--pinned", "--threads", str(threads)], check=True)
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads[0]])
    for batch_size in args.batch:
        run(args.preset, batch_size, args.only)


if __name__ == "__main__":
    main()
