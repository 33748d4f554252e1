"""``python -m eval doctor``: does this machine simulate LIBERO as published results assume?"""

import argparse
import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

from eval.errors import EvaluationError
from pokevla_jax import terminal

if TYPE_CHECKING:
    from eval.checks import Bench
    from eval.checks import Finding

CHECKS = {
    "packages": "versions of simulator and benchmark against the pins",
    "assets": "hashes of meshes, textures and scenes against the shipped manifest",
    "prompts": "instructions of the four suites, without LIBERO-Plus's suffixes",
    "files": "write access, and room, for results and caches",
    "renderer": "which device draws, and how fast",
    "pictures": "both cameras' images are turned by 180 degrees",
    "settle": "objects come to rest as with the right MuJoCo",
    "robot": "an arm built in a perturbed pose drifts as in LIBERO-Plus",
    "expert": "scripted episodes succeed, and do so again when their actions are repeated",
    "ray": "Ray starts here and runs something",
}
"""Name -> what is looked at, in the order in which it is: what explains other failures comes first."""

EXAMPLES = f"""\
checks:
{chr(10).join(f"  {name:<10}{text}" for name, text in CHECKS.items())}

examples:
  python -m eval doctor                          everything, about a minute
  python -m eval doctor --only packages,assets   two checks that need no simulator
  python -m eval doctor --assets DIR --json      for a script; the exit status is 1 if anything fails

One line per check: OK, WARN (know it before you compare numbers) or FAIL (results would be wrong or impossible).
"""
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``doctor``."""
    parser.description = "Checks whether this machine simulates as published results assume."
    parser.epilog = EXAMPLES
    add = parser.add_argument
    terminal.add_assets(parser)
    results = "where results will be written (default: %(default)s)"
    add("--run-dir", type=Path, default=Path("runs"), metavar="DIR", help=results)
    add("--only", metavar="CHECKS", help="names of checks, separated by commas (default: all)")
    add("--json", action="store_true", help="print the findings as JSON")


def main(options: argparse.Namespace) -> int:
    """Runs the checks, prints a line for each, and returns 1 if any failed, else 0."""
    from eval.checks import Bench  # imports MuJoCo, which other commands need not

    names = select(options.only)
    report = (lambda name, finding: None) if options.json else Printer()
    findings = examine(names, Bench(options.assets, options.run_dir), report)
    result = to_json(findings)
    if options.json:
        print(json.dumps(result, indent=1))
    return 0 if result["ok"] else 1


def select(text: str | None) -> list[str]:
    """The checks of ``--only``, in the doctor's order; all without it.

    Raises:
        EvaluationError: for a name that is no check.
    """
    if text is None:
        return list(CHECKS)
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in CHECKS:
            near = difflib.get_close_matches(name, CHECKS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CHECKS)}"
            raise EvaluationError(f"--only: no check {name!r}; {hint}")
    return [name for name in CHECKS if name in wanted]


def examine(names: list[str], bench: "Bench", report: Callable[[str, "Finding"], Any]) -> dict[str, "Finding"]:
    """Runs the named checks and reports each as soon as it is known."""
    from eval.checks import run_check

    findings = {}
    try:
        for name in names:
            findings[name] = run_check(name, bench)
            report(name, findings[name])
    finally:
        bench.close()
    return findings


def to_json(findings: dict[str, "Finding"]) -> dict[str, Any]:
    """Plain JSON types: whether all is well, and each finding."""
    return {
        "ok": all(finding.status != "fail" for finding in findings.values()),
        "checks": {
            name: {"status": str(finding.status), "message": finding.message, "advice": finding.advice}
            for name, finding in findings.items()
        },
    }


class Printer:
    """Prints a finding as one line, and beneath it what to do; in colour on a terminal."""

    def __init__(self):
        from rich.console import Console

        self._console = Console(highlight=False, soft_wrap=True)

    def __call__(self, name: str, finding: "Finding") -> None:
        """Prints one finding."""
        from rich.markup import escape

        colour = COLOURS[finding.status]
        self._console.print(f"[bold {colour}]{finding.status.upper():<5}[/]{name:<10}{escape(finding.message)}")
        if finding.advice:
            self._console.print(f"{'':<15}-> {escape(finding.advice)}")
