"""Packaging of ``pokevla_jax``; ``launch/setup.sh`` installs what it needs and then the package itself, editable."""

from pathlib import Path

from setuptools import find_packages
from setuptools import setup

ROOT = Path(__file__).resolve().parent
# Every module of cli/ but the shared helper is one console command: cli/train.py is pokevla-train.
COMMANDS = sorted(
    path.stem for path in (ROOT / "pokevla_jax" / "cli").glob("*.py") if path.stem not in ("__init__", "flags")
)


def _requirements(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line]


setup(
    name="pokevla_jax",
    version="0.1.0",
    description="Pre-train, adapt, evaluate and serve PokeVLA, a small vision-language-action model, in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # eval, configs and launch have names too common to be installed; they are run from the root.
    packages=find_packages(include=["pokevla_jax*"]),
    package_data={"pokevla_jax": ["**/*.json"]},
    install_requires=_requirements("requirements.txt"),
    extras_require={"dev": _requirements("requirements-dev.txt")},
    entry_points={"console_scripts": [f"pokevla-{name} = pokevla_jax.cli.{name}:main" for name in COMMANDS]},
)
