"""``pokevla-convert to-torch``: a checkpoint to a folder that PyTorch loads with nothing of this project installed."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

import jax
import ml_dtypes
import numpy as np
from etils import epath

from pokevla_jax import checkpoints
from pokevla_jax import config as config_lib
from pokevla_jax.checkpoints import Assets
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.data import tokenize
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.interop import check as check_lib
from pokevla_jax.interop import model_card
from pokevla_jax.interop import names
from pokevla_jax.interop import statistics as statistics_lib
from pokevla_jax.interop import vla_adapter_export
from pokevla_jax.interop import weights_file
from pokevla_jax.interop import write
from pokevla_jax.interop.jax_outputs import TEACHER
from pokevla_jax.interop.jax_outputs import TRAINING_PARTS
from pokevla_jax.interop.sources import STATISTICS
from pokevla_jax.interop.sources import TRAINING
from pokevla_jax.interop.table import Entry
from pokevla_jax.interop.table import Table
from pokevla_jax.interop.weights_file import Announced
from pokevla_jax.interop.write import CARRIED
from pokevla_jax.sharding import flatten

Layout = Literal["pokevla", "vla-adapter"]
Progress = Callable[[int, int], None]
"""Called with the bytes written so far and in all."""

CODE = Path(__file__).parent / "torch_model"
WEIGHTS, CONFIG, CARD, PARITY = "model.safetensors", "config.json", "README.md", "parity.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        dtypes: the types that the tensors are stored in, with their number of parameters.
        cast: how many parameters changed their type, which happens only when asked for.
        left_out: parts of the network that were not exported, with their number of parameters.
        carried: number of parameters that the network does not use.
        parity: the comparison of both networks; None where it was not asked for or the layout has no code.
    """

    out: str
    step: int
    averaged: bool
    num_bytes: int
    dtypes: Mapping[str, int]
    cast: int
    left_out: Mapping[str, int]
    carried: int
    parity: check_lib.CheckReport | None


