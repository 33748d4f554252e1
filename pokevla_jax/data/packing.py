"""Stage-1 batches: several conversations, with their images, packed into each row of a fixed length.

Which conversations share a row follows from the lengths in the corpus's tables alone, so the rows of an epoch are a
pure function of (seed, epoch) and are served from anywhere in it. Conversations are taken in the mixture's shuffled
order from a pool of the next few hundred; the last one or two of a row are those of the pool that fill it best.
"""

import bisect
import logging
import threading
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pokevla_jax.config import Config
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.corpus import PILLARS
from pokevla_jax.data.corpus import Corpus
from pokevla_jax.data.corpus import decode_image
from pokevla_jax.data.iterator import TrainIterator
from pokevla_jax.data.iterator import check_batch
from pokevla_jax.data.iterator import local_rows
from pokevla_jax.data.iterator import spread
from pokevla_jax.data.mixture import Order
from pokevla_jax.data.mixture import Part
from pokevla_jax.data.mixture import check_names
from pokevla_jax.data.mixture import digest
from pokevla_jax.data.mixture import weighted_parts
from pokevla_jax.data.schema import stage1_batch_spec
from pokevla_jax.data.tokenize import Tokenizer
from pokevla_jax.data.transforms import Window
from pokevla_jax.data.transforms import crop_image
from pokevla_jax.typing import Int

_POOL = 512
# Below this many mean lengths, what is left of a row is filled by the best one or two of the pool.
_FAR = 2.5


@dataclass(frozen=True)
class Plan:
    """Which samples every row of an epoch holds: row r has ``members[starts[r] : starts[r + 1]]``.

    Attributes:
        padding: fraction of the rows' positions that hold nothing.
    """

    starts: Int[np.ndarray, " r"]
    members: Int[np.ndarray, " n"]
    padding: float

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> Int[np.ndarray, " n"]:
        return self.members[self.starts[row] : self.starts[row + 1]]


def plan_rows(
    samples: Int[np.ndarray, " n"],
    lengths: Int[np.ndarray, " n"],
    images: Int[np.ndarray, " n"],
    length: int,
    most: int,
) -> Plan:
    """Rows of ``samples``, roughly in their order.

    Args:
        samples: ids.
        lengths: positions that each takes, images included; at most ``length``.
        images: of each; at most ``most``.
        length: positions of a row.
        most: images of a row.
    """
    if len(samples) and (lengths.max() > length or images.max() > most):
        raise DataError(
            f"A sample of {lengths.max()} positions and {images.max()} images fits no row of {length}, {most}"
        )
    order = np.argsort(lengths[:_POOL], kind="stable")
    # The pool, by length; a sample's place in the given order tells its age.
    places, ahead = order, len(order)
    rows: list[list[int]] = []
    filled = int(lengths.sum())
    while len(places):
        row: list[int] = []
        gap, slots = length, most
        while len(places):
            sizes, pictures = lengths[places], images[places]
            allowed = (sizes <= gap) & (pictures <= slots)
            if not allowed.any():
                break
            if not row or gap > _FAR * sizes.mean():
                # Far from the end the oldest is taken, so that nobody waits long and the order stays a shuffle.
                chosen = [int(np.flatnonzero(allowed)[places[allowed].argmin()])]
            else:
                chosen = _closest(sizes, pictures, gap, slots)
            for index in chosen:
                row.append(int(places[index]))
                gap -= int(sizes[index])
                slots -= int(pictures[index])
            places = np.delete(places, chosen)
        rows.append(row)
        fresh = np.arange(ahead, min(ahead + _POOL - len(places), len(samples)))
        ahead += len(fresh)
        places = np.concatenate([places, fresh])
        places = places[np.lexsort((places, lengths[places]))]
    starts = np.cumsum([0, *map(len, rows)])
    members = samples[np.array([place for row in rows for place in row], np.int64)]
    return Plan(starts, members, 1 - filled / max(len(rows) * length, 1))


