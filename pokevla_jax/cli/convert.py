"""``pokevla-convert``: PyTorch checkpoints in and out.

``from-torch`` imports released weights (Qwen2.5, DINOv2, SigLIP, Prismatic, VLA-Adapter, SAM, VGGT), any subset of the
network's parts; what no source has starts fresh and is listed. ``to-torch`` exports a checkpoint to a folder that
PyTorch loads alone. ``check`` runs a checkpoint and an export side by side. ``params`` counts a network's parameters.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import DownloadColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.table import Table

from pokevla_jax import terminal
from pokevla_jax.cli import flags
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.interop import check as check_lib
from pokevla_jax.interop import import_torch
from pokevla_jax.interop import model_card
from pokevla_jax.interop import torch_export
from pokevla_jax.models import parameter_table
from pokevla_jax.models import presets

EXAMPLES = (
    "pokevla-convert from-torch --source VLA-Adapter/LIBERO-Spatial-Pro --out runs/spatial_pro",
    "pokevla-convert to-torch --checkpoint runs/soup --out exported/soup",
    "pokevla-convert check --checkpoint runs/soup --torch exported/soup --data data/soup --frames 100",
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
TO_TORCH = (
    "# a folder for transformers.AutoModel.from_pretrained(..., trust_remote_code=True)",
    "pokevla-convert to-torch --checkpoint runs/soup --step best --out exported/soup",
    "# in half the size, for other robots' code; the mask decoder along",
    "pokevla-convert to-torch --checkpoint runs/soup --dtype bfloat16 --include-training-parts --out exported/soup",
    "# a vla_adapter or vla_adapter_pro network for VLA-Adapter's own code",
    "pokevla-convert to-torch --checkpoint runs/spatial --layout vla-adapter --out exported/spatial",
)
CHECK = (
    "pokevla-convert check --checkpoint runs/soup --torch exported/soup",
    "# on recorded frames, for a script",
    "pokevla-convert check --checkpoint runs/soup --torch exported/soup --data data/soup --frames 100 --json",
)
PARAMS = ("pokevla-convert params --preset pokevla", "pokevla-convert params --config configs/X.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    parser = flags.make_parser(__doc__, EXAMPLES)
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    _add_from_torch(commands)
    _add_to_torch(commands)
    _add_check(commands)
    _add_params(commands)
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
        help=".safetensors (or the index of shards), .pt, .pth, .bin, or a checkpoint's folder; repeat for more",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the new checkpoint's folder; must not exist")
    parser.add_argument(
        "--preset", choices=sorted(presets.PRESETS), help="the network (default: the one that the sources fit)"
    )
    flags.add_config(parser, required=False)
    parser.add_argument(
        "--dtype", choices=sorted(import_torch.DTYPES), help="cast everything (default: each tensor keeps its type)"
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="Qwen2.5's tokenizer (default: the one in a source's folder)"
    )
    parser.add_argument("--statistics-key", metavar="NAME", help="which dataset of dataset_statistics.json")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what no source has (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def _from_torch(arguments: argparse.Namespace) -> None:
    # Orbax narrates every save through absl.
    logging.getLogger("absl").setLevel(logging.ERROR)
    _check_agree(arguments)

    def make_config(detected: str) -> Config:
        return arguments.config or Config(model=presets.get_preset(arguments.preset or detected))

    with _progress() as progress:
        report = import_torch.import_checkpoint(
            arguments.source,
            arguments.out,
            make_config,
            dtype=arguments.dtype,
            tokenizer=arguments.tokenizer,
            statistics_key=arguments.statistics_key,
            keep_config=arguments.config is None and arguments.preset is None,
            seed=arguments.seed,
            progress=progress,
        )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        _print_report(report, arguments.out)


def _check_agree(arguments: argparse.Namespace) -> None:
    if arguments.config and arguments.preset not in (None, arguments.config.model.preset):
        raise ConfigError(
            f"--preset {arguments.preset} and --config (preset {arguments.config.model.preset}) disagree; give one"
        )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on the error stream, and what moves it: bytes written so far and in all."""
    columns = (TextColumn("converting"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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


def _add_to_torch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_command(
        commands, "to-torch", _to_torch, "export a checkpoint to a folder that PyTorch loads alone", TO_TORCH
    )
    _add_checkpoint(parser)
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="the new folder; must not exist")
    parser.add_argument("--dtype", choices=sorted(torch_export.DTYPES), help="cast everything (default: nothing is)")
    parser.add_argument(
        "--include-training-parts",
        action="store_true",
        help="also the mask branch, the align projector and the keypoint head",
    )
    parser.add_argument(
        "--layout",
        choices=("pokevla", "vla-adapter"),
        default="pokevla",
        help="for transformers.AutoModel, or for VLA-Adapter's own code (default: %(default)s)",
    )
    parser.add_argument("--no-check", action="store_true", help="do not run both networks side by side")
    parser.add_argument(
        "--tolerance", type=float, metavar="X", default=check_lib.TOLERANCE, help="of the check (default: %(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def _add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_command(
        commands, "check", _check, "run a checkpoint and an exported folder on the same inputs, part by part", CHECK
    )
    _add_checkpoint(parser)
    parser.add_argument("--torch", required=True, metavar="DIR", type=Path, help="what to-torch wrote")
    parser.add_argument("--data", metavar="DIR", help="take recorded frames (default: random ones of --seed)")
    parser.add_argument(
        "--frames", type=int, default=2, metavar="N", help="number of observations (default: %(default)s)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        default=check_lib.TOLERANCE,
        help="of the relative error after every part and of the largest error of the actions (default: %(default)g)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the random observations (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a training run's folder, or an import's")
    terminal.add_step(parser)
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="the moving average of the weights, or the weights as trained (default: the average where there is one)",
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="Qwen2.5's tokenizer, if it moved since training")


