"""Stage 1 from a corpus on disk: what the loop gets, and a run that learns and resumes."""

import dataclasses
import logging

import numpy as np
import pytest

from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.config import DataConfig
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.data import tokenize
from pokevla_jax.training import loop
from pokevla_jax.training import stages
from pokevla_jax.training.metrics import read_metrics
from tests.data import corpora
from tests.models.conftest import micro_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = corpora.write(tmp_path_factory.mktemp("corpus"))
    micro = micro_config()
    model = dataclasses.replace(micro, language=dataclasses.replace(micro.language, vocab_size=1200), logits_chunk=64)
    return Config(
        model=model,
        stage="vlm",
        data=DataConfig(path=str(folder), pack_length=96, pack_images=6),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        batch_size=8,
        num_steps=8,
        log_every=2,
        eval_every=4,
    )


def test_data_is_what_the_specification_says(config):
    data = stages.make_data(config)
    iterator = data.iterate(2)
    batch = next(iterator)
    iterator.close()
    assert {key: (x.shape, x.dtype) for key, x in batch.items()} == {key: tuple(s) for key, s in data.spec.items()}
    assert sum(int(b["loss_mask"].sum()) for b in data.holdout()) > 0
    assert "54 conversations an epoch" in data.description
    assert "% padding" in data.description
    # The checkpoint's tokenizer reads what was trained on.
    tokenizer = tokenize.from_json(data.assets["tokenizer"])
    row = batch["tokens"][0][batch["segment_ids"][0] == 1]
    text = tokenizer.decode([t for t in row if t != tokenizer.pad_id])
    assert text.startswith("question")
    assert "<unk>" not in text


def test_no_corpus_is_a_sentence(config):
    with pytest.raises(ConfigError, match=r"config\.data\.path is empty"):
        stages.make_data(dataclasses.replace(config, data=DataConfig()))


@pytest.mark.slow
def test_it_learns_from_disk(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    loop.train(config, tmp_path / "run", stages.make_objective(config), stages.make_data(config))
    lines = read_metrics(tmp_path / "run")
    losses = [line["loss/tokens"] for line in lines if line["split"] == "train"]
    held = [line["token_loss"] for line in lines if line["split"] != "train"]
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]
    assert held
    assert np.isfinite(held[-1])
