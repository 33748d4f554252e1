"""Environments for episodes: which ones can share a compiled scene, and how each is brought to its start."""

from dataclasses import dataclass
from typing import Any
from typing import Protocol

from eval.manifest import EpisodeSpec
from eval.protocol import SETTLE_STEPS
from pokevla_jax.sim.assets import Assets


class Scenes(Protocol):
    """What a simulator process needs to know about a benchmark; picklable."""

    def build(self, spec: EpisodeSpec) -> Any:
        """A new environment for all episodes with ``spec.scene``."""

    def place(self, environment: Any, spec: EpisodeSpec) -> None:
        """Brings the environment to the episode's start, settled."""


@dataclass(frozen=True)
class LiberoScenes:
    """LIBERO in MuJoCo, with stored initial states or sampled layouts."""

    assets: Assets
    renderer: str
    image_size: int
    hard_reset: bool

    def build(self, spec: EpisodeSpec) -> Any:
        """Compiles the scene (3 to 5 s); its renderer is created with the first image."""
        from pokevla_jax.sim.layouts import make_environment

        kind = "stored" if spec.layout is None else spec.layout.kind
        return make_environment(
            spec.suite,
            spec.task,
            kind,
            assets=self.assets,
            renderer=self.renderer,
            image_size=self.image_size,
            hard_reset=self.hard_reset,
            seed=spec.seed,
        )

    def place(self, environment: Any, spec: EpisodeSpec) -> None:
        """Resets to the stored state or the layout; both settle before the first policy step."""
        from pokevla_jax.sim.layouts import apply_layout
        from pokevla_jax.sim.layouts import sample_layout
        from pokevla_jax.sim.tasks import load_init_states
        from pokevla_jax.sim.tasks import load_task

        if spec.layout is None:
            states = load_init_states(load_task(spec.suite, spec.task))
            environment.reset(states[spec.init_state], settle_steps=SETTLE_STEPS)
        else:
            sampled = spec.layout
            layout = sample_layout(environment, sampled.kind, sampled.seed, sampled.index, task=spec.task)
            apply_layout(environment, layout, settle_steps=SETTLE_STEPS)
