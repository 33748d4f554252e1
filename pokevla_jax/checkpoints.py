"""Reading checkpoints: what a policy, an exporter or a new run needs of one, without any training code.

A run's folder holds ``config.json``, ``metrics.jsonl``, ``best.json`` and ``checkpoints/<step>/`` with the items
``params`` (what inference loads), ``train_state``, ``data`` and ``assets`` (configuration, statistics, tokenizer,
versions): each step folder is sufficient by itself.
"""

import hashlib
import json
import re
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from etils import epath

from pokevla_jax import config as config_lib
from pokevla_jax.config import Config
from pokevla_jax.models import lora
from pokevla_jax.typing import Params

CHECKPOINTS = "checkpoints"
BEST = "best.json"
COMMITTED = "commit_success.txt"
CARRIED = "carried.safetensors"
"""Tensors of imported files that the network does not use, by PyTorch's names: beside an imported checkpoint's
configuration, and in the folder of a run that started from one."""
# safetensors' own reader of bytes does not know bfloat16.
CARRIED_DTYPES = {"F32": jnp.dtype("float32"), "BF16": jnp.dtype("bfloat16"), "F16": jnp.dtype("float16")}
ITEMS = ("params", "train_state", "data", "assets")

Step = int | Literal["best"] | None


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another network; the message says what to do."""


@dataclass(frozen=True)
class Assets:
    """What belongs to a network besides its parameters, as plain JSON types."""

    statistics: Mapping[str, Any] | None
    tokenizer_json: Mapping[str, Any] | None
    versions: Mapping[str, str]
    dataset: str = ""
    # How the simulator drew the training images, one entry per way; empty where nothing is known.
    pictures: Sequence[Mapping[str, Any]] = ()
    # Files of released weights that parts of the network started from: ``kind`` and ``file`` of each.
    imported_from: Sequence[Mapping[str, str]] = ()
    # Names of an imported checkpoint's parameters that no such file had: random, and nothing to start from.
    fresh: Collection[str] = ()
    step: int = 0


def load_policy_checkpoint(
    path: epath.PathLike,
    step: Step = None,
    *,
    preset: str | None = None,
    sharding: jax.sharding.Sharding | None = None,
    skip: Collection[str] = (),
    average: bool | None = None,
) -> tuple[Config, Params, Assets]:
    """Configuration, inference parameters (adapters merged) and assets of a checkpoint.

    Args:
        path: a run's folder, its ``checkpoints`` folder, or one step's folder.
        step: a step, ``"best"`` (the one with the least held-out action error), or None for the newest.
        preset: refuse a checkpoint of another network.
        sharding: where every parameter is placed; the default device if None.
        skip: parts of the network, such as ``"vggt"``, whose parameters are neither read nor returned.
        average: the moving average of the weights (True), the weights as trained (False), or the average where the
            run kept one (None).

    Raises:
        CheckpointError: in one sentence, when there is no such checkpoint, it is incomplete, of another preset, or
            without the average that was asked for.
    """
    folder = resolve(path, step)
    assets = _read_assets(folder)
    config = _config(folder, assets)
    if preset is not None and config.model.preset != preset:
        raise CheckpointError(
            f"Checkpoint {folder} holds preset {config.model.preset!r}, not {preset!r}; give the checkpoint of a "
            f"{preset!r} run, or the configuration of this one"
        )
    if average and not config.optimizer.ema_decay:
        raise CheckpointError(f"Checkpoint {folder} has no moving average of its weights; leave it unasked for")
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]) if sharding is None else sharding
    params = _read(folder, "params", sharding, lambda tree: _without(tree, skip))
    if average is False and config.optimizer.ema_decay:
        trained = _read(folder, "train_state", sharding, lambda tree: {"trained": _without(tree["trained"], skip)})
        params = _overlaid(params, trained["trained"])
    adapters = lora.from_config(config.optimizer)
    params = params if adapters is None else lora.merge(params, adapters)
    return config, params, _assets(folder, assets)


def load_assets(path: epath.PathLike, step: Step = None) -> tuple[Config, Assets]:
    """A checkpoint without its parameters; raises as ``load_policy_checkpoint`` does."""
    folder = resolve(path, step)
    assets = _read_assets(folder)
    return _config(folder, assets), _assets(folder, assets)


def _assets(folder: epath.Path, assets: Mapping[str, Any]) -> Assets:
    return Assets(
        statistics=assets.get("statistics"),
        tokenizer_json=assets.get("tokenizer"),
        versions=assets.get("versions", {}),
        dataset=assets.get("dataset", ""),
        pictures=assets.get("pictures", ()),
        imported_from=assets.get("imported_from", ()),
        fresh=frozenset(assets.get("fresh", ())),
        step=int(folder.name),
    )


def resolve(path: epath.PathLike, step: Step = None) -> epath.Path:
    """The folder of one step.

    Raises:
        CheckpointError: when there is none, naming the steps that exist.
    """
    path = epath.Path(path)
    if not path.exists():
        raise CheckpointError(f"Checkpoint {path} does not exist; give the folder of a training run or of one step")
    if path.name.isdigit() and (path / "assets").exists():
        if step not in (None, int(path.name)):
            raise CheckpointError(f"{path} is step {path.name}, and step {step} was asked for; give the run's folder")
        return path
    run, folder = (path.parent, path) if path.name == CHECKPOINTS else (path, path / CHECKPOINTS)
    steps = all_steps(folder)
    if not steps:
        raise CheckpointError(
            f"{path} holds no checkpoint; is it a training run's folder, and has it saved a step yet?"
        )
    if step == "best":
        best = read_best(run)
        if best is None:
            raise CheckpointError(f"{run} has no {BEST}: nothing was evaluated yet; give a step: {_listed(steps)}")
        step = int(best["step"])
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise CheckpointError(f"{folder} has no step {step}; there are {_listed(steps)}")
    return folder / str(step)


def folder_hash(path: epath.PathLike) -> str:
    """Hash of the names and bytes of all files of a folder: which weights these are, without loading them."""
    path = epath.Path(path)
    digest = hashlib.sha256()
    for file in sorted(_files(path)):
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        content = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                content.update(block)
        digest.update(content.digest())
    return digest.hexdigest()[:16]


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """All files below; step by step, because buckets have no recursive pattern."""
    for path in folder.iterdir():
        yield from _files(path) if path.is_dir() else (path,)


def carried_file(step_folder: epath.PathLike) -> epath.Path | None:
    """The file of tensors that a step's network does not use: its own, or its run's; None where nothing is carried."""
    folder = epath.Path(step_folder)
    places = (folder / "assets" / CARRIED, folder.parent.parent / CARRIED)
    return next((place for place in places if place.exists()), None)


def read_carried(step_folder: epath.PathLike) -> dict[str, np.ndarray]:
    """Tensors that a checkpoint's network does not use, by PyTorch's names; empty where nothing was carried."""
    path = carried_file(step_folder)
    if path is None:
        return {}
    return {
        name: np.frombuffer(view["data"], CARRIED_DTYPES[view["dtype"]]).reshape(view["shape"])
        for name, view in safetensors.deserialize(path.read_bytes())
    }


def all_steps(folder: epath.PathLike) -> list[int]:
    """Finished steps in a ``checkpoints`` folder, ascending; a save in progress has another name."""
    folder = epath.Path(folder)
    if not folder.exists():
        return []
    # In a bucket, where folders cannot be renamed, Orbax marks what is finished by a file.
    remote = "://" in str(folder)
    found = [child for child in folder.iterdir() if re.fullmatch(r"\d+", child.name)]
    return sorted(int(child.name) for child in found if not remote or (child / COMMITTED).exists())


def read_best(run: epath.PathLike) -> dict[str, Any] | None:
    """``{"step", "metric"}`` of the run's best checkpoint, if it has one; ``CheckpointError`` for a damaged file."""
    path = epath.Path(run) / BEST
    if not path.exists():
        return None
    try:
        best = json.loads(path.read_text())
        return {**best, "step": int(best["step"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} names no step ({first_line(error)}); restore it from a copy, or delete it"
        ) from error


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps[-8:]))


