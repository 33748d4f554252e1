"""Pictures of samples with their points and boxes drawn, so that people can look."""

import io
import textwrap
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from PIL import ImageDraw

from pokevla_jax.data.codec import decode_jpeg
from pokevla_jax.data.corpus import PILLARS
from pokevla_jax.data.corpus import Corpus
from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.ingest.grounding import valid_points

SIZE, TEXT, LINE = 256, 96, 46
"""Pixels: side of a picture, height of the text below it; and characters of a line."""
ENOUGH = 300
"""Samples of a pillar that are read."""
_GREEN, _RED = (40, 220, 60), (255, 40, 40)


def write_sheets(corpus: Corpus, out: Path, *, columns: int = 5, seed: int = 0) -> list[Path]:
    """Writes ``sheet-<pillar>.png`` for each pillar: a row per type, samples drawn at random; returns the files."""
    rows: dict[str, dict[str, list[CorpusSample]]] = {pillar: defaultdict(list) for pillar in PILLARS}
    for index in np.random.default_rng(seed).permutation(len(corpus)):
        types = rows[PILLARS[corpus.pillar[index]]]
        # Enough for every type to turn up; reading all samples would take minutes.
        if sum(map(len, types.values())) < ENOUGH:
            sample = corpus[int(index)]
            types[sample.labels["type"]].append(sample)
    written = []
    for name, types in rows.items():
        tiles = [[draw(sample) for sample in found[:columns]] for _, found in sorted(types.items())]
        if not tiles:
            continue
        page = Image.new("RGB", (columns * (SIZE + 8), len(tiles) * (SIZE + TEXT)), "white")
        for y, row in enumerate(tiles):
            for x, tile in enumerate(row):
                page.paste(tile, (x * (SIZE + 8) + 4, y * (SIZE + TEXT)))
        path = out / f"sheet-{name}.png"
        page.save(path)
        written.append(path)
    return written


def draw(sample: CorpusSample) -> Image.Image:
    """One sample: its last picture enlarged, the one before it in the corner; right places green, the answer red."""
    *before, pixels = [decode_jpeg(image, sample.id) for image in sample.images]
    picture = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    labels = sample.labels
    if "mask" in labels:
        mask = Image.open(io.BytesIO(labels["mask"])).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        tint = Image.new("RGB", picture.size, _GREEN)
        picture = Image.composite(Image.blend(picture, tint, 0.35), picture, mask.convert("L"))
    canvas = ImageDraw.Draw(picture)
    for place in _places(sample.turns[1]):
        if len(place) == 2:
            x, y = (SIZE * value for value in place)
            canvas.ellipse((x - 4, y - 4, x + 4, y + 4), outline="black", fill=_RED)
        else:
            canvas.rectangle([SIZE * value for value in place], outline=_RED, width=2)
    if before:
        picture.paste(Image.fromarray(before[0]).resize((SIZE // 2, SIZE // 2)), (0, 0))
    tile = Image.new("RGB", (SIZE, SIZE + TEXT), "white")
    tile.paste(picture, (0, 0))
    title = f"{labels['type']} {'' if sample.split == 'train' else '/'.join(labels['held_out'])}"
    question = sample.turns[0].replace(", in fractions of the image", "")
    lines = [title, *textwrap.wrap(question, LINE), *textwrap.wrap(f"-> {sample.turns[1]}", LINE)]
    ImageDraw.Draw(tile).multiline_text((2, SIZE + 2), "\n".join(lines[:7]), fill="black", spacing=1)
    return tile


def _places(answer: str) -> list[tuple[float, ...]]:
    """The points of ``[(x, y), ...]`` or the box of ``(x1, y1, x2, y2)``; none for other texts."""
    if not answer.startswith(("[(", "(")):
        return []
    entries = answer.strip("[]").strip("()").split("), (")
    return valid_points([[float(value) for value in entry.split(",")] for entry in entries])
