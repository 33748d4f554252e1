"""The tree as a whole: sizes, paths, configurations, markers."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pokevla_jax.cli import flags
from tests.test_layering import IMPORTS

ROOT = Path(__file__).resolve().parent.parent
TRACKED = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    if (ROOT / name).is_file()
]
TEXT = [
    p for p in TRACKED if p.suffix in (".py", ".sh", ".md", ".txt", ".toml", ".yaml", ".yml", ".cfg", ".html", ".svg")
]
EXPERIMENTS = [
    p for p in TRACKED if p.parent == ROOT / "configs" and p.suffix == ".py" and p.stem not in ("common", "__init__")
]
MAX_LINES = 450


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_file_is_too_long_to_read():
    lengths = {name(p): len(p.read_text().splitlines()) for p in TEXT if p.suffix in (".py", ".sh")}
    assert {k: v for k, v in lengths.items() if v > MAX_LINES} == {}


def test_no_path_of_one_machine():
    """A home or work folder of whoever wrote it means nothing to whoever reads it."""
    pattern = re.compile(r"(?<![\w.$}/])/(?:home|root|Users|work|mnt|data)/\w")
    found = [
        f"{name(p)}:{n}" for p in TEXT for n, line in enumerate(p.read_text().splitlines(), 1) if pattern.search(line)
    ]
    assert found == []


def test_no_large_files():
    assert {name(p): p.stat().st_size for p in TRACKED if p.stat().st_size > 1_000_000} == {}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_experiment_loads_and_states_its_command(path):
    """A configuration's docstring says on which hardware, for how long, and the exact command."""
    docstring = re.match(r'"""(.*?)"""', path.read_text(), re.DOTALL)
    assert docstring, "the file must begin with a docstring"
    assert f"--config=configs/{path.name}" in docstring[1].replace("--config configs", "--config=configs")
    assert "pokevla-train" in docstring[1] or "quickstart.sh" in docstring[1]
    flags.load_config(str(path))


DOCUMENTS = [p for p in TRACKED if p.suffix == ".md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path):
    """Every relative link of a document names a file that is there and, after a ``#``, one of its headings."""
    lost = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        if not target.is_file() or (heading and heading not in headings(target)):
            lost.append(link)
    assert lost == []


def headings(path: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    found = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in found}


def test_the_readme_names_every_part_of_the_code():
    readme = (ROOT / "README.md").read_text()
    code = {p.relative_to(ROOT).parts for p in TRACKED if p.suffix in (".py", ".sh")}
    parts = {parts[0] for parts in code} | {"/".join(parts[:2]) for parts in code if parts[0] == "pokevla_jax"}
    folders = {part for part in parts if (ROOT / part).is_dir()}
    assert {folder for folder in folders if f"`{folder}/`" not in readme} == {"pokevla_jax"}
    # One part of the paper is found in the file that its row names.
    files = re.findall(r"`((?:pokevla_jax/)?(?:models|training|data)/[\w/]+(?:\.py)?/?)`", readme)
    assert len(files) > 5
    assert [file for file in files if not (ROOT / "pokevla_jax" / file.removeprefix("pokevla_jax/")).exists()] == []


def test_requirements_are_pinned():
    for file in ("requirements.txt", "requirements-sim.txt", "requirements-dev.txt", "requirements-clients.txt"):
        lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
        assert [line for line in lines if line and "==" not in line] == []


def test_every_imported_library_is_required():
    """A library that only another one brings along can vanish with that one's next version."""
    distributions = importlib.metadata.packages_distributions()
    lines = "\n".join((ROOT / file).read_text() for file in ("requirements.txt", "requirements-sim.txt"))
    required = {re.sub(r"[-_.]+", "-", line).lower() for line in re.findall(r"^([\w.-]+)==", lines, re.MULTILINE)}
    imported = {found.target.split(".")[0] for found in IMPORTS} - sys.stdlib_module_names
    missing = {}
    for module in imported - {"pokevla_jax", "eval", "configs"}:
        providers = {re.sub(r"[-_.]+", "-", provider).lower() for provider in distributions.get(module, [module])}
        if not providers & required:
            missing[module] = sorted(providers)
    assert missing == {}
