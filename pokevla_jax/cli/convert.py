"""``pokevla-convert``: PyTorch checkpoints in and out.

``from-torch`` imports released weights (Qwen2.5, DINOv2, SigLIP, Prismatic, VLA-Adapter, SAM, VGGT), any subset of the
network's parts; what no source has starts fresh and is listed.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import DownloadColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.table import Table

from pokevla_jax.cli import flags
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.interop import import_torch
from pokevla_jax.models import presets

EXAMPLES = (
    "pokevla-convert from-torch --source VLA-Adapter/LIBERO-Spatial-Pro --out runs/spatial_pro",
    "pokevla-convert from-torch --help",
)
FROM_TORCH = (
    "# a released VLA-Adapter folder: model.safetensors, action_head--*.pt, proprio_projector--*.pt, statistics",
    "pokevla-convert from-torch --source VLA-Adapter/LIBERO-Spatial-Pro --out runs/spatial_pro",
    "# a PokeVLA to train: vision-language weights of Prismatic, teachers SAM and VGGT, the rest fresh",
    "pokevla-convert from-torch --source prism-qwen25.pt --source sam_vit_b_01ec64.pth --source VGGT-1B/model.pt \\",
    "    --tokenizer Qwen2.5-0.5B --out runs/start",
    "# parts from Hugging Face, in bfloat16",
    "pokevla-convert from-torch --source Qwen2.5-0.5B --source dinov2-with-registers-large \\",
    "    --source siglip-so400m-patch14-224 --dtype bfloat16 --out runs/start",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    parser = flags.make_parser(__doc__, EXAMPLES)
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    _add_from_torch(commands)
    return flags.run(parser, lambda arguments: arguments.run(arguments), argv)


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    summary: str,
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_from_torch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_command(
        commands,
        "from-torch",
        _from_torch,
        "import PyTorch checkpoints: files or folders, told by their names",
        FROM_TORCH,
    )
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="PATH",
        type=Path,
        help=".safetensors (or the index of shards), .pt, .pth, .bin, or a checkpoint's folder; may be repeated",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the new checkpoint's folder; must not exist")
    parser.add_argument(
        "--preset", choices=sorted(presets.PRESETS), help="the network; by default the one that the sources fit"
    )
    flags.add_config(parser, required=False)
    parser.add_argument(
        "--dtype", choices=sorted(import_torch.DTYPES), help="cast everything; by default each tensor keeps its type"
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="Qwen2.5's tokenizer; by default the one in a source's folder"
    )
    parser.add_argument("--statistics-key", metavar="NAME", help="which dataset of dataset_statistics.json")
    parser.add_argument("--seed", type=int, default=0, help="of what no source has (default 0)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def _from_torch(arguments: argparse.Namespace) -> None:
    # Orbax narrates every save through absl.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if arguments.config and arguments.preset not in (None, arguments.config.model.preset):
        raise ConfigError(
            f"--preset {arguments.preset} and --config (preset {arguments.config.model.preset}) disagree; give one"
        )

    def make_config(detected: str) -> Config:
        return arguments.config or Config(model=presets.get_preset(arguments.preset or detected))

    columns = (TextColumn("converting"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        report = import_torch.import_checkpoint(
            arguments.source,
            arguments.out,
            make_config,
            dtype=arguments.dtype,
            tokenizer=arguments.tokenizer,
            statistics_key=arguments.statistics_key,
            seed=arguments.seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        _print_report(report, arguments.out)


def _print_report(report: import_torch.Report, out: str) -> None:
    console = Console()
    table = Table(title=f"{out}: preset {report.preset}, {report.num_bytes / 2**30:.2f} GiB")
    for heading in ("part", "imported", "fresh", "carried unused", "types"):
        table.add_column(heading, justify="left" if heading in ("part", "types") else "right")
    for part in report.parts:
        numbers = (f"{n:,}" if n else "" for n in (part.imported, part.fresh, part.carried))
        table.add_row(part.part, *numbers, ", ".join(part.dtypes))
    sums = (sum(getattr(part, name) for part in report.parts) for name in ("imported", "fresh", "carried"))
    table.add_section()
    table.add_row("sum", *(f"{n:,}" for n in sums), "")
    console.print(table)
    for origin in report.origins:
        left = f"; {origin.left_out} tensors of parts that are not needed left out" if origin.left_out else ""
        console.print(f"{origin.kind}: {origin.path}{left}", highlight=False)
    cast = f"{report.cast:,} parameters were cast" if report.cast else "no imported parameter changed its type"
    console.print(f"types: {cast}")
    console.print(f"statistics: {report.statistics or 'none; a policy needs those of its dataset'}")
    console.print(f"tokenizer: {report.tokenizer or 'none; a policy needs one, give --tokenizer'}")


if __name__ == "__main__":
    sys.exit(main())
