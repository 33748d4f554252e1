"""The scripted expert at work, seen every few steps, and what its next motion would lead to."""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Literal

import numpy as np

from pokevla_jax.sim.corpus.chains import REST_STEPS
from pokevla_jax.sim.corpus.chains import Chain
from pokevla_jax.sim.corpus.chains import Look
from pokevla_jax.sim.corpus.facts import Outcome
from pokevla_jax.sim.environment import SETTLE_ACTION
from pokevla_jax.sim.experts.expert import ScriptedExpert
from pokevla_jax.sim.experts.grasps import grasp_height
from pokevla_jax.sim.geometry import collision_box

# Noise on the expert's translations (a fifth on its rotations), steps between two frames, and the longest episode.
ACTION_NOISE, FRAME_EVERY, MAX_STEPS = 0.15, (8, 22), 320
# A branch for a grasp begins this high above where the gripper would close, and this near, metres.
BRANCH_HEIGHT, BRANCH_NEAR = (0.05, 0.16), 0.12
# Some episodes step aside once before a grasp, along one axis and by this much, so that the branch misses.
ASIDE_CHANCE, ASIDE = 0.6, (0.06, 0.1)
# How far an action of 1 moves the hand in a control step, metres (measured).
STEP = 0.015
_OPEN, _CLOSED = -1.0, 1.0
# What of the controller outlives a step.
_CONTROLLER = ("goal_pos", "goal_ori", "relative_ori", "ori_ref")


class Episode(Chain):
    """The expert's way from a random start, disturbed as in recorded demonstrations; it need not succeed."""

    def looks(self, count: int) -> Iterator[Look]:
        """Frames of the episode; the last one shows the task done, where there was room for it."""
        self.start()
        expert = ScriptedExpert(self.environment)
        next_look, number = int(self.rng.integers(FRAME_EVERY[0])), 0
        aside = bool(self.rng.random() < ASIDE_CHANCE)
        for step in range(MAX_STEPS):
            if number == count:
                return
            if step >= next_look:
                aim = self._aim()
                if aside and aim is not None and self._height_above(aim) is not None:
                    self._step_aside()
                    aside = False
                yield Look(self.look(number, self._branches()), None)
                number, next_look = number + 1, step + int(self.rng.integers(FRAME_EVERY[0], FRAME_EVERY[1] + 1))
            spread = ACTION_NOISE * np.repeat([1.0, 0.2, 0.0], (3, 3, 1))
            if self.step(np.clip(expert.act() + self.rng.normal(size=7) * spread, -1.0, 1.0)):
                for _ in range(REST_STEPS):
                    self.step(SETTLE_ACTION)
                yield Look(self.look(number), None)
                return

    def _aim(self) -> str | None:
        """The thing that the task wants in a basket next, if that is what it wants."""
        things = self.observer.things()
        for goal in self.observer.goals(things):
            if not goal.holds:
                place = things[goal.place] if goal.place else None
                return goal.things[0] if place is not None and place.group == "basket" else None
        return None

    def _height_above(self, name: str) -> float | None:
        """Height of the gripper over where it would close on a thing, when it is above it and holds nothing."""
        if self.observer.held() is not None:
            return None
        data = self.environment.data
        body = self.environment.sim_env.obj_body_id[name]
        box = collision_box(self.environment.model, body).placed(data.xpos[body], data.xmat[body].reshape(3, 3))
        site = data.site_xpos[self.environment.sim_env.robots[0].eef_site_id]
        height = float(site[2] - grasp_height(box))
        near = np.linalg.norm((site - box.center)[:2]) < BRANCH_NEAR
        return height if near and BRANCH_HEIGHT[0] < height < BRANCH_HEIGHT[1] else None

    def _step_aside(self) -> None:
        """Moves the hand along one axis, far enough to miss."""
        action = np.append(np.zeros(6), _OPEN)
        axis, distance = int(self.rng.integers(2)), float(self.rng.uniform(*ASIDE))
        action[axis] = self.rng.choice([-1.0, 1.0])
        for _ in range(round(distance / STEP)):
            self.step(action)

    # --- branches ---

    def _branches(self) -> tuple[Outcome, ...]:
        """What a motion from here leads to, tried in the simulator, which is then put back."""
        aim = self._aim()
        if aim is None:
            return ()
        if self.observer.held() == aim:
            return (self._branch("release", aim, lambda: self._release(aim)),)
        height = self._height_above(aim)
        return () if height is None else (self._branch("grasp", aim, lambda: self._grasp(aim, height)),)

    def _branch(self, motion: Literal["grasp", "release"], aim: str, play: Callable[[], bool]) -> Outcome:
        environment = self.environment
        robot = environment.sim_env.robots[0]
        state, warm = environment.sim_state(), environment.data.qacc_warmstart.copy()
        memory = {name: np.copy(getattr(robot.controller, name)) for name in _CONTROLLER}
        fingers = np.copy(robot.gripper.current_action)
        success = play()
        environment.set_sim_state(state)
        environment.data.qacc_warmstart[:] = warm
        for name, value in memory.items():
            setattr(robot.controller, name, value)
        robot.gripper.current_action = fingers
        return Outcome(motion, aim, success)

    def _grasp(self, aim: str, height: float) -> bool:
        """Straight down, close, lift: whether the thing came along."""
        start = self.observer.box(aim)[0][2]
        for vertical, gripper, steps in ((-1.0, _OPEN, round(height / STEP)), (0.0, _CLOSED, 8), (1.0, _CLOSED, 10)):
            for _ in range(steps):
                self.step(np.array([0.0, 0.0, vertical, 0.0, 0.0, 0.0, gripper]))
        return bool(self.observer.box(aim)[0][2] - start > 0.04)

    def _release(self, aim: str) -> bool:
        """Open, and wait: whether the thing is in the basket then."""
        for _ in range(14):
            self.step(SETTLE_ACTION)
        goals = self.observer.goals(self.observer.things())
        return any(goal.holds for goal in goals if aim in goal.things)