def _read_assets(folder: epath.Path) -> dict[str, Any]:
    try:
        assets = ocp.JsonCheckpointHandler().restore(folder / "assets")
        assets["config"]
        return assets
    # Orbax answers a damaged item with many kinds of exceptions, depending on which file is affected.
    except Exception as error:
        raise _damaged(folder, error) from error


def _config(folder: epath.Path, assets: Mapping[str, Any]) -> Config:
    try:
        return config_lib.from_dict(Config, assets["config"])
    except config_lib.ConfigError as error:
        raise CheckpointError(f"Checkpoint {folder} was written by another version of the project: {error}") from error


def _read(folder: epath.Path, item: str, sharding: jax.sharding.Sharding, choose: Callable[[Params], Params]) -> Params:
    """The arrays of an item that ``choose`` leaves of its tree; no others are read."""
    # Beside the arrays themselves, little of what is being decoded lies in memory.
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=1)
    try:
        shapes = choose(handler.metadata(folder / item).tree)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
        how = ocp.checkpoint_utils.construct_restore_args(target)
        arguments = ocp.args.PyTreeRestore(target, restore_args=how, partial_restore=True)
        return handler.restore(folder / item, args=arguments)
    except Exception as error:
        raise _damaged(folder, error) from error
    finally:
        handler.close()


def _without(tree: Params, parts: Collection[str]) -> Params:
    return {part: leaves for part, leaves in tree.items() if part not in parts}


def _overlaid(tree: Params, other: Params) -> Params:
    """``tree`` with the leaves of ``other`` in place of its own."""
    merged = {key: _overlaid(tree[key], value) if isinstance(value, dict) else value for key, value in other.items()}
    return {**tree, **merged}


def _damaged(folder: epath.Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"Checkpoint {folder} is incomplete or damaged ({first_line(error)}); use another step")


def first_line(error: BaseException) -> str:
    """Kind and beginning of an error whose full text runs over many lines."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
