"""Judging a vision-language checkpoint: scores against counts by hand, the command, and that a trained network wins."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from eval.__main__ import main
from eval.statistics import wilson
from eval.vlm import page
from eval.vlm import scores
from eval.vlm.command import constant_answers
from eval.vlm.questions import questions_of
from pokevla_jax.cli import train
from pokevla_jax.data.codec import DataError
from tests.data import corpora
from tests.data import squares
from tests.training.test_stage2 import MICRO

CONFIG = "configs/pretrain_pokevlm_small.py"


def questions(numbers):
    return [question for number in numbers for question in questions_of(squares.sample(number))]


def with_answer(question, **changes):
    return dataclasses.replace(question, **changes)


# --- scores ---


@pytest.mark.parametrize(
    ("text", "point", "box"),
    [
        ("[(0.250, 0.500)]", (0.25, 0.5), None),
        ("it is at (0.1,.9), I think", (0.1, 0.9), None),
        ("(0.1, 0.2, 0.3, 0.4)", None, (0.1, 0.2, 0.3, 0.4)),
        ("[0.1, 0.2, 0.3, 0.4]", None, (0.1, 0.2, 0.3, 0.4)),
        ("(0.3, 0.2, 0.1, 0.4)", None, None),
        ("(-1, 2)", (-1.0, 2.0), None),
        ("0.1, 0.2", None, None),
        ("", None, None),
    ],
)
def test_places_are_read_from_text(text, point, box):
    assert scores.read_point(text) == point
    assert scores.read_box(text) == box


def test_a_point_counts_where_its_pixel_is_set():
    mask = np.zeros((4, 8), np.uint8)
    mask[1, 6] = 255
    hits = {(c, r) for c in range(8) for r in range(4) if scores.on_mask(((c + 0.5) / 8, (r + 0.5) / 4), mask)}
    assert hits == {(6, 1)}
    assert not scores.on_mask((1.0, 0.3), mask) and not scores.on_mask((-0.1, 0.3), mask)
    assert not scores.on_mask(None, mask)


cells = st.integers(0, 20)
boxes = st.tuples(cells, cells, cells, cells).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 1, max(b[1], b[3]) + 1)
)


@settings(deadline=None)
@given(boxes, boxes)
def test_overlap_is_that_of_counted_cells(a, b):
    grids = np.zeros((2, 22, 22), bool)
    for grid, (x0, y0, x1, y1) in zip(grids, (a, b), strict=True):
        grid[y0:y1, x0:x1] = True
    expected = (grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum()
    fractions = [tuple(value / 22 for value in box) for box in (a, b)]
    assert scores.overlap(*fractions) == pytest.approx(expected)
    assert scores.overlaps(np.array(fractions[:1]), np.array(fractions[1:]))[0, 0] == pytest.approx(expected)


def test_words_count_and_not_how_they_are_set():
    (question,) = questions([0])
    question = with_answer(question, answer="No, because the drawer is closed.")
    assert scores.score(question, "no , because the drawer is closed") == 1
    assert scores.score(question, "no, because the door is closed") == 0
    assert scores.score(question, "") == 0


def test_no_constant_answer_is_better_than_the_best():
    asked = questions(range(120))
    own = np.array(list(map(scores.score, asked, constant_answers(asked))))
    rng = np.random.default_rng(0)
    for form in squares.FORMS:
        members = [i for i, question in enumerate(asked) if question.form == form]
        rivals = [q.answer for q in asked if q.form == form]
        low = rng.random((50, 2)) / 2
        places = np.concatenate([low, low + rng.random((50, 2)) / 2], axis=1)[:, : 2 if form == "points" else 4]
        rivals += [f"({', '.join(f'{value:.3f}' for value in place)})" for place in places]
        best = max(np.mean([scores.score(asked[i], rival) for i in members]) for rival in rivals)
        assert own[members].mean() >= best
        assert 0 < own[members].mean() < 1


def test_truth_scores_everything_and_groups_add_up():
    asked = questions(range(60))
    right = np.array([scores.score(question, question.answer) for question in asked])
    half = np.where(np.arange(60) % 2, right, 0)
    entries = scores.summarize(asked, {"truth": right, "half": half})
    for entry in entries:
        assert entry["systems"]["truth"]["value"] == pytest.approx(1, abs=5e-3)
    overall = {e["metric"]: e for e in entries if (e["pillar"], e["new"]) == ("all", "any")}
    assert {name: e["questions"] for name, e in overall.items()} == {
        "exact_match": 20, "point_in_mask": 20, "box_iou": 20, "box_iou_50": 20
    }  # fmt: skip
    text = overall["exact_match"]["systems"]["half"]
    assert text["value"] == 0.5 and text["difference"] == 0.5
    assert text["interval95"] == list(wilson(10, 20))
    low, high = text["difference_interval95"]
    assert 0.2 < low < 0.5 < high < 0.8
    new = {e["new"] for e in entries}
    assert new == {"any", "layout"}
    assert sum(e["questions"] for e in entries if e["metric"] == "exact_match" and e["new"] == "layout") == 3
    by_type = [e for e in entries if e["type"] != "all"]
    assert {(e["pillar"], e["type"]) for e in by_type} == set(squares.TYPES.values())


def test_questions_about_one_picture_count_as_one():
    """Ten times the same outcomes are no more certain than once, and as certain as ten pictures' if independent."""
    rng = np.random.default_rng(0)
    values = (rng.random(50) < 0.4).astype(float)
    once = scores.bootstrap(values, np.arange(50))
    again = scores.bootstrap(values.repeat(10), np.arange(50).repeat(10))
    assert again == pytest.approx(once)
    apart = scores.bootstrap(values.repeat(10), np.arange(500))
    assert (apart.high - apart.low) < 0.5 * (once.high - once.low)
    # As scipy's, which resamples values one by one.
    from scipy import stats

    reference = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=rng).confidence_interval
    assert once == pytest.approx((reference.low, reference.high), abs=0.03)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"form": "box", "box": [0.1, 0.2, 0.3]}, "expected four fractions"),
        ({"form": "box", "box": [0.5, 0.2, 0.3, 0.4]}, "expected 0 <= x0 < x1 <= 1"),
        ({"form": "points"}, "holds no PNG as mask"),
        ({"form": "song"}, "form 'song'"),
        ({"held_out": "layout"}, "held_out 'layout', expected a list"),
    ],
)
def test_labels_that_cannot_judge_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        list(questions_of(corpora.sample(1, labels=labels)))


