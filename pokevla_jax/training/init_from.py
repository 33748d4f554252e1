"""Starting a run from the parameters of another one.

Compact vocabularies consist of the words of their own data, so the one of conversations (stage 1) and the one of
instructions (stage 2) give a word different ids. Embeddings are therefore taken over word by word: a run that starts
from another keeps its own vocabulary, of whatever size, and the row of every word that the other one knew.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from pokevla_jax import checkpoints
from pokevla_jax.checkpoints import CheckpointError
from pokevla_jax.config import Config
from pokevla_jax.data.tokenize import CompactTokenizer
from pokevla_jax.data.tokenize import from_json
from pokevla_jax.sharding import flatten
from pokevla_jax.sharding import unflatten
from pokevla_jax.training.objective import Objective
from pokevla_jax.typing import Params

EMBEDDING = "language/embed_tokens"


def load(
    path: epath.PathLike, config: Config, objective: Objective, tokenizer: Mapping[str, Any] | None = None
) -> tuple[Params, str]:
    """Fresh parameters overwritten with the checkpoint's where paths agree, and a sentence of what matched.

    Args:
        path: the checkpoint.
        config: of the new run.
        objective: of the new run.
        tokenizer: of the new run, as ``Tokenizer.to_json`` gives it; None takes embeddings over row by row.

    Raises:
        CheckpointError: when a shape differs, or nothing matches: the checkpoint is of another network.
    """
    source_config, loaded, assets = checkpoints.load_policy_checkpoint(path)
    source, target = flatten(loaded), flatten(objective.abstract_params)
    common = [name for name in target if name in source]
    by_word = _by_word(path, assets.tokenizer_json, tokenizer) if EMBEDDING in common else None
    presets = f"preset {source_config.model.preset!r}, this run has {config.model.preset!r}"
    for name in common:
        # Of the embeddings' shape, only the width need agree.
        first = 1 if name == EMBEDDING and by_word is not None else 0
        if source[name].shape[first:] != target[name].shape[first:]:
            raise CheckpointError(
                f"--init-from {path} is of another network ({presets}): {name} is {_shape(source[name])} there and "
                f"{_shape(target[name])} here; give a checkpoint of this preset"
            )
    if not common:
        raise CheckpointError(f"--init-from {path} shares no parameter with this network ({presets})")
    missing = [name for name in target if name not in source]
    unused = [name for name in source if name not in target]
    params = {name: source[name].astype(target[name].dtype) for name in common}
    report = f"init-from {path} (step {assets.step}): {len(common)} of {len(target)} parameters loaded"
    if missing or by_word is not None:
        fresh = flatten(jax.jit(objective.initialize)(jax.random.key(config.seed)))
        params |= {name: fresh[name] for name in missing}
        if by_word is not None and tokenizer is not None:
            own, theirs = by_word
            params[EMBEDDING] = fresh[EMBEDDING].at[own].set(params[EMBEDDING][theirs])
            report += f"; embeddings by word: {len(own)} of {len(_tokens(tokenizer))}, the others fresh"
    report += f"; fresh: {_groups(missing)}" if missing else ""
    report += f"; not used: {_groups(unused)}" if unused else ""
    return unflatten({name: params[name] for name in target}), report


def _by_word(
    path: epath.PathLike, source: Mapping[str, Any] | None, target: Mapping[str, Any] | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids of the target's words that the source has, and the source's ids of them; None: rows mean the same.

    Raises:
        CheckpointError: when the vocabularies are of different kinds, so that no token of one is one of the other.
    """
    if source is None or target is None:
        return None
    if source["kind"] != target["kind"]:
        raise CheckpointError(
            f"--init-from {path} has a vocabulary of kind {source['kind']!r}, this run one of kind "
            f"{target['kind']!r}; set config.data.tokenizer as the checkpoint has it"
        )
    if source["kind"] != "compact":
        return None
    known = {token: index for index, token in enumerate(_tokens(source))}
    pairs = [(index, known[token]) for index, token in enumerate(_tokens(target)) if token in known]
    own, theirs = zip(*pairs, strict=True)  # the special tokens are common to all
    return np.array(own), np.array(theirs)


def _tokens(tokenizer: Mapping[str, Any]) -> tuple[str, ...]:
    compact = from_json(tokenizer)
    assert isinstance(compact, CompactTokenizer)
    return compact.tokens


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
