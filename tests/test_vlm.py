"""A stage-1 network as something that answers: prompts, buckets, batches, controls."""

import dataclasses
import os

import jax
import numpy as np
import pytest

from pokevla_jax.data import prompts
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.packing import build_row
from pokevla_jax.data.prompts import Bucket
from pokevla_jax.data.prompts import Conversation
from pokevla_jax.data.tokenize import CompactTokenizer
from pokevla_jax.data.tokenize import QwenTokenizer
from pokevla_jax.models import stacking
from pokevla_jax.models.generation import PROMPT
from pokevla_jax.models.pokevlm import PokeVLM
from pokevla_jax.vlm import Vlm
from tests.data import corpora
from tests.models.conftest import micro_config

TOKENIZER = CompactTokenizer.from_conversations(
    (turn for n in range(12) for turn in corpora.sample(n, images=()).turns if "0." not in turn), "{instruction}"
)


def conversation(number):
    sample = corpora.sample(number)
    return Conversation(images=sample.images, turns=sample.turns[:-1], id=sample.id)


CONVERSATIONS = [conversation(n) for n in range(12)]


@pytest.fixture(scope="module")
def vlm():
    config = dataclasses.replace(corpora.config(), model=micro_config())
    rng = np.random.default_rng(0)
    shapes = stacking.shapes(PokeVLM(config.model))
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    assert TOKENIZER.vocab_size <= config.model.language.vocab_size
    return Vlm(config, params, TOKENIZER, batch_size=4, max_new_tokens=5)


@pytest.fixture(scope="module")
def answers(vlm):
    return vlm.answer(CONVERSATIONS)


def test_prompts_are_what_training_packs_up_to_the_answer():
    config, sample = corpora.config(), corpora.sample(2)
    shape = prompts.bucket(conversation(2), TOKENIZER)
    batch = prompts.build_prompts(config, [conversation(2)], shape, TOKENIZER)
    assert set(batch) == set(PROMPT)
    trained = build_row(config, [sample], TOKENIZER)
    length = int((batch["segment_ids"] > 0).sum())
    for name in ("tokens", "image_slots", "segment_ids", "positions"):
        np.testing.assert_array_equal(batch[name][0, :length], trained[name][:length])
    np.testing.assert_array_equal(batch["images"][0], trained["images"][:2])
    # The next token is the first that training asks for.
    assert trained["loss_mask"][:length].sum() == 1 and trained["loss_mask"][length - 1]


def test_buckets_are_few_and_hold_their_conversations():
    found = prompts.batches(CONVERSATIONS, TOKENIZER, 4)
    assert sorted(i for _, indices in found for i in indices) == list(range(12))
    assert {shape for shape, _ in found} <= {Bucket(images, text) for images in range(3) for text in (16, 32)}
    assert max(len(indices) for _, indices in found) <= 4
    with pytest.raises(DataError, match="'s0001' has 2 turns; it must end with a question"):
        prompts.bucket(Conversation(images=(), turns=("question", "answer"), id="s0001"), TOKENIZER)


def test_batching_changes_no_answer(vlm, answers):
    assert len(set(answers)) > 4
    single = Vlm(vlm.config, vlm._params, TOKENIZER, batch_size=1, max_new_tokens=5)
    chosen = (0, 2, 5, 11)
    assert single.answer([CONVERSATIONS[i] for i in chosen]) == [answers[i] for i in chosen]
    assert vlm.answer(CONVERSATIONS[::-1]) == answers[::-1]


def test_controls_see_black_and_know_nothing(vlm, answers):
    black = [dataclasses.replace(c, images=tuple(corpora.jpeg((0, 0, 0)) for _ in c.images)) for c in CONVERSATIONS]
    blind = vlm.with_black_images()
    assert blind.metadata["zero_images"] and not vlm.metadata["zero_images"]
    assert blind.answer(CONVERSATIONS) == vlm.answer(black) != answers
    fresh = vlm.untrained(0)
    assert fresh.answer(CONVERSATIONS[:4]) == vlm.untrained(0).answer(CONVERSATIONS[:4]) != answers[:4]


def test_draws_depend_on_the_seed(vlm, answers):
    drawn = vlm.answer(CONVERSATIONS[:4], temperature=3.0, seed=1)
    assert drawn == vlm.answer(CONVERSATIONS[:4], temperature=3.0, seed=1)
    assert drawn != vlm.answer(CONVERSATIONS[:4], temperature=3.0, seed=2)
    assert drawn != answers[:4]
    with pytest.raises(ValueError, match="temperature -1 is below 0"):
        vlm.answer(CONVERSATIONS[:1], temperature=-1)


def test_a_vocabulary_of_instructions_is_refused(vlm):
    instructions = CompactTokenizer.from_corpus(["pick up the milk"], "{instruction}")
    with pytest.raises(ValueError, match="made for instructions only"):
        Vlm(vlm.config, vlm._params, instructions)
    with pytest.raises(ValueError, match="batch_size 0"):
        Vlm(vlm.config, vlm._params, TOKENIZER, batch_size=0)


def test_the_released_vocabulary_answers_too(vlm):
    path = os.environ.get("QWEN_TOKENIZER")
    if not path:
        pytest.skip("set QWEN_TOKENIZER to a folder with Qwen2.5's tokenizer")
    language = dataclasses.replace(vlm.config.model.language, vocab_size=151_936)
    config = dataclasses.replace(vlm.config, model=dataclasses.replace(vlm.config.model, language=language))
    qwen = Vlm(config, vlm._params, QwenTokenizer(path, "{instruction}"), batch_size=2, max_new_tokens=3).untrained(0)
    (answer,) = qwen.answer(CONVERSATIONS[2:3])
    assert answer and "<|" not in answer
    assert qwen.answer(CONVERSATIONS[1:3])[1] == answer