def test_conversations_without_labels_are_asked_turn_by_turn():
    first, second = questions_of(corpora.sample(3))
    assert (first.form, first.kind, second.conversation.turns) == ("text", "conversation", corpora.sample(3).turns[:3])
    assert second.answer == corpora.sample(3).turns[3]
    assert first.picture == second.picture


# --- pictures ---


def test_places_are_drawn_where_they_are():
    _, point, box = questions([3, 4, 5])
    for question in (point, box):
        plain = page.draw(question, "nowhere")
        drawn = page.draw(question, question.answer)
        changed = np.abs(drawn.astype(int) - plain).sum(-1) > 60
        rows, columns = np.nonzero(changed)
        true = questions([5])[0].box
        assert columns.mean() / drawn.shape[1] == pytest.approx((true[0] + true[2]) / 2, abs=0.03)
        assert rows.mean() / drawn.shape[0] == pytest.approx((true[1] + true[3]) / 2, abs=0.03)
    assert page.draw(point, "(1e300, 5)") is not None
    assert page.draw(with_answer(point, conversation=dataclasses.replace(point.conversation, images=())), "") is None


def test_every_type_is_shown():
    asked = questions(range(90))
    chosen = page.choose(asked, 6, seed=0)
    assert sorted(asked[i].form for i in chosen) == sorted([*squares.FORMS] * 2)
    assert page.choose(asked, 6, seed=1) != chosen


# --- the command ---

FAST = MICRO | {
    "model.vision.patch_size": 16,
    "batch_size": 8,
    "num_steps": 4,
    "log_every": 2,
    "eval_every": 4,
    "optimizer.warmup_steps": 1,
}


