"""VGGT's aggregator and Spatial Forcing's targets and projector, their own code beside ours. Run by hand.

    git clone https://github.com/OpenHelix-Team/Spatial-Forcing
    python -m tests.benchmarks.public_vggt Spatial-Forcing

The same random weights, which reach ours through the importer, at full width and a few blocks deep. Prints the largest
errors in units of the RMS. Read are ``vggt/models/aggregator.py``, ``prismatic/util/pooling_utils.py`` and
``prismatic/models/projectors.py`` of its folder ``openvla-SF``.
"""

import argparse
import dataclasses
import importlib
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from pokevla_jax.models import presets
from pokevla_jax.models.geometry import AlignProjector
from pokevla_jax.models.resize import resize
from pokevla_jax.models.vggt import Aggregator
from pokevla_jax.models.vggt import teacher_features
from tests.benchmarks.public_code import bare
from tests.benchmarks.public_code import imported
from tests.benchmarks.public_code import randomise_vit
from tests.benchmarks.public_code import report
from tests.parity.compare import filled
from tests.parity.compare import randomise


def build(vggt, logit_gain):
    """The public network that ``vggt`` (a ``VggtConfig``) describes, under the names of a released checkpoint."""
    module = importlib.import_module("vggt.models.aggregator")
    model = torch.nn.Module()
    aggregator = model.aggregator = module.Aggregator(img_size=vggt.image_size, depth=vggt.depth)
    vit = aggregator.patch_embed
    vit.blocks = vit.blocks[: vggt.embed_depth]
    randomise(aggregator, seed=0, logit_gain=logit_gain)
    # Once more, by the names of a ViT of its own.
    randomise_vit(vit, vit.patch_embed.proj, seed=1, logit_gain=logit_gain)
    for block in [*aggregator.frame_blocks, *aggregator.global_blocks]:
        block.attn.q_norm.weight.mul_(2)  # Normed queries have unit variance; twice that makes attention choose.
    return model.eval()


def theirs(model, projector, images, vision, config, dtype):
    """Tokens of the last pair, the targets made of them, and projected vision states, computed in ``dtype``."""
    pooling = importlib.import_module("prismatic.util.pooling_utils")
    size, (b, v) = config.geometry.vggt.image_size, images.shape[:2]
    x = (torch.tensor(images).to(dtype) / 255).permute(0, 1, 4, 2, 3).flatten(0, 1)
    # As ``vggt.utils.load_fn.preprocess_normed_images`` enlarges square images.
    x = torch.nn.functional.interpolate(x, (size, size), mode="bicubic", align_corners=False).unflatten(0, (b, v))
    outputs, start = model.to(dtype).aggregator(x)
    vision = torch.tensor(vision, dtype=dtype)
    grid = (config.geometry.vggt.grid,) * 2
    places = config.geometry.position_embedding
    targets = pooling.custom_pooling(outputs[-1][:, :, start:], grid, (size, size), vision, "bilinear", places)
    projected = projector.to(dtype).align_dimension(vision)
    return {"tokens": outputs[-1], "targets": targets, "projected vision states": projected}


def ours(params, images, vision, config):
    geometry = config.geometry
    aggregator = filled(Aggregator(geometry.vggt), params["vggt"])
    x = resize(images.astype(jnp.float32) / 255, (geometry.vggt.image_size,) * 2, "bicubic")
    return {
        "tokens": aggregator(x, dtype=jnp.float32),
        "targets": teacher_features(aggregator, images, geometry, grid=config.vision.grid, dtype=jnp.float32),
        "projected vision states": filled(AlignProjector(config), params["align_projector"])(vision),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a copy of the Spatial-Forcing repository")
    parser.add_argument("--image-size", type=int, default=518, help="pixels along a side of what VGGT sees")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the ViT, and pairs behind it; 24 are released")
    parser.add_argument("--logit-gain", type=float, default=1.5, help="how much larger query and key weights are drawn")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    # Of einops, which this project does without, the pooling imports a function and calls none.
    sys.modules.setdefault("einops", types.SimpleNamespace(rearrange=None))
    bare(arguments.checkout / "openvla-SF", "vggt", "prismatic", "prismatic.util", "prismatic.models")
    config = presets.get_preset("pokevla")
    depth = arguments.depth
    vggt = dataclasses.replace(config.geometry.vggt, image_size=arguments.image_size, depth=depth, embed_depth=depth)
    geometry = dataclasses.replace(config.geometry, teacher="vggt", source="inside", vggt=vggt)
    config = dataclasses.replace(config, geometry=geometry, dtype="float32")
    width = config.language.width
    model = build(vggt, arguments.logit_gain)
    projector = importlib.import_module("prismatic.models.projectors").AlignProjector(
        width, vggt.width, use_vlm_norm=True
    )
    randomise(projector)
    params = imported(model, config) | imported(projector, config)

    rng = np.random.default_rng(0)
    side = config.vision.image_size
    images = rng.integers(0, 256, (1, len(config.views), side, side, 3), dtype=np.uint8)
    vision = rng.normal(size=(1, config.num_vision_tokens, width)).astype(np.float32)
    result = jax.jit(lambda *inputs: ours(*inputs, config))(params, images, vision)
    public = theirs(model, projector, images, vision, config, torch.float32)
    report(result, public, theirs(model, projector, images, vision, config, torch.float64))


if __name__ == "__main__":
    main()
