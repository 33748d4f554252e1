"""The held-out questions of a corpus, each with what its answer is judged by."""

import hashlib
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Literal

import numpy as np

from eval.errors import EvaluationError
from pokevla_jax.config import Config
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import decode_mask
from pokevla_jax.data.corpus import Corpus
from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.prompts import Conversation
from pokevla_jax.typing import UInt8

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of width and height."""
Form = Literal["text", "points", "box"]
CONVERSATION = "conversation"
"""Type of questions whose sample states none."""


@dataclass(frozen=True, eq=False)
class Question:
    """One question of a conversation, after the true answers to those before it.

    Attributes:
        id: of its sample, with the question's number where there are several.
        pillar, kind: part of the corpus, and what is asked.
        conversation: what the network gets.
        answer: the true one, as training shows it.
        picture: what is asked about: the sample's frame, or a digest of its images.
        new: what of it no training sample has ("task", "layout", "phrasing"), as far as the corpus says.
        mask: where a point is right, on the last image.
        box: the true one, on the last image.
    """

    id: str
    pillar: str
    kind: str
    conversation: Conversation
    answer: str
    picture: str
    new: tuple[str, ...] = ()
    mask: UInt8[np.ndarray, "h w"] | None = None
    box: Box | None = None

    @property
    def form(self) -> Form:
        """How the answer is judged: by its words, by its point on ``mask``, by its overlap with ``box``."""
        if self.mask is not None:
            return "points"
        return "text" if self.box is None else "box"


def held_out_samples(config: Config, corpus: Corpus, most: int | None) -> list[int]:
    """Indices of samples that a run of ``config`` keeps out of training; ``most`` takes as many, by hashed id.

    Raises:
        EvaluationError: when nothing is held out.
    """
    found = np.flatnonzero(corpus.held_out(config.data.holdout_fraction))
    if not len(found):
        raise EvaluationError(
            f"{corpus.directory} has no held-out sample for this checkpoint; give a corpus that names its own, or "
            "train with config.data.holdout_fraction above 0"
        )
    if most is None or most >= len(found):
        return [int(index) for index in found]

    def place(index: int) -> bytes:
        return hashlib.sha256(f"{corpus.sources[corpus.source[index]]}/{corpus.ids[index].as_py()}".encode()).digest()

    return sorted(sorted(map(int, found), key=place)[:most])


def read_questions(corpus: Corpus, samples: Sequence[int]) -> list[Question]:
    """Every question of the samples.

    Raises:
        DataError: for a sample that cannot be read, or whose labels are not those of ``sim.corpus``.
    """
    questions: list[Question] = []
    for index in samples:
        sample = corpus[index]
        try:
            questions += questions_of(sample)
        except DataError as error:
            raise DataError(f"Sample {sample.id!r} of {sample.source!r} {error}") from error
    return questions


def questions_of(sample: CorpusSample) -> Iterator[Question]:
    """The questions of one sample; its labels belong to the last one, those before it are judged by their words."""
    count = len(sample.turns) // 2
    labels = dict(sample.labels)
    kind = str(labels.get("type", CONVERSATION))
    picture = str(labels.get("frame") or hashlib.sha256(b"".join(sample.images)).hexdigest())
    for number in range(count):
        last = number + 1 == count
        yield Question(
            id=f"{sample.source}/{sample.id}" + (f"#{number}" if count > 1 else ""),
            pillar=sample.pillar,
            kind=kind if last else CONVERSATION,
            conversation=Conversation(images=sample.images, turns=sample.turns[: 2 * number + 1], id=sample.id),
            answer=sample.turns[2 * number + 1],
            picture=picture,
            new=_new(labels),
            **(_place(labels) if last else {}),
        )


def _new(labels: dict[str, Any]) -> tuple[str, ...]:
    """What no training sample has."""
    new = labels.get("held_out", ())
    if not isinstance(new, list | tuple) or not all(isinstance(name, str) for name in new):
        raise DataError(f"has held_out {new!r}, expected a list of names")
    return tuple(new)


def _place(labels: dict[str, Any]) -> dict[str, Any]:
    """The mask or the box of the labels."""
    form = labels.get("form", "text")
    if form == "points":
        return {"mask": decode_mask(labels.get("mask", b""), "mask")}
    if form == "box":
        box = labels.get("box")
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(isinstance(x, int | float) for x in box):
            raise DataError(f"has box {box!r}, expected four fractions")
        x0, y0, x1, y1 = map(float, box)
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise DataError(f"has box {box!r}, expected 0 <= x0 < x1 <= 1 and the same of y")
        return {"box": (x0, y0, x1, y1)}
    if form != "text":
        raise DataError(f"has an answer of form {form!r}; known: text, points, box")
    return {}
