"""The language model against ``transformers``' Qwen2: every hidden state, with padding in the middle."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pokevla_jax.config import LanguageConfig
from pokevla_jax.models import attention
from pokevla_jax.models.language import Decoder
from tests.parity import mappings
from tests.parity import references
from tests.parity.compare import assert_far
from tests.parity.compare import assert_same
from tests.parity.compare import filled
from tests.parity.compare import logit_spread
from tests.parity.compare import randomise
from tests.parity.compare import run_once

SMALL = LanguageConfig(
    vocab_size=30, width=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=40, rope_theta=1e6
)
# Qwen2.5-0.5B's width and heads, three layers deep, with few words.
FULL_WIDTH = LanguageConfig(vocab_size=1000, num_layers=3)


class Pair:
    """Decoder and reference with the same weights over the same tokens, of which some in the middle are padding."""

    def __init__(self, config, length=12):
        self.config, self.model = config, randomise(references.qwen2(config))
        self.tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, length))
        self.valid = np.ones((2, length), bool)
        self.valid[1, length // 3 : length // 2] = False

    def ours(self):
        decoder = filled(Decoder(self.config), mappings.qwen2(self.model, self.config))

        def run(tokens, valid):
            embedded = decoder.embed(tokens, jnp.float32)
            masks = attention.positions(valid), valid.astype(jnp.int32)
            last, states = decoder(embedded, *masks, all_layers=True)
            return states, decoder.logits(last)

        states, logits = run_once(run, self.tokens, self.valid)
        return np.asarray(states)[:, self.valid], np.asarray(logits)[self.valid]

    def theirs(self, model=None, *, valid=None, positions=None):
        model, valid = model or self.model, self.valid if valid is None else valid
        positions = self.valid.cumsum(-1) - 1 if positions is None else positions
        with torch.no_grad():
            out = model.eval()(
                input_ids=torch.tensor(self.tokens),
                attention_mask=torch.tensor(valid.astype(np.int64)),
                position_ids=torch.tensor(positions),
                output_hidden_states=True,
                output_attentions=True,
            )
        self.weights = out.attentions
        return torch.stack(out.hidden_states[1:])[:, torch.tensor(self.valid)]

    def wrong(self, change=lambda name, state: state[name], **changes):
        """The reference with another option, or with every weight put through ``change(name, state)``."""
        model = references.qwen2(self.config, **changes)
        state = self.model.state_dict()
        model.load_state_dict({name: change(name, state) for name in state})
        return self.theirs(model)


def check(pair):
    states, logits = pair.ours()
    theirs = pair.theirs()
    assert min(logit_spread(layer) for layer in pair.weights) > 1
    for ours, expected in zip(states, theirs, strict=True):
        assert_same(ours, expected)
    assert_same(logits, torch.nn.functional.linear(theirs[-1], pair.model.embed_tokens.weight))
    return states


@pytest.fixture(scope="module")
def small():
    pair = Pair(SMALL)
    return pair, check(pair)


def test_every_hidden_state_and_the_logits_are_the_references(small):
    pair, states = small
    assert states.shape[0] == pair.config.num_layers


def exchanged(first, second):
    def change(name, state):
        other = name.replace(first, second) if first in name else name.replace(second, first)
        return state[other]

    return change


def turned_back(name, state):
    """Queries and keys with their halves exchanged, which rotate the other way."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return state[name]
    return state[name].unflatten(0, (-1, 2, SMALL.head_dim // 2)).flip(1).flatten(0, 2)


def other_groups(name, state):
    """Query heads that share keys in turn instead of in consecutive groups."""
    if ".q_proj." not in name:
        return state[name]
    heads = state[name].unflatten(0, (SMALL.num_heads, SMALL.head_dim))
    return heads[[0, 2, 1, 3]].flatten(0, 1)


@pytest.mark.parametrize("change", [exchanged("k_proj", "v_proj"), turned_back, other_groups])
def test_exchanged_weights_would_be_seen(small, change):
    pair, states = small
    assert_far(states, pair.wrong(change))


def test_another_mask_position_or_base_would_be_seen(small):
    pair, states = small
    shifted = np.roll(pair.valid, 1, axis=1)
    assert_far(states, pair.theirs(valid=shifted))
    assert_far(states, pair.theirs(valid=np.ones_like(pair.valid)))
    assert_far(states, pair.theirs(positions=np.broadcast_to(np.arange(12), (2, 12))))
    assert_far(states, pair.wrong(rope_parameters={"rope_type": "default", "rope_theta": 1e4}))


def test_the_epsilon_of_the_norms_is_qwens():
    """With embeddings so small that the first norm's epsilon decides the scale."""
    pair = Pair(SMALL)
    with torch.no_grad():
        pair.model.embed_tokens.weight.mul_(1e-3)
    states, _ = pair.ours()
    assert_same(states, pair.theirs())
    assert_far(states, pair.wrong(rms_norm_eps=1e-5))


@pytest.mark.full_size
def test_three_layers_at_full_width_are_the_references():
    check(Pair(FULL_WIDTH, length=96))
