"""Reading BDDL problem files: the s-expressions in which LIBERO describes a scene and its goal."""

import re
from pathlib import Path
from typing import Any

from pokevla_jax.sim.errors import SimulationError


def parse(path: Path) -> list[Any]:
    """The file as nested lists of lower-case tokens; comments run from ``;`` to the end of the line.

    Raises:
        SimulationError: if the file is missing or its parentheses do not match.
    """
    try:
        text = re.sub(r";.*$", "", path.read_text(), flags=re.MULTILINE).lower()
    except FileNotFoundError as error:
        raise SimulationError(f"Task file {path} does not exist") from error
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", text):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise SimulationError(f"Task file {path} closes a parenthesis it never opened")
            group = stack.pop()
            stack[-1].append(group)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise SimulationError(f"Task file {path} is not one closed (define ...) expression")
    return stack[0][0]


def section(path: Path, name: str) -> list[Any]:
    """What follows ``(:name`` in the file, e.g. ``section(path, "goal")``."""
    for group in parse(path):
        if isinstance(group, list) and group and group[0] == f":{name}":
            return group[1:]
    raise SimulationError(f"Task file {path} has no (:{name} ...) section")


def problem_name(path: Path) -> str:
    """The scene class that the file is written for, in lower case: what ``(problem`` names."""
    for group in parse(path):
        if isinstance(group, list) and group[:1] == ["problem"] and len(group) == 2:
            return group[1]
    raise SimulationError(f"Task file {path} names no (problem ...)")


def objects_of_interest(path: Path) -> tuple[str, ...]:
    """The instances that the instruction is about, in file order: what to act on, then where to bring it."""
    return tuple(section(path, "obj_of_interest"))
