"""``--policy torch:DIR``: an exported network, run by PyTorch alone.

Its code comes from the folder itself, as it does for whoever receives the export; give only folders you trust.
"""

import json
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.errors import EvaluationError

PACKAGES = ("torch", "transformers", "numpy")
# Written by pokevla-convert to-torch.
CONFIG, TRAINING = "config.json", "training.json"


@dataclass(frozen=True)
class LoadTorchPolicy:
    """Loads the exported network in the policy process."""

    path: Path
    workers: int
    exact: int | None = None

    def __call__(self) -> "TorchPolicy":
        """The policy."""
        return TorchPolicy(self.path, self.exact or self.workers, exact=self.exact is not None)


class TorchPolicy:
    """The exported network behind the interface of ``pokevla_jax.policy.Policy``.

    ``exact`` computes every observation alone: rows do not see each other, but the library sums in another order for
    another number of them, and for another length of the longest prompt among them.
    """

    def __init__(self, path: Path, batch_size: int = 1, *, exact: bool = False):
        from transformers import AutoModel

        self._model = AutoModel.from_pretrained(str(path), trust_remote_code=True).eval()
        self.max_batch_size = batch_size
        self._exact = exact
        self.metadata = {"path": str(path), **read_facts(path)}

    def infer(self, observations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """One action chunk per observation, in the environment's convention."""
        rows = [_arguments(o) for o in observations]
        batches = [[row] for row in rows] if self._exact else [rows]
        return np.concatenate([self._model.predict_actions(batch, environment=True) for batch in batches])


def _arguments(observation: Mapping[str, Any]) -> tuple[Any, str, Any]:
    return observation["images"], observation["prompt"], observation["state"]


def read_facts(path: Path) -> dict[str, Any]:
    """What an exported folder says of its network: preset, views, chunk, step, controls.

    Raises:
        EvaluationError: when it is no exported folder.
    """
    try:
        settings, training = (json.loads((path / name).read_text()) for name in (CONFIG, TRAINING))
        network, preprocessing = settings["network"], settings["preprocessing"]
        return {
            "preset": network["preset"],
            "views": list(network["views"]),
            "action_horizon": network["action_horizon"],
            "action_dim": network["action_dim"],
            "proprio_dim": network["proprio_dim"],
            "zero_images": preprocessing["zero_images"],
            "zero_language": preprocessing["zero_language"],
            "step": training["step"],
            "seed": training["config"]["seed"],
            "pictures": training["pictures"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else repr(error)
        raise EvaluationError(
            f"--policy torch:{path} is no folder that pokevla-convert to-torch wrote ({why}); give the exported folder"
        ) from error
