"""What every console command shares: loading ``--config``, overriding its keys, and one-sentence errors.

A configuration is a Python file with ``get_config()`` or ``get_config(arg)``, given as ``FILE`` or ``FILE:arg``. Any
key of it can be overridden with ``--config.some.key=value``; the value is read as the type the key already has.
"""

import argparse
import ast
import difflib
import inspect
import runpy
import sys
import traceback
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pokevla_jax import config as config_lib
from pokevla_jax import terminal

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load_config(spec: str, overrides: Sequence[str] = ()) -> config_lib.Config:
    """The validated configuration of ``FILE`` or ``FILE:arg`` with ``key=value`` overrides applied in order.

    Raises:
        FileNotFoundError: when there is no such file (naming the nearest one beside it).
        ConfigError: when the file, a key or a value cannot be used.
    """
    values = _read_file(spec)
    # Through the dataclasses and back: every key then exists with its default, so that each one can be overridden.
    complete = config_lib.to_dict(config_lib.from_dict(config_lib.Config, values))
    for override in overrides:
        _override(complete, override)
    return config_lib.from_config_dict(complete)


def make_parser(description: str | None, examples: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A parser that answers a wrong command line in one sentence and ends its help with ``examples``.

    ``description`` is a docstring, whose marks of code are not for the terminal.
    """
    epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
    program = Path(sys.argv[0])
    as_module = program.suffix == ".py" and program.parent.name == "cli"
    return terminal.Parser(
        # Under ``python -m`` too, a command is called by its installed name.
        prog=f"pokevla-{program.stem}" if as_module else None,
        description=description and description.replace("``", ""),
        epilog=epilog,
    )


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds ``--config``; ``run`` replaces its value, where one is given, with the loaded ``Config``."""
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE[:ARG]",
        help="a file of configs/; override any of its keys with --config.KEY=VALUE, "
        "for example --config.optimizer.learning_rate=3e-4",
    )


def run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """The exit status of ``command(arguments)``: its own, or 2 after printing an error's one sentence.

    What speaks to the user is shown without traceback (``POKEVLA_TRACEBACK=1`` shows it); a defect keeps its own.
    """
    arguments, overrides = _split_overrides(sys.argv[1:] if argv is None else argv)
    namespace = parser.parse_args(arguments)
    try:
        if getattr(namespace, "config", None) is not None:
            namespace.config = load_config(namespace.config, overrides)
        elif overrides:
            parser.error(f"this command has no --config, or none was given, so --config.{overrides[0]} means nothing")
        return command(namespace) or 0
    except (ValueError, OSError) as error:
        said = terminal.sentence(error)
        if said is None:
            raise
        print(f"{parser.prog}: error: {said}", file=sys.stderr)
        return 2


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without ``--config.key=value`` or ``--config.key value``, and those as ``key=value``."""
    arguments, overrides = [], []
    remaining = iter(argv)
    for argument in remaining:
        if not argument.startswith("--config."):
            arguments.append(argument)
            continue
        key, separator, value = argument.removeprefix("--config.").partition("=")
        overrides.append(f"{key}={value if separator else next(remaining, '')}")
    return arguments, overrides


def _read_file(spec: str) -> Mapping[str, Any]:
    """The plain nested dict returned by the ``get_config`` of ``FILE`` or ``FILE:arg``."""
    name, separator, argument = spec.partition(".py:")
    path = Path(f"{name}.py" if separator else spec)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a Python file with get_config()"
        raise FileNotFoundError(f"Configuration file {path} does not exist; {hint}")
    # Configurations import their shared parts as `from configs import common`, from wherever the command is called.
    root = str(path.resolve().parent.parent)
    sys.path.insert(0, root)
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise config_lib.ConfigError(f"{path} defines no get_config()")
        if argument and not inspect.signature(get_config).parameters:
            raise config_lib.ConfigError(f"get_config() of {path} takes no argument, got {argument!r}")
        config = get_config(argument) if argument else get_config()
    except config_lib.ConfigError:
        raise
    # It is the user's own program, in which anything can go wrong.
    except Exception as error:
        raise config_lib.ConfigError(f"{path} cannot be loaded: {_told(error, path)}") from error
    finally:
        sys.path.remove(root)
    return config.to_dict() if hasattr(config, "to_dict") else config


def _told(error: Exception, path: Path) -> str:
    """Kind and words of an error, and the last line of ``path`` that it passed through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")


def _override(config: dict[str, Any], override: str) -> None:
    """Sets one ``key=value`` in the complete nested ``config``, in place."""
    key, separator, text = override.partition("=")
    if not (key and separator):
        raise config_lib.ConfigError(f"Override {override!r} must read key=value")
    *groups, last = key.split(".")
    group = config
    for depth, name in enumerate(groups, start=1):
        # An unknown key is written all the same: `from_dict` refuses it and names its neighbour.
        group = group.setdefault(name, {})
        if not isinstance(group, dict):
            raise config_lib.ConfigError(f"config.{'.'.join(groups[:depth])} is a value, not a group of keys")
    current = group.get(last)
    if isinstance(current, dict):
        raise config_lib.ConfigError(f"config.{key} is a group of keys: {', '.join(current)}; set one of them")
    group[last] = _parse(text, current)


def _parse(text: str, current: Any) -> Any:
    """``text`` as the type of ``current``; text that cannot be read so is left for the typed check to refuse."""
    if isinstance(current, str):
        return text
    if isinstance(current, bool):
        return _BOOLEANS.get(text.lower(), text)
    if isinstance(current, list) and not text.startswith(("(", "[")):
        # A list may be given bare: --config.optimizer.freeze=vision/.*,language/.*
        text_items = [item for item in text.split(",") if item]
        return [_literal(item) for item in text_items]
    return _literal(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
