"""A sheet of pictures: every perturbation of LIBERO-Plus beside the unperturbed scene, as PNG.

    python tests/benchmarks/plus_sheet.py --plus PATH --out plus.png

One row per suite, one column per kind of perturbation that runs on LIBERO's own assets (with --plus-assets also light,
background and distractors), each the strongest that the suite has for the task. What a policy sees at its first look,
drawn at 256 pixels and shown at half of that: the agent view, and below it the wrist view.
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
from pokevla_jax.sim.plus import noise
from pokevla_jax.sim.plus import scenes
from pokevla_jax.sim.plus.asset_archive import open_assets
from pokevla_jax.sim.plus.language import prompt
from pokevla_jax.sim.plus.metadata import SUITES
from pokevla_jax.sim.plus.metadata import open_metadata
from pokevla_jax.sim.tasks import load_init_states
from pokevla_jax.sim.tasks import load_task

SIZE = 256
CAPTION = 62


def main() -> None:
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plus", help="LIBERO-Plus's metadata (default: LIBERO_PLUS)")
    parser.add_argument("--plus-assets", help="LIBERO-Plus's assets, for the columns that need them")
    parser.add_argument("--assets", help="LIBERO's assets (default: LIBERO_ASSETS)")
    parser.add_argument("--robot", choices=("official", "strict"), default="official")
    # Tasks have other ranges of camera movement each; the sixth's are wide.
    parser.add_argument("--task", type=int, default=5, help="index of the base task in each suite")
    parser.add_argument("--out", type=Path, default=Path("plus.png"))
    arguments = parser.parse_args()
    metadata = open_metadata(arguments.plus)
    assets = open_assets(arguments.plus_assets) if arguments.plus_assets else resolve_assets(arguments.assets)
    options = {"assets": assets, "renderer": "robosuite", "image_size": SIZE}
    rows = []
    for suite in SUITES:
        base = load_task(suite, arguments.task)
        stock = LiberoEnvironment(base, **options)
        stock.reset(load_init_states(base)[0])
        row = [captioned(views(stock), f"{suite}: {base.language}")]
        for label, kind in KINDS.items():
            task = strongest(metadata, suite, kind, arguments)
            if task is None:
                continue
            own = task.perturbation.own_scene
            environment = scenes.make_environment(metadata, task, **options) if own else stock
            scenes.start_episode(environment, metadata, task, robot=arguments.robot, noise_seed=task.number)
            text = prompt(metadata, task, "clean") if label == "language" else task.perturbation.text.replace("_", " ")
            row.append(captioned(views(environment), f"{label}, level {task.level}: {text}"))
            if own:
                environment.close()
        stock.close()
        rows.append(np.concatenate(row, axis=1))
        print(f"{suite}: {len(row) - 1} perturbations", flush=True)
    Image.fromarray(np.concatenate(rows, axis=0)).save(arguments.out)
    print(f"wrote {arguments.out}")


def strongest(metadata, suite, kind, arguments):
    """The task of the highest level with the largest number of its kind; None where there is nothing to draw."""
    sizes = {
        task: kind(task.perturbation)
        for task in metadata.tasks(suite)
        if task.base == arguments.task and (arguments.plus_assets or not task.perturbation.needs_assets)
    }
    shown = [task for task, size in sizes.items() if size]
    return max(shown, key=lambda task: (sizes[task], task.level or 0, task.number), default=None)


def angle(degrees):
    """How far an angle is from nothing."""
    return min(degrees, 360 - degrees)


# Label -> how much a perturbation is of this kind; nothing for the others.
KINDS = {
    "camera azimuth": lambda p: angle(p.view.azimuth),
    "camera elevation": lambda p: p.view.elevation,
    "camera distance": lambda p: p.view.distance - 100,
    "camera yaw and pitch": lambda p: angle(p.view.yaw) + angle(p.view.pitch),
    "robot": lambda p: p.robot,
    "language": lambda p: p.language,
    "light": lambda p: p.category == "light",
    "background": lambda p: p.category == "background",
    **{
        noise.describe(10 * kind + 1)[0]: lambda p, kind=kind: p.noise - 10 * kind if (p.noise - 1) // 10 == kind else 0
        for kind in range(5)
    },
    "layout, target moved": lambda p: p.category == "layout" and not p.needs_assets,
    "layout, distractors": lambda p: p.category == "layout" and p.needs_assets,
}


def views(environment):
    """Agent view over wrist view, at half their size."""
    image = np.concatenate([environment.render(view).rgb for view in VIEWS], axis=0)
    return image.reshape(SIZE, 2, SIZE // 2, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def captioned(image, text):
    """The picture with its caption below and a margin to the right."""
    strip = Image.new("RGB", (image.shape[1], CAPTION), (24, 26, 31))
    font = ImageFont.load_default(size=10)
    lines = textwrap.wrap(text, width=image.shape[1] // 5)[:5]
    ImageDraw.Draw(strip).multiline_text((4, 2), "\n".join(lines), fill=(230, 237, 243), font=font, spacing=1)
    return np.pad(np.concatenate([image, np.asarray(strip)], axis=0), ((0, 6), (0, 6), (0, 0)), constant_values=255)


if __name__ == "__main__":
    main()
