"""The search for the largest batch, on a memory model instead of a compiler."""

import pytest

from pokevla_jax.config import Config
from pokevla_jax.models import presets
from pokevla_jax.plan import search
from pokevla_jax.plan import topologies

V5E = topologies.parse("v5e:4x4")
CONFIG = Config(model=presets.tiny())
# GiB per sample, and time relative to "none".
REMATS = {"none": (4.0, 1.0), "dots": (1.0, 1.1), "layers": (0.4, 1.3), "full": (0.1, 1.32)}


def fake_plan(config, calls):
    per_chip = config.batch_size // V5E.num_chips
    gib, slowdown = REMATS[config.model.remat]
    total = 1.0 + per_chip * gib
    calls.append((config.model.remat, per_chip))
    fits = total <= 15.75
    seconds = slowdown * (0.1 + 0.01 * per_chip)
    return {
        "fits": fits,
        "hbm_gib": {"total": total},
        "predicted_step_ms": 1e3 * seconds if fits else None,
        "predicted_mfu": 0.5 if fits else None,
        "calibrated_mfu": None,
        "samples_per_second": config.batch_size / seconds if fits else None,
    }


def test_finds_the_largest_batch_of_every_level_and_puts_the_fastest_first():
    calls, said = [], []
    found = search.search(CONFIG, V5E, lambda config: fake_plan(config, calls), said.append)
    batches = {c.remat: c.per_chip_batch for c in found}
    assert batches["none"] == 3
    assert batches["dots"] == 14
    # Within an eighth of the largest: 36 and 147.
    assert 32 <= batches["layers"] <= 36
    assert 130 <= batches["full"] <= 147
    assert found[0].remat == "full"
    assert len(calls) == len(set(calls)) == len(said) < 40
    assert "14" in search.as_text(found)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 63, 100])
@pytest.mark.parametrize("start", [1, 4, 64])
def test_bisection(most, start):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= most

    found = search.largest(fits, start=start, limit=100)
    assert found <= most
    assert found >= most - max(1, most // 8)
    assert max(tried) <= 100


def test_the_batch_is_a_multiple_of_what_accumulation_needs():
    assert search.largest(lambda batch: batch <= 50, unit=8, start=8) == 48


def test_results_are_kept_until_the_configuration_changes(tmp_path):
    calls = []
    plan = search.cached(lambda config: fake_plan(config, calls), V5E, tmp_path)
    small, large = (search.with_batch(CONFIG, V5E, batch, "dots") for batch in (1, 2))
    assert plan(small) == plan(small)
    assert plan(large) != plan(small)
    assert len(calls) == 2
    search.cached(lambda config: fake_plan(config, calls), topologies.parse("v5e:2x4"), tmp_path)(small)
    assert len(calls) == 3