def _to_torch(arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        report = torch_export.export(
            arguments.checkpoint,
            arguments.out,
            step=arguments.step,
            use_ema=arguments.ema,
            dtype=arguments.dtype,
            include_training_parts=arguments.include_training_parts,
            layout=arguments.layout,
            tokenizer=arguments.tokenizer,
            check=not arguments.no_check,
            tolerance=arguments.tolerance,
            progress=progress,
        )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        console = Console()
        sizes = ", ".join(f"{count:,} {dtype}" for dtype, count in report.dtypes.items())
        console.print(
            f"{report.out}: step {report.step}, {report.num_bytes / 2**30:.2f} GiB ({sizes})", highlight=False
        )
        for line in model_card.notes(report):
            console.print(line, highlight=False)
        if report.parity:
            _print_check(report.parity)
    return 0 if report.parity is None or report.parity.passed else 1


def _check(arguments: argparse.Namespace) -> int:
    if arguments.frames < 1:
        raise ConfigError(f"--frames {arguments.frames}: give at least one observation to compare on")
    report = check_lib.check(
        arguments.checkpoint,
        arguments.torch,
        step=arguments.step,
        use_ema=arguments.ema,
        data=arguments.data,
        frames=arguments.frames,
        tolerance=arguments.tolerance,
        tokenizer=arguments.tokenizer,
        seed=arguments.seed,
    )
    if arguments.json:
        print(json.dumps(report.to_json()))
    else:
        _print_check(report)
    return 0 if report.passed else 1


def _print_check(report: check_lib.CheckReport) -> None:
    console = Console()
    table = Table(title=f"{report.frames} observations: {report.inputs}; our weights {report.weights}")
    for heading in ("part", "largest error", "relative error", "PyTorch bfloat16", "JAX bfloat16"):
        table.add_column(heading, justify="left" if heading == "part" else "right", no_wrap=True)
    for row in report.rows:
        figures = (row.max_error, row.relative_error, row.bfloat16, row.bfloat16_ours)
        style = "bold red" if row.part in report.exceeded else None
        table.add_row(row.part, *("" if x is None else f"{x:.1e}" for x in figures), style=style)
    console.print(table)
    verdict = f"beyond it: {', '.join(report.exceeded)}" if report.exceeded else "kept everywhere"
    console.print(f"tolerance {report.tolerance:g}: {verdict}", highlight=False)


def _add_params(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_command(commands, "params", _params, "count the parameters of a network, part by part", PARAMS)
    parser.add_argument("--preset", choices=sorted(presets.PRESETS), help="the network (default: pokevla)")
    flags.add_config(parser, required=False)


def _params(arguments: argparse.Namespace) -> None:
    _check_agree(arguments)
    model = arguments.config.model if arguments.config else presets.get_preset(arguments.preset or "pokevla")
    print(parameter_table.table(model))


if __name__ == "__main__":
    sys.exit(main())
