"""``python -m eval run | merge | compare | report | vlm | doctor``."""

import argparse
import contextlib
import json
import shlex
import sys

from pokevla_jax import terminal

EXAMPLES = (
    "python -m eval run --policy runs/policy --tasks 0 --layouts 20 --layout-seed 90000 --run-dir runs/eval/policy",
    "python -m eval run --policy expert --suite libero_object --init-states 0-49 --run-dir runs/eval/expert",
    """python -m eval run --policy runs/policy --benchmark libero --suite all --ablate images --ablate language \\
      --control blind=runs/blind --control replay --run-dir runs/eval/libero""",
    "python -m eval merge runs/eval/host1 runs/eval/host2 --out runs/eval/all",
    "python -m eval compare runs/eval/policy runs/eval/blind",
    "python -m eval compare runs/seed0/policy,runs/seed1/policy runs/seed0/blind,runs/seed1/blind",
    "python -m eval doctor",
    "python -m eval report --run-dir runs/eval/policy --run-dir runs/eval/blind --workdir runs/policy --out page.html",
    "python -m eval vlm --checkpoint runs/vlm --data corpus --control blind=runs/blind --zero-images --out answers",
)
STATUS = """
Bad input is answered in one sentence on stderr with exit status 2 (POKEVLA_TRACEBACK=1 shows the traceback
instead); status 1 means that episodes ended in errors, or that a merged run is not complete or contradicts itself.
"""


def examples(command: str = "") -> str:
    """The examples of one command, or of all."""
    found = [line for line in EXAMPLES if line.startswith(f"python -m eval {command}")]
    return "\n".join(["examples:", *(f"  {line}" for line in found), ""])


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = terminal.Parser(
        prog="python -m eval",
        description="Evaluates policies in simulation and says what their success rates are worth.",
        epilog=examples() + STATUS,
    )
    metavar = "run | merge | compare | report | vlm | doctor"
    commands = parser.add_subparsers(dest="command", required=True, metavar=metavar)
    from eval import compare
    from eval import doctor
    from eval import merge
    from eval import report
    from eval import run
    from eval.vlm import command as vlm

    def add(command: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(command, help=summary, epilog=examples(command))

    run.add_arguments(add("run", "run episodes into a folder"))
    merge.add_arguments(add("merge", "runs of one protocol as one, each episode once"))
    compare.add_arguments(add("compare", "paired comparison of two runs"))
    report.add_arguments(add("report", "one HTML page about runs"))
    vlm.add_arguments(add("vlm", "ask a vision-language checkpoint about held-out pictures"))
    doctor.add_arguments(add("doctor", "does this machine simulate as published results assume?"))
    options = parser.parse_args(arguments)
    typed = shlex.join(["python", "-m", "eval", *arguments])
    try:
        if options.command == "run":
            return _run(options, typed)
        if options.command == "merge":
            return merge.main(options)
        if options.command == "vlm":
            return vlm.main(options, typed)
        if options.command == "doctor":
            return doctor.main(options)
        if options.command == "compare":
            return compare.main(options)
        return report.main(options)
    except (ValueError, OSError) as error:
        said = terminal.sentence(error)
        if said is None:
            raise
        print(f"eval {options.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"eval {options.command}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace, command: str) -> int:
    from eval import run
    from eval import summary as summaries

    values = {name: value for name, value in vars(arguments).items() if name != "command"}
    # Ray reports lost hosts on stdout, which is for the result.
    with contextlib.redirect_stdout(sys.stderr):
        result = run.run(run.Options(**values), command)
    parts = [result, *result.get("controls", {}).values()]
    text = "\n".join(line for part in parts for line in summaries.lines(part))
    print(json.dumps(result, indent=1) if arguments.json else text)
    return 1 if any(part["error"] for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
