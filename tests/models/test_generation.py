"""Generation against the network run in full, without a cache, over every longer sequence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax.config import Config
from pokevla_jax.config import DataConfig
from pokevla_jax.data.schema import stage1_batch_spec
from pokevla_jax.models import generation
from pokevla_jax.models import presets
from pokevla_jax.models import stacking
from tests.models.conftest import micro_config

CONFIG = micro_config()
VARIANT = stacking.Variant("vlm")
PATCHES, VOCABULARY = CONFIG.vision.num_patches, CONFIG.language.vocab_size
# No id of the vocabulary: rows go on to the last token that is allowed.
NEVER = (VOCABULARY,)
NEW = 6


@pytest.fixture(scope="module")
def params():
    # Far from a fresh start, where every token would be answered by itself.
    fresh = jax.device_get(stacking.initialize(CONFIG, jax.random.key(3), VARIANT))
    fresh["language"]["layers"] = jax.tree.map(lambda x: 3 * x, fresh["language"]["layers"])
    return fresh


def prompt(seed, num_images, num_words):
    """Images, and the sequence: their patches (-1 for words in ``slots``), then words."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    slots = np.concatenate([np.arange(num_images * PATCHES), np.full(num_words, -1)])
    tokens = np.where(slots < 0, rng.integers(0, VOCABULARY, len(slots)), 0)
    return images, tokens, slots


PROMPTS = [prompt(1, 2, 3), prompt(2, 1, 9), prompt(3, 0, 5), prompt(4, 1, 4)]


def batch_of(prompts, length):
    """The prompts padded on the right to ``length``, whatever stands in the padding."""
    rng = np.random.default_rng(0)
    empty = (len(prompts), length)
    batch = {
        "images": np.stack([images for images, _, _ in prompts]),
        "tokens": rng.integers(0, VOCABULARY, empty),
        "image_slots": np.full(empty, -1),
        "segment_ids": np.zeros(empty, int),
        "positions": np.zeros(empty, int),
    }
    for row, (_, tokens, slots) in enumerate(prompts):
        own = slice(0, len(tokens))
        batch["tokens"][row, own], batch["image_slots"][row, own] = tokens, slots
        batch["segment_ids"][row, own], batch["positions"][row, own] = 1, np.arange(len(tokens))
    return {name: x if x.dtype == np.uint8 else x.astype(np.int32) for name, x in batch.items()}


@jax.jit
def full_logits(params, batch):
    model = stacking.bind(CONFIG, params, VARIANT)
    return model.language.logits(model(batch))


@pytest.fixture(scope="module")
def reference(params):
    """Per prompt, alone: the tokens that the whole network gives one after the other, and the first one's logits."""
    results = []
    for images, tokens, slots in PROMPTS:
        found, first = [], None
        for _ in range(NEW):
            sequence = (images, np.append(tokens, found).astype(int), np.append(slots, np.full(len(found), -1)))
            logits = full_logits(params, batch_of([sequence], 2 * PATCHES + 24))[0, len(sequence[1]) - 1]
            first = logits if first is None else first
            found.append(int(jnp.argmax(logits)))
        results.append((found, np.asarray(first)))
    return results


def generate(params, prompts, length=2 * PATCHES + 9, *, end_ids=NEVER, new=NEW, **options):
    answers = generation.generate(
        CONFIG,
        params,
        batch_of(prompts, length),
        max_new_tokens=new,
        end_ids=end_ids,
        vocab_size=options.pop("vocab_size", VOCABULARY),
        **options,
    )
    return np.asarray(answers.tokens), np.asarray(answers.ended)


def test_greedy_answers_are_those_of_the_whole_network(params, reference):
    tokens, ended = generate(params, PROMPTS)
    expected = np.array([found for found, _ in reference])
    np.testing.assert_array_equal(tokens, expected)
    assert not ended.any()
    # The test would notice a network that repeats itself, or ignores prompt or position.
    assert len(np.unique(expected)) > 8


