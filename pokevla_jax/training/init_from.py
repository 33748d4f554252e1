"""Starting a run from the parameters of another one."""

from typing import Any

import jax
from etils import epath

from pokevla_jax import checkpoints
from pokevla_jax.checkpoints import CheckpointError
from pokevla_jax.config import Config
from pokevla_jax.sharding import flatten
from pokevla_jax.sharding import unflatten
from pokevla_jax.training.objective import Objective
from pokevla_jax.typing import Params


def load(path: epath.PathLike, config: Config, objective: Objective) -> tuple[Params, str]:
    """Fresh parameters overwritten with the checkpoint's where paths agree, and a sentence of what matched.

    Raises:
        CheckpointError: when a shape differs, or nothing matches: the checkpoint is of another network.
    """
    source_config, loaded, assets = checkpoints.load_policy_checkpoint(path)
    source, target = flatten(loaded), flatten(objective.abstract_params)
    common = [name for name in target if name in source]
    presets = f"preset {source_config.model.preset!r}, this run has {config.model.preset!r}"
    for name in common:
        if source[name].shape != target[name].shape:
            raise CheckpointError(
                f"--init-from {path} is of another network ({presets}): {name} is {_shape(source[name])} there and "
                f"{_shape(target[name])} here; give a checkpoint of this preset"
            )
    if not common:
        raise CheckpointError(f"--init-from {path} shares no parameter with this network ({presets})")
    missing = [name for name in target if name not in source]
    unused = [name for name in source if name not in target]
    params = {name: source[name].astype(target[name].dtype) for name in common}
    if missing:
        fresh = flatten(jax.jit(objective.initialize)(jax.random.key(config.seed)))
        params |= {name: fresh[name] for name in missing}
    report = f"init-from {path} (step {assets.step}): {len(common)} of {len(target)} parameters loaded"
    report += f"; fresh: {_groups(missing)}" if missing else ""
    report += f"; not used: {_groups(unused)}" if unused else ""
    return unflatten({name: params[name] for name in target}), report


def inherited(workdir: epath.Path, init_from: epath.PathLike | None) -> dict[str, Any]:
    """What a run's checkpoints say of the released weights that it started from; nothing if it did not.

    A new run also copies the tensors that only the way back to PyTorch needs; a run that is continued has them.

    Raises:
        CheckpointError: when ``init_from`` holds no checkpoint.
    """
    own = workdir / checkpoints.CHECKPOINTS
    sources = [own / str(step) for step in checkpoints.all_steps(own)]
    if not sources and init_from is not None:
        sources = [checkpoints.resolve(init_from)]
        carried = checkpoints.carried_file(sources[0])
        if carried is not None and jax.process_index() == 0:
            carried.copy(workdir / checkpoints.CARRIED, overwrite=True)
    for source in reversed(sources):
        try:
            found = checkpoints.load_assets(source)[1].imported_from
        except CheckpointError:  # a damaged step, which restoring will pass over too
            continue
        return {"imported_from": [dict(origin) for origin in found]} if found else {}
    return {}


def _shape(array: Any) -> str:
    return "x".join(map(str, array.shape)) or "a scalar"


def _groups(names: list[str]) -> str:
    """The paths' first parts with their numbers of parameters."""
    groups: dict[str, int] = {}
    for name in names:
        groups[name.split("/")[0]] = groups.get(name.split("/")[0], 0) + 1
    return ", ".join(f"{group} ({count})" for group, count in sorted(groups.items()))
