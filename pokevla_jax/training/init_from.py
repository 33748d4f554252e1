"""Starting a run from the parameters of others.

Compact vocabularies consist of the words of their own data, so the one of conversations (stage 1) and the one of
instructions (stage 2) give a word different ids. Embeddings are therefore taken over word by word: a run that starts
from another keeps its own vocabulary, of whatever size, and the row of every word that the other one knew.
"""

from collections import Counter
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors.numpy import save as safetensors_bytes

from pokevla_jax import checkpoints
from pokevla_jax.checkpoints import CheckpointError
from pokevla_jax.config import Config
from pokevla_jax.data.schema import teacher_features
from pokevla_jax.data.tokenize import CompactTokenizer
from pokevla_jax.data.tokenize import from_json
from pokevla_jax.models import teachers
from pokevla_jax.sharding import flatten
from pokevla_jax.sharding import unflatten
from pokevla_jax.training.objective import Objective
from pokevla_jax.typing import Array
from pokevla_jax.typing import Params

EMBEDDING = "language/embed_tokens"

# Ids of words in a run's vocabulary, and of the same words in a checkpoint's.
_Words = tuple[np.ndarray, np.ndarray]


def load(
    paths: Sequence[epath.PathLike], config: Config, objective: Objective, tokenizer: Mapping[str, Any] | None = None
) -> tuple[Params, str]:
    """Each parameter from the first checkpoint that has it, or fresh, and a sentence per checkpoint of what matched.

    What an import found in no source is random in its checkpoint, which therefore does not have it.

    Args:
        paths: the checkpoints, at least one.
        config: of the new run.
        objective: of the new run.
        tokenizer: of the new run, as ``Tokenizer.to_json`` gives it; None takes embeddings over row by row.

    Raises:
        CheckpointError: when a shape differs, a checkpoint has nothing to add, or a frozen teacher would be random.
    """
    target = flatten(objective.abstract_params)
    params: dict[str, Array] = {}
    by_word: _Words | None = None
    report: list[str] = []
    for path in paths:
        origin, assets = checkpoints.load_assets(path)
        presets = f"preset {origin.model.preset!r}, this run has {config.model.preset!r}"
        wanted = target.keys() - params.keys() - set(assets.fresh)
        # Parts that are complete are not read again: two whole networks may be more than a device holds.
        skip = {_part(name) for name in target} - {_part(name) for name in wanted}
        source = flatten(checkpoints.load_policy_checkpoint(path, skip=skip)[1]) if wanted else {}
        taken = [name for name in source if name in wanted]
        if not taken:
            more = " that those before it lack" if params else ""
            raise CheckpointError(f"--init-from {path} shares no parameter with this network{more} ({presets})")
        words = _by_word(path, assets.tokenizer_json, tokenizer) if EMBEDDING in taken else None
        for name in taken:
            # Of the embeddings' shape, only the width need agree.
            first = 1 if name == EMBEDDING and words is not None else 0
            if source[name].shape[first:] != target[name].shape[first:]:
                raise CheckpointError(
                    f"--init-from {path} is of another network ({presets}): {name} is {_shape(source[name])} there and "
                    f"{_shape(target[name])} here; give a checkpoint of this preset"
                )
        by_word = by_word or words
        params |= {name: source[name].astype(target[name].dtype) for name in taken}
        line = f"init-from {path} (step {assets.step}): {len(taken)} of {len(target)} parameters loaded"
        if len(paths) > 1:
            line += f": {_groups(taken)}"
        if words is not None and tokenizer is not None:
            line += f"; embeddings by word: {len(words[0])} of {len(_tokens(tokenizer))}, the others fresh"
        unused = [name for name in source if name not in target]
        report.append(line + (f"; not used: {_groups(unused)}" if unused else ""))
    missing = [name for name in target if name not in params]
    check_teachers(config, missing, paths)
    if missing or by_word is not None:
        fresh = _fresh(objective, config.seed, [*missing, *([EMBEDDING] if by_word is not None else [])])
        params |= {name: fresh[name] for name in missing}
        if by_word is not None:
            own, theirs = by_word
            params[EMBEDDING] = fresh[EMBEDDING].at[own].set(params[EMBEDDING][theirs])
    if missing:
        report[-1] += f"; fresh: {_groups(missing)}"
    return unflatten({name: params[name] for name in target}), "\n".join(report)


def check_teachers(config: Config, fresh: Collection[str], paths: Sequence[epath.PathLike] = ()) -> None:
    """Raises ``CheckpointError`` where parameters of a frozen teacher inside the step are among the ``fresh`` ones."""
    parts = [part for part, _ in teacher_features(config.model).values() if teachers.own(part, fresh)]
    if parts:
        names = " and ".join(f"{teachers.NAMES[part]} (config.model.{part})" for part in parts)
        sources = " and ".join(f"config.model.{part}.source" for part in parts)
        given = ",".join([*map(str, paths), "TEACHERS"])
        raise CheckpointError(
            f"The frozen {names} would stay random and teach nothing, as no checkpoint of --init-from has the weights; "
            f"add one that pokevla-convert from-torch wrote of them (--init-from={given}), or set {sources} to "
            "'precomputed' and train on features that pokevla-features wrote"
        )


def _fresh(objective: Objective, seed: int, names: Collection[str]) -> dict[str, Array]:
    """Some of a new run's parameters; the compiler drops what is not returned."""

    def draw(key: Array) -> dict[str, Array]:
        leaves = flatten(objective.initialize(key))
        return {name: leaves[name] for name in names}

    return jax.jit(draw)(jax.random.key(seed))


def _by_word(path: epath.PathLike, source: Mapping[str, Any] | None, target: Mapping[str, Any] | None) -> _Words | None:
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


def inherited(workdir: epath.Path, init_from: Sequence[epath.PathLike]) -> dict[str, Any]:
    """What a run's checkpoints say of the released weights that it started from; nothing if it did not.

    A new run also takes the tensors that only the way back to PyTorch needs; a run that is continued has them.

    Raises:
        CheckpointError: when one of ``init_from`` holds no checkpoint.
    """
    own = workdir / checkpoints.CHECKPOINTS
    if steps := checkpoints.all_steps(own):
        for step in reversed(steps):
            try:
                found = checkpoints.load_assets(own / str(step))[1].imported_from
            except CheckpointError:  # a damaged step, which restoring will pass over too
                continue
            return _imported_from(found)
        return {}
    sources = [checkpoints.resolve(path) for path in init_from]
    if jax.process_index() == 0:
        # Of two that carry the same, the first counts, as for parameters.
        carried = {name: x for source in reversed(sources) for name, x in checkpoints.read_carried(source).items()}
        if carried:
            (workdir / checkpoints.CARRIED).write_bytes(safetensors_bytes(carried))
    return _imported_from([origin for source in sources for origin in checkpoints.load_assets(source)[1].imported_from])


def _imported_from(origins: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    unlike = [dict(origin) for i, origin in enumerate(origins) if origin not in origins[:i]]
    return {"imported_from": unlike} if unlike else {}


def _part(name: str) -> str:
    return name.split("/")[0]


def _shape(array: Any) -> str:
    return "x".join(map(str, array.shape)) or "a scalar"


def _groups(names: list[str]) -> str:
    """The paths' first parts with their numbers of parameters."""
    groups = Counter(map(_part, names))
    return ", ".join(f"{group} ({count})" for group, count in sorted(groups.items()))
