"""A corpus that can be learned in a minute: a coloured square on grey, its colour, a point on it, and its box."""

from pathlib import Path

import cv2
import msgpack
import numpy as np

from pokevla_jax.data.codec import encode_jpeg
from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.corpus import write_corpus_shard

SIZE, SIDE = 64, 20
COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "white": (240, 240, 240)}
FORMS = ("text", "points", "box")
TYPES = {"text": ("general", "color"), "points": ("grounding", "point_object"), "box": ("grounding", "box_object")}


def sample(number: int, *, every: int = 8) -> CorpusSample:
    """Question ``number``: one of three about a picture; pictures whose number is a multiple of ``every`` are held out.

    Places are multiples of a sixteenth of the picture, so that few coordinates occur.
    """
    picture, form = divmod(number, len(FORMS))
    rng = np.random.default_rng(picture)
    name = list(COLORS)[int(rng.integers(len(COLORS)))]
    x, y = (int(value) for value in rng.integers(0, 12, 2) * (SIZE // 16))
    image = np.full((SIZE, SIZE, 3), 110, np.uint8)
    image[y : y + SIDE, x : x + SIDE] = COLORS[name]
    place = np.array([x, y, x + SIDE, y + SIDE]) / SIZE
    labels = {"form": FORMS[form], "type": TYPES[FORMS[form]][1], "frame": f"frame-{picture}", "held_out": []}
    if FORMS[form] == "text":
        turns = ("What color is the square?", name)
    elif FORMS[form] == "points":
        centre = (place[:2] + place[2:]) / 2
        turns = ("Point to the square.", f"[({centre[0]:.3f}, {centre[1]:.3f})]")
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[y : y + SIDE, x : x + SIDE] = 255
        labels["mask"] = cv2.imencode(".png", mask)[1].tobytes()
    else:
        turns = ("Box the square.", f"({', '.join(f'{value:.3f}' for value in place)})")
        labels["box"] = place.tolist()
    held_out = picture % every == 0
    labels["held_out"] = ["layout"] if held_out else []
    assert msgpack.packb(labels)
    return CorpusSample(
        id=f"q{number:05d}",
        source="squares",
        pillar=TYPES[FORMS[form]][0],
        images=(encode_jpeg(image),),
        turns=turns,
        split="holdout" if held_out else "train",
        labels=labels,
    )


def write(directory: Path, *, num_pictures: int) -> Path:
    write_corpus_shard(directory, "squares", (sample(n) for n in range(num_pictures * len(FORMS))))
    return directory
