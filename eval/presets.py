"""The protocols that published LIBERO numbers were made with, by name, and the project's own.

A protocol is everything between a policy and its success rate that is not the policy: budgets, resets, pixels, how much
of a chunk is executed. Each published one holds what its evaluator does, read from its source:

* ``openvla-oft``: https://github.com/moojink/openvla-oft at 213c5ff, in ``experiments/robot/``:
  ``libero/run_libero_eval.py``, ``libero/libero_utils.py``, ``robot_utils.py`` and ``openvla_utils.py``;
* ``openpi``: https://github.com/Physical-Intelligence/openpi at 15a9616: ``examples/libero/main.py`` and
  ``openpi_client/image_tools.py``;
* ``lerobot``: https://github.com/huggingface/lerobot at 7427f31: ``envs/libero.py``, ``envs/configs.py``,
  ``configs/eval.py``, ``processor/env_processor.py`` and ``docs/source/libero.mdx``.

All three turn both images by 180 degrees, wait ten control steps without motion and with the gripper open, recompile
the scene for every episode, render with robosuite, and give the policy the task's own instruction and eight numbers of
state (position, axis-angle, fingers): so does everything here. A success is a goal that holds after a policy's step.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Literal

from eval.episode import Gripper
from eval.episode import Interface
from eval.errors import EvaluationError
from eval.images import Preprocessing
from eval.manifest import EpisodeSpec

Seeding = Literal["episode", "trial", "task"]
"""What a reset draws at random is where fixtures stand (cabinet, stove): within 2 cm, and no stored state holds it.

