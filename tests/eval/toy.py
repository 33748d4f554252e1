"""A one-dimensional world with the simulator's interface, for tests that need none of MuJoCo.

The state is a position; the first action component moves it; the goal is to pass 1. The observation's image encodes the
position in its first pixel.
"""

import os
import signal
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from eval.episode import Interface
from eval.manifest import EpisodeSpec
from eval.manifest import LayoutSpec


class ToyEnvironment:
    def __init__(self):
        self.position = 0.0
        self.renders = 0
        self.closed = False

    def observe(self):
        self.renders += 1
        images = np.zeros((2, 8, 8, 3), np.uint8)
        images[0, 0, 0, 0] = round(100 * np.clip(self.position, 0, 2))
        return {"images": images, "state": np.zeros(8, np.float32), "prompt": "from the environment"}

    def step(self, action):
        if action[0] > 0.99:
            raise RuntimeError("the arm broke")
        self.position += 0.1 * float(action[0])
        return self.position >= 1

    def sim_state(self):
        return np.array([self.position])

    def set_sim_state(self, state):
        self.position = float(state[0])

    def render(self, view, *, rgb=True, mask=False):
        self.renders += 1
        image = np.full((32, 32, 3), round(100 * np.clip(self.position, 0, 2)), np.uint8) if rgb else None
        half = np.repeat([[1] * 4 + [0] * 4], 8, axis=0).astype(np.uint8) if mask else None
        return SimpleNamespace(rgb=image, mask=half)

    def close(self):
        self.closed = True


def once(file):
    """Whether this is the first call with ``file``, over all processes."""
    try:
        open(file, "x").close()
    except FileExistsError:
        return False
    return True


NATIVE = Interface()


@dataclass(frozen=True)
class ToyScenes:
    """Starts at ``layout.index / 100``; the process dies once at ``die_at`` while ``die_file`` does not exist.

    ``hang`` maps indices to how the process hangs there, once: ``sleep`` or ``stop``.
    """

    die_at: int = -1
    die_file: str = ""
    always_die: bool = False
    hang: tuple[tuple[int, str], ...] = ()
    hang_file: str = ""
    seconds: float = 0.0
    interface: Interface = NATIVE

    def build(self, spec):
        return ToyEnvironment()

    def place(self, environment, spec):
        time.sleep(self.seconds)
        for index, way in self.hang:
            if spec.layout.index == index and once(f"{self.hang_file}{index}"):
                if way == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(1000)
        if spec.layout.index == self.die_at and (self.always_die or not os.path.exists(self.die_file)):
            if self.die_file:
                open(self.die_file, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        environment.position = spec.layout.index / 100


@dataclass(frozen=True)
class RunScenes(ToyScenes):
    """Takes what ``LiberoScenes`` takes, so that ``eval.run`` can be given this world instead."""

    assets: object = None
    preset: object = None
    plus: object = None


class SpeedAgent:
    """Moves right at a speed read from the task: task 0 succeeds, task 1 is too slow, task 2 breaks the arm."""

    needs_images = True
    speeds = (0.5, 0.05, 1.0)

    def begin(self, environment, spec):
        self.speed = self.speeds[spec.task]

    def act(self, observation):
        chunk = np.zeros((8, 7), np.float32)
        chunk[:, 0] = self.speed
        return chunk


class SeeingAgent:
    """Moves right as long as it is told to and sees a picture that is not black; keeps what it saw, in the process."""

    needs_images = True
    seen: ClassVar[list] = []

    def begin(self, environment, spec):
        pass

    def act(self, observation):
        self.seen.append(observation)
        chunk = np.zeros((8, 7), np.float32)
        chunk[:, 0] = 0.5 if observation["images"].any() and observation["prompt"] == "go right" else 0.0
        return chunk


class ToyPolicy:
    """Answers with the position it sees; fails for images whose first pixel is 77."""

    max_batch_size = 4

    def __init__(self):
        self.batches = []

    def infer(self, observations):
        self.batches.append(len(observations))
        if any(o["images"][0, 0, 0, 0] == 77 for o in observations):
            raise ValueError("cannot look at 77")
        return np.stack([np.full((8, 7), 0.5, np.float32) for o in observations])


class PolicyThatLooks(ToyPolicy):
    """Its speed depends on the position that it sees, so that an episode's end depends on every answer."""

    def infer(self, observations):
        seen = np.array([o["images"][0, 0, 0, 0] for o in observations], np.float32)
        return np.tile((0.05 + seen[:, None, None] / 200), (1, 8, 7)).astype(np.float32)


@dataclass(frozen=True)
class BadPolicy:
    """Loads a policy whose process dies, hangs or stops at its first look, or not; it leaves a file per process."""

    way: str
    folder: str

    def __call__(self):
        policy = ToyPolicy()
        healthy = policy.infer

        def infer(observations):
            open(f"{self.folder}/process-{os.getpid()}", "w").close()
            if self.way and once(f"{self.folder}/{self.way}"):
                if self.way == "hang":
                    time.sleep(1000)
                os.kill(os.getpid(), {"die": signal.SIGKILL, "stop": signal.SIGSTOP}[self.way])
            return healthy(observations)

        policy.infer = infer
        return policy


def stand_in(monkeypatch, specs, resolve_policy):
    """Has ``eval.run`` run these episodes in this world, with the policies of ``resolve_policy(name, **_)``."""
    from eval import run

    monkeypatch.setattr(run, "build_manifest", lambda options: specs)
    monkeypatch.setattr(run, "LiberoScenes", RunScenes)
    monkeypatch.setattr(run, "resolve_policy", resolve_policy)


def toy_spec(task=0, index=0, max_steps=40, kind="moved"):
    return EpisodeSpec(
        benchmark="libero_moved",
        suite="toy",
        task=task,
        task_name=f"go_right_{task}",
        prompt="go right",
        max_steps=max_steps,
        layout=LayoutSpec(kind, 7, index),
    )


def episodes(count):
    """Of two scenes, with starts further and further right."""
    return [toy_spec(number % 2, number) for number in range(count)]
