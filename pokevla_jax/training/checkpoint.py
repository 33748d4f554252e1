"""Writing checkpoints and restoring a run from them exactly.

Each step holds four items (see ``pokevla_jax/checkpoints.py``). ``params`` are the weights for inference, so with a
moving average the trained weights are stored once more in ``train_state``, and without one nothing is stored twice.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from pokevla_jax import checkpoints
from pokevla_jax.checkpoints import CheckpointError
from pokevla_jax.config import CheckpointConfig
from pokevla_jax.sharding import flatten
from pokevla_jax.training.guard import Monitor
from pokevla_jax.training.optimizer import split
from pokevla_jax.training.state import TrainState
from pokevla_jax.training.workdir import write_atomically

DAMAGED = "checkpoints.damaged"

_log = logging.getLogger(__name__)

Best = dict[str, Any]


@dataclass(frozen=True)
class Restored:
    """A run as it was after ``step``."""

    step: int
    state: TrainState
    position: Mapping[str, Any]
    best: Best | None


class Checkpointer:
    """The ``checkpoints`` folder of one run: asynchronous, atomic saves; ``best.json`` follows a finished save."""

    def __init__(self, workdir: epath.Path, config: CheckpointConfig, assets: Mapping[str, Any]):
        self._workdir = workdir
        self._assets = dict(assets)
        self._best: Best | None = None  # of the newest save
        self._published: Best | None = checkpoints.read_best(workdir)
        policies: list[preservation_policy.PreservationPolicy] = [
            preservation_policy.LatestN(config.keep_last),
            _Chosen(self),
        ]
        if config.keep_every:
            policies.append(preservation_policy.EveryNSteps(config.keep_every))
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            # The loop decides when to save, also on preemption.
            save_decision_policy=ocp.checkpoint_managers.save_decision_policy.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
        )
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        folder = self._workdir / checkpoints.CHECKPOINTS
        return ocp.CheckpointManager(folder, options=self._options, item_names=checkpoints.ITEMS)

    @property
    def latest_step(self) -> int | None:
        """The newest step that was saved or is being saved."""
        return self._manager.latest_step()

    @property
    def chosen_steps(self) -> set[int]:
        """Steps that the best measure keeps: the published best, and a better one that is still being written."""
        return {best["step"] for best in (self._best, self._published) if best is not None}

    def save(self, step: int, state: TrainState, position: Mapping[str, Any], best: Best | None) -> None:
        """Starts writing the state after ``step``; returns as soon as the step may overwrite its arrays.

        Raises:
            CheckpointError: when this or an earlier save could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self.publish_best()
            self._best = best
            arrays = {"params": state.inference_params, "train_state": _train_state_item(state)}
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in arrays.items()},
                    data=ocp.args.JsonSave({"position": dict(position), "best": best}),
                    assets=ocp.args.JsonSave(self._assets),
                ),
            )
        except OSError as error:
            raise CheckpointError(f"Checkpoint of step {step} cannot be written to {self._workdir}: {error}") from error

    def publish_best(self) -> None:
        """Writes ``best.json`` once the checkpoint it names is complete."""
        if self._best == self._published or self._manager.is_saving_in_progress():
            return
        self._published = self._best
        if jax.process_index() == 0:
            path = self._workdir / checkpoints.BEST
            if self._best is None:
                path.unlink(missing_ok=True)
            else:
                write_atomically(path, json.dumps(self._best) + "\n")

    def close(self) -> None:
        """Waits for the last save and publishes it."""
        self._manager.wait_until_finished()
        self.publish_best()
        self._manager.close()

    def restore(self, abstract: TrainState) -> Restored | None:
        """The newest undamaged step, or None where nothing was saved; damaged newer ones are put aside.

        Raises:
            CheckpointError: when there are steps and none of them can be read.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, abstract)
                failure = ""
            # A damaged item makes Orbax, tensorstore or json raise almost anything.
            except Exception as error:
                failure = checkpoints.first_line(error)
            # Hosts read different parts: a step counts only where all of them could.
            if jax.process_count() > 1 and not multihost_utils.process_allgather(not failure).all():
                failure = failure or "another host could not read it"
            if not failure:
                self._put_aside(damaged)
                self._best = restored.best if restored.best and self._exists(restored.best["step"]) else None
                self.publish_best()
                return Restored(step, restored.state, restored.position, self._best)
            _log.warning("Checkpoint of step %d is incomplete or damaged and is skipped (%s)", step, failure)
            damaged[step] = failure
        if damaged:
            step, failure = next(iter(damaged.items()))
            raise CheckpointError(
                f"No checkpoint in {self._manager.directory} can be read (step {step}: {failure}); remove the folder "
                "to start again, or give another --workdir"
            )
        return None

    def _restore(self, step: int, abstract: TrainState) -> Restored:
        targets = {"params": abstract.inference_params, "train_state": _train_state_item(abstract)}
        folder = self._manager.directory / str(step)
        # Item by item and not through the manager, which would wait for hosts that have failed already.
        items = {name: _read_arrays(folder / name, tree) for name, tree in targets.items()}
        data = ocp.JsonCheckpointHandler().restore(folder / "data")
        ocp.JsonCheckpointHandler().restore(folder / "assets")
        published, frozen = split(items["params"], flatten(abstract.frozen).keys())
        rest = items["train_state"]
        state = TrainState(
            monitor=Monitor(**rest["monitor"]),
            step=rest["step"],
            trained=rest.get("trained", published),
            frozen=frozen,
            opt_state=rest["opt_state"],
            ema=published if abstract.ema is not None else None,
        )
        return Restored(step, state, data["position"], data["best"])

    def _exists(self, step: int) -> bool:
        return step in self._manager.all_steps()

    def _put_aside(self, damaged: Mapping[int, str]) -> None:
        """Moves damaged steps out of the way of the new ones that will take their numbers."""
        if not damaged:
            return
        if jax.process_index() == 0:
            aside = self._workdir / DAMAGED
            aside.mkdir(parents=True, exist_ok=True)
            for step in damaged:
                target = aside / str(step)
                if target.exists():
                    target.rmtree()
                (self._manager.directory / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints put aside")
        self._manager.close()
        self._manager = self._open()


class _Chosen(preservation_policy.PreservationPolicy):
    """Keeps the best steps."""

    def __init__(self, owner: Checkpointer):
        self._owner = owner

    def should_preserve(
        self,
        checkpoints: Sequence[preservation_policy.PolicyCheckpointInfo],
        *,
        context: preservation_policy.PreservationContext,
    ) -> Sequence[bool]:
        chosen = self._owner.chosen_steps
        return [info.step in chosen for info in checkpoints]


def _read_arrays(folder: epath.Path, target: Any) -> Any:
    handler = ocp.StandardCheckpointHandler()
    try:
        return handler.restore(folder, args=ocp.args.StandardRestore(target))
    finally:
        handler.close()


def _train_state_item(state: TrainState) -> dict[str, Any]:
    """What ``params`` do not hold."""
    # Plain dicts, so that the file does not depend on a class.
    monitor = {field.name: getattr(state.monitor, field.name) for field in dataclasses.fields(state.monitor)}
    item = {"step": state.step, "opt_state": state.opt_state, "monitor": monitor}
    return item if state.ema is None else item | {"trained": state.trained}
