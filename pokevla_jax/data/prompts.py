"""Questions about images as rows that a stage-1 network continues: what training packs, up to where an answer begins.

A row is as long as its bucket, and there are few buckets, so that few programs are compiled.
"""

import dataclasses
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pokevla_jax.config import Config
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.packing import build_row
from pokevla_jax.data.tokenize import Tokenizer

_SHORTEST_TEXT = 16
_LABELS = ("targets", "loss_mask")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation that ends with a question.

    Attributes:
        images: JPEG files in the order in which the model sees them.
        turns: question, answer, ..., question.
        id: named in errors.
    """

    images: tuple[bytes, ...]
    turns: tuple[str, ...]
    id: str = ""


@dataclass(frozen=True, order=True)
class Bucket:
    """Shape of a row: how many images it holds, and how many positions behind their patches."""

    images: int
    text: int


def bucket(conversation: Conversation, tokenizer: Tokenizer) -> Bucket:
    """The smallest bucket that holds the conversation: text of a power of two.

    Raises:
        DataError: when the conversation does not end with a question.
    """
    if len(conversation.turns) % 2 == 0:
        raise DataError(
            f"Conversation {conversation.id!r} has {len(conversation.turns)} turns; it must end with a question"
        )
    ids, _ = tokenizer.encode_conversation(conversation.turns)
    size = _SHORTEST_TEXT
    while size < len(ids):
        size *= 2
    return Bucket(len(conversation.images), size)


def build_prompts(
    config: Config, conversations: Iterable[Conversation], shape: Bucket, tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    """The entries ``models.generation.PROMPT`` of a batch, one row per conversation, padded on the right.

    Conversations without images get a black one that no position shows: the towers take no empty batch.
    """
    length = shape.images * config.model.vision.num_patches + shape.text
    data = dataclasses.replace(config.data, pack_length=length, pack_images=max(shape.images, 1))
    shaped = dataclasses.replace(config, data=data)
    rows = [build_row(shaped, [conversation], tokenizer) for conversation in conversations]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0] if name not in _LABELS}


def batches(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, batch_size: int
) -> list[tuple[Bucket, list[int]]]:
    """Indices of conversations that make a batch, bucket by bucket; the last batch of a bucket may be smaller."""
    found: dict[Bucket, list[int]] = {}
    for index, conversation in enumerate(conversations):
        found.setdefault(bucket(conversation, tokenizer), []).append(index)
    return [
        (shape, indices[start : start + batch_size])
        for shape, indices in sorted(found.items())
        for start in range(0, len(indices), batch_size)
    ]
