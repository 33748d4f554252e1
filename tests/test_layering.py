"""Imports point one way: the rules of docs/architecture.md, read from the source of every module."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each part may import of the project besides itself. A part that is not listed here fails the first test.
MAY_IMPORT = {
    "pokevla_jax.typing": (),
    "pokevla_jax.fields": ("typing",),
    "pokevla_jax.config_rules": ("fields",),
    "pokevla_jax.config": ("typing", "fields", "config_rules"),
    "pokevla_jax.terminal": (),
    "pokevla_jax.models": ("typing", "config", "sharding"),
    "pokevla_jax.sharding": ("typing", "config"),
    "pokevla_jax.flops": ("config",),
    "pokevla_jax.data": ("typing", "config"),
    "pokevla_jax.sim": ("typing",),
    "pokevla_jax.checkpoints": ("typing", "config", "models", "sharding", "data"),
    "pokevla_jax.training": ("typing", "config", "models", "sharding", "data", "checkpoints", "flops"),
    "pokevla_jax.plan": ("typing", "config", "models", "sharding", "data", "training", "flops"),
    "pokevla_jax.interop": ("typing", "config", "models", "sharding", "data", "checkpoints"),
    "pokevla_jax.policy": ("typing", "config", "models", "data", "checkpoints"),
    "pokevla_jax.vlm": ("typing", "config", "models", "data", "checkpoints"),
    "pokevla_jax.serving": (),
    "pokevla_jax.cli": (
        *("typing", "config", "models", "sharding", "data", "sim", "checkpoints", "training"),
        *("plan", "interop", "policy", "serving", "terminal"),
    ),
    "eval": ("typing", "config", "data", "sim", "checkpoints", "policy", "vlm", "serving", "terminal"),
    "configs": ("config", "models"),
}
# Modules that may import more than their part: what stores what it simulates, and words and splits it as data is.
EXCEPTIONS = {
    f"pokevla_jax.sim.{module}": ("data",)
    for module in ("recorder", "corpus.build", "corpus.phrasings", "corpus.samples", "corpus.sheet", "corpus.splits")
}
# Libraries, and the only parts that may import them. Loader workers and simulators are processes of their own: JAX
# would take seconds to import there, and a TPU cannot be opened twice.
LIBRARIES = {
    "jax": ("models", "sharding", "checkpoints", "training", "plan", "interop", "policy", "vlm", "cli"),
    "flax": ("models", "interop"),
    "optax": ("training", "plan"),
    "mujoco": ("sim",),
    "robosuite": ("sim",),
    "libero": ("sim",),
    "torch": ("interop", "data.ingest"),
    "tensorflow": ("data.ingest", "data.export"),
}
# Heavy and optional at run time: only inside the functions that need them.
INSIDE_FUNCTIONS = {"torch", "tensorflow", "transformers"}


@dataclass(frozen=True)
class Import:
    """One imported module, by whom and where."""

    module: str
    target: str
    line: int
    at_top: bool

    def __str__(self) -> str:
        return f"{self.module} imports {self.target} (line {self.line})"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# Copied into every exported folder and run there alone: code for others, which imports nothing of the project.
EXPORTED = ROOT / "pokevla_jax" / "interop" / "torch_model"
SOURCES = {
    module_name(path): path
    for part in ("pokevla_jax", "eval", "configs")
    for path in sorted((ROOT / part).rglob("*.py"))
    if path.parent != EXPORTED
}


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Every import statement of ``source``, those inside functions too; only type checkers see ``TYPE_CHECKING``."""

    def visit(node: ast.AST, at_top: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno} imports relatively; write the full name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield Import(module, full if full in SOURCES else str(node.module), node.lineno, at_top)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_top and not inside)

    yield from visit(ast.parse(source), True)


IMPORTS = [found for module, path in SOURCES.items() for found in imports_of(module, path.read_text())]


def part_of(module: str) -> str:
    """``pokevla_jax.models.vision`` -> ``pokevla_jax.models``; ``eval.report`` -> ``eval``."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pokevla_jax" else parts[0]


def is_within(module: str, parts: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"pokevla_jax.{part}.") for part in parts)


def test_the_reader_of_imports_sees_all_forms():
    source = "import jax.numpy as jnp\ndef f():\n    from pokevla_jax.models import vision\n    import torch\n"
    found = [(i.target, i.at_top) for i in imports_of("m", source)]
    assert found[0] == ("jax.numpy", True)
    assert found[2] == ("torch", False)
    assert found[1][0].startswith("pokevla_jax.models")


# The bare package holds the version alone.
PARTS = {part_of(module) for module in SOURCES} - {"pokevla_jax"}


def test_every_part_has_a_rule():
    assert set(MAY_IMPORT) >= PARTS


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_project_imports_point_one_way(part):
    wrong = []
    for found in IMPORTS:
        target = part_of(found.target)
        if part_of(found.module) != part or target == part or target not in PARTS:
            continue
        allowed = MAY_IMPORT[part] + EXCEPTIONS.get(found.module, ())
        if not is_within(found.target, allowed):
            wrong.append(str(found))
    assert not wrong, f"{part} may import only {MAY_IMPORT[part]}: {wrong}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_in_their_parts(library):
    wrong = [
        str(found)
        for found in IMPORTS
        if found.target.split(".")[0] == library and not is_within(found.module, LIBRARIES[library])
    ]
    assert not wrong, f"only {LIBRARIES[library]} may import {library}: {wrong}"


def test_heavy_libraries_are_imported_inside_functions():
    wrong = [str(found) for found in IMPORTS if found.at_top and found.target.split(".")[0] in INSIDE_FUNCTIONS]
    assert not wrong


def test_exported_code_stands_alone():
    """It imports its own files by relative names, as the hub's code must, and else only what its card asks for."""
    files = sorted(EXPORTED.glob("*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and (EXPORTED / f"{node.module}.py").is_file()
            elif isinstance(node, ast.Import | ast.ImportFrom):
                targets = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                allowed = {"torch", "numpy", "transformers", "tokenizers", *sys.stdlib_module_names}
                assert {target.split(".")[0] for target in targets} <= allowed


def test_no_import_cycles():
    graph = {
        module: {i.target for i in IMPORTS if i.module == module and i.at_top} & set(SOURCES) for module in SOURCES
    }
    finished, cycles = set(), []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            cycles.append(" -> ".join((*path[path.index(module) :], module)))
        elif module not in finished:
            for target in sorted(graph[module]):
                visit(target, (*path, module))
            finished.add(module)

    for module in graph:
        visit(module, ())
    assert not cycles


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("pokevla_jax.data.transforms", {"jax", "torch", "tensorflow", "mujoco"}),
        ("pokevla_jax.sim.environment", {"jax", "torch", "tensorflow"}),
        ("pokevla_jax.serving.server", {"jax", "torch", "tensorflow"}),
        ("pokevla_jax.policy", {"torch", "tensorflow", "mujoco", "transformers"}),
    ],
)
def test_importing_does_not_load(module, forbidden):
    """What the import statements of the project alone cannot tell: what a library brings along."""
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert forbidden & set(result.stdout.split()) == set()
