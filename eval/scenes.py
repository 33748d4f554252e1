"""Environments for episodes: which ones can share a compiled scene, and how each is brought to its start."""

from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol

from eval.episode import Interface
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.presets import Preset
from pokevla_jax.sim.assets import Assets

if TYPE_CHECKING:
    from eval.benchmarks.libero_plus import Choices
    from pokevla_jax.sim.plus.metadata import Metadata
    from pokevla_jax.sim.plus.metadata import PlusTask


class Scenes(Protocol):
    """What a simulator process needs to know about a benchmark; picklable."""

    @property
    def interface(self) -> Interface:
        """What lies between its environments and a policy."""

    def build(self, spec: EpisodeSpec) -> Any:
        """A new environment for all episodes with ``spec.scene``."""

    def place(self, environment: Any, spec: EpisodeSpec) -> None:
        """Brings the environment to the episode's start, settled."""


@dataclass(frozen=True)
class LiberoScenes:
    """LIBERO in MuJoCo, with stored initial states, sampled layouts or LIBERO-Plus's perturbations.

    Attributes:
        assets: meshes and textures.
        preset: the conditions.
        plus: how LIBERO-Plus is read; needed for its episodes alone.
    """

    assets: Assets
    preset: Preset
    plus: "Choices | None" = None

    @property
    def interface(self) -> Interface:
        """As the protocol has it."""
        return self.preset.interface

    def build(self, spec: EpisodeSpec) -> Any:
        """Compiles the scene (3 to 5 s); its renderer is created with the first image."""
        from pokevla_jax.sim.layouts import make_environment
        from pokevla_jax.sim.plus import scenes as plus

        options: dict[str, Any] = {
            "assets": self.assets,
            "renderer": self.preset.renderer,
            "image_size": self.preset.image_size,
            "hard_reset": self.preset.hard_reset,
            "seed": spec.seed,
        }
        if spec.perturbation is not None:
            metadata, task = self._plus_task(spec)
            return plus.make_environment(metadata, task, **options)
        kind = "stored" if spec.layout is None else spec.layout.kind
        return make_environment(spec.suite, spec.task, kind, **options)

    def place(self, environment: Any, spec: EpisodeSpec) -> None:
        """Resets to the stored state, the layout or the perturbation; all settle before the first policy step."""
        from pokevla_jax.sim.layouts import apply_layout
        from pokevla_jax.sim.layouts import sample_layout
        from pokevla_jax.sim.plus import scenes as plus
        from pokevla_jax.sim.tasks import load_init_states
        from pokevla_jax.sim.tasks import load_task

        if spec.perturbation is not None:
            metadata, task = self._plus_task(spec)
            assert self.plus is not None, "_plus_task found it"
            plus.start_episode(
                environment,
                metadata,
                task,
                robot=self.plus.robot,
                noise_seed=spec.random_seed(),
                settle_steps=self.preset.settle_steps,
                **self.preset.draws(spec),
            )
        elif spec.layout is None:
            states = load_init_states(load_task(spec.suite, spec.task))
            settle, draws = self.preset.settle_steps, self.preset.draws(spec)
            environment.reset(states[spec.init_state], settle_steps=settle, **draws)
        else:
            sampled = spec.layout
            layout = sample_layout(environment, sampled.kind, sampled.seed, sampled.index, task=spec.task)
            apply_layout(environment, layout, settle_steps=self.preset.settle_steps)

    def _plus_task(self, spec: EpisodeSpec) -> "tuple[Metadata, PlusTask]":
        """The benchmark's files and its task for a perturbed episode."""
        if self.plus is None:
            raise EvaluationError(
                f"{spec.task_name} with {spec.perturbation} needs LIBERO-Plus's metadata: give --plus"
            )
        metadata = self.plus.metadata
        return metadata, metadata.task(spec.suite, f"{spec.task_name}_{spec.perturbation}")
