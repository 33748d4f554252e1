"""A sheet of pictures: every perturbation of LIBERO-Plus beside the unperturbed scene, as PNG.

    python tests/benchmarks/plus_sheet.py --plus PATH --out plus.png

One row per suite, one column per category that runs on LIBERO's own assets (with --plus-assets all seven), each at the
highest level that the suite's first task has. What a policy sees at its first look: the agent view, and below it the
wrist view; instructions are written under the pictures.
"""

import argparse
import os
import sys
import textwrap
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "osmesa")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from pokevla_jax.sim.assets import resolve_assets
from pokevla_jax.sim.environment import VIEWS
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.plus import scenes
from pokevla_jax.sim.plus.asset_archive import open_assets
from pokevla_jax.sim.plus.language import prompt
from pokevla_jax.sim.plus.metadata import SUITES
from pokevla_jax.sim.plus.metadata import open_metadata
from pokevla_jax.sim.plus.names import CATEGORIES
from pokevla_jax.sim.tasks import load_init_states
from pokevla_jax.sim.tasks import load_task

CAPTION = 58


def main() -> None:
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plus", help="LIBERO-Plus's metadata (default: LIBERO_PLUS)")
    parser.add_argument("--plus-assets", help="LIBERO-Plus's assets, for the columns that need them")
    parser.add_argument("--assets", help="LIBERO's assets (default: LIBERO_ASSETS)")
    parser.add_argument("--robot", choices=("official", "strict"), default="official")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--task", type=int, default=0, help="index of the base task in each suite")
    parser.add_argument("--out", type=Path, default=Path("plus.png"))
    arguments = parser.parse_args()
    metadata = open_metadata(arguments.plus)
    assets = open_assets(arguments.plus_assets) if arguments.plus_assets else resolve_assets(arguments.assets)
    options = {"assets": assets, "renderer": "robosuite", "image_size": arguments.size}
    rows = []
    for suite in SUITES:
        base = load_task(suite, arguments.task)
        stock = LiberoEnvironment(base, **options)
        stock.reset(load_init_states(base)[0])
        row = [captioned(views(stock), f"{suite}: {base.language}")]
        for category in CATEGORIES:
            task = hardest(metadata, suite, category, arguments)
            if task is None:
                continue
            own = task.perturbation.own_scene
            environment = scenes.make_environment(metadata, task, **options) if own else stock
            scenes.start_episode(environment, metadata, task, robot=arguments.robot, noise_seed=task.number)
            text = f"{category}, level {task.level}: {task.perturbation.text}"
            if category == "language":
                text = f"{category}, level {task.level}: {prompt(metadata, task, 'clean')}"
            row.append(captioned(views(environment), text))
            if own:
                environment.close()
        stock.close()
        rows.append(np.concatenate(row, axis=1))
        print(f"{suite}: {len(row) - 1} perturbations", flush=True)
    Image.fromarray(np.concatenate(rows, axis=0)).save(arguments.out)
    print(f"wrote {arguments.out}")


def hardest(metadata, suite, category, arguments):
    """The last task of the highest level; None where it cannot be drawn."""
    tasks = [
        task
        for task in metadata.tasks(suite)
        if task.base == arguments.task
        and task.perturbation.category == category
        and (arguments.plus_assets or not task.perturbation.needs_assets)
    ]
    return max(tasks, key=lambda task: (task.level or 0, task.number), default=None)


def views(environment):
    """Agent view over wrist view."""
    return np.concatenate([environment.render(view).rgb for view in VIEWS], axis=0)


def captioned(image, text):
    """The picture with its caption below and a margin to the right."""
    strip = Image.new("RGB", (image.shape[1], CAPTION), (24, 26, 31))
    font = ImageFont.load_default(size=12)
    lines = textwrap.wrap(text, width=image.shape[1] // 7)[:4]
    ImageDraw.Draw(strip).multiline_text((4, 2), "\n".join(lines), fill=(230, 237, 243), font=font, spacing=1)
    return np.pad(np.concatenate([image, np.asarray(strip)], axis=0), ((0, 6), (0, 6), (0, 0)), constant_values=255)


if __name__ == "__main__":
    main()
