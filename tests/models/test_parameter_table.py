"""The parameter table holds the counts of the public networks."""

import dataclasses

import pytest

from pokevla_jax.models import parameter_table
from pokevla_jax.models import presets


def rows(config):
    return {row.part: row for row in parameter_table.rows(config)}


@pytest.fixture(scope="module")
def full():
    return rows(presets.pokevla())


@pytest.mark.parametrize(
    ("part", "published"),
    [
        ("DINOv2", 303_230_976),
        ("SigLIP", 427_680_704),
        ("projector", 27_552_000),
        ("language model", 494_032_768),
        ("action queries", 64 * 896),
        ("seg token", 896),
        ("proprio projector", 811_776),
        ("coarse mask decoder", 4_058_340),
        ("fine mask decoder", 4_058_340),
        ("image encoder", 89_670_912),
        ("<SEG> projection", 1_033_344),
        ("align projector", 6_035_200),
        ("VGGT aggregator", 909_112_320),
    ],
)
def test_a_part_has_the_published_number_of_parameters(full, part, published):
    assert full[part].total == published


def test_both_prompt_encoders_are_sams_once_what_each_leaves_out_is_counted(full):
    # The published count leaves the random matrix of the positions out: a buffer there.
    for part in ("coarse prompt encoder", "fine prompt encoder"):
        assert full[part].total == 6_220 + 2 * 128
        assert full[part].carried >= 5 * 256


def test_the_towers_carry_what_stands_behind_their_feature_block(full):
    assert full["DINOv2"].carried == 12_598_272 + 2 * 1024
    assert full["SigLIP"].carried == 15_239_504 + 2 * 1152 + 15_238_352


def test_the_released_heads(full):
    original, pro = (rows(preset())["action head"] for preset in (presets.vla_adapter, presets.vla_adapter_pro))
    assert (original.forward, original.carried) == (102_129_695, 0)
    assert pro.total == 217_864_223
    assert pro.forward == 179_286_047
    assert full["action head"].carried == 0


def test_a_teacher_read_early_is_built_that_far_and_still_counted_whole(full):
    config = presets.pokevla()
    early = rows(dataclasses.replace(config, geometry=dataclasses.replace(config.geometry, layer=11)))
    assert full["VGGT aggregator"].carried == 1024
    assert early["VGGT aggregator"].training < 0.7 * full["VGGT aggregator"].training
    assert early["VGGT aggregator"].total == 909_112_320


def test_auxiliary_parts_are_training_only_and_absent_without_weight(full):
    parts = {name for name, row in full.items() if row.training}
    assert parts >= {"image encoder", "coarse mask decoder", "fine mask decoder", "align projector"}
    assert all(full[name].forward == 0 for name in parts)
    baseline = rows(presets.vla_adapter())
    assert not parts & set(baseline)
    assert "seg token" not in baseline
    # Deleting a part's weight changes no other row.
    config = dataclasses.replace(presets.pokevla(), segmentation=baseline_segmentation())
    assert {name: row for name, row in full.items() if name in rows(config)} == rows(config)


def baseline_segmentation():
    return presets.vla_adapter().segmentation


def test_the_table_says_which_sum_is_the_papers():
    text = parameter_table.table(presets.pokevla())
    lines = text.splitlines()
    assert lines[0].split() == ["part", "forward", "training", "only", "carried", "total"]
    assert len({len(line) for line in lines[: lines.index("")]}) == 1  # columns line up
    assert "1,224,944,448: the paper's 1.22 B." in text
    numbers = [[int(x.replace(",", "")) for x in line.split()[-4:]] for line in lines[1 : lines.index("")]]
    assert [sum(column) for column in zip(*numbers[:-1], strict=True)] == numbers[-1]
    assert "the paper's" not in parameter_table.table(presets.tiny())


def test_a_network_trained_here_carries_nothing():
    assert not any(row.carried for row in parameter_table.rows(presets.tiny()))
