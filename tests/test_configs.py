"""Every experiment in configs/ can be read, and says what it states about itself."""

from pathlib import Path

import pytest

from pokevla_jax.cli.flags import load_config
from pokevla_jax.config import Config

FOLDER = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "common.py")


def load(name: str, *overrides: str) -> Config:
    return load_config(str(FOLDER / name), overrides)


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_is_valid_and_states_its_command(name):
    config = load(name)
    text = (FOLDER / name).read_text()
    for word in ("Hardware", "Expected", f"--config=configs/{name}"):
        assert word in text, word
    assert config.num_steps > config.optimizer.warmup_steps >= 0


def test_pretraining_shows_the_corpus_twice():
    paper, pod = load("pretrain_pokevlm.py"), load("pretrain_pokevlm_pod.py")
    for config in (paper, pod):
        conversations = config.num_steps * config.batch_size * 4
        assert abs(conversations / (2 * 2_423_000) - 1) < 2e-3
        assert config.stage == "vlm"
    assert paper.batch_size * 4 == 128
    assert paper.optimizer.learning_rate == 2e-5
    assert pod.optimizer.learning_rate == pytest.approx(2e-5 * 32**0.5)


def test_posttraining_shows_the_papers_number_of_samples():
    paper, full, pod = (load(f"posttrain_pokevla{kind}.py") for kind in ("", "_full", "_pod"))
    for config in (paper, full, pod):
        assert abs(config.num_steps * config.batch_size / (150_000 * 64) - 1) < 1e-3
        assert config.optimizer.warmup_steps == config.num_steps // 10
    assert paper.optimizer.lora_rank == 64
    assert (full.optimizer.lora_rank, full.optimizer.freeze) == (0, ())
    assert pod.optimizer.learning_rate == pytest.approx(1e-4 * 32**0.5)


def test_component_ablations_differ_in_their_component_alone():
    none, seg, geo, everything = (
        load(name)
        for name in ("ablation_none.py", "ablation_segmentation.py", "ablation_geometry.py", "libero_plus_finetune.py")
    )
    parts = [(c.model.segmentation.weight, c.model.action_head.inject_seg, c.model.geometry.weight)
             for c in (none, seg, geo, everything)]  # fmt: skip
    assert parts == [(0.0, False, 0.0), (0.2, True, 0.0), (0.0, False, 0.4), (0.2, True, 0.4)]
    assert load("ablation_pretraining.py") == none
    assert {c.optimizer for c in (none, seg, geo)} == {everything.optimizer}
