"""``pokevla-convert from-torch``: checkpoints of PyTorch models to a checkpoint of this project."""

import importlib.metadata
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath

import pokevla_jax
from pokevla_jax import config as config_lib
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.config import ModelConfig
from pokevla_jax.data import tokenize
from pokevla_jax.interop import names
from pokevla_jax.interop import own_export
from pokevla_jax.interop import sources as sources_lib
from pokevla_jax.interop import statistics as statistics_lib
from pokevla_jax.interop import write
from pokevla_jax.interop.dialects import Tensor
from pokevla_jax.interop.plan_import import Plan
from pokevla_jax.interop.plan_import import plan
from pokevla_jax.interop.readers import SourceError
from pokevla_jax.interop.sources import Origin
from pokevla_jax.interop.sources import Source
from pokevla_jax.interop.table import Entry
from pokevla_jax.models import stacking
from pokevla_jax.sharding import flatten
from pokevla_jax.sharding import unflatten

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and in all."""

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


@dataclass(frozen=True)
class PartReport:
    """Numbers of parameters of one part, and the types that they are stored in."""

    part: str
    imported: int
    fresh: int
    carried: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        cast: how many imported parameters changed their type, which happens only when asked for.
    """

    preset: str
    parts: tuple[PartReport, ...]
    origins: tuple[Origin, ...]
    num_bytes: int
    cast: int
    statistics: str | None
    tokenizer: str | None


def detect_preset(tensors: dict[str, Tensor]) -> str:
    """The preset that the tensors' action head belongs to; ``pokevla`` where there is none."""
    blocks = "action_head.model.mlp_resnet_blocks.0."
    if "action_head.model.layer_norm1.weight" in tensors and "action_head.model.latents" not in tensors:
        return "vla_adapter_pro" if f"{blocks}k_adapter.weight" in tensors else "vla_adapter"
    return "pokevla"


