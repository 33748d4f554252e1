"""The presets' sizes, counted from shapes alone."""

import dataclasses
import math

import jax
import pytest

from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.config import validate
from pokevla_jax.models import presets
from pokevla_jax.models import stacking


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def full():
    return stacking.abstract_params(presets.pokevla())


def test_the_language_model_and_the_projector_are_the_published_ones(full):
    assert count(full["language"]) == 494_032_768
    assert count(full["vision"]["projector"]) == 27_552_000


def test_the_towers_are_timms_without_what_no_policy_reads(full):
    block, norm = 12_598_272, 2 * 1024
    assert count(full["vision"]["dinov2"]) == 303_230_976 - block - norm
    block, norm, attention_pool = 15_239_504, 2 * 1152, 15_238_352
    assert count(full["vision"]["siglip"]) == 427_680_704 - block - norm - attention_pool


def test_the_mask_branch_is_sams(full):
    segmentation = full["segmentation"]
    assert count(segmentation["coarse_decoder"]) == count(segmentation["fine_decoder"]) == 4_058_340
    assert count(segmentation["image_encoder"]) == 89_670_912
    assert count(segmentation["seg_projection"]) == 1_033_344
    # SAM's prompt encoder without its point and box embeddings (5), its "no mask" embedding counted in the first copy.
    prompts = count(segmentation["fine_prompt"]) + count(segmentation["coarse_prompt"]["no_mask_embed"])
    assert prompts == 6_220 - 5 * 256 + 256
    preset = presets.pokevla()
    huge = dataclasses.replace(preset, segmentation=dataclasses.replace(preset.segmentation, sam_variant="vit_h"))
    assert count(stacking.abstract_params(huge)["segmentation"]["image_encoder"]) == 637_026_048


@pytest.mark.parametrize(("block", "published"), [("pro", 179_286_047), ("original", 102_129_695)])
def test_the_action_head_is_vla_adapters(block, published):
    preset = presets.pokevla()
    config = dataclasses.replace(
        preset, action_head=dataclasses.replace(preset.action_head, block=block, inject_seg=False)
    )
    head = stacking.abstract_params(config)["action_head"]
    # Kept apart in the reference (proprio), and the constant start that stands for its input layer (latents).
    ours = count(head) - count(head["proprio"]) - count(head["latents"])
    input_layer = 2 * 6272 + 6272 * 896 + 896
    assert ours == published - input_layer
    assert count(head["proprio"]) == 811_776


def test_the_align_projector_is_spatial_forcings(full):
    assert count(full["align_projector"]) == 6_035_200


def test_tiny_is_tiny():
    assert 1e6 < count(stacking.abstract_params(presets.tiny())) < 3e6


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_presets_are_valid_and_known_by_name(name):
    config = presets.get_preset(name)
    assert config.preset == name
    validate(Config(model=config))


def test_an_unknown_preset_names_its_neighbour():
    with pytest.raises(ConfigError, match="Unknown preset 'tinny'; did you mean 'tiny'"):
        presets.get_preset("tinny")
