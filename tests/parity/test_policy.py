"""What stands behind the vision tokens, wired as each preset says: sequence, slices, layers, latents, noise.

The reference runs sample by sample without padding. The parts themselves have tests of their own; here the switches of
the wiring are tested in both states, each against a reference in the other.
"""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from pokevla_jax.config import Config
from pokevla_jax.config import LanguageConfig
from pokevla_jax.data.schema import fake_batch
from pokevla_jax.models import presets
from pokevla_jax.models import stacking
from tests.parity import mappings
from tests.parity import references
from tests.parity.compare import assert_far
from tests.parity.compare import assert_same
from tests.parity.compare import randomise
from tests.parity.compare import run_once
from tests.parity.torch_reference import policy as reference
from tests.parity.torch_reference.action_head import ProprioProjector

LENGTHS = (6, 4)


def small(preset, *, vision_position=None, **head):
    """The preset with every size cut down and without its training-only parts."""
    base, replace = presets.get_preset(preset), dataclasses.replace
    tower = dict(width=16, depth=1, num_heads=2, mlp_dim=24, feature_block=-1)
    vision = replace(
        base.vision,
        image_size=28,
        dinov2=replace(base.vision.dinov2, **tower),
        siglip=replace(base.vision.siglip, **tower),
        projector_dim=40,
    )
    language = LanguageConfig(
        vocab_size=50, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48
    )
    return replace(
        base,
        vision=vision,
        language=language,
        action_head=replace(base.action_head, num_layers=2, width=32, num_heads=2, num_queries=4, **head),
        segmentation=replace(base.segmentation, weight=0.0),
        geometry=replace(base.geometry, weight=0.0),
        vision_position=vision_position or base.vision_position,
        max_prompt_length=max(LENGTHS),
        dtype="float32",
        remat="none",
    )


class Pair:
    """The network and its reference with the same weights, on prompts of different lengths."""

    def __init__(self, config):
        self.config = config
        self.language = randomise(references.qwen2(config.language))
        self.head = randomise(references.action_head(config), logit_gain=3.0)
        self.proprio = randomise(ProprioProjector(config.proprio_dim, config.language.width), seed=1)
        self.batch = fake_batch(Config(model=config), len(LENGTHS), train=False)
        self.batch["token_mask"] = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
        rng = np.random.default_rng(0)
        shapes = stacking.abstract_params(config)
        self.params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
        self.params["language"] = mappings.qwen2(self.language, config.language)
        self.params["action_head"] = mappings.action_head(self.head, self.proprio, config)
        for token in {"seg_token", "action_queries"} & set(shapes):
            self.params[token] = rng.normal(size=shapes[token].shape).astype(np.float32)

    def _run(self, params, key):
        model, batch = stacking.bind(self.config, params), self.batch
        hidden = model.encode(batch["images"], batch["tokens"], batch["token_mask"])
        return model.act(hidden, batch["proprio"], key), model.vision(batch["images"])

    def ours(self, key=None):
        actions, vision = run_once(self._run, self.params, key)
        self.vision = np.asarray(vision)
        return np.asarray(actions)

    def theirs(self, noise=None, **changes):
        """The reference; ``changes`` make it wrong on purpose."""
        config, head = self.config, self.config.action_head
        options = dict(
            splice=int(config.vision_position == "after_first_token"),
            shift=int(head.shifted_context),
            layerwise=head.context == "layerwise",
        )
        chunks = []
        with torch.no_grad():
            for i, length in enumerate(LENGTHS):
                chunk, _ = reference.actions(
                    self.language,
                    self.head,
                    self.proprio,
                    torch.tensor(self.vision[i]),
                    torch.tensor(self.batch["tokens"][i, :length]),
                    torch.tensor(self.params["action_queries"]),
                    torch.tensor(self.batch["proprio"][i]),
                    seg=torch.tensor(self.params["seg_token"]) if config.seg_token else None,
                    noise=noise,
                    **(options | changes),
                )
                chunks.append(chunk)
        return torch.stack(chunks)


WIRINGS = {
    "pokevla": {},
    "pokevla-layerwise": dict(context="layerwise"),
    "pokevla-vision_inside": dict(vision_position="after_first_token"),
    "pokevla-vision_inside-shifted": dict(vision_position="after_first_token", shifted_context=True),
    "vla_adapter": {},
    "vla_adapter_pro": {},
    "vla_adapter_pro-unshifted": dict(shifted_context=False),
    "vla_adapter_pro-last_layer": dict(context="last"),
    "vla_adapter_pro-vision_first": dict(vision_position="first", shifted_context=False),
}


@pytest.mark.parametrize("name", WIRINGS)
def test_the_wiring_is_the_reference_and_every_other_is_not(name):
    pair = Pair(small(name.split("-")[0], **WIRINGS[name]))
    ours = pair.ours()
    assert_same(ours, pair.theirs())
    head = pair.config.action_head
    if pair.config.vision_position == "after_first_token":
        assert_far(ours, pair.theirs(shift=int(not head.shifted_context)))
    else:
        assert_far(ours, pair.theirs(splice=1))
    assert_far(ours, pair.theirs(layerwise=head.context == "last"))


def test_training_noise_is_drawn_from_the_key():
    pair, key = Pair(small("vla_adapter_pro")), jax.random.key(5)
    ours = pair.ours(key)
    noise = torch.tensor(np.asarray(0.02 * jax.random.normal(key, (8, 7 * 32))))
    assert_same(ours, pair.theirs(noise))
    assert_far(ours, pair.theirs())
