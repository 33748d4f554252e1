"""From questions about images to answers: a stage-1 checkpoint as something that answers.

::

    vlm = Vlm.load("runs/pokevlm")
    (answer,) = vlm.answer([Conversation(images=(jpeg,), turns=("Point to the milk.",))])  # "(0.412, 0.380)"

Images are prepared as in training, weights and tokenizer come from the checkpoint alone. A policy's checkpoint, whose
vision-language model it trained on, answers too, if its vocabulary was made from conversations.
"""

import dataclasses
import os
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pokevla_jax import checkpoints
from pokevla_jax.config import Config
from pokevla_jax.data import prompts
from pokevla_jax.data.prompts import Conversation
from pokevla_jax.data.tokenize import Tokenizer
from pokevla_jax.data.tokenize import from_json as tokenizer_from_json
from pokevla_jax.models import stacking
from pokevla_jax.models.generation import generate
from pokevla_jax.typing import Params

PARTS = ("vision", "language")
_VARIANT = stacking.Variant("vlm")


class Vlm:
    """A vision-language model with its tokenizer.

    Args:
        config: the checkpoint's configuration.
        params: its parameters; parts beyond the vision-language model are ignored.
        tokenizer: what it was trained with.
        batch_size: rows that are computed at once; a smaller batch is filled up, so that every batch of one bucket runs
            the same program.
        max_new_tokens: the most tokens of an answer.
        zero_images: whether it sees black instead of the images; None: as it was trained.
        metadata: facts about where it came from.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 64,
        max_new_tokens: int = 64,
        zero_images: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ):
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError(f"batch_size {batch_size} and max_new_tokens {max_new_tokens} must be at least 1")
        if not tokenizer.end_ids:
            raise ValueError(
                "This checkpoint's vocabulary was made for instructions only and cannot end an answer; give the "
                "checkpoint of a stage-1 run (config.stage 'vlm')"
            )
        if zero_images is not None:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, zero_images=zero_images))
        self.config, self.tokenizer = config, tokenizer
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        # Prompts may be as short as one image: fused kernels want their own multiples.
        self._model = dataclasses.replace(config.model, attention="xla")
        self._params = jax.device_put({part: params[part] for part in PARTS})
        self.metadata = {"zero_images": config.data.zero_images, **(metadata or {})}

    @classmethod
    def load(cls, path: str | os.PathLike, step: checkpoints.Step = None, **options: Any) -> "Vlm":
        """The network of a training run's folder.

        Args:
            path: the run's folder.
            step: a checkpoint's step, "best", or None for the newest.
            options: of ``Vlm``.

        Raises:
            FileNotFoundError, ValueError: one sentence, when there is no usable checkpoint.
        """
        config, assets = checkpoints.load_assets(path, step)
        if assets.tokenizer_json is None:
            raise ValueError(f"Checkpoint {path} lacks a tokenizer; give the checkpoint of a training run")
        tokenizer = tokenizer_from_json(assets.tokenizer_json)
        others = [part for part in stacking.abstract_params(config.model) if part not in PARTS]
        config, params, _ = checkpoints.load_policy_checkpoint(path, assets.step, skip=others)
        metadata = {"path": str(path), "step": assets.step, "versions": dict(assets.versions)}
        return cls(config, params, tokenizer, metadata=metadata, **options)

    def with_black_images(self) -> "Vlm":
        """The same network, which sees nothing."""
        return self._with(self._params, zero_images=True, metadata=self.metadata | {"zero_images": True})

    def untrained(self, seed: int) -> "Vlm":
        """The same network before its first step."""
        fresh = stacking.initialize(self.config.model, jax.random.key(seed), _VARIANT)
        return self._with(fresh, zero_images=None, metadata=self.metadata | {"path": None, "step": 0})

    def _with(self, params: Params, *, zero_images: bool | None, metadata: Mapping[str, Any]) -> "Vlm":
        sizes = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
        return Vlm(self.config, params, self.tokenizer, zero_images=zero_images, metadata=metadata, **sizes)

    def answer(self, conversations: Sequence[Conversation], *, temperature: float = 0.0, seed: int = 0) -> list[str]:
        """The answer to the last question of each conversation, in their order.

        Args:
            conversations: each ends with a question.
            temperature: 0 takes the likeliest token at every step; above it tokens are drawn.
            seed: of the draws; the i-th conversation's do not depend on the others.
        """
        answers = [""] * len(conversations)
        for indices, found in self.answer_batches(conversations, temperature=temperature, seed=seed):
            for index, text in zip(indices, found, strict=True):
                answers[index] = text
        return answers

    def answer_batches(
        self, conversations: Sequence[Conversation], *, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[tuple[list[int], list[str]]]:
        """``answer`` batch by batch as they are computed: which conversations, and their answers."""
        if temperature < 0:
            raise ValueError(f"temperature {temperature} is below 0; give 0 for the likeliest tokens, or more to draw")
        for shape, indices in prompts.batches(conversations, self.tokenizer, self.batch_size):
            # Filled up with the last row: rows do not see each other.
            rows = indices + indices[-1:] * (self.batch_size - len(indices))
            batch = prompts.build_prompts(self.config, [conversations[i] for i in indices], shape, self.tokenizer)
            batch = {name: np.concatenate([x, x[-1:].repeat(len(rows) - len(x), axis=0)]) for name, x in batch.items()}
            drawn = {}
            if temperature:
                key = jax.random.key(seed)
                keys = jax.vmap(lambda row, key=key: jax.random.fold_in(key, row))(jnp.array(rows))
                drawn = {"temperature": jnp.float32(temperature), "keys": keys}
            tokens = generate(
                self._model,
                self._params,
                batch,
                max_new_tokens=self.max_new_tokens,
                end_ids=self.tokenizer.end_ids,
                vocab_size=self.tokenizer.vocab_size,
                **drawn,
            ).tokens
            yield indices, [self.tokenizer.decode(row) for row in np.asarray(tokens)[: len(indices)].tolist()]