``episode``: every reset starts numpy's generator at the seed. ``trial``: at seed + trial, as lerobot's. ``task``: it is
started once per task and runs on, as openpi's and OpenVLA-OFT's, so that trial i gets the draw of the i-th reset.
"""

DEFAULT = "pokevla"
# Steps of the policy, after settling; "longest training demo" is 193, 254, 270, 505 and 373.
# openvla-oft: TASK_MAX_STEPS; openpi: `max_steps` in eval_libero.
STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One protocol, complete.

    Attributes:
        name: what ``--protocol`` calls it.
        max_steps: policy steps per episode, by suite.
        settle_steps: control steps before the policy's first look: no motion, gripper open.
        renderer: see ``LiberoEnvironment``.
        image_size: side of the rendered images, pixels.
        images: what the evaluator does to them; what it leaves, and any crop, is the policy's own business.
        hard_reset: recompile the scene for every episode.
        execute: actions of each chunk that are executed before the next look; None leaves it to the policy.
        gripper: what becomes of an action's last number.
        seed: of the environment.
        seeding: how resets use it.
        trials: stored initial states per task, from 0 on; None where the protocol does not say.
        free: options that may differ and still be this protocol.
    """

    name: str
    max_steps: Mapping[str, int] = field(default_factory=lambda: STEPS)
    settle_steps: int = 10
    renderer: Literal["robosuite", "fast"] = "robosuite"
    image_size: int = 256
    images: Preprocessing
    hard_reset: bool = True
    execute: int | None
    gripper: Gripper
    seed: int
    seeding: Seeding
    trials: int | None
    free: frozenset[str] = frozenset({"seed"})

    @property
    def published(self) -> bool:
        """Whether others publish numbers under this protocol."""
        return self.name != DEFAULT

    @property
    def interface(self) -> Interface:
        """What lies between simulator and policy."""
        return Interface(self.images, self.gripper)

    def draws(self, spec: EpisodeSpec) -> dict[str, int]:
        """``seed``, ``draw`` and ``compiled`` of ``LiberoEnvironment.reset`` for an episode from a stored state."""
        trial = spec.init_state or 0
        if self.seeding == "task":
            return {"seed": spec.seed, "draw": trial, "compiled": 1}
        if self.seeding == "trial":
            # By its constructor, by the reset that follows it, and by each trial.
            return {"seed": spec.seed + trial, "draw": 0, "compiled": trial + 2}
        return {"seed": spec.seed, "draw": 0, "compiled": 0}


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        # Fast by default; every condition may be chosen, and all are written down.
        Preset(
            name=DEFAULT,
            renderer="fast",
            image_size=128,
            images="native",
            hard_reset=False,
            execute=None,
            gripper="given",
            seed=0,
            seeding="episode",
            trials=None,
            free=frozenset({"max_steps", "renderer", "image_size", "images", "hard_reset", "execute", "seed"}),
        ),
        Preset(
            name="openvla-oft",
            settle_steps=10,  # num_steps_wait
            image_size=256,  # env_img_res
            # prepare_observation -> resize_image_for_policy(..., 224). The crop of 90 % of the area follows on the
            # policy's side (openvla_utils.prepare_images_for_vla), for policies trained with random crops.
            images="openvla",
            execute=8,  # num_open_loop_steps
            # process_action: 0..1 with 1 = open -> 2 g - 1 -> sign -> times -1.
            gripper="sign",
            # get_libero_env: env.seed(0), whatever --seed says; that one seeds the network's own randomness.
            seed=0,
            seeding="task",
            trials=50,  # num_trials_per_task
            free=frozenset(),
        ),
        Preset(
            name="openpi",
            settle_steps=10,  # num_steps_wait
            image_size=256,  # LIBERO_ENV_RESOLUTION
            images="openpi",  # image_tools.resize_with_pad(..., resize_size = 224), in the evaluator
            execute=5,  # replan_steps
            gripper="given",  # env.step(action.tolist())
            seed=7,  # Args.seed -> env.seed(seed)
            seeding="task",
            trials=50,  # num_trials_per_task
        ),
        Preset(
            name="lerobot",
            max_steps={**STEPS, "libero_spatial": 280},  # TASK_SUITE_MAX_STEPS
            settle_steps=10,  # num_steps_wait
            image_size=360,  # LiberoEnv.observation_height and observation_width
            images="native",  # the policy's processor resizes
            execute=None,  # the policy's n_action_steps
            gripper="given",  # env.step(action_numpy)
            seed=1000,  # EvalPipelineConfig.seed
            seeding="trial",  # LiberoEnv.reset(seed) with start_seed + episode
            trials=10,  # "10 episodes per task ... matches the protocol used for published results"
            free=frozenset({"seed", "execute"}),
        ),
    )
}


def resolve(name: str, given: Mapping[str, Any]) -> Preset:
    """The protocol ``name`` with the options that were given.

    A published protocol takes no others than its own: its name is read without footnotes, and one checkpoint with two
    scores under one name is what it is there to prevent. The project's own takes any, and its results carry them.

    Args:
        name: one of ``PRESETS``.
        given: values by field name, None for what was not given; ``max_steps`` is one number for every suite.

    Raises:
        EvaluationError: for an unknown name, or an option that contradicts a published protocol.
    """
    if name not in PRESETS:
        raise EvaluationError(f"--protocol {name!r} is unknown; known: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    values = {key: value for key, value in given.items() if value is not None}
    if "max_steps" in values:
        values["max_steps"] = dict.fromkeys(preset.max_steps, values["max_steps"])
    for key, value in values.items():
        own = getattr(preset, key)
        if key not in preset.free and value != own:
            option = f"--{key.replace('_', '-')}" + ("" if value is True else f" {given[key]}")
            raise EvaluationError(
                f"{option} contradicts --protocol {name}, which has {_shown(own)}; leave it out, or choose every "
                f"condition yourself with --protocol {DEFAULT}"
            )
    if not preset.published and values.get("renderer") == "robosuite":
        # Chosen for pixels as published; they come with published resets.
        values = {"image_size": 256} | values | {"hard_reset": True}
    return dataclasses.replace(preset, **values)


def _shown(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
