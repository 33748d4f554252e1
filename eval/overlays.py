"""Frames of held-out episodes with the predicted mask drawn over them, beside the simulator's true mask.

The frames are those that the policy itself looked at while acting, so they show what segmentation is worth in use. They
are kept in the run's folder; a report written again does not simulate again.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from eval.agents import CheckpointAgent
from eval.agents import Chunk
from eval.benchmarks.libero_plus import Choices
from eval.breakdown import in_turns
from eval.breakdown import split
from eval.episode import run_episode
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.presets import DEFAULT
from eval.presets import PRESETS
from eval.results import RunFolder
from eval.scenes import LiberoScenes
from eval.scenes import Scenes
from pokevla_jax.sim.plus.metadata import open_metadata
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

VIEWS = ("agentview", "wrist")
# The looks that are drawn: the first one, the hand near the object, and on the way to the goal.
LOOKS = (0, 4, 8)
TRUE_COLOR, PREDICTED_COLOR = (46, 160, 67), (255, 64, 160)
SCALE = 2


class _Watching(CheckpointAgent):
    """A checkpoint's agent that keeps some of its observations with the true masks."""

    def begin(self, environment: Any, spec: EpisodeSpec) -> None:
        super().begin(environment, spec)
        self._environment, self._looks = environment, 0
        self.kept: list[dict[str, Any]] = []

    def act(self, observation: dict[str, Any] | None) -> Chunk:
        assert observation is not None
        if self._looks in LOOKS:
            masks = [self._environment.render(view, rgb=False, mask=True).mask for view in VIEWS]
            self.kept.append({"observation": observation, "masks": np.stack(masks), "look": self._looks})
        self._looks += 1
        return super().act(observation)


def mask_frames(folder: RunFolder, *, count: int = 4) -> list[dict[str, Any]]:
    """Files and facts of the run's mask frames, made now if they are not there yet.

    Returns:
        One entry per frame: ``file`` (PNG: per view, the true mask beside the predicted one), ``iou`` per view (None
        where neither shows anything), ``prompt``, ``start`` and ``look``.

    Raises:
        ValueError, FileNotFoundError: when the policy or the simulator cannot be opened here; one sentence.
    """
    index = folder.path / "masks" / "masks.json"
    if not index.exists():
        from pokevla_jax.policy import Policy
        from pokevla_jax.sim.assets import resolve_assets

        protocol, context = folder.protocol(), folder.context()
        policy = Policy.load(context["policy"], step=protocol.policy["step"])
        if not policy.metadata["segments"]:
            raise EvaluationError("the network was trained without segmentation")
        simulation = protocol.simulation
        # Runs from before protocols had names were made under the project's own.
        preset = dataclasses.replace(
            PRESETS[simulation.get("protocol", DEFAULT)],
            renderer=simulation["renderer"].partition("-")[0],
            image_size=simulation["image_size"],
            hard_reset=simulation["hard_reset"],
            images=protocol.policy.get("images", "native"),
        )
        scenes = LiberoScenes(resolve_assets(context["assets"]), preset, _plus_choices(simulation))
        # Where it failed is where its masks are worth a look.
        outcomes = {key: record["outcome"] for key, record in folder.records().items()}
        specs = sorted(folder.specs(), key=lambda spec: outcomes.get(spec.id) != "failure")
        entries = draw_frames(policy, scenes, spread(specs, count), index.parent)
        index.write_text(json.dumps(entries, indent=1))
    return [entry | {"path": index.parent / entry["file"]} for entry in json.loads(index.read_text())]


def _plus_choices(simulation: Mapping[str, Any]) -> Choices | None:
    """How the run read LIBERO-Plus, from its protocol and the metadata that ``LIBERO_PLUS`` names."""
    if "libero_plus" not in simulation:
        return None
    choices = Choices(open_metadata(), simulation["prompt"], simulation["libero_plus"]["robot"])
    if choices.protocol(dict(simulation))["libero_plus"] != simulation["libero_plus"]:
        raise EvaluationError(f"LIBERO_PLUS names other metadata than the run's ({choices.metadata.root})")
    return choices


def spread(specs: list[EpisodeSpec], count: int) -> list[EpisodeSpec]:
    """``count`` episodes from as many tasks as possible, the first ones of each in the order given."""
    ordered = in_turns(split(specs, lambda spec: (spec.suite, spec.task)).values())
    return sorted(ordered[:count], key=lambda spec: spec.scene)


def draw_frames(policy: Any, scenes: Scenes, specs: list[EpisodeSpec], out: Path) -> list[dict[str, Any]]:
    """Runs the policy on ``specs`` and writes its frames to ``out``; returns the entries without their paths."""
    from pokevla_jax.data.transforms import central_window

    out.mkdir(parents=True, exist_ok=True)
    window = central_window(policy.config.data.augment)
    entries: list[dict[str, Any]] = []
    environment, scene = None, ""
    for spec in specs:
        if environment is None or scene != spec.scene:
            if environment is not None:
                environment.close()
            environment, scene = scenes.build(spec), spec.scene
        scenes.place(environment, spec)
        agent = _Watching(lambda observation: policy.infer([observation])[0])
        run_episode(environment, spec, agent, interface=scenes.interface)
        predictions = policy.predict_masks([kept["observation"] for kept in agent.kept])
        for kept, maps in zip(agent.kept, predictions, strict=True):
            panels, ious = [], []
            for image, true, probability in zip(kept["observation"]["images"], kept["masks"], maps, strict=True):
                predicted = place_map(probability, window, image.shape[0])
                panels += [tint(image, true > 0, TRUE_COLOR), tint(image, predicted > 0.5, PREDICTED_COLOR)]
                ious.append(intersection_over_union(predicted > 0.5, true > 0))
            name = f"{spec.id}-{kept['look']}.webp"
            strip = cv2.cvtColor(np.concatenate(panels, axis=1), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(out / name), strip, [cv2.IMWRITE_WEBP_QUALITY, 90])
            facts = {"prompt": spec.prompt, "start": spec.start, "look": kept["look"]}
            entries.append({"file": name, "iou": dict(zip(VIEWS, ious, strict=True)), **facts})
    if environment is not None:
        environment.close()
    return entries


def place_map(probability: Float[np.ndarray, "m m"], window: Any, size: int) -> Float[np.ndarray, "h h"]:
    """The map in the pixels of a square image of ``size``, zero outside the window that the network saw."""
    grid = (np.arange(size) + 0.5) / size
    length = probability.shape[0]
    columns = ((grid - window.x) / window.side * length - 0.5).astype(np.float32)
    rows = ((grid - window.y) / window.side * length - 0.5).astype(np.float32)
    x, y = np.meshgrid(columns, rows)
    placed = cv2.remap(probability.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (x >= -0.5) & (x <= length - 0.5) & (y >= -0.5) & (y <= length - 0.5)
    return np.where(inside, placed, 0)


def tint(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], color: tuple[int, int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image enlarged, with the mask as a coloured veil and a firm outline."""
    large = image.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    area = mask.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    veil = np.where(area[..., None], (0.55 * large + 0.45 * np.array(color)).astype(np.uint8), large)
    outlines, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(veil), outlines, -1, color, 1)


def intersection_over_union(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float | None:
    """Shared pixels over pixels of either; None where there are none."""
    union = int((a | b).sum())
    return round(int((a & b).sum()) / union, 3) if union else None