@pytest.mark.parametrize(("rows", "length"), [((1, 3), 2 * PATCHES + 9), ((3, 2, 0, 1), 2 * PATCHES + 17)])
def test_neighbours_and_padding_change_nothing(params, reference, rows, length):
    tokens, _ = generate(params, [PROMPTS[row] for row in rows], length)
    np.testing.assert_array_equal(tokens, [reference[row][0] for row in rows])


def test_images_matter(params, reference):
    (_, tokens, slots), other = PROMPTS[1], PROMPTS[0][0]
    changed, _ = generate(params, [(other, tokens, slots)])
    assert changed[0].tolist() != reference[1][0]


def test_an_answer_stops_at_an_end_token(params, reference):
    whole = np.array([found for found, _ in reference])
    # Ends row 0 with its third token, wherever else the two tokens come.
    ends = (int(whole[0, 2]), int(whole[1, 4]))
    tokens, ended = generate(params, PROMPTS, end_ids=ends)
    for row, found in enumerate(whole):
        places = np.flatnonzero(np.isin(found, ends))
        stop = places[0] + 1 if len(places) else NEW
        np.testing.assert_array_equal(tokens[row, :stop], found[:stop])
        assert (tokens[row, stop:] == ends[0]).all()
        assert ended[row] == bool(len(places))
    assert ended[:2].all()
    assert not ended.all() or (whole != tokens).any()


def test_ids_beyond_the_vocabulary_are_never_chosen(params, reference):
    limit = max(reference[0][0])
    tokens, _ = generate(params, PROMPTS, vocab_size=limit)
    assert tokens.max() < limit
    assert tokens[0].tolist() != reference[0][0]


def test_one_program_serves_every_batch_of_a_shape(params):
    generate(params, PROMPTS[:2], 40)
    before = generation.generate._cache_size()
    generate(params, PROMPTS[2:], 40)
    assert generation.generate._cache_size() == before


def test_draws_follow_the_temperature_and_the_rows_own_key(params, reference):
    count, temperature = 600, 4.0
    keys = jax.random.split(jax.random.key(5), count)
    options = {"new": 1, "temperature": jnp.float32(temperature), "keys": keys}
    drawn, _ = generate(params, PROMPTS[1:2] * count, **options)
    logits = reference[1][1] / temperature
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    frequency = np.bincount(drawn[:, 0], minlength=VOCABULARY) / count
    # Total variation of 600 draws over 50 tokens is about 0.1; greedy answers are far off.
    assert 0.5 * np.abs(frequency - expected).sum() < 0.2
    assert 1 - expected.max() > 0.5

    two = {"temperature": jnp.float32(temperature), "keys": keys[:2]}
    both, _ = generate(params, PROMPTS[:2], **two)
    alone, _ = generate(params, PROMPTS[1:2], **(two | {"keys": keys[1:2]}))
    np.testing.assert_array_equal(alone[0], both[1])
    other, _ = generate(params, PROMPTS[:2], **(two | {"keys": keys[2:4]}))
    assert (other != both).any()
    cold, _ = generate(params, PROMPTS, temperature=jnp.float32(1e-3), keys=keys[:4])
    np.testing.assert_array_equal(cold, [found for found, _ in reference])
    with pytest.raises(ValueError, match="key per row"):
        generate(params, PROMPTS, temperature=jnp.float32(1.0))


def test_the_published_network_generates_in_its_own_precision():
    """Traced, not run: every array of the loop keeps its type and shape in bfloat16, with several key heads."""
    config = presets.pokevla()
    assert config.dtype == "bfloat16"
    small = Config(model=config, stage="vlm", data=DataConfig(pack_length=320, pack_images=1))
    prompts = {name: x for name, x in stage1_batch_spec(small, 2).items() if name in generation.PROMPT}
    prompts = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in prompts.items()}
    shaped = functools.partial(
        generation.generate, config, max_new_tokens=8, end_ids=(151_645, 151_643), vocab_size=151_665
    )
    answers = jax.eval_shape(shaped, stacking.abstract_params(config), prompts)
    assert (answers.tokens.shape, answers.tokens.dtype) == ((2, 8), jnp.int32)