def import_checkpoint(
    sources: Sequence[Path],
    out: epath.PathLike,
    make_config: Callable[[str], Config],
    *,
    dtype: str | None = None,
    tokenizer: str | None = None,
    statistics_key: str | None = None,
    keep_config: bool = True,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Writes ``out/checkpoints/0`` from PyTorch checkpoints, any subset of the network's parts.

    Args:
        sources: files or folders.
        out: folder that does not exist yet.
        make_config: the configuration of the preset that the sources fit; it may ignore the name and insist on its own.
        dtype: what all parameters are cast to; None keeps each tensor's own.
        tokenizer: folder with Qwen2.5's tokenizer; None takes a source's, where it has one.
        statistics_key: which dataset's statistics are taken from ``dataset_statistics.json``.
        keep_config: whether the configuration of a network that was exported here is taken before ``make_config``.
        seed: of the parts that no source has; they start as a training run of this seed would.
        progress: called after every parameter.

    Raises:
        SourceError, OutputError, ConfigError: one sentence, before anything is written.
    """
    out = epath.Path(out)
    write.check_free(out)
    opened = [sources_lib.open_source(path) for path in sources]
    tensors, origins = sources_lib.collect(opened)
    own = own_export.find(opened)
    config = own.config if own and keep_config else make_config(detect_preset(tensors))
    todo = plan(config.model, tensors)
    dtypes = {entry.path: _dtype(entry, found, dtype) for entry, found in todo.imported}
    dtypes |= {entry.path: DTYPES[dtype or "float32"] for entry in todo.fresh}
    statistics = _statistics(opened, statistics_key)
    if own and tokenizer is None and own.tokenizer.get("kind") == "compact":
        tokens: dict[str, Any] | None = dict(own.tokenizer)
    else:
        tokens = _tokenizer(opened, tokenizer, config)
        config = _with_tokenizer(config, tokens)
    params, total = _parameters(config.model, todo, dtypes, seed, progress)
    assets = {
        "config": config_lib.to_dict(config),
        "statistics": statistics,
        "tokenizer": tokens,
        "versions": _versions(),
        "dataset": own.dataset if own else "",
        "pictures": list(own.pictures) if own else [],
        # An export stands for what it was made of.
        "imported_from": [
            *(own.imported_from if own else ()),
            *(
                {"kind": origin.kind, "file": Path(origin.path).name}
                for origin in origins
                if not (own and Path(origin.path).parent == own.path)
            ),
        ],
        "fresh": [entry.path for entry in todo.fresh],
    }
    carried = {name: _cast(tensor.read(), dtype) for name, tensor in todo.carried.items()}
    write.write_checkpoint(out, params, assets, carried)
    return Report(
        preset=config.model.preset,
        parts=_part_reports(todo, dtypes, carried),
        origins=tuple(origins),
        num_bytes=total + sum(array.nbytes for array in carried.values()),
        cast=sum(
            int(np.prod(entry.shape)) for entry, found in todo.imported if found[0].dtype != dtypes[entry.path].name
        ),
        statistics=next((str(source.statistics) for source in opened if source.statistics), None),
        tokenizer=tokens.get("path", "a vocabulary of its own") if tokens else None,
    )


def _parameters(
    config: ModelConfig, todo: Plan, dtypes: dict[str, np.dtype], seed: int, progress: Progress
) -> tuple[Any, int]:
    """The nested dict of parameters, each made when it is written, and the bytes of all."""
    fresh = _Fresh(config, todo.fresh, seed)
    makers = {entry.path: _importer(entry, found, dtypes[entry.path]) for entry, found in todo.imported}
    makers |= {entry.path: fresh.maker(entry, dtypes[entry.path]) for entry in todo.fresh}
    entries = {entry.path: entry for entry in (*todo.fresh, *(entry for entry, _ in todo.imported))}
    total = sum(int(np.prod(entry.shape, dtype=np.int64)) * dtypes[path].itemsize for path, entry in entries.items())
    done = 0

    def counted(make: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        def counting() -> np.ndarray:
            nonlocal done
            array = make()
            done += array.nbytes
            progress(done, total)
            return array

        return counting

    leaves = {path: write.Later(entries[path].shape, dtypes[path], counted(make)) for path, make in makers.items()}
    return unflatten(leaves), total


def _importer(entry: Entry, found: Sequence[Tensor], dtype: np.dtype) -> Callable[[], np.ndarray]:
    return lambda: entry.from_torch((tensor.read() for tensor in found), dtype)


class _Fresh:
    """Initial values of the parameters that no source has, drawn part by part."""

    def __init__(self, config: ModelConfig, entries: Sequence[Entry], seed: int):
        self._config, self._seed = config, seed
        self._wanted = [entry.path for entry in entries]
        self._part: str | None = None
        self._values: dict[str, np.ndarray] = {}

    def maker(self, entry: Entry, dtype: np.dtype) -> Callable[[], np.ndarray]:
        return lambda: self._value(entry.path).astype(dtype)

    def _value(self, path: str) -> np.ndarray:
        part = path.split("/")[0]
        if part != self._part:
            wanted = [name for name in self._wanted if name.startswith(f"{part}/") or name == part]

            # The compiler drops what is not returned: nothing but this part is drawn.
            @jax.jit
            def draw(key: jax.Array) -> dict[str, jax.Array]:
                values = flatten(stacking.initialize(self._config, key))
                return {name: values[name] for name in wanted}

            self._values = {name: np.asarray(value) for name, value in draw(jax.random.key(self._seed)).items()}
            self._part = part
        return self._values.pop(path)


def _dtype(entry: Entry, found: Sequence[Tensor], wanted: str | None) -> np.dtype:
    """The type of an imported parameter: that of its tensors, unless another one is asked for."""
    if wanted is not None:
        return DTYPES[wanted]
    stored = sorted({tensor.dtype for tensor in found})
    if len(stored) > 1:
        raise SourceError(
            f"{entry.names[0]} and the same tensor of other layers are of types {' and '.join(stored)}, and they are "
            "one parameter here; choose a type with --dtype"
        )
    return DTYPES[stored[0]]


def _cast(array: np.ndarray, dtype: str | None) -> np.ndarray:
    return np.ascontiguousarray(array if dtype is None else array.astype(DTYPES[dtype]))


def _statistics(opened: Sequence[Source], key: str | None) -> dict[str, Any] | None:
    files = [source.statistics for source in opened if source.statistics]
    if len(files) > 1:
        raise SourceError(f"Two sources have statistics, {files[0]} and {files[1]}; leave one of them out")
    if not files:
        return None
    return statistics_lib.from_dataset_statistics(sources_lib.read_json(files[0]), key).to_json()


def _tokenizer(opened: Sequence[Source], path: str | None, config: Config) -> dict[str, Any] | None:
    """The description of the tokenizer for the checkpoint, or None where neither the user nor a source gives one."""
    path = path or next((str(source.tokenizer.resolve()) for source in opened if source.tokenizer), None)
    if path is None:
        return None
    tokenizer = tokenize.load_tokenizer(path, prompt_template=config.data.prompt_template)
    if tokenizer.vocab_size > config.model.language.vocab_size:
        raise ConfigError(
            f"The tokenizer in {path} has {tokenizer.vocab_size} tokens, and preset {config.model.preset!r} embeds "
            f"{config.model.language.vocab_size}; give the tokenizer of its language model"
        )
    return tokenizer.to_json()


def _with_tokenizer(config: Config, tokenizer: dict[str, Any] | None) -> Config:
    if tokenizer is None:
        return config
    values = config_lib.to_dict(config)
    values["data"]["tokenizer"] = tokenizer["path"]
    return config_lib.from_dict(Config, values)


def _versions() -> dict[str, str]:
    packages = ("jax", "flax", "orbax-checkpoint", "torch", "safetensors")
    return {"pokevla_jax": pokevla_jax.__version__} | {name: importlib.metadata.version(name) for name in packages}


def _part_reports(todo: Plan, dtypes: dict[str, np.dtype], carried: dict[str, np.ndarray]) -> tuple[PartReport, ...]:
    imported, fresh, rest = ({part: 0 for part in names.PARTS} for _ in range(3))
    kinds: dict[str, set[str]] = {part: set() for part in names.PARTS}
    for counts, entries in ((imported, [entry for entry, _ in todo.imported]), (fresh, todo.fresh)):
        for entry in entries:
            part = names.part_of(entry.names[0])
            counts[part] += int(np.prod(entry.shape, dtype=np.int64))
            kinds[part].add(dtypes[entry.path].name)
    for name, array in carried.items():
        rest[names.part_of(name)] += array.size
        kinds[names.part_of(name)].add(array.dtype.name)
    return tuple(
        PartReport(part, imported[part], fresh[part], rest[part], tuple(sorted(kinds[part])))
        for part in names.PARTS
        if kinds[part]
    )
