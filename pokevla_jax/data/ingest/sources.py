"""The kinds of input that ``pokevla-ingest --source`` knows; what a licence says is its publisher's to say."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

from pokevla_jax.data.codec import DataError
from pokevla_jax.data.corpus import SOURCE_NAME
from pokevla_jax.data.ingest.base import Adapter
from pokevla_jax.data.ingest.cosmos_reason import CosmosReasonAdapter
from pokevla_jax.data.ingest.hova import HovaAdapter
from pokevla_jax.data.ingest.lerobot import LeRobotAdapter
from pokevla_jax.data.ingest.lerobot import default_robot
from pokevla_jax.data.ingest.lerobot import read_info
from pokevla_jax.data.ingest.libero_hdf5 import Hdf5Adapter
from pokevla_jax.data.ingest.llava import AnnotationFile
from pokevla_jax.data.ingest.llava import LlavaAdapter
from pokevla_jax.data.ingest.molmoact import MolmoActAdapter
from pokevla_jax.data.ingest.recordings import RecordingsAdapter
from pokevla_jax.data.ingest.rlds import RldsAdapter
from pokevla_jax.data.ingest.roborefit import RoboRefItAdapter
from pokevla_jax.data.ingest.robospatial import RoboSpatialAdapter
from pokevla_jax.data.ingest.robots import load_robot
from pokevla_jax.data.records import open_dataset

_UNSTATED = "not known here: see its publisher, and give --licence"


@dataclass(frozen=True)
class Options:
    """What the command line says about an input.

    Attributes:
        size: side to which pictures are reduced; None keeps them as they are.
        licence: instead of what is known here.
        num_frames: pictures per video of image-text samples.
        robot: name or file of a robot's description.
        name: of the source or suite.
        annotation, pillar: of conversations of one's own.
        split: of an RLDS dataset.
        keep_failed: whether failed recordings are read.
    """

    size: int | None = None
    licence: str | None = None
    num_frames: int = 4
    robot: str | None = None
    name: str | None = None
    annotation: str | None = None
    pillar: str | None = None
    split: str = "train"
    keep_failed: bool = False


def _llava_instruct(options: Options) -> Adapter:
    """LLaVA-Instruct-665K: ``llava_v1_5_mix665k.json`` beside its image folders (``coco``, ``gqa``, ...)."""
    files = (AnnotationFile("llava_v1_5_mix665k.json", ".", "none"),)
    licence = "CC-BY-4.0 for the conversations; images under the terms of their own sets"
    return LlavaAdapter("llava_instruct", "general", options.licence or licence, files, options.size)


def _refspatial_simulator(options: Options) -> Adapter:
    """RefSpatial, simulator part: ``Simulator/metadata.json`` and ``Simulator/image``; points as fractions."""
    files = (AnnotationFile("Simulator/*.json", "Simulator/image", "fraction"),)
    return LlavaAdapter("refspatial_simulator", "grounding", options.licence or "Apache-2.0", files, options.size)


def _refspatial_2d(options: Options) -> Adapter:
    """RefSpatial, 2D reasoning part: ``2D/reasoning_template_qa.json`` and ``2D/image``."""
    files = (AnnotationFile("2D/reasoning_template_qa.json", "2D/image", "fraction"),)
    return LlavaAdapter("refspatial_2d", "reasoning", options.licence or "Apache-2.0", files, options.size)


def _robopoint(options: Options) -> Adapter:
    """RoboPoint: ``robopoint_1432k.json`` (or another ``robopoint*.json``) and ``images``; points as fractions."""
    files = (AnnotationFile("robopoint*.json", "images", "fraction"),)
    return LlavaAdapter("robopoint", "grounding", options.licence or _UNSTATED, files, options.size)


CORPORA: dict[str, Callable[[Options], Adapter]] = {
    "llava_instruct": _llava_instruct,
    "refspatial_simulator": _refspatial_simulator,
    "robopoint": _robopoint,
    "robospatial": lambda o: RoboSpatialAdapter("robospatial", "grounding", o.licence or _UNSTATED, o.size),
    "roborefit": lambda o: RoboRefItAdapter("roborefit", "grounding", o.licence or _UNSTATED, o.size),
    "hova_ego4d": lambda o: HovaAdapter("hova_ego4d", "affordance", o.licence or _UNSTATED, "ego4d", o.size),
    "hova_epic100": lambda o: HovaAdapter("hova_epic100", "affordance", o.licence or _UNSTATED, "epic100", o.size),
    "molmoact": lambda o: MolmoActAdapter("molmoact", "affordance", o.licence or _UNSTATED, o.size),
    "refspatial_2d": _refspatial_2d,
    "cosmos_reason1": lambda o: CosmosReasonAdapter(
        "cosmos_reason1", "reasoning", o.licence or "CC-BY-4.0", o.num_frames, o.size
    ),
}
"""The ten sources of the paper's corpus."""


EPISODES = ("rlds", "lerobot", "libero_hdf5", "recordings")
"""Kinds of robot episodes."""
KINDS = (*CORPORA, "llava", *EPISODES)
"""All kinds; "llava" reads conversations of one's own."""


def make(kind: str, data: Path, options: Options) -> tuple[Literal["corpus", "episodes"], Any]:
    """The reader of a kind of input.

    Raises:
        DataError: for an unknown kind, naming the nearest, or where an option is missing.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise DataError(f"Unknown --source {kind!r}; " + (f"did you mean {near[0]}?" if near else ", ".join(KINDS)))
    if kind in CORPORA:
        return "corpus", CORPORA[kind](options)
    if kind == "llava":
        return "corpus", _conversations(options)
    return "episodes", _episodes(kind, data, options)


def _conversations(options: Options) -> Adapter:
    """Annotations of one's own in LLaVA's layout, points as fractions, images below the data folder."""
    if not (options.annotation and options.name and options.pillar and options.licence):
        raise DataError(
            "--source llava needs --annotation, --name, --pillar and --licence, which are kept with the data"
        )
    files = (AnnotationFile(options.annotation, ".", "fraction"),)
    return LlavaAdapter(_checked(options.name), options.pillar, options.licence, files, options.size)


def _episodes(kind: str, data: Path, options: Options) -> Adapter:
    """A reader of robot episodes."""
    if kind == "recordings":
        dataset = open_dataset(data)
        actions = {"gripper_dims": list(dataset.gripper_dims), "absolute": dataset.absolute_actions}
        source = _checked(options.name or "recordings")
        return RecordingsAdapter(source, options.licence or "own", options.size, options.keep_failed, actions)
    robot = load_robot(options.robot) if options.robot else None
    if kind == "lerobot":
        found = robot or default_robot(read_info(data))
        name = _checked(options.name or (robot.name if robot else data.name.lower().replace("-", "_")))
        return LeRobotAdapter(name, options.licence or found.licence, found, options.size)
    robot = robot or load_robot("libero_hdf5" if kind == "libero_hdf5" else "libero_rlds")
    name, licence = _checked(options.name or robot.name), options.licence or robot.licence
    if kind == "libero_hdf5":
        return Hdf5Adapter(name, licence, robot, options.size)
    return RldsAdapter(name, licence, robot, options.size, options.split)


def _checked(name: str) -> str:
    if not SOURCE_NAME.fullmatch(name):
        raise DataError(f"--name {name!r} may hold lower-case letters, digits and _ only, at most 50 of them")
    return name
