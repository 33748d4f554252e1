"""Predicts SAM's image encoder, which runs beside the policy in training: ``python tests/benchmarks/plan_sam.py``.

Compiles its forward pass alone for a few chips over which its weights are cut, and prints what ``pokevla-plan`` would
say of it: a fraction of the whole step's compile time.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pokevla_jax.plan import topologies
from tests.benchmarks.plan_block import add_arguments
from tests.benchmarks.plan_block import compile_and_price


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--rows", type=int, default=8, help="samples, of two pictures each, on each chip")
    arguments = parser.parse_args()
    topologies.require_compiler()

    import jax
    import jax.numpy as jnp

    from pokevla_jax import flops
    from pokevla_jax import sharding
    from pokevla_jax.config import MeshConfig
    from pokevla_jax.models import presets
    from pokevla_jax.models import stacking
    from pokevla_jax.models.image_encoders import SamEncoder
    from pokevla_jax.plan import report

    topology = topologies.parse(arguments.topology)
    model = dataclasses.replace(presets.pokevla(), attention=arguments.attention)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1), topology.devices())
    encoder, size = SamEncoder(model), model.vision.image_size
    shapes = stacking.shapes(encoder)
    placed = sharding.param_shardings(shapes, stacking.axes(encoder), mesh)
    # Frozen: matrices in bfloat16, as ``optimizer.frozen_dtype`` keeps them.
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16 if x.ndim > 1 else x.dtype, sharding=s), shapes, placed
    )
    pictures = 2 * arguments.rows
    images = jax.ShapeDtypeStruct(
        (pictures * topology.num_chips, size, size, 3), jnp.uint8, sharding=sharding.batch_sharding(mesh)
    )
    with jax.set_mesh(mesh):
        lowered = jax.jit(lambda params, x: stacking.fill(encoder, params)(x)).lower(params, images)
        tally, temporary = compile_and_price(lowered, mesh, topology)
    peak = pictures * flops._sam_encoder(model).forward / topology.chip.peak_flops
    milliseconds = {name: 1e3 * getattr(tally, name) for name in ("compute", "kernels", "exposed")}
    print(", ".join(f"{name} {value:.1f} ms" for name, value in milliseconds.items()))
    print(f"the peak would take {1e3 * peak:.1f} ms")
    print(f"temporary memory {temporary:.2f} GiB")
    print(*report.top_sources(tally, arguments.top), sep="\n")


if __name__ == "__main__":
    main()
