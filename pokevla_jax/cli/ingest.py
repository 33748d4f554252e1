"""pokevla-ingest: image-text corpora and robot demonstrations to records, resumable, nothing lost silently."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.progress import SpinnerColumn
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn

from pokevla_jax.cli import flags
from pokevla_jax.data import corpus
from pokevla_jax.data import files
from pokevla_jax.data import records
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.ingest import engine
from pokevla_jax.data.ingest import sources

EXAMPLES = (
    "pokevla-ingest --source llava_instruct --data downloads/llava --out corpus --tokenizer Qwen2.5-0.5B --workers 16",
    "pokevla-ingest --source llava --annotation a.json --name mine --pillar grounding --licence CC0 --data d --out c",
    "pokevla-ingest --source rlds --robot libero_rlds --name libero_10 --data modified_libero_rlds --out demos",
    "pokevla-ingest --source lerobot --robot my_robot.json --name mine --data my_dataset --out demos --image-size 224",
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = flags.make_parser(__doc__, EXAMPLES)
    p.prog = "pokevla-ingest"
    p.add_argument("--source", required=True, metavar="KIND", help=f"one of {', '.join(sources.KINDS)}")
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the input")
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the records; an interrupted run goes on"
    )
    p.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="reduce pictures for training (default: keep their size)"
    )
    p.add_argument("--licence", metavar="NAME", help="licence of the data (default: the one known of the source)")
    workers = "processes, or pieces at a time on a cluster (default: %(default)s)"
    p.add_argument("--workers", type=int, default=1, metavar="N", help=workers)
    cluster = "Ray cluster to work on, whose hosts must see --data and --out (default: this machine alone)"
    p.add_argument("--address", metavar="auto|HOST:PORT", help=cluster)
    shards = "samples or episodes of a shard (default: 2000 samples, 50 episodes)"
    p.add_argument("--shard-size", type=int, metavar="N", help=shards)
    p.add_argument("--json", action="store_true", help="print the summary as JSON")
    text = p.add_argument_group("image-text samples")
    text.add_argument("--tokenizer", metavar="DIR", help="Qwen2.5's tokenizer: store lengths for packing with it")
    text.add_argument(
        "--num-frames", type=int, default=4, metavar="N", help="pictures taken of a video (default: %(default)s)"
    )
    text.add_argument("--annotation", metavar="PATTERN", help="llava: annotation file or pattern below --data")
    text.add_argument("--pillar", choices=corpus.PILLARS, help="llava: which part of the mixture")
    robot = p.add_argument_group("robot episodes")
    robot.add_argument(
        "--robot", metavar="NAME|FILE", help="which keys hold what: a known name or a JSON file (docs/add_your_data.md)"
    )
    robot.add_argument("--name", help="name of the source or suite; shards are called by it")
    robot.add_argument("--split", default="train", help="rlds: which split (default: %(default)s)")
    robot.add_argument("--keep-failed", action="store_true", help="recordings: also episodes that failed")
    return p


def command(arguments: argparse.Namespace) -> int:
    """Ingests what the arguments name and prints what became of it."""
    for name in ("workers", "shard_size", "image_size", "num_frames"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise DataError(f"--{name.replace('_', '-')} {value} is too small; give at least 1")
    if not arguments.data.is_dir():
        raise FileNotFoundError(f"--data {arguments.data} is no folder")
    options = sources.Options(
        size=arguments.image_size,
        licence=arguments.licence,
        num_frames=arguments.num_frames,
        robot=arguments.robot,
        name=arguments.name,
        pillar=arguments.pillar,
        annotation=arguments.annotation,
        split=arguments.split,
        keep_failed=arguments.keep_failed,
    )
    kind, adapter = sources.make(arguments.source, arguments.data, options)
    tokenizer = str(arguments.tokenizer) if arguments.tokenizer and kind == "corpus" else None
    job = engine.Job(adapter, kind, arguments.data, files.local(arguments.out), tokenizer)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, disable=arguments.json) as bar:
            row = bar.add_task(f"{adapter.source}: listing")

            def show(ingested: int, rejected: int) -> None:
                bar.update(row, description=f"{adapter.source}: {ingested} ingested, {rejected} set aside")

            summary = engine.ingest(
                job,
                shard_size=arguments.shard_size or (2000 if kind == "corpus" else 50),
                workers=arguments.workers,
                address=arguments.address,
                progress=show,
            )
    except KeyboardInterrupt:
        print(f"pokevla-ingest: interrupted; the same command goes on with what is in {job.out}", file=sys.stderr)
        return 130
    if kind == "corpus":
        write_manifest(job.out)
    else:
        records.open_dataset(job.out)
    if arguments.json:
        print(json.dumps(summary))
        return 0
    print(f"{summary['ingested']} {'samples' if kind == 'corpus' else 'episodes'} of {summary['source']} in {job.out}")
    for reason, count in summary["rejected_reasons"].items():
        print(f"  {count} set aside: {reason}")
    if summary["rejected"]:
        print(f"  each is named in {job.out}/ingest-{summary['source']}.json")
    return 0


def write_manifest(out: Path) -> dict[str, Any]:
    """Writes ``manifest.json`` of a corpus: counts per source and pillar, licences, hashes, what was set aside."""
    opened = corpus.open_corpus(out)
    counts: dict[tuple[str, str, str], dict[str, Any]] = {}
    for header in opened.headers:
        for row in header["counts"]:
            entry = counts.setdefault((row["source"], row["pillar"], row["split"]), {**row, "samples": 0, "images": 0})
            entry["samples"] += row["samples"]
            entry["images"] += row["images"]
    ingested = [json.loads(path.read_text()) for path in sorted(out.glob("ingest-*.json"))]
    manifest = {
        "format": corpus.FORMAT,
        "num_samples": len(opened),
        "counts": [counts[key] for key in sorted(counts)],
        "pillars": {
            pillar: sum(row["samples"] for row in counts.values() if row["pillar"] == pillar)
            for pillar in corpus.PILLARS
        },
        "licences": {summary["source"]: summary["licence"] for summary in ingested},
        # What the samples of split "holdout" have that training samples have not, where a source says so.
        "held_out": {summary["source"]: summary["held_out"] for summary in ingested if "held_out" in summary},
        "shards": {
            name: {key: header[key] for key in ("num_samples", "records_bytes", "records_sha256", "tokenizer")}
            for name, header in zip(opened.shards, opened.headers, strict=True)
        },
        "rejected": {
            summary["source"]: {"samples": summary["rejected"], "reasons": summary["rejected_reasons"]}
            for summary in ingested
        },
    }
    files.write_json(out / "manifest.json", manifest)
    return manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command."""
    return flags.run(parser(), command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