def pretrain(workdir, corpus, **changes):
    values = FAST | {"data.path": corpus} | {key.replace("__", "."): value for key, value in changes.items()}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    assert train.main([f"--config={CONFIG}", f"--workdir={workdir}", "--no-tensorboard", *overrides]) == 0
    return workdir


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a corpus of squares, a run of a few steps on it, and one without images."""
    folder = tmp_path_factory.mktemp("vlm")
    corpus = squares.write(folder / "corpus", num_pictures=40)
    pretrain(folder / "run", corpus)
    pretrain(folder / "blind", corpus, data__zero_images="true")
    return folder


def run(folder, *options, checkpoint="run", out="out"):
    return main(
        ["vlm", "--checkpoint", str(folder / checkpoint), "--data", str(folder / "corpus"), "--out", str(folder / out)]
        + list(map(str, options))
    )


def test_the_command_writes_what_it_found(trained, capsys):
    options = ("--control", f"blind={trained / 'blind'}", "--zero-images", "--untrained", "--batch-size", 16)
    assert run(trained, *options, "--max-new-tokens", 24) == 0
    assert "exact_match of 5 questions, all: checkpoint" in capsys.readouterr().out
    out = trained / "out"
    summary = json.loads((out / "summary.json").read_text())
    records = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    systems = ["checkpoint", "blind", "black images", "untrained", "constant"]
    assert list(summary["systems"]) == systems
    assert [network["zero_images"] for network in summary["protocol"]["networks"].values()] == [
        False,
        True,
        True,
        False,
    ]
    # Only pictures 0, 8, ..., 32 are held out, three questions each.
    assert len(records) == summary["protocol"]["questions"] == 15
    assert summary["protocol"]["command"].startswith("python -m eval vlm --checkpoint")
    for entry in summary["results"]:
        if (entry["pillar"], entry["new"]) == ("all", "any") and entry["metric"] == "point_in_mask":
            own = [r["scores"]["checkpoint"] for r in records if r["form"] == "points"]
            assert entry["systems"]["checkpoint"]["value"] == pytest.approx(np.mean(own))
    # The blind control cannot tell pictures apart.
    assert len({r["answers"]["blind"] for r in records}) <= 3
    html = (out / "report.html").read_text()
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', html)) == 15
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "the best constant answer" in html


def test_wrong_commands_are_answered_in_a_sentence(trained, capsys):
    def error(*options, **changes):
        assert run(trained, *options, **changes) == 2
        return capsys.readouterr().err

    (trained / "full").mkdir(exist_ok=True)
    (trained / "full" / "file").write_text("")
    assert "is not empty; give a new folder" in error(out="full")
    assert "'blind' must read NAME=DIR" in error("--control", "blind", out="o")
    assert "'constant' is taken" in error("--control", "constant=x", out="o")
    assert "--samples 0 is too few" in error("--samples", 0, out="o")
    assert "does not exist" in error(checkpoint="none", out="o")
    assert "cannot be written (Not a directory); choose another folder" in error(out="full/file/o")
    assert not (trained / "o").exists()


@pytest.mark.slow
def test_a_trained_network_beats_its_controls(tmp_path):
    """Outside the intervals: sight and training are what the measures measure."""
    corpus = squares.write(tmp_path / "corpus", num_pictures=1600)
    small = {"model__vision__image_size": 64, "data__pack_length": 144, "model__language__vocab_size": 1200}
    small |= {"optimizer__warmup_steps": 50, "optimizer__ema_decay": 0.98, "log_every": 100, "eval_every": 200}
    deep = {"model__vision__dinov2__depth": 2, "model__vision__siglip__depth": 2, "model__language__num_layers": 2}
    pretrain(tmp_path / "run", corpus, num_steps=800, **small, **deep)
    pretrain(tmp_path / "blind", corpus, num_steps=200, **small, **deep, data__zero_images="true")
    options = ("--control", f"blind={tmp_path / 'blind'}", "--zero-images", "--untrained", "--max-new-tokens", 24)
    assert run(tmp_path, *options) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for entry in summary["results"]:
        own = entry["systems"].pop("checkpoint")
        assert len(entry["systems"]) == 4
        for name, control in entry["systems"].items():
            assert own["interval95"][0] > control["interval95"][1], (entry["metric"], name, own, control)
            assert control["difference_interval95"][0] > 0
