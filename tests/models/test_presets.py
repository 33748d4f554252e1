"""The presets: what tells them apart. Their sizes are held by ``test_parameter_table.py``."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax.config import ActionHeadConfig
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.config import validate
from pokevla_jax.models import parameter_table
from pokevla_jax.models import presets

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_baselines_have_every_quirk_of_the_released_code_and_pokevla_none():
    pokevla = presets.pokevla()
    for block, preset in {"original": presets.vla_adapter(), "pro": presets.vla_adapter_pro()}.items():
        assert preset.action_head == ActionHeadConfig(
            block=block,
            context="layerwise",
            inject_seg=False,
            latents="projected",
            rotary="vla_adapter",
            shifted_context=True,
        )
        assert (preset.seg_token, preset.vision_position) == (False, "after_first_token")
        assert preset.segmentation.weight == preset.geometry.weight == preset.keypoint.weight == 0
        assert preset.language == pokevla.language
        statistics = preset.vision.dinov2.image_mean, preset.vision.dinov2.image_std
        assert statistics == tuple(tuple(np.float32(x).astype(jnp.bfloat16) for x in xs) for xs in IMAGENET)
        assert dataclasses.replace(preset.vision, dinov2=pokevla.vision.dinov2) == pokevla.vision
    assert (pokevla.seg_token, pokevla.vision_position) == (True, "first")
    assert pokevla.action_head == ActionHeadConfig(
        block="pro", context="last", latents="learned", rotary="half_split", shifted_context=False
    )
    assert (pokevla.vision.dinov2.image_mean, pokevla.vision.dinov2.image_std) == IMAGENET


def test_the_huge_sam_encoder_is_sams():
    preset = presets.pokevla()
    huge = dataclasses.replace(preset, segmentation=dataclasses.replace(preset.segmentation, sam_variant="vit_h"))
    rows = {row.part: row for row in parameter_table.rows(huge)}
    assert rows["image encoder"].total == 637_026_048


def test_tiny_is_tiny():
    assert 1e6 < sum(row.total for row in parameter_table.rows(presets.tiny())) < 3e6


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_presets_are_valid_and_known_by_name(name):
    config = presets.get_preset(name)
    assert config.preset == name
    validate(Config(model=config))


def test_an_unknown_preset_names_its_neighbour():
    with pytest.raises(ConfigError, match="Unknown preset 'tinny'; did you mean 'tiny'"):
        presets.get_preset("tinny")