def export(
    checkpoint: epath.PathLike,
    out: Path,
    *,
    step: checkpoints.Step = None,
    use_ema: bool | None = None,
    dtype: str | None = None,
    include_training_parts: bool = False,
    layout: Layout = "pokevla",
    tokenizer: str | None = None,
    check: bool = True,
    tolerance: float = check_lib.TOLERANCE,
    progress: Progress = lambda done, total: None,
) -> ExportReport:
    """Writes the folder ``out``.

    Args:
        checkpoint: a training run's folder, or what an import wrote.
        out: folder that does not exist yet.
        step: a step, ``"best"``, or None for the newest.
        use_ema: the moving average of the weights (True), the weights as trained (False), or the average where the
            run kept one (None).
        dtype: what all tensors are cast to; None keeps each as it is.
        include_training_parts: whether the mask branch, the align projector and the keypoint head come along, and the
            geometry teacher's weights among what is carried.
        layout: "pokevla" loads by ``AutoModel``; "vla-adapter" is the folder that VLA-Adapter's own code loads.
        tokenizer: folder with Qwen2.5's tokenizer, where it does not lie where training found it.
        check: whether the exported network is run beside this one (see ``check.check``).
        tolerance: of the check.
        progress: called after every tensor.

    Raises:
        OutputError, CheckpointError, ConfigError, DataError: one sentence; nothing is left behind.
    """
    out = Path(out)
    write.check_free(epath.Path(out))
    config, assets = checkpoints.load_assets(checkpoint, step)
    _check_policy(config, assets, layout)
    tokens = tokenize.from_json(assets.tokenizer_json or {}, path=tokenizer)
    skip = () if include_training_parts else TRAINING_PARTS
    config, params, assets = checkpoints.load_policy_checkpoint(checkpoint, step, skip=skip, average=use_ema)
    incomplete = out.with_name(f"{out.name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)  # of an export that was killed
    try:
        incomplete.mkdir(parents=True)
        table, carried = names.table(config.model), checkpoints.read_carried(checkpoints.resolve(checkpoint, step))
        # A network that started from an import may compute with more of it than the imported one did.
        carried = {name: array for name, array in carried.items() if table.entry_of(name) is None}
        tensors = _Tensors(table, flatten(params), carried, DTYPES[dtype] if dtype else None, progress)
        del params
        if layout == "vla-adapter":
            vla_adapter_export.write(incomplete, config, assets, tokens, tensors)
        else:
            _write(incomplete, config, assets, tokens, tensors, include_training_parts)
        report = ExportReport(
            out=str(out),
            step=assets.step,
            averaged=config.optimizer.ema_decay > 0 and use_ema is not False,
            num_bytes=tensors.num_bytes,
            dtypes=tensors.counts(),
            cast=tensors.cast,
            left_out=_left_out(config, tensors),
            carried=sum(int(np.prod(entry.shape)) for entry in tensors.carried.values()),
            parity=None,
        )
        if layout == "pokevla":
            if check:
                parity = check_lib.check(
                    checkpoint, incomplete, step=step, use_ema=use_ema, tolerance=tolerance, tokenizer=tokenizer
                )
                report = dataclasses.replace(report, parity=parity)
                _write_json(incomplete / PARITY, parity.to_json())
            (incomplete / CARD).write_text(model_card.text(config, assets, report))
        write.check_free(epath.Path(out))
        incomplete.rename(out)
    except OSError as error:
        raise write.unwritable(out, error) from error
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    return report


class _Tensors:
    """The exported tensors, each made when it is written; our arrays are given up one by one."""

    def __init__(
        self,
        table: Table,
        arrays: dict[str, jax.Array],
        carried: Mapping[str, np.ndarray],
        dtype: np.dtype | None,
        progress: Progress,
    ):
        entries = [entry for entry in table.entries if entry.path in arrays]
        # The exported code has no teacher; its weights travel with what is not computed with.
        self._teacher = [entry for entry in entries if entry.path.startswith(f"{TEACHER}/")]
        self._entries = [entry for entry in entries if entry not in self._teacher]
        self._arrays, self._carried, self._dtype, self._progress = arrays, carried, dtype, progress
        self.announced = self._announce(self._entries)
        self.carried = self._announce(self._teacher)
        self.carried |= {name: Announced(array.shape, dtype or array.dtype) for name, array in carried.items()}
        self.cast = sum(int(np.prod(entry.shape)) for entry in entries if dtype not in (None, arrays[entry.path].dtype))
        self.cast += sum(array.size for array in carried.values() if dtype not in (None, array.dtype))
        self.num_bytes = sum(entry.nbytes for entry in (*self.announced.values(), *self.carried.values()))
        self._done = 0

    def counts(self) -> dict[str, int]:
        """Numbers of parameters by type."""
        counts: dict[str, int] = {}
        for entry in (*self.announced.values(), *self.carried.values()):
            counts[entry.dtype.name] = counts.get(entry.dtype.name, 0) + int(np.prod(entry.shape))
        return counts

    def parameters(self) -> Iterator[tuple[str, np.ndarray]]:
        """The network's tensors, once, in the order of ``announced``."""
        return self._made(self._entries)

    def unused(self) -> Iterator[tuple[str, np.ndarray]]:
        """The carried tensors, once, in the order of ``carried``."""
        yield from self._made(self._teacher)
        for name, array in self._carried.items():
            yield name, array if self._dtype is None else array.astype(self._dtype)

    def _announce(self, entries: Sequence[Entry]) -> dict[str, Announced]:
        return {
            name: Announced(entry.torch_shape, self._dtype or np.dtype(self._arrays[entry.path].dtype))
            for entry in entries
            for name in entry.names
        }

    def _made(self, entries: Sequence[Entry]) -> Iterator[tuple[str, np.ndarray]]:
        for entry in entries:
            array = np.asarray(self._arrays.pop(entry.path))
            for name, tensor in entry.to_torch(array):
                yield name, tensor if self._dtype is None else tensor.astype(self._dtype)

    def advance(self, count: int) -> None:
        """Reports ``count`` more bytes as written."""
        self._done += count
        self._progress(self._done, self.num_bytes)


def _check_policy(config: Config, assets: Assets, layout: Layout) -> None:
    if config.stage != "vla":
        raise ConfigError(
            f"The checkpoint is of stage {config.stage!r}, which takes no actions; export one of a stage 'vla' run"
        )
    if assets.statistics is None or assets.tokenizer_json is None:
        missing = "statistics of states and actions" if assets.statistics is None else "tokenizer"
        raise ConfigError(
            f"The checkpoint has no {missing}, so the exported network could not predict actions; train it on robot "
            "data, or import it with them"
        )
    if layout == "vla-adapter":
        vla_adapter_export.check(config)


def _write(
    folder: Path, config: Config, assets: Assets, tokens: tokenize.Tokenizer, tensors: _Tensors, training_parts: bool
) -> None:
    """Everything but the card: weights, configuration, code, tokenizer, statistics."""
    weights_file.write(folder / WEIGHTS, tensors.announced, tensors.parameters(), tensors.advance)
    if tensors.carried:
        weights_file.write(folder / CARRIED, tensors.carried, tensors.unused(), tensors.advance)
    for file in code_files():
        shutil.copyfile(file, folder / file.name)
    values = {
        "architectures": ["PokeVLA"],
        "auto_map": {"AutoConfig": "configuration_pokevla.PokeVLAConfig", "AutoModel": "modeling_pokevla.PokeVLA"},
        "model_type": "pokevla",
        "torch_dtype": "float32" if "float32" in tensors.counts() else next(iter(tensors.counts())),
        "network": config_lib.to_dict(config.model),
        "preprocessing": _preprocessing(config, assets.tokenizer_json or {}),
        "training_parts": training_parts,
    }
    _write_json(folder / CONFIG, values)
    training = {
        "config": config_lib.to_dict(config),
        "tokenizer": dict(assets.tokenizer_json or {}),
        "step": assets.step,
        "dataset": assets.dataset,
        "pictures": list(assets.pictures),
        "versions": dict(assets.versions),
        "imported_from": list(assets.imported_from),
    }
    _write_json(folder / TRAINING, training)
    statistics = Statistics.from_json(assets.statistics or {})
    key = Path(assets.dataset).name or "dataset"
    _write_json(folder / STATISTICS, statistics_lib.to_dataset_statistics(statistics, key))
    if isinstance(tokens, tokenize.QwenTokenizer):
        tokens.save(folder)


def code_files() -> list[Path]:
    """The files of the exported network's code."""
    return sorted(file for file in CODE.glob("*.py") if file.name != "__init__.py")


def _preprocessing(config: Config, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    data, model = config.data, config.model
    words: dict[str, Any] = {"kind": tokenizer["kind"], "prompt_template": tokenizer["prompt_template"]}
    if tokenizer["kind"] == "compact":
        words["words"] = list(tokenizer["words"])
    else:
        words["chat_template"] = tokenize.QWEN_CHAT
        words["fingerprint"] = tokenizer["fingerprint"]
    return {
        "views": list(model.views),
        "image_size": model.vision.image_size,
        "crop_area": data.augment.crop_area,
        "zero_images": data.zero_images,
        "zero_language": data.zero_language,
        "max_prompt_length": model.max_prompt_length,
        "tokenizer": words,
    }


def _left_out(config: Config, tensors: _Tensors) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in names.table(config.model).entries:
        if entry.names[0] not in tensors.announced and entry.names[0] not in tensors.carried:
            part = names.part_of(entry.names[0])
            counts[part] = counts.get(part, 0) + int(np.prod(entry.shape))
    return counts


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")
