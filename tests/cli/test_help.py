"""What ``--help`` says: every command shows how it is called, every option what it means and what holds without it."""

import argparse
import importlib
import runpy
import sys
from pathlib import Path

import pytest

from eval import compare
from eval import doctor
from eval import merge
from eval import report
from eval import run
from eval.vlm import command as vlm
from pokevla_jax.cli import flags

CLI = Path(flags.__file__).parent
COMMANDS = sorted(path for path in CLI.glob("*.py") if path.stem not in ("__init__", "flags"))
EVALUATOR = {"run": run, "merge": merge, "compare": compare, "report": report, "vlm": vlm, "doctor": doctor}


def options_of(parser):
    """The parser's own options and those of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from options_of(child)
        else:
            yield action


def unexplained(parser):
    """The options without help, or with a default that the help does not name."""
    silent = [action.dest for action in options_of(parser) if not action.help]
    # A flag that is off and a list without entries are said by their absence.
    plain = (None, [], argparse.SUPPRESS)
    chosen = [action for action in options_of(parser) if action.default is not False and action.default not in plain]
    return silent + [action.dest for action in chosen if "default: " not in (action.help or "")]


def examples_of(parser):
    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield parser.epilog or ""
    for action in children:
        for child in action.choices.values():
            yield from examples_of(child)


def test_an_option_without_help_or_with_a_hidden_default_is_found():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bare")
    parser.add_argument("--hidden", default="x", help="something")
    parser.add_argument("--shown", default="x", help="something (default: %(default)s)")
    parser.add_argument("--flag", action="store_true", help="something")
    assert unexplained(parser) == ["bare", "hidden"]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_explains_itself_and_refuses_what_it_does_not_know(path, monkeypatch, capsys):
    """As ``python -m`` runs it, in this process: most of them import JAX, which takes seconds."""

    def run_with(*arguments):
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(path), run_name="__main__")
        return stop.value.code, capsys.readouterr()

    status, shown = run_with("--help")
    assert not status, shown.err
    assert shown.out.startswith(f"usage: pokevla-{path.stem} ")
    status, shown = run_with("--nonsense")
    assert (status, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert shown.err.startswith(f"pokevla-{path.stem}: error: ")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_option_is_explained_and_every_command_has_an_example(path, monkeypatch):
    parsers = []
    monkeypatch.setattr(flags, "run", lambda parser, *_: parsers.append(parser) or 0)
    importlib.import_module(f"pokevla_jax.cli.{path.stem}").main([])
    (parser,) = parsers
    assert unexplained(parser) == []
    assert all("examples:\n" in text and f"  pokevla-{path.stem} " in text for text in examples_of(parser))


@pytest.mark.parametrize("name", EVALUATOR)
def test_every_option_of_the_evaluator_is_explained(name):
    parser = argparse.ArgumentParser()
    EVALUATOR[name].add_arguments(parser)
    assert unexplained(parser) == []
    assert parser.description


def test_every_option_of_an_evaluation_stands_in_a_group():
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    _, ungrouped, *groups = parser._action_groups
    assert [action.dest for action in ungrouped._group_actions] == ["help"]
    assert [group.title for group in groups][:3] == ["policy", "episodes", "output"]
    assert all(group._group_actions for group in groups)
