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
        return TorchPolicy(self.path, self.exact or self.workers, pad=self.exact is not None)


class TorchPolicy:
    """The exported network behind the interface of ``pokevla_jax.policy.Policy``."""

    def __init__(self, path: Path, batch_size: int = 1, *, pad: bool = False):
        from transformers import AutoModel

        self._model = AutoModel.from_pretrained(str(path), trust_remote_code=True).eval()
        self.max_batch_size = batch_size
        self._pad = pad
        self.metadata = {"path": str(path), **read_facts(path)}

    def infer(self, observations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """One action chunk per observation, in the environment's convention."""
        rows = [_arguments(o) for o in observations]
        # Rows do not see each other, but the library sums in another order for another number of them.
        padding = rows[-1:] * (self.max_batch_size - len(rows)) if self._pad else []
        return self._model.predict_actions(rows + padding, environment=True)[: len(rows)]


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
        raise EvaluationError(
            f"--policy torch:{path} is no folder that pokevla-convert to-torch wrote ({error!r}); give the exported "
            "folder"
        ) from error
