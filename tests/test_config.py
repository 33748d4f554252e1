"""Typed configuration: round trip, types, neighbours of unknown keys, rules across fields."""

import dataclasses
import json
import math

import ml_collections
import pytest

from pokevla_jax import config as config_lib
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.models import presets


def values(**changes) -> dict:
    """The tiny experiment as plain JSON, with dotted keys replaced."""
    result = config_lib.to_dict(Config(model=presets.tiny()))
    for key, value in changes.items():
        *groups, last = key.split("__")
        group = result
        for name in groups:
            group = group[name]
        group[last] = value
    return result


@pytest.mark.parametrize("preset", presets.PRESETS.values())
def test_round_trip_through_json(preset):
    config = Config(model=preset(), batch_size=48, seed=3)
    assert config_lib.from_dict(Config, json.loads(json.dumps(config_lib.to_dict(config)))) == config


def test_round_trip_through_config_dict():
    config = Config(model=presets.tiny())
    assert config_lib.from_config_dict(ml_collections.ConfigDict(dataclasses.asdict(config))) == config


def test_configurations_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(model=presets.tiny()).batch_size = 3


def test_defaults_fill_what_is_left_out():
    config = config_lib.from_dict(Config, {"model": values()["model"], "optimizer": {"b1": 0.8}})
    assert config.optimizer == config_lib.OptimizerConfig(b1=0.8)


def test_whole_numbers_widen_to_float_and_lists_become_tuples():
    config = config_lib.from_dict(Config, values(optimizer__clip_norm=1, optimizer__freeze=["vision/.*"]))
    assert isinstance(config.optimizer.clip_norm, float)
    assert config.optimizer.freeze == ("vision/.*",)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batchsize": 1}, r"Unknown configuration key config\.batchsize; did you mean config\.batch_size\?"),
        (
            {"model__language__witdh": 1},
            r"config\.model\.language\.witdh; did you mean config\.model\.language\.width\?",
        ),
        ({"qqq": 1}, r"Unknown configuration key config\.qqq; known keys: model, data"),
        ({"seed": "1"}, r"config\.seed must be int, got '1'"),
        ({"seed": True}, r"config\.seed must be int, got True"),
        ({"seed": 1.0}, r"config\.seed must be int, got 1\.0"),
        ({"data__zero_images": 1}, r"config\.data\.zero_images must be bool, got 1"),
        ({"optimizer__b1": None}, r"config\.optimizer\.b1 must be float, got None"),
        ({"optimizer": 3}, r"config\.optimizer is a group of keys, got 3"),
        ({"optimizer__freeze": "vision"}, r"config\.optimizer\.freeze must be a sequence, got 'vision'"),
        ({"model__views": ["a", 2]}, r"config\.model\.views\[1\] must be str, got 2"),
        ({"model__remat": "some"}, r"config\.model\.remat must be one of 'none', 'dots', 'layers', 'full', got 'some'"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(change, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        config_lib.from_dict(Config, values(**change))
    assert "\n" not in str(error.value)


def test_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"Missing configuration key config\.model"):
        config_lib.from_dict(Config, {})


def test_what_is_no_group_of_keys_is_refused():
    with pytest.raises(ConfigError, match="config is a group of keys, got None"):
        config_lib.from_config_dict(None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model__vision__image_size": 100}, r"image_size 100 is not a multiple of patch_size 16; nearest: 96"),
        (
            {"model__action_head__context": "layerwise", "model__action_head__num_layers": 1},
            r"'layerwise' needs as many head blocks as language layers: 1 and \d",
        ),
        (
            {"model__action_head__shifted_context": True},
            r"position before the first patch, .* set config\.model\.vision_position to 'after_first_token'",
        ),
        (
            {"model__seg_token": False},
            r"config\.model\.action_head\.inject_seg True reads the state of <SEG>, .* switch action_head\.inject_seg",
        ),
        ({"batch_size": 0}, r"config\.batch_size is 0; give a number of 1 or more"),
        ({"log_every": 0}, r"config\.log_every is 0; give a number of 1 or more"),
        ({"data__num_workers": -1}, r"config\.data\.num_workers is -1; give a number of 0 or more"),
        ({"data__holdout_fraction": 1.5}, r"config\.data\.holdout_fraction is 1\.5; give a number of 0 to 1"),
        ({"optimizer__learning_rate": math.nan}, r"config\.optimizer\.learning_rate is nan; give a number of 0"),
        ({"batch_size": 10, "optimizer__accumulation_steps": 4}, r"batch_size 10 is not divisible by .* 4"),
        ({"mesh__data": -1, "mesh__fsdp": -1}, r"config\.mesh may leave only one axis to fill"),
    ],
)
def test_contradictions_are_refused_with_what_to_change(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        config_lib.from_config_dict(values(**change))


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_are_valid(name):
    config_lib.validate(Config(model=presets.get_preset(name)))
