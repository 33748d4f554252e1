"""From drafts to samples: which questions of a frame are kept, how they are worded, and how they are stored."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Literal

import cv2
import numpy as np

from pokevla_jax.data.codec import encode_jpeg
from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.ingest.grounding import format_points
from pokevla_jax.data.ingest.grounding import format_tuple
from pokevla_jax.sim.corpus import affordance
from pokevla_jax.sim.corpus import general
from pokevla_jax.sim.corpus import grounding
from pokevla_jax.sim.corpus import reasoning
from pokevla_jax.sim.corpus import splits
from pokevla_jax.sim.corpus.drafts import Draft
from pokevla_jax.sim.corpus.facts import Frame
from pokevla_jax.sim.corpus.phrasings import TYPES

SOURCE = "libero_simulated"
LICENCE = "own questions; LIBERO's scenes are MIT (code) and CC BY 4.0 (data)"
JPEG_QUALITY = 95
PER_FRAME = {"general": 3, "grounding": 4, "affordance": 2, "reasoning": 2}
"""Questions of each pillar that are kept of a frame, where it has as many."""


@dataclass
class Balance:
    """How often each type was asked and each answer given so far; decides what is asked next.

    Of the questions that a frame allows, those of the rarest type are asked, and of these one with the rarest answer:
    scenes offer many more relations than states, and many more things that are closed than open.
    """

    types: Counter[str] = field(default_factory=Counter)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)

    def take(self, drafts: Sequence[Draft], count: int, rng: np.random.Generator) -> list[Draft]:
        """Up to ``count`` of ``drafts``, no type twice as long as another one is left."""
        left = [drafts[index] for index in rng.permutation(len(drafts))]
        chosen: list[Draft] = []
        here: Counter[str] = Counter()
        while left and len(chosen) < count:
            best = min(
                range(len(left)),
                key=lambda i: (
                    here[left[i].type],
                    self.types[left[i].type],
                    self.answers[left[i].type, left[i].balance],
                ),
            )
            draft = left.pop(best)
            # An answer that would become the usual one is not given, even if nothing else can be asked.
            if self._too_common(draft):
                continue
            chosen.append(draft)
            here[draft.type] += 1
            self.types[draft.type] += 1
            self.answers[draft.type, draft.balance] += 1
        return chosen

    def _too_common(self, draft: Draft) -> bool:
        """Whether a text was given a good deal more often than each other one on average."""
        if draft.form != "text":
            return False
        counts = [n for (type_, _), n in self.answers.items() if type_ == draft.type]
        mine = self.answers[draft.type, draft.balance]
        usual = (sum(counts) - mine) / max(1, len(counts) - 1)
        return mine >= 2 + (1.1 if len(counts) <= 2 else 1.5) * usual


def ask(
    frame: Frame, seed: int, balance: Balance, before: Frame | None = None, per_frame: dict[str, int] | None = None
) -> list[CorpusSample]:
    """The samples about one frame.

    Args:
        frame: what is known.
        seed: of the corpus; with the frame's id it seeds every choice.
        balance: of the frames before, which is updated.
        before: the frame of which "what changed" is asked.
        per_frame: instead of ``PER_FRAME``.
    """
    key = f"{seed}/{frame.id}".encode()
    rng = np.random.default_rng(np.frombuffer(key, np.uint8))
    drafts = [
        *general.questions(frame, rng),
        *grounding.questions(frame, rng),
        *affordance.questions(frame, rng),
        *reasoning.questions(frame, rng, before),
    ]
    chosen: list[Draft] = []
    for pillar, count in (per_frame or PER_FRAME).items():
        chosen += balance.take([d for d in drafts if TYPES[d.type].pillar == pillar], count, rng)
    encoded = {("now", view): encode_jpeg(seen.image, quality=JPEG_QUALITY) for view, seen in frame.views.items()}
    if before is not None:
        encoded["before", "agentview"] = encode_jpeg(before.views["agentview"].image, quality=JPEG_QUALITY)
    return [word(frame, seed, number, draft, encoded, rng) for number, draft in enumerate(chosen)]


def word(
    frame: Frame,
    seed: int,
    number: int,
    draft: Draft,
    images: dict[tuple[str, str], bytes],
    rng: np.random.Generator,
) -> CorpusSample:
    """One sample: a wording is drawn, the gaps are filled, places are written with three decimals."""
    wordings = TYPES[draft.type]
    new_scene = splits.held_out(frame.suite, frame.task, seed, frame.layout, draft.type, 0)
    # New scenes are asked about in old and in new words, so that the two effects can be told apart.
    if rng.random() < (0.5 if new_scene else splits.HELD_OUT_PHRASINGS):
        phrasing = len(wordings.train) + int(rng.integers(len(wordings.held_out)))
    else:
        phrasing = int(rng.integers(len(wordings.train)))
    question = wordings.all[phrasing].format(**draft.slots, place=format_tuple(draft.asked))
    out = splits.held_out(frame.suite, frame.task, seed, frame.layout, draft.type, phrasing)
    split: Literal["train", "holdout"] = "holdout" if out else "train"
    labels: dict[str, Any] = {
        "type": draft.type,
        "form": draft.form,
        "view": draft.view,
        "frame": frame.id,
        "suite": frame.suite,
        "task": frame.task,
        "layout": frame.layout,
        "phrasing": phrasing,
        "held_out": out,
    }
    if draft.form == "text":
        assert draft.answer is not None
        answer = draft.answer
    elif draft.form == "points":
        assert draft.mask is not None
        answer = format_points([draft.place])
        labels["mask"] = cv2.imencode(".png", draft.mask.astype(np.uint8) * 255)[1].tobytes()
    else:
        answer = format_tuple(draft.place)
        labels["box"] = [float(value) for value in draft.place]
    shown = [images["before", "agentview"]] if draft.type == "what_changed" else []
    return CorpusSample(
        id=f"{frame.id}/{number}",
        source=SOURCE,
        pillar=wordings.pillar,
        images=(*shown, images["now", draft.view]),
        turns=(question, answer),
        split=split,
        labels=labels,
    )