def _closest(sizes: np.ndarray, pictures: np.ndarray, gap: int, slots: int) -> list[int]:
    """Which one or two of the pool fill ``gap`` best; ``sizes`` ascend."""
    (alone,) = np.nonzero((sizes <= gap) & (pictures <= slots))
    best, filled = [int(alone[-1])], int(sizes[alone[-1]])
    (able,) = np.nonzero((sizes < gap) & (pictures <= slots // 2))
    if len(able) > 1:
        # For each, the longest that still fits beside it: the two together, never one twice.
        first = np.arange(len(able))
        second = np.searchsorted(sizes[able], gap - sizes[able], side="right") - 1
        second = np.where(second == first, second - 1, second)
        total = np.where(second >= 0, sizes[able] + sizes[able][np.maximum(second, 0)], 0)
        top = int(total.argmax())
        if total[top] > filled:
            best = [int(able[top]), int(able[second[top]])]
    return best


class PackedOrder:
    """The endless sequence of packed rows of a mixture.

    The rows of an epoch are counted by packing it, so asking for a row packs the epochs before it once. Threads may ask
    at the same time.
    """

    def __init__(self, parts: Sequence[Part], lengths: np.ndarray, images: np.ndarray, config: Config, seed: int):
        self._order = Order(parts, seed)
        self._lengths, self._images = lengths, images
        self._length, self._most = config.data.pack_length, config.data.pack_images
        self._ends: list[int] = []
        # Travels to workers: packing 2.4 M conversations takes a minute.
        self._plans: dict[int, Plan] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __getitem__(self, g: int) -> Int[np.ndarray, " n"]:
        """The samples of row ``g`` of the run."""
        with self._lock:
            while not self._ends or g >= self._ends[-1]:
                rows = len(self._epoch(len(self._ends)))
                self._ends.append(rows + (self._ends[-1] if self._ends else 0))
            epoch = bisect.bisect_right(self._ends, g)
            plan, first = self._epoch(epoch), self._ends[epoch - 1] if epoch else 0
        return plan[g - first]

    def epoch(self, epoch: int) -> Plan:
        """All rows of an epoch; the last two epochs that were asked for are kept."""
        with self._lock:
            return self._epoch(epoch)

    def _epoch(self, epoch: int) -> Plan:
        plan = self._plans.get(epoch)
        if plan is None:
            samples = self._order.epoch(epoch)
            plan = plan_rows(samples, self._lengths[samples], self._images[samples], self._length, self._most)
            self._plans = dict([*list(self._plans.items())[-1:], (epoch, plan)])
        return plan


def packed_iterator(
    config: Config,
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
) -> TrainIterator:
    """Packed training batches of this process; see ``TrainIterator`` and ``stage1_batch_spec``.

    Raises:
        DataError: when corpus, tokenizer and configuration do not fit together, saying what to change.
    """
    _check_fit(config, tokenizer)
    parts, lengths = corpus_parts(config, corpus, tokenizer)
    first = PackedOrder(parts, lengths, corpus.num_images, config, config.seed)
    plan = first.epoch(0)

    def order(seed: int) -> PackedOrder:
        return first if seed == config.seed else PackedOrder(parts, lengths, corpus.num_images, config, seed)

    logging.getLogger(__name__).info(
        "epoch of %d conversations in %d rows of %d, %.1f %% padding",
        *(len(plan.members), len(plan), config.data.pack_length, 100 * plan.padding),
    )
    return TrainIterator(
        config,
        order,
        _RowBuilder(config, corpus, tokenizer),
        mixture=digest(parts, config.data),
        num_samples=len(plan.members),
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
    )


def describe(config: Config, corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Conversations and rows of the first epoch, and the fraction of their positions that stays empty."""
    parts, lengths = corpus_parts(config, corpus, tokenizer)
    plan = PackedOrder(parts, lengths, corpus.num_images, config, config.seed).epoch(0)
    return (
        f"{len(plan.members)} conversations an epoch in {len(plan)} rows of {config.data.pack_length} positions, "
        f"{plan.padding:.1%} padding"
    )


def packed_holdout(
    config: Config,
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    process_index: int = 0,
    process_count: int = 1,
    max_batches: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's rows of packed batches over the held-out samples, each once, in a fixed order.

    The last batch is filled up with empty rows. Yields nothing where nothing is held out.
    """
    _check_fit(config, tokenizer)
    lengths = row_lengths(config, corpus, tokenizer)
    ids = np.flatnonzero(corpus.held_out(config.data.holdout_fraction) & _fits(config, corpus, lengths))
    plan = plan_rows(ids, lengths[ids], corpus.num_images[ids], config.data.pack_length, config.data.pack_images)
    local, build = local_rows(config, process_index, process_count), _RowBuilder(config, corpus, tokenizer)
    rows = spread(len(plan), config.batch_size, max_batches)
    for start in range(0, len(rows), config.batch_size):
        places = start + np.arange(local.start, local.stop)
        yield build([plan[int(rows[place])] if place < len(rows) else np.zeros(0, np.int64) for place in places])


def corpus_parts(config: Config, corpus: Corpus, tokenizer: Tokenizer) -> tuple[list[Part], Int[np.ndarray, " n"]]:
    """The training samples of each source and pillar, weighted, and the positions every sample of the corpus takes.

    Raises:
        DataError: for weights of sources that the corpus does not have, or when nothing is left.
    """
    data = config.data
    lengths = row_lengths(config, corpus, tokenizer)
    fits, train = _fits(config, corpus, lengths), ~corpus.held_out(config.data.holdout_fraction)
    for index in np.unique(corpus.source[~fits & train]):
        count = int((~fits & train & (corpus.source == index)).sum())
        logging.getLogger(__name__).warning(
            "%d samples of %s are left out: more than %d images, or images alone longer than %d positions",
            *(count, corpus.sources[index], data.pack_images, data.pack_length),
        )
    ids = np.flatnonzero(fits & train)
    check_names("pillar_weights", data.pillar_weights, PILLARS)
    check_names("source_weights", data.source_weights, corpus.sources)
    groups = corpus.source * len(PILLARS) + corpus.pillar
    parts = []
    for index, source in enumerate(corpus.sources):
        names = [f"{source}/{pillar}" for pillar in PILLARS]
        factors = [data.source_weights.get(source, 1.0) * data.pillar_weights.get(pillar, 1.0) for pillar in PILLARS]
        parts += weighted_parts(names, groups[ids] - index * len(PILLARS), ids, {}, factors)
    if not sum(part.count for part in parts):
        raise DataError(f"{corpus.directory} holds no training sample with a weight above 0; change the weights")
    return parts, lengths


def row_lengths(config: Config, corpus: Corpus, tokenizer: Tokenizer) -> Int[np.ndarray, " n"]:
    """Positions that each sample takes in a row: its text, cut at the row's length, and its images' patches."""
    patches = corpus.num_images * config.model.vision.num_patches
    return np.minimum(corpus.text_lengths(tokenizer) + patches, np.maximum(config.data.pack_length, patches + 1))


def _fits(config: Config, corpus: Corpus, lengths: np.ndarray) -> np.ndarray:
    return (corpus.num_images <= config.data.pack_images) & (lengths <= config.data.pack_length)


class _RowBuilder:
    """Builds this process's part of a packed batch from the samples of its rows; travels to workers."""

    def __init__(self, config: Config, corpus: Corpus, tokenizer: Tokenizer):
        self._config, self._corpus, self._tokenizer = config, corpus, tokenizer

    def __call__(self, rows: Sequence[Int[np.ndarray, " n"]]) -> dict[str, np.ndarray]:
        built = [build_row(self._config, [self._corpus[int(i)] for i in row], self._tokenizer) for row in rows]
        batch = {key: np.stack([row[key] for row in built]) for key in built[0]}
        check_batch(batch, stage1_batch_spec(self._config, len(rows)))
        return batch


def build_row(config: Config, samples: Sequence[Any], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """One row of ``stage1_batch_spec`` from the samples that the plan put into it.

    Images stand before their conversation, or behind its first token where ``vision_position`` says so. Text beyond the
    row's length is cut. Nothing is augmented: answers name places in the image.
    """
    model, data = config.model, config.data
    length, patches, size = data.pack_length, model.vision.num_patches, model.vision.image_size
    row = {name: np.zeros(spec.shape[1:], spec.dtype) for name, spec in stage1_batch_spec(config, 1).items()}
    row["tokens"][:] = row["targets"][:] = tokenizer.pad_id
    row["image_slots"][:] = -1
    start, used = 0, 0
    for segment, sample in enumerate(samples, start=1):
        ids, is_answer = tokenizer.encode_conversation(sample.turns)
        count = len(sample.images)
        ahead = 0 if model.vision_position == "first" else 1
        room = length - start - count * patches
        text = np.concatenate([ids[:ahead], np.full(count * patches, tokenizer.pad_id), ids[ahead:room]]).astype(
            np.int32
        )
        answer = np.concatenate([is_answer[:ahead], np.zeros(count * patches, bool), is_answer[ahead:room]])
        end = start + len(text)
        here = slice(start, end)
        row["tokens"][here] = text
        row["segment_ids"][here] = segment
        row["positions"][here] = np.arange(len(text))
        # The last position of a conversation has nothing to say.
        row["targets"][start : end - 1] = text[1:]
        row["loss_mask"][start : end - 1] = answer[1:]
        row["image_slots"][start + ahead : start + ahead + count * patches] = used * patches + np.arange(
            count * patches
        )
        if not data.zero_images:
            for index in range(count):
                row["images"][used + index] = crop_image(decode_image(sample, index), Window(), size)
        start, used = end, used + count
    return row


def _check_fit(config: Config, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.model.language.vocab_size:
        raise DataError(
            f"The tokenizer has {tokenizer.vocab_size} ids, config.model.language.vocab_size is "
            f"{config.model.language.vocab_size}; raise it to at least {tokenizer.vocab_size}"
        )
