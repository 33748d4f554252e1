"""``pokevla-convert check``: a checkpoint and an exported folder on the same inputs, compared after every part.

Both networks are never in memory together: the outputs of one are kept while the other is computed.
"""

import dataclasses
import functools
import gc
import hashlib
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
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.config import ModelConfig
from pokevla_jax.data import tokenize
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.data.normalize import unnormalize
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.transforms import inference_transform
from pokevla_jax.interop import jax_outputs
from pokevla_jax.interop import names
from pokevla_jax.interop.jax_outputs import TEACHER
from pokevla_jax.interop.jax_outputs import TRAINING_PARTS
from pokevla_jax.interop.readers import SourceError
from pokevla_jax.interop.readers import open_file
from pokevla_jax.typing import Params

TOLERANCE = 1e-4
TINY = 1e-30
CODE = Path(__file__).parent / "torch_model"
Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
INPUTS, ACTIONS, PREDICTED = "preprocessed images", "actions", "predict_action"
# Frames that are computed at once: states after every layer are kept for each of them.
BATCH = 2
INSTRUCTIONS = ("pick up the alphabet soup and place it in the basket", "open the middle drawer of the cabinet")

Observation = Mapping[str, Any]
Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """How far the two networks are apart after one part.

    Attributes:
        max_error: largest difference, in the units of the output.
        relative_error: root mean square of the difference by that of our output.
        bfloat16: relative error of PyTorch in bfloat16 to our float32.
        bfloat16_ours: the same of our own network in bfloat16: the size of rounding itself.
    """

    part: str
    max_error: float
    relative_error: float
    bfloat16: float | None = None
    bfloat16_ours: float | None = None


