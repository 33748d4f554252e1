"""From drafts to samples: wordings, balance, what is held out, and what is stored."""

import functools
import re
import string
from collections import Counter

import cv2
import numpy as np
import pytest

from pokevla_jax.data.corpus import check_sample
from pokevla_jax.data.corpus import decode_sample
from pokevla_jax.data.corpus import encode_sample
from pokevla_jax.sim.corpus import samples
from pokevla_jax.sim.corpus import splits
from pokevla_jax.sim.corpus.drafts import Draft
from pokevla_jax.sim.corpus.phrasings import TYPES
from pokevla_jax.sim.corpus.samples import Balance
from pokevla_jax.sim.corpus.sheet import draw
from tests.sim.corpus.made_up import SIZE
from tests.sim.corpus.made_up import random_frame


def gaps(template):
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


@pytest.mark.parametrize("type_", TYPES)
def test_wordings_ask_the_same_in_different_words(type_):
    wordings = TYPES[type_]
    assert len({frozenset(gaps(text)) for text in wordings.all}) == 1
    assert len({text.lower() for text in wordings.all}) == len(wordings.all)


def test_held_out_wordings_use_trained_words():
    """A vocabulary made of the training texts can read them; only their order is new."""

    def words(texts):
        return set(re.findall(r"\w+", " ".join(texts).lower()))

    train = words(text for wordings in TYPES.values() for text in wordings.train)
    assert words(text for wordings in TYPES.values() for text in wordings.held_out) <= train


def test_no_wording_belongs_to_two_types():
    """Else the form of the answer could not be told; "Where is it?" states the form it wants."""
    counts = Counter(text for wordings in TYPES.values() for text in wordings.all)
    assert max(counts.values()) == 1


@functools.cache
def scene_of(index):
    return random_frame(index)


def made(frames=12, seed=0):
    balance = Balance()
    found = []
    for index in range(frames):
        scene = scene_of(index)
        values = {**vars(scene), "id": f"libero_object/{index % 5}/0/{index}/0", "task": index % 5, "layout": index}
        found += samples.ask(type(scene)(**values), seed, balance)
    return found


def test_samples_are_sound_and_repeatable():
    found = made()
    for sample in found:
        check_sample(sample)
        assert decode_sample(encode_sample(sample)) == sample
        assert "{" not in sample.turns[0]
        assert TYPES[sample.labels["type"]].pillar == sample.pillar
    assert len({sample.id for sample in found}) == len(found)
    assert found == made()
    assert [s.turns for s in found] != [s.turns for s in made(seed=1)]


def test_answers_are_what_the_labels_say():
    for sample in made():
        labels, answer = sample.labels, sample.turns[1]
        if labels["form"] == "points":
            x, y = (float(v) for v in answer.strip("[()]").split(", "))
            mask = cv2.imdecode(np.frombuffer(labels["mask"], np.uint8), cv2.IMREAD_UNCHANGED)
            assert mask.shape == (SIZE, SIZE)
            assert mask[int(y * SIZE), int(x * SIZE)]
        elif labels["form"] == "box":
            np.testing.assert_allclose([float(v) for v in answer.strip("()").split(", ")], labels["box"], atol=6e-4)
        else:
            assert not answer.startswith(("(", "["))
        assert draw(sample).width == 256


def test_nothing_held_out_is_trained_on():
    found = made(40)
    train = [s for s in found if s.split == "train"]
    assert train
    for sample in train:
        labels = sample.labels
        assert labels["held_out"] == []
        assert labels["task"] not in splits.HELD_OUT_TASKS["libero_object"]
        assert not splits.is_held_out_layout("libero_object", labels["task"], 0, labels["layout"])
        # The words themselves, not the numbers that the code keeps.
        for text in TYPES[labels["type"]].held_out:
            start = text.split("{")[0]
            assert not (len(start) > 12 and sample.turns[0].startswith(start))
    held = Counter(name for s in found for name in s.labels["held_out"])
    assert set(held) == {"task", "layout", "phrasing"}
    # New scenes are asked about in both old and new words.
    scenes = [s for s in found if "task" in s.labels["held_out"]]
    assert 0.3 < sum("phrasing" in s.labels["held_out"] for s in scenes) / len(scenes) < 0.7


def test_a_layouts_side_does_not_move():
    chosen = [layout for layout in range(2000) if splits.is_held_out_layout("libero_goal", 3, 0, layout)]
    assert 0.06 < len(chosen) / 2000 < 0.10
    # Another task's layouts are others.
    assert chosen != [layout for layout in range(2000) if splits.is_held_out_layout("libero_goal", 4, 0, layout)]


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_no_constant_answer_wins(share):
    """Whatever a scene offers, of two answers the more common one stays near a half; of ten, below a third."""
    rng = np.random.default_rng(0)
    balance = Balance()
    two, ten = Counter(), Counter()
    for _ in range(600):
        drafts = [Draft(type="is_open", answer="no" if rng.random() < share else "yes", slots={})]
        drafts += [
            Draft(type="nearest", answer="milk" if rng.random() < share else f"thing{rng.integers(9)}", slots={})
        ]
        for draft in balance.take(drafts, 2, rng):
            (two if draft.type == "is_open" else ten)[draft.answer] += 1
    if sum(two.values()) > 20:
        assert max(two.values()) / sum(two.values()) < 0.65
    if sum(ten.values()) > 30:
        assert max(ten.values()) / sum(ten.values()) < 0.34


def test_rare_types_are_asked_first():
    rng, balance = np.random.default_rng(0), Balance()
    common = [
        Draft(type="is_at_side", answer=answer, slots={"a": str(i)}) for i in range(20) for answer in ("yes", "no")
    ]
    for _ in range(10):
        balance.take(common, 2, rng)
    chosen = balance.take([*common, Draft(type="between", answer="milk")], 1, rng)
    assert [d.type for d in chosen] == ["between"]
