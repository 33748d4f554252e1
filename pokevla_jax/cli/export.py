"""pokevla-export: recorded episodes in formats that other projects read (LeRobot 3.0, RLDS)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pokevla_jax.cli import flags
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.corpus import SOURCE_NAME
from pokevla_jax.data.export.lerobot import export_lerobot
from pokevla_jax.data.export.rlds import export_rlds
from pokevla_jax.data.records import open_dataset

EXAMPLES = (
    "pokevla-export --data demos --format lerobot --fps 20 --out demos_lerobot",
    "pokevla-export --data demos --format rlds --name my_demos --out demos_rlds",
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = flags.make_parser(__doc__, EXAMPLES)
    p.prog = "pokevla-export"
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="a dataset of episodes")
    p.add_argument("--format", required=True, choices=("lerobot", "rlds"), help="LeRobot version 3.0, or RLDS")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not exist")
    p.add_argument(
        "--fps", type=int, default=20, metavar="N", help="lerobot: steps per second (default: %(default)s, LIBERO's)"
    )
    p.add_argument("--name", default="recordings", help="rlds: name of the dataset (default: %(default)s)")
    return p


def command(arguments: argparse.Namespace) -> int:
    """Exports what the arguments name."""
    if arguments.fps < 1:
        raise DataError(f"--fps {arguments.fps} is too small; give at least 1")
    if not SOURCE_NAME.fullmatch(arguments.name):
        raise DataError(f"--name {arguments.name!r} may hold lower-case letters, digits and _ only")
    dataset = open_dataset(arguments.data)
    if arguments.format == "lerobot":
        steps = export_lerobot(dataset, arguments.out, fps=arguments.fps)
    else:
        steps = export_rlds(dataset, arguments.out, name=arguments.name)
    print(f"{len(dataset.episodes)} episodes, {steps} steps in {arguments.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command."""
    return flags.run(parser(), command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
