"""pokevla-features: what frozen teachers tell of recorded episodes, computed once for training to read.

A configuration whose config.model.segmentation.source (SAM) or config.model.geometry.source (VGGT) is 'precomputed'
reads features beside the episodes instead of running those teachers in every step. Finished episodes are skipped.
"""

import argparse
import itertools
import json
import logging
import re
import sys
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.progress import TimeRemainingColumn

from pokevla_jax.cli import flags
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.data import features
from pokevla_jax.data import records
from pokevla_jax.data import transforms
from pokevla_jax.training import teachers
from pokevla_jax.typing import UInt8

EXAMPLES = (
    "pokevla-features --config=configs/posttrain_pokevla_features.py --config.data.path=DATA --init-from=TEACHERS",
    "pokevla-train --config=configs/posttrain_pokevla_features.py --config.data.path=DATA --init-from=VLM \\",
    "    --workdir=runs/policy",
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = flags.make_parser(__doc__, EXAMPLES)
    p.prog = "pokevla-features"
    flags.add_config(p)
    p.add_argument("--init-from", required=True, metavar="CKPT", help="checkpoint that holds the teachers' weights")
    p.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="samples at a time on each device (default: %(default)s)"
    )
    side = "every Nth episode from the Ith on, for machines side by side (default: all)"
    p.add_argument("--part", type=_part, default=None, metavar="I/N", help=side)
    p.add_argument("--json", action="store_true", help="print the summary as JSON")
    return p


def _part(text: str) -> slice:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"{text!r} is no part; give 1/4 for the first of four")
    return slice(index - 1, None, count)


def command(arguments: argparse.Namespace) -> int:
    """Writes the features that are missing and prints what became of them."""
    config: Config = arguments.config
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates what it reads
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size {arguments.batch_size} is too small; give at least 1")
    if config.stage != "vla":
        raise ConfigError(f"config.stage is {config.stage!r}, which has no teachers; give a configuration of stage 2")
    if not config.data.path:
        raise ConfigError("config.data.path is empty; give the folder of recorded episodes with --config.data.path=DIR")
    dataset = records.open_dataset(config.data.path)
    stores = features.make_stores(config, dataset)
    if not stores:
        raise ConfigError(
            "The configuration has no features precomputed; set config.model.segmentation.source (with SAM) or "
            "config.model.geometry.source (with VGGT) to 'precomputed'"
        )
    loaded, origin = teachers.load(arguments.init_from, config)
    for store in stores:
        store.claim(loaded[store.name].weights, origin)
    if not origin["imported_from"]:
        said = "was made of no released weights: its teachers are random and teach nothing"
        print(f"pokevla-features: warning: --init-from {arguments.init_from} {said}", file=sys.stderr)
    missing = {store: store.missing() for store in stores}
    # Of all parts: they share the disk.
    features.check_space(missing)
    own = set(range(len(dataset.episodes))[arguments.part or slice(None)])
    missing = {store: [episode for episode in episodes if episode in own] for store, episodes in missing.items()}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), disable=arguments.json) as bar:
            for store, episodes in missing.items():
                total = sum(len(store.rows(episode)) for episode in episodes)
                task = bar.add_task(f"{store.name}, steps", total=total)
                images = _images(config, dataset, store, episodes)
                rows = loaded.pop(store.name).features(images, batch_size=arguments.batch_size)
                for episode in episodes:
                    store.write(episode, itertools.islice(rows, len(store.rows(episode))))
                    bar.advance(task, len(store.rows(episode)))
    except KeyboardInterrupt:
        folder = dataset.directory / features.FOLDER
        print(f"pokevla-features: interrupted; the same command goes on with what is in {folder}", file=sys.stderr)
        return 130
    if arguments.json:
        written = {store.name: len(episodes) for store, episodes in missing.items()}
        print(json.dumps({"episodes": len(dataset.episodes), "written": written}))
        return 0
    for store, episodes in missing.items():
        size = store.num_bytes(episodes) / 2**30
        print(f"{store.folder}: {len(episodes)} of {len(dataset.episodes)} episodes written ({size:.2f} GiB)")
    return 0


def _images(
    config: Config, dataset: records.EpisodeDataset, store: features.FeatureStore, episodes: Sequence[int]
) -> Iterator[UInt8[np.ndarray, "v s s 3"]]:
    """The images of all rendered steps of some episodes, as training sees them."""
    for episode in episodes:
        for row in store.rows(episode):
            yield transforms.plain_images(config, dataset, int(row))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command."""
    return flags.run(parser(), command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
