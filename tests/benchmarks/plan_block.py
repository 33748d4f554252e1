"""Predicts one block of the full-size network: ``python tests/benchmarks/plan_block.py siglip --remat dots``.

Compiles a scan over five blocks, forward and backward, for four v5e chips over which the weights are cut, and prints
what ``pokevla-plan`` would say of one: a fraction of the whole step's compile time, to compare ways to write a block.
"""

import argparse
import dataclasses
from typing import Any

from pokevla_jax.plan import topologies

NUM_BLOCKS = 5
TOKENS = {"dinov2": 261, "siglip": 256, "language": 641}


def describe(name: str, attention: str, tokens: int) -> tuple[Any, Any, int, Any]:
    """A stack of blocks, the step of its scan, the width, and the forward FLOPs of one block and one row."""
    import jax.numpy as jnp

    from pokevla_jax import flops
    from pokevla_jax.models import language
    from pokevla_jax.models import presets
    from pokevla_jax.models import stacking
    from pokevla_jax.models import vision
    from pokevla_jax.models.layers import rotary_table

    model = presets.pokevla()
    if name == "language":
        config = dataclasses.replace(model.language, num_layers=1)

        def step(layer, x, _):
            segments = jnp.ones(x.shape[:2], jnp.int32)
            table = rotary_table(jnp.cumsum(segments, -1) - 1, config.head_dim, config.rope_theta)
            return layer(x, table, segments)[0]

        stack = stacking.stack(lambda: language.DecoderLayer(config, attention), NUM_BLOCKS)
        return stack, step, config.width, flops._language(dataclasses.replace(model, language=config), tokens)
    tower = getattr(model.vision, name)
    stack = stacking.stack(lambda: vision.Block(tower, attention), NUM_BLOCKS)
    counted = flops._attention_block(tokens, tower.width, tower.mlp_dim)
    return stack, lambda layer, x, _: layer(x), tower.width, counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("block", choices=sorted(TOKENS))
    add_arguments(parser)
    parser.add_argument("--remat", default="dots", choices=("none", "dots", "layers", "full"))
    parser.add_argument("--tokens", type=int, help="of each (default: as in stage 2)")
    parser.add_argument("--rows", type=int, default=16, help="pictures, or sequences, on each chip")
    arguments = parser.parse_args()
    topologies.require_compiler()

    import jax
    import jax.numpy as jnp

    from pokevla_jax import sharding
    from pokevla_jax.config import MeshConfig
    from pokevla_jax.models import stacking
    from pokevla_jax.plan import report

    topology = topologies.parse(arguments.topology)
    tokens = arguments.tokens or TOKENS[arguments.block]
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1), topology.devices())
    stack, step, width, counted = describe(arguments.block, arguments.attention, tokens)

    shapes = stacking.shapes(stack)
    placed = sharding.param_shardings(shapes, stacking.axes(stack), mesh)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)
    rows = sharding.batch_sharding(mesh)
    shape = (arguments.rows * topology.num_chips, tokens, width)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=rows)

    def gradients(params, x, weights):
        def loss(params, x):
            y, _ = stacking.scan(stacking.fill(stack, params), x, step=step, remat=arguments.remat)
            return jnp.sum(y.astype(jnp.float32) * weights.astype(jnp.float32))

        by_params, by_x = jax.grad(loss, argnums=(0, 1))(params, x)
        return jax.lax.with_sharding_constraint(by_params, placed), by_x

    with jax.set_mesh(mesh):
        lowered = jax.jit(gradients, out_shardings=(placed, rows)).lower(params, x, x)
        tally, temporary = compile_and_price(lowered, mesh, topology)
    peak = 3 * arguments.rows * counted.forward / topology.chip.peak_flops
    milliseconds = {name: 1e3 * getattr(tally, name) / NUM_BLOCKS for name in ("compute", "kernels", "exposed")}
    print(", ".join(f"{name} {value:.3f} ms" for name, value in milliseconds.items()), "a block")
    print(f"the peak would take {1e3 * peak:.3f} ms: MFU of the compute {1e3 * peak / milliseconds['compute']:.1%}")
    print(f"temporary memory {temporary:.2f} GiB for {NUM_BLOCKS} blocks")
    print(*report.top_sources(tally, arguments.top), sep="\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is compiled for, and how much of it is listed."""
    parser.add_argument("--attention", default="splash", choices=("xla", "splash", "blockwise"))
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--top", type=int, default=30, help="how many source operations to list")


def compile_and_price(lowered: Any, mesh: Any, topology: topologies.Topology) -> tuple[Any, float]:
    """The ``cost.Tally`` of a lowered program, and its temporary memory in GiB; inside of ``jax.set_mesh(mesh)``."""
    from pokevla_jax.plan import compile as compiling
    from pokevla_jax.plan import cost
    from pokevla_jax.plan import hlo
    from pokevla_jax.training.step import compiler_options

    compiled = lowered.compile(compiler_options=compiler_options(mesh))
    tally = cost.analyze(hlo.parse(compiled.as_text()), topology, compiling.device_coordinates(mesh))
    return tally, compiled.memory_analysis().temp_size_in_bytes / 2**30


if __name__ == "__main__":
    main()
