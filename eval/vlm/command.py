"""``python -m eval vlm``: what a checkpoint and its controls answer to held-out questions, and what that is worth."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.breakdown import split
from eval.errors import EvaluationError
from eval.errors import unwritable
from eval.vlm import page
from eval.vlm import scores as scoring
from eval.vlm.questions import Question
from eval.vlm.questions import held_out_samples
from eval.vlm.questions import read_questions
from pokevla_jax import terminal
from pokevla_jax.data.corpus import Corpus
from pokevla_jax.data.corpus import open_corpus
from pokevla_jax.typing import Float

if TYPE_CHECKING:
    from pokevla_jax.vlm import Vlm

CHECKPOINT, BLACK, UNTRAINED, CONSTANT = "checkpoint", "black images", "untrained", "constant"
MEANINGS = {
    CHECKPOINT: "the network",
    BLACK: "the same network, shown black images",
    UNTRAINED: "the same network before its first step",
    CONSTANT: "the best constant answer of each question type, chosen with hindsight on these very questions",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``vlm``."""
    parser.description = (
        "Asks a vision-language checkpoint and its controls about the held-out samples of a corpus, and\n"
        "says what the answers are worth."
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a stage-1 training run")
    terminal.add_step(parser, "which checkpoint of the run, and of the controls")
    add("--data", type=Path, required=True, metavar="DIR", help="the corpus whose held-out samples are asked")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for summary.json, answers.jsonl, report.html")
    add(
        "--control",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another run to ask the same questions, such as one trained without images; repeat for more",
    )
    add("--zero-images", action="store_true", help="also ask the checkpoint with black images")
    add("--untrained", action="store_true", help="also ask the network before its first step")
    add("--samples", type=int, metavar="N", help="ask N held-out samples, chosen by their ids (default: all)")
    add("--batch-size", type=int, default=64, metavar="N", help="questions at once (default: %(default)s)")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer (default: %(default)s)")
    add("--pictures", type=int, default=36, metavar="N", help="most pictures on the page (default: %(default)s)")
    seeded = "of the bootstrap, the chosen pictures and the untrained network (default: %(default)s)"
    add("--seed", type=int, default=0, metavar="N", help=seeded)
    add("--json", action="store_true", help="print the summary as JSON")


def main(options: argparse.Namespace, command: str) -> int:
    """Asks, judges, and writes the folder; ``command`` is what was typed."""
    controls = _controls(options)
    corpus = open_corpus(options.data)
    systems = _load(options, controls)
    samples = held_out_samples(systems[CHECKPOINT].config, corpus, options.samples)
    for name, vlm in systems.items():
        _check_unseen(name, vlm, corpus, samples)
    questions = read_questions(corpus, samples)
    _make_empty(options.out)
    answers, seconds = {}, {}
    for name, vlm in systems.items():
        start = time.perf_counter()
        answers[name] = _ask(name, vlm, questions)
        seconds[name] = round(time.perf_counter() - start, 2)
    answers[CONSTANT] = constant_answers(questions)
    scores = {name: np.array(list(map(scoring.score, questions, found))) for name, found in answers.items()}
    summary = {
        "protocol": _protocol(options, corpus, questions, systems) | {"command": command},
        "systems": {name: MEANINGS.get(name, f"the network of {controls.get(name)}") for name in answers},
        "seconds": seconds,
        "metrics": scoring.METRICS,
        "results": scoring.summarize(questions, scores, options.seed),
    }
    _write(options, summary, questions, answers, scores)
    print(json.dumps(summary, indent=1) if options.json else "\n".join(lines(summary)))
    if not options.json:
        print(f"report: {(options.out / 'report.html').resolve()}")
    return 0


def constant_answers(questions: Sequence[Question]) -> list[str]:
    """To every question the best constant answer of its type."""

    def kind(question: Question) -> tuple[str, str, str]:
        return question.pillar, question.kind, question.form

    best = {key: scoring.best_constant(members) for key, members in split(questions, kind).items()}
    return [best[kind(question)] for question in questions]


def lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The results over all questions and by pillar as text."""
    for entry in summary["results"]:
        if entry["type"] != scoring.ALL:
            continue
        what = entry["pillar"] if entry["new"] == scoring.ANY else f"new {entry['new']}"
        values = [
            f"{name} {page.show(entry['metric'], found['value'])} "
            f"({' to '.join(page.show(entry['metric'], end) for end in found['interval95'])})"
            for name, found in entry["systems"].items()
        ]
        yield f"{entry['metric']} of {entry['questions']} questions, {what}: {'; '.join(values)}"


def _controls(options: argparse.Namespace) -> dict[str, str]:
    """Folders of the runs that ``--control`` names."""
    controls: dict[str, str] = {}
    for argument in options.control:
        name, separator, folder = argument.partition("=")
        if not (name and separator and folder):
            raise EvaluationError(f"--control {argument!r} must read NAME=DIR, such as blind=runs/blind")
        if name in controls or name in MEANINGS:
            raise EvaluationError(f"--control name {name!r} is taken; choose another")
        controls[name] = folder
    if options.samples is not None and options.samples < 1:
        raise EvaluationError(f"--samples {options.samples} is too few; give at least 1")
    return controls


def _make_empty(out: Path) -> None:
    """Makes the folder, before an hour of questions and after everything else that may be wrong."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = any(out.iterdir())
    except OSError as error:
        raise unwritable("--out", out, error) from error
    if taken:
        raise EvaluationError(f"--out {out} is not empty; give a new folder")


def _load(options: argparse.Namespace, controls: Mapping[str, str]) -> dict[str, "Vlm"]:
    # JAX takes seconds to start, and other commands of the evaluator do without it.
    from pokevla_jax.vlm import Vlm

    sizes = {"batch_size": options.batch_size, "max_new_tokens": options.max_new_tokens}
    own = Vlm.load(options.checkpoint, options.step, **sizes)
    systems = {CHECKPOINT: own} | {name: Vlm.load(folder, options.step, **sizes) for name, folder in controls.items()}
    if options.zero_images:
        systems[BLACK] = own.with_black_images()
    if options.untrained:
        systems[UNTRAINED] = own.untrained(options.seed)
    return systems


def _check_unseen(name: str, vlm: "Vlm", corpus: Corpus, samples: Sequence[int]) -> None:
    """Raises ``EvaluationError`` when a system may have been trained on a question."""
    unseen = set(held_out_samples(vlm.config, corpus, None))
    seen = [index for index in samples if index not in unseen]
    if seen:
        raise EvaluationError(
            f"{name} may have been trained on {len(seen)} of {len(samples)} held-out samples: its "
            f"config.data.holdout_fraction is {vlm.config.data.holdout_fraction}; train both with the same"
        )


def _ask(name: str, vlm: "Vlm", questions: Sequence[Question]) -> list[str]:
    answers = [""] * len(questions)
    conversations = [question.conversation for question in questions]
    with tqdm(total=len(questions), unit="question", desc=name, file=sys.stderr) as bar:
        for indices, found in vlm.answer_batches(conversations):
            for index, text in zip(indices, found, strict=True):
                answers[index] = text
            bar.update(len(indices))
    return answers


def _protocol(
    options: argparse.Namespace, corpus: Corpus, questions: Sequence[Question], systems: Mapping[str, "Vlm"]
) -> dict[str, Any]:
    """What must agree before two results may be compared, and what made these."""
    return {
        "data": str(options.data),
        "records_sha256": [header["records_sha256"] for header in corpus.headers],
        "questions": len(questions),
        "samples": options.samples,
        "decoding": "greedy",
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
        "networks": {name: vlm.metadata for name, vlm in systems.items()},
    }


def _write(
    options: argparse.Namespace,
    summary: Mapping[str, Any],
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[str]],
    scores: Mapping[str, Float[np.ndarray, " n"]],
) -> None:
    html = page.build(summary, questions, answers, scores, most=options.pictures, seed=options.seed)
    try:
        (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        with (options.out / "answers.jsonl").open("w") as file:
            for index, question in enumerate(questions):
                record = {
                    "id": question.id,
                    "pillar": question.pillar,
                    "type": question.kind,
                    "form": question.form,
                    "question": question.conversation.turns[-1],
                    "answer": question.answer,
                    "answers": {name: found[index] for name, found in answers.items()},
                    "scores": {name: round(float(found[index]), 4) for name, found in scores.items()},
                }
                file.write(json.dumps(record) + "\n")
        (options.out / "report.html").write_text(html)
    except OSError as error:
        raise unwritable("--out", options.out, error) from error
