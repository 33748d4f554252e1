"""SAM ViT-B as segment-anything builds it, beside ours with the same random weights. Run by hand.

    git clone https://github.com/facebookresearch/segment-anything
    python -m tests.benchmarks.public_sam segment-anything

The weights reach ours through the importer: image encoder, prompt encoder and mask decoder, the last two once coarse
and once fine. From images, each side goes on with what it made itself. Prints the largest errors in units of the RMS.
The public model is always that of 1024 pixels; at a smaller grid it interpolates its relative positions, as the
importer does with ours. Its position embeddings, which it cannot interpolate, PyTorch does.
"""

import argparse
import dataclasses
import importlib
from pathlib import Path

import jax
import numpy as np
import torch

from pokevla_jax.models import presets
from pokevla_jax.models.image_encoders import SamEncoder
from pokevla_jax.models.mask_decoder import MaskDecoder
from pokevla_jax.models.mask_decoder import PromptEncoder
from tests.benchmarks.public_code import bare
from tests.benchmarks.public_code import imported
from tests.benchmarks.public_code import randomise_vit
from tests.benchmarks.public_code import report
from tests.parity.compare import filled


def build(checkout, logit_gain):
    """The public model at its size, with random weights."""
    bare(checkout, "segment_anything")
    torch.manual_seed(0)  # of the position features, which are no parameter
    model = importlib.import_module("segment_anything.build_sam").build_sam_vit_b()
    randomise_vit(model, model.image_encoder.patch_embed.proj, seed=0, logit_gain=logit_gain)
    # Places in proportion to the content they are added to.
    model.image_encoder.pos_embed.copy_(torch.randn(model.image_encoder.pos_embed.shape))
    for block in model.image_encoder.blocks:
        block.attn.rel_pos_h.mul_(2)
        block.attn.rel_pos_w.mul_(2)
    return model


def shrink(model, grid):
    """Prepares the public model for images of ``grid`` patches a side."""
    encoder = model.image_encoder
    positions = torch.nn.functional.interpolate(
        encoder.pos_embed.permute(0, 3, 1, 2), (grid, grid), mode="bicubic", antialias=True
    )
    encoder.pos_embed = torch.nn.Parameter(positions.permute(0, 2, 3, 1))
    encoder.img_size, model.prompt_encoder.image_embedding_size = 16 * grid, (grid, grid)


def theirs(model, images, embedding, places):
    """The public code's outputs in the model's dtype; one image at a time to the decoder, as ``Sam.forward`` does."""
    dtype = model.pixel_mean.dtype
    features = model.image_encoder(model.preprocess(torch.tensor(images).permute(0, 3, 1, 2).to(dtype)))

    def decode(feature, token, masks):
        _, dense = model.prompt_encoder(points=None, boxes=None, masks=masks)
        return model.mask_decoder(
            image_embeddings=feature[None],
            image_pe=places.to(dtype),
            sparse_prompt_embeddings=token[None, None],
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )[0]

    tokens = torch.tensor(embedding, dtype=dtype)
    coarse = [decode(*inputs, None) for inputs in zip(features, tokens, strict=True)]
    fine = [decode(*inputs) for inputs in zip(features, tokens, coarse, strict=True)]
    return {
        "image features": features.permute(0, 2, 3, 1),
        "coarse logits": torch.cat(coarse)[:, 0],
        "fine logits": torch.cat(fine)[:, 0],
    }


def ours(params, images, embedding, config):
    seg, params = config.segmentation, params["segmentation"]
    features = filled(SamEncoder(config), params["image_encoder"])(images)
    flat = features.reshape(len(images), -1, seg.decoder_dim)
    prompts = filled(PromptEncoder(seg, mask_prompt=False), params["coarse_prompt"])
    coarse = filled(MaskDecoder(seg), params["coarse_decoder"])(prompts.add_to(flat), prompts.positions(), embedding)
    prompts = filled(PromptEncoder(seg, mask_prompt=True), params["fine_prompt"])
    decoder = filled(MaskDecoder(seg), params["fine_decoder"])
    fine = decoder(prompts.add_to(flat, coarse), prompts.positions(), embedding)
    return {
        "image features": features,
        "places": prompts.positions(),
        "coarse logits": coarse,
        "fine logits": fine,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a copy of the segment-anything repository")
    parser.add_argument("--grid", type=int, default=20, help="patches along a side; 64 are 1024 pixels")
    parser.add_argument("--logit-gain", type=float, default=1.5, help="how much larger query and key weights are drawn")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    config = presets.get_preset("pokevla")
    seg = dataclasses.replace(config.segmentation, sam_variant="vit_b", feature_grid=arguments.grid)
    config = dataclasses.replace(config, segmentation=seg, dtype="float32")
    model = build(arguments.checkout, arguments.logit_gain)
    params = imported(model, config)
    shrink(model, arguments.grid)

    rng = np.random.default_rng(0)
    side = 16 * arguments.grid
    images = rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    embedding = rng.normal(size=(2, seg.decoder_dim)).astype(np.float32)
    places = model.prompt_encoder.get_dense_pe()  # computed in float32 whatever the model is in
    public = theirs(model, images, embedding, places)
    result = jax.jit(lambda *inputs: ours(*inputs, config))(params, images, embedding)
    exact = theirs(model.double(), images, embedding, places)
    report(result, public | {"places": places[0].flatten(1).T}, exact)


if __name__ == "__main__":
    main()