@dataclass(frozen=True)
class CheckReport:
    """The comparison of both networks.

    Attributes:
        inputs: what they were run on, in words.
        weights: a note where ours were rounded as the exported ones are.
        exceeded: parts beyond the tolerance.
    """

    inputs: str
    frames: int
    tolerance: float
    weights: str
    rows: tuple[Row, ...]
    exceeded: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every part is within the tolerance."""
        return not self.exceeded

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self) | {"passed": self.passed}


def check(
    checkpoint: epath.PathLike,
    torch_folder: Path,
    *,
    step: checkpoints.Step = None,
    use_ema: bool | None = None,
    data: epath.PathLike | None = None,
    frames: int = 2,
    tolerance: float = TOLERANCE,
    tokenizer: str | None = None,
    seed: int = 0,
) -> CheckReport:
    """Runs both networks on the same observations, in float32 and bfloat16.

    In float32 the relative error after every part and the largest error of the normalised actions must stay within
    ``tolerance``; bfloat16 is reported beside it, with the error that rounding makes in our own network.

    Args:
        checkpoint: a training run's folder, or what an import wrote.
        torch_folder: what ``export`` wrote.
        step: a step, ``"best"``, or None for the newest.
        use_ema: which weights, as for ``export``.
        data: recorded episodes to take frames from, evenly spread; None for random pictures of a fixed seed.
        frames: number of observations.
        tolerance: see above.
        tokenizer: folder with Qwen2.5's tokenizer, where it does not lie where training found it.
        seed: of the random observations.

    Raises:
        SourceError, CheckpointError, ConfigError: one sentence, when the two do not belong together.
    """
    settings = _read_folder(torch_folder)
    training_parts = bool(settings.get("training_parts"))
    config, params, assets = checkpoints.load_policy_checkpoint(
        checkpoint, step, skip=(TEACHER,) if training_parts else TRAINING_PARTS, average=use_ema
    )
    if settings.get("network") != config_lib.to_dict(config.model):
        raise ConfigError(
            f"{torch_folder} holds another network than {checkpoint}: {_difference(settings.get('network'), config)}"
        )
    params, note = _rounded(params, _stored_dtype(torch_folder, config, training_parts))
    statistics = Statistics.from_json(assets.statistics or {})
    if data is None:
        observations = _random(config, statistics, frames, np.random.default_rng(seed))
    else:
        observations = _recorded(data, config, frames)
    transform = inference_transform(config, statistics, tokenize.from_json(assets.tokenizer_json or {}, path=tokenizer))
    batches = [_stack([transform(o) for o in chunk]) for chunk in _chunks(observations)]
    ours = {name: _run_jax(config.model, params, batches, name, training_parts) for name in DTYPES}
    for outputs in ours["float32"]:
        outputs[PREDICTED] = unnormalize(outputs[ACTIONS], statistics.action)
    del params
    gc.collect()
    theirs = _run_torch(torch_folder, batches, list(_chunks(observations)), training_parts)
    rows = tuple(_compare(config.model, batches, ours, theirs))
    exceeded = [row.part for row in rows if not row.relative_error <= tolerance]
    exceeded += [row.part for row in rows if row.part == ACTIONS and not row.max_error <= tolerance]
    return CheckReport(
        inputs=f"recorded frames of {data}" if data is not None else f"random observations of seed {seed}",
        frames=len(observations),
        tolerance=tolerance,
        weights=note,
        rows=rows,
        exceeded=tuple(dict.fromkeys(exceeded)),
    )


def _read_folder(folder: Path) -> dict[str, Any]:
    """``config.json`` of an exported folder whose code is the one that this version exports.

    The code is compared because loading the folder the way its users do would run whatever lies in it.
    """
    from pokevla_jax.interop.sources import read_json

    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{folder} is no exported folder: it has no config.json; give what pokevla-convert to-torch wrote"
        )
    settings = dict(read_json(folder / "config.json"))
    if settings.get("model_type") != "pokevla":
        raise SourceError(
            f"{folder} is of model type {settings.get('model_type')!r}; only exports of type 'pokevla' run here"
        )
    for file in CODE.glob("*.py"):
        copy = folder / file.name
        if file.name != "__init__.py" and (not copy.is_file() or _digest(copy) != _digest(file)):
            raise SourceError(
                f"{copy} is not the code that this version exports, and is not run; export the checkpoint again"
            )
    return settings


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _difference(theirs: Any, config: Config) -> str:
    """The first key in which two networks differ."""
    try:
        other = config_lib.from_dict(ModelConfig, theirs)
    except (ConfigError, TypeError) as error:
        return str(error)
    mine, found = _flat(config_lib.to_dict(config.model)), _flat(config_lib.to_dict(other))
    key = next((key for key in mine if mine[key] != found[key]), None)
    if key is None:
        return "its config.json lacks keys of this version; export the checkpoint again"
    return f"config.model.{key} is {found[key]!r} there and {mine[key]!r} here"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _stored_dtype(folder: Path, config: Config, training_parts: bool) -> str:
    """The type of the stored tensors, which are exactly those of the network."""
    stored = open_file(folder / "model.safetensors").tensors
    skip = (TEACHER,) if training_parts else TRAINING_PARTS
    wanted = {
        name: entry.torch_shape
        for entry in names.table(config.model).entries
        if entry.path.split("/")[0] not in skip
        for name in entry.names
    }
    for name, shape in wanted.items():
        if name not in stored:
            raise SourceError(f"{folder} lacks tensor {name} of shape {list(shape)}; export the checkpoint again")
        if stored[name].shape != shape:
            raise SourceError(
                f"{folder} has {name} of shape {list(stored[name].shape)}, and the network needs {list(shape)}; export "
                "the checkpoint again"
            )
    if surplus := sorted(stored.keys() - wanted.keys()):
        raise SourceError(f"{folder} has a tensor {surplus[0]} that the network does not; export the checkpoint again")
    kinds = {entry.dtype for entry in stored.values()}
    return "float32" if "float32" in kinds else min(kinds)


def _rounded(params: Params, dtype: str) -> tuple[Params, str]:
    """Our parameters in float32, rounded as the exported ones are."""
    if dtype == "float32":
        return jax.tree.map(lambda x: x.astype(np.float32), params), "as in the checkpoint"
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    rounded = jax.tree.map(lambda x: x.astype(kind).astype(np.float32), params)
    return rounded, f"rounded to {dtype}, as the exported ones"


def _random(config: Config, statistics: Statistics, count: int, rng: np.random.Generator) -> list[Observation]:
    """Coarse noise in sizes that have to be scaled, and states within the recorded range."""
    state = statistics.state
    observations: list[Observation] = []
    for index in range(count):
        coarse = rng.integers(0, 256, (len(config.model.views), 16, 16, 3), dtype=np.uint8)
        images = np.kron(coarse, np.ones((1, 16, 16, 1), np.uint8)) // 2
        images += rng.integers(0, 128, images.shape, dtype=np.uint8)
        observations.append(
            {
                "images": images,
                "state": rng.uniform(state.q01, state.q99),
                "prompt": INSTRUCTIONS[index % len(INSTRUCTIONS)],
            }
        )
    return observations


def _recorded(data: epath.PathLike, config: Config, count: int) -> list[Observation]:
    dataset = open_dataset(data)
    rows = np.flatnonzero(dataset.record >= 0)
    if len(rows) < count:
        raise ConfigError(f"{data} has {len(rows)} frames, and {count} are asked for; lower --frames")
    observations: list[Observation] = []
    for row in rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]:
        frame = dataset.frame_at(int(row))
        observations.append(
            {
                "images": np.stack([frame.images[view] for view in config.model.views]),
                "state": dataset.state[row],
                "prompt": dataset.episodes[dataset.episode[row]].instruction,
            }
        )
    return observations


def _chunks(observations: Sequence[Observation]) -> Iterator[Sequence[Observation]]:
    for start in range(0, len(observations), BATCH):
        yield observations[start : start + BATCH]


def _stack(samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def _run_jax(
    config: ModelConfig, params: Params, batches: Sequence[dict[str, np.ndarray]], dtype: Dtype, training_parts: bool
) -> list[Outputs]:
    network = dataclasses.replace(config, dtype=dtype, remat="none", attention="xla")
    keep = jax_outputs.without_teacher if training_parts else jax_outputs.without_training_parts
    with jax.default_matmul_precision("highest"):
        compiled = _forward(keep(network), training_parts)
        return [jax.tree.map(np.asarray, compiled(params, batch)) for batch in batches]


@functools.cache
def _forward(network: ModelConfig, training_parts: bool) -> Callable[[Params, Any], Any]:
    def forward(params: Params, batch: dict[str, Any]) -> dict[str, Any]:
        return jax_outputs.outputs(network, params, batch, training_parts=training_parts)

    # A few passes only: on a CPU, compiling well takes longer than they do.
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(forward, compiler_options=quick if jax.default_backend() == "cpu" else None)


def _run_torch(
    folder: Path,
    batches: Sequence[dict[str, np.ndarray]],
    observations: Sequence[Sequence[Observation]],
    training_parts: bool,
) -> dict[Dtype, list[Outputs]]:
    import torch

    from pokevla_jax.interop.torch_model.modeling_pokevla import PokeVLA

    model = PokeVLA.from_pretrained(str(folder), dtype=torch.float32)
    found: dict[Dtype, list[Outputs]] = {}
    for name in DTYPES:
        model = model.to(getattr(torch, name))
        found[name] = []
        for batch, chunk in zip(batches, observations, strict=True):
            inputs = {key: torch.from_numpy(value) for key, value in batch.items()}
            inputs["tokens"] = inputs["tokens"].long()
            record: dict[str, Any] = {}
            with torch.inference_mode():
                model(**inputs, record=record, training_parts=training_parts)
            outputs = {key: value.float().numpy() for key, value in record.items()}
            if name == "float32":
                raw = [(o["images"], o["prompt"], o["state"]) for o in chunk]
                outputs[INPUTS] = model.prepare(raw)["images"].numpy()
                outputs[PREDICTED] = model.predict_actions(raw)
            found[name].append(outputs)
    return found


def _compare(
    config: ModelConfig,
    batches: Sequence[dict[str, np.ndarray]],
    ours: Mapping[Dtype, Sequence[Outputs]],
    theirs: Mapping[Dtype, Sequence[Outputs]],
) -> Iterator[Row]:
    """One row per part, in the order of computation; padding of the prompt is left out."""

    def read(outputs: Outputs, batch: dict[str, np.ndarray], part: str) -> np.ndarray:
        if part == INPUTS:
            return outputs.get(INPUTS, batch["images"]).astype(np.float64)
        values = outputs[part].astype(np.float64)
        return values[_seen(config, batch, values.shape[1])] if part.startswith("language layer") else values

    def errors(left: Sequence[Outputs], right: Sequence[Outputs], part: str) -> tuple[float, float]:
        pairs = [(read(a, b, part), read(c, b, part)) for a, b, c in zip(left, batches, right, strict=True)]
        difference = np.concatenate([(y - x).ravel() for x, y in pairs])
        reference = np.concatenate([x.ravel() for x, _ in pairs])
        return float(np.abs(difference).max()), _rms(difference) / max(_rms(reference), TINY)

    full, half = ours["float32"], ours["bfloat16"]
    common = [part for part in theirs["float32"][0] if part in full[0]]
    if missing := set(full[0]) - set(common):
        raise SourceError(f"The exported network has no {sorted(missing)[0]}; export the checkpoint again")
    for part in (INPUTS, *common):
        largest, relative = errors(full, theirs["float32"], part)
        if part in (INPUTS, PREDICTED):
            yield Row(part, largest, relative)
        else:
            rounded = errors(full, theirs["bfloat16"], part)[1]
            yield Row(part, largest, relative, rounded, errors(full, half, part)[1])


def _seen(config: ModelConfig, batch: dict[str, np.ndarray], length: int) -> np.ndarray:
    """Which positions of the language model's sequence are no padding."""
    mask = batch["token_mask"]
    start = config.num_vision_tokens if config.vision_position == "first" else 0
    behind = config.num_vision_tokens - start
    parts = [np.ones((len(mask), start), bool), mask[:, :1], np.ones((len(mask), behind), bool), mask[:, 1:]]
    front = np.concatenate(parts, axis=1)
    return np.concatenate([front, np.ones((len(mask), length - front.shape[1]), bool)], axis=1)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
