"""One self-contained HTML page about a vision-language checkpoint: tables, and pictures with places drawn on them."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from eval.breakdown import in_turns
from eval.breakdown import split
from eval.html import data_uri
from eval.html import templates
from eval.html import timestamp
from eval.overlays import PREDICTED_COLOR
from eval.overlays import TRUE_COLOR
from eval.overlays import tint
from eval.vlm import scores as scoring
from eval.vlm.questions import Box
from eval.vlm.questions import Question
from pokevla_jax.data.codec import decode_jpeg
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

# Larger pictures are made smaller before anything is drawn on them.
_LONGEST_SIDE = 320
_QUALITY = 85


def build(
    summary: Mapping[str, Any],
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[str]],
    scores: Mapping[str, Float[np.ndarray, " n"]],
    *,
    most: int,
    seed: int,
) -> str:
    """The page as HTML text, with everything it shows inside it.

    Args:
        summary: what ``summary.json`` holds.
        questions: all of them.
        answers: of each system to each question; the first system's are drawn.
        scores: of those answers.
        most: pictures.
        seed: of their choice.
    """
    first = next(iter(answers))
    return (
        templates()
        .get_template("vlm.html.j2")
        .render(
            title=f"{summary['protocol']['networks'][first]['path']} on {summary['protocol']['data']}",
            headlines=_headlines(summary),
            tables=_tables(summary),
            pictures=[
                _picture(
                    questions[index], {name: found[index] for name, found in answers.items()}, scores[first][index]
                )
                for index in choose(questions, most, seed)
            ],
            written=timestamp(),
            **{name: summary[name] for name in ("systems", "metrics", "seconds", "protocol")},
        )
    )


def choose(questions: Sequence[Question], most: int, seed: int) -> list[int]:
    """Questions to show: of every type in turn one drawn by chance, until there are ``most``; places first."""
    rng = np.random.default_rng(seed)

    def kind(index: int) -> tuple[str, str, str]:
        question = questions[index]
        return question.form, question.pillar, question.kind

    kinds = split(map(int, rng.permutation(len(questions))), kind)
    chosen = in_turns(kinds[key] for key in sorted(kinds, key=lambda key: (key[0] == "text", key)))[:most]
    return sorted(chosen, key=lambda i: (questions[i].pillar, questions[i].kind))


def draw(question: Question, answer: str) -> UInt8[np.ndarray, "h w 3"] | None:
    """The last picture with the true place and the answer's drawn on it; None without a picture."""
    images = question.conversation.images
    if not images:
        return None
    picture = decode_jpeg(images[-1], "last picture")
    mask = question.mask
    scale = min(1.0, _LONGEST_SIDE / max(picture.shape[:2]))
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if mask is None:
        mask = np.zeros(picture.shape[:2], np.uint8)
    else:
        mask = cv2.resize(mask, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    drawn = tint(picture, mask > 0, TRUE_COLOR)
    if question.box is not None:
        _rectangle(drawn, question.box, TRUE_COLOR)
        box = scoring.read_box(answer)
        if box is not None:
            _rectangle(drawn, box, PREDICTED_COLOR)
    point = scoring.read_point(answer) if question.mask is not None else None
    if point is not None:
        place = _pixel(drawn, point)
        cv2.circle(drawn, place, 7, (255, 255, 255), 3)
        cv2.circle(drawn, place, 7, PREDICTED_COLOR, 2)
        cv2.circle(drawn, place, 1, PREDICTED_COLOR, -1)
    return drawn


def _rectangle(image: np.ndarray, box: Box, color: tuple[int, int, int]) -> None:
    cv2.rectangle(image, _pixel(image, box[:2]), _pixel(image, box[2:]), color, 2)


def _pixel(image: np.ndarray, place: Sequence[float]) -> tuple[int, int]:
    # A place far outside would overflow OpenCV's integers; just outside it is as invisible.
    x, y = (float(np.clip(value, -1, 2)) for value in place)
    return int(x * image.shape[1]), int(y * image.shape[0])


def _picture(question: Question, answers: Mapping[str, str], score: float) -> dict[str, Any]:
    first = next(iter(answers))
    image = draw(question, answers[first])
    uri = None
    if image is not None:
        encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
        uri = data_uri(encoded.tobytes(), "image/jpeg")
    verdicts = {
        "text": "right" if score else "wrong",
        "points": "on the mask" if score else "beside the mask",
        "box": f"overlap {score:.2f}",
    }
    return {
        "uri": uri,
        "pillar": question.pillar,
        "kind": question.kind.replace("_", " "),
        "question": question.conversation.turns[-1],
        "answer": "the green area" if question.mask is not None else question.answer,
        "answers": dict(answers),
        "right": score >= 0.5,
        "verdict": verdicts[question.form],
    }


def _headlines(summary: Mapping[str, Any]) -> list[str]:
    """The checkpoint's overall results in words."""
    sentences = []
    for entry in summary["results"]:
        if (entry["pillar"], entry["new"]) == (scoring.ALL, scoring.ANY):
            own, *controls = (
                f"{name} {show(entry['metric'], found['value'])}" for name, found in entry["systems"].items()
            )
            others = f" ({', '.join(controls)})" if controls else ""
            sentences.append(f"{entry['metric'].replace('_', ' ').capitalize()}: {own}{others}.")
    return sentences


def _tables(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows over all questions and by what is new, then by pillar, then one table of types for each pillar."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for entry in summary["results"]:
        if entry["pillar"] == scoring.ALL:
            title, name = "All questions", "all" if entry["new"] == scoring.ANY else f"new {entry['new']}"
        elif entry["type"] == scoring.ALL:
            title, name = "By pillar", entry["pillar"]
        else:
            title, name = f"By type: {entry['pillar']}", entry["type"].replace("_", " ")
        tables.setdefault(title, []).append(_row(name, entry))
    order = sorted(tables, key=lambda title: (title != "All questions", title != "By pillar", title))
    return [{"title": title, "rows": tables[title]} for title in order]


def _row(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    metric = entry["metric"]
    cells = []
    for found in entry["systems"].values():
        low, high = found["interval95"]
        cell = {
            "value": show(metric, found["value"]),
            "interval": f"{show(metric, low)} to {show(metric, high)}",
            "difference": "",
            "tone": "",
        }
        if "difference" in found:
            low, high = found["difference_interval95"]
            change, *ends = (_change(metric, number) for number in (found["difference"], low, high))
            cell["difference"] = f"{change} ({ends[0]} to {ends[1]})"
            cell["tone"] = "success" if low > 0 else "failure" if high < 0 else ""
        cells.append(cell)
    facts = {key: entry[key] for key in ("metric", "questions", "pictures")}
    return {"name": name, "cells": cells, **facts}


def show(metric: str, number: float) -> str:
    """A mean as people read it: a rate in per cent, an overlap as it is."""
    return f"{number:.3f}" if metric == "box_iou" else f"{100 * number:.1f} %"


def _change(metric: str, number: float) -> str:
    return f"{number:+.3f}" if metric == "box_iou" else f"{100 * number:+.1f}"
