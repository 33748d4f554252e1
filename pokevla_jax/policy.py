"""From observations to actions: a checkpoint as something that acts.

::

    policy = Policy.load("runs/policy")
    actions = policy.infer([{"images": images, "state": state, "prompt": "pick up the milk"}])  # [1, 8, 7]

The transforms are those of training, the weights and statistics come from the checkpoint alone. Batches are padded to a
few fixed sizes, each compiled once, so that no number of observations ever waits for a compilation after ``warm_up``.
"""

import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pokevla_jax import checkpoints
from pokevla_jax.config import Config
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.data.normalize import unnormalize
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.tokenize import Tokenizer
from pokevla_jax.data.tokenize import from_json as tokenizer_from_json
from pokevla_jax.data.transforms import inference_transform
from pokevla_jax.models import segmentation
from pokevla_jax.models import stacking
from pokevla_jax.models.pokevla import TRAINING_ONLY
from pokevla_jax.models.pokevla import without_training_parts
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch
from pokevla_jax.typing import Float
from pokevla_jax.typing import Params

Observation = Mapping[str, Any]
"""``images`` uint8 [v, h, w, 3] in the order of ``config.model.views``, ``state`` float [r], ``prompt`` str."""


def buckets(batch_size: int) -> tuple[int, ...]:
    """Powers of two up to the first that holds ``batch_size``: the batch sizes that are compiled."""
    sizes = [1]
    while sizes[-1] < batch_size:
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


class Policy:
    """A trained network with everything around it.

    Args:
        config: the checkpoint's configuration.
        params: its parameters, a nested dict of arrays; parts that only training reads may be missing.
        statistics: what states and actions were normalised with.
        tokenizer: what prompts are encoded with.
        batch_sizes: the batch sizes to compile, ascending; a larger request is cut into batches of the last.
        metadata: facts about where it came from, kept with its own.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        statistics: Statistics,
        tokenizer: Tokenizer,
        *,
        batch_sizes: Sequence[int] = (1,),
        metadata: Mapping[str, Any] | None = None,
    ):
        if not batch_sizes or sorted(set(batch_sizes)) != list(batch_sizes) or batch_sizes[0] < 1:
            raise ValueError(f"batch_sizes must be ascending positive numbers, got {tuple(batch_sizes)}")
        self.config = config
        self.batch_sizes = tuple(batch_sizes)
        self._statistics = statistics
        self._network = without_training_parts(config.model)
        params = {part: tree for part, tree in params.items() if part not in TRAINING_ONLY}
        if jax.default_backend() == "cpu":
            params = stacking.as_bits(self._network, params)
        self._params = jax.device_put(params)
        self._transform = inference_transform(config, statistics, tokenizer)
        self._actions = jax.jit(self._forward_actions)
        self._masks = jax.jit(self._forward_masks)
        model = config.model
        self.metadata = {
            "preset": model.preset,
            "views": list(model.views),
            "action_horizon": model.action_horizon,
            "action_dim": model.action_dim,
            "proprio_dim": model.proprio_dim,
            "segments": segmentation.computes_features(model.segmentation),
            "zero_images": config.data.zero_images,
            "zero_language": config.data.zero_language,
            **(metadata or {}),
        }

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        step: checkpoints.Step = None,
        batch_size: int = 1,
        *,
        batch_sizes: Sequence[int] | None = None,
    ) -> "Policy":
        """The policy of a training run's folder.

        Args:
            path: the run's folder.
            step: a checkpoint's step, "best", or None for the newest.
            batch_size: the most observations that are computed at once; sizes below it are compiled as powers of two.
            batch_sizes: exact batch sizes instead. A single one makes results independent of how requests arrive.

        Raises:
            FileNotFoundError, ValueError: one sentence, when there is no usable checkpoint.
        """
        config, params, assets = checkpoints.load_policy_checkpoint(path, step, skip=TRAINING_ONLY)
        if assets.statistics is None or assets.tokenizer_json is None:
            raise ValueError(f"Checkpoint {path} lacks statistics or tokenizer; it was not trained on robot data")
        return cls(
            config,
            params,
            Statistics.from_json(assets.statistics),
            tokenizer_from_json(assets.tokenizer_json),
            batch_sizes=buckets(batch_size) if batch_sizes is None else batch_sizes,
            metadata={"path": str(path), "step": assets.step, "versions": dict(assets.versions)},
        )

    @property
    def max_batch_size(self) -> int:
        """The most observations that one call of the network takes."""
        return self.batch_sizes[-1]

    def warm_up(self) -> None:
        """Compiles every batch size, so that no later ``infer`` waits for it."""
        for size in self.batch_sizes:
            spec = batch_spec(self.config, size, train=False)
            batch = {name: np.zeros(entry.shape, entry.dtype) for name, entry in spec.items()}
            jax.block_until_ready(self._actions(self._params, batch))

    def infer(self, observations: Sequence[Observation]) -> Float[np.ndarray, "b t a"]:
        """One action chunk per observation, in the environment's convention: each within [-1, 1], gripper -1 or +1.

        Raises:
            ValueError: for an observation of the wrong shape or type, or a network that returns NaN.
        """
        normalized = self._batched(self._actions, observations)
        if not np.isfinite(normalized).all():
            raise ValueError("The network returned actions that are not finite; the checkpoint is broken")
        actions = unnormalize(normalized, self._statistics.action)
        # LIBERO's controller clips too; the gripper is a direction, of which only the sign counts.
        actions = np.clip(actions, -1, 1)
        actions[..., -1] = np.where(actions[..., -1] > 0, 1, -1)
        return actions.astype(np.float32)

    def predict_masks(self, observations: Sequence[Observation]) -> Float[np.ndarray, "b v m m"]:
        """Probability that a pixel shows one of the instruction's objects, per view.

        The maps show the same window of the image that the network sees (``data.transforms.central_window``).

        Raises:
            ValueError: when the network was trained without segmentation, or without the encoder of its images.
        """
        config = self.config.model.segmentation
        if not config.weight:
            raise ValueError("This checkpoint was trained without segmentation (config.model.segmentation.weight = 0)")
        if not segmentation.computes_features(config):
            raise ValueError(
                "This checkpoint was trained on precomputed image features (config.model.segmentation.source = "
                "'precomputed') and holds no encoder to segment a new image with"
            )
        return self._batched(self._masks, observations)

    def _batched(self, function: Any, observations: Sequence[Observation]) -> np.ndarray:
        """``function`` of all observations, in padded batches of the compiled sizes."""
        if not observations:
            raise ValueError("No observation was given")
        results = []
        for start in range(0, len(observations), self.max_batch_size):
            samples = [self._transform(o) for o in observations[start : start + self.max_batch_size]]
            size = next(size for size in self.batch_sizes if size >= len(samples))
            # Padding repeats the last row: rows do not see each other, so its content is irrelevant.
            rows = samples + samples[-1:] * (size - len(samples))
            batch = {name: np.stack([row[name] for row in rows]) for name in samples[0]}
            results.append(np.asarray(function(self._params, batch))[: len(samples)])
        return np.concatenate(results)

    def _forward_actions(self, params: Params, batch: Batch) -> Float[Array, "b t a"]:
        return stacking.bind(self._network, params)(batch, train=False).actions

    def _forward_masks(self, params: Params, batch: Batch) -> Float[Array, "b v m m"]:
        model = stacking.bind(self._network, params)
        hidden = model.encode(batch["images"], batch["tokens"], batch["token_mask"])
        _, fine = model.segment(hidden.seg, batch)
        return jax.nn.sigmoid(jnp.asarray(fine, jnp.float32))
