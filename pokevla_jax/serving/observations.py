"""From a client's message to the observation that ``Policy.infer`` takes, for every layout of keys that is accepted."""

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pokevla_jax.serving.protocol import ProtocolError

MAX_SIDE = 4096
MAX_PROMPT = 2000
WRIST = "wrist"
OPENPI_IMAGE, OPENPI_WRIST, OPENPI_STATE = "observation/image", "observation/wrist_image", "observation/state"


@dataclass(frozen=True)
class ObservationSpec:
    """What a policy must be told.

    Attributes:
        views: its cameras, in the order it was trained on.
        proprio_dim: numbers of the robot's state.
    """

    views: Sequence[str]
    proprio_dim: int

    def layouts(self) -> dict[str, dict[str, str]]:
        """The accepted keys and what each holds, by layout: stated to every client in the metadata."""
        state, prompt = f"float [{self.proprio_dim}]", "str"
        image = "uint8 [height, width, 3]"
        count = len(self.views)
        layouts = {
            "stacked": {
                "images": f"uint8 [{count}, height, width, 3] of {', '.join(self.views)}",
                "state": state,
                "prompt": prompt,
            },
            "views": {"images": f"map of {', '.join(self.views)} to {image}", "state": state, "prompt": prompt},
        }
        if self._openpi_views():
            images = {key: f"{image}: {view}" for view, key in self._openpi_views().items()}
            layouts["openpi-libero"] = {**images, OPENPI_STATE: state, "prompt": prompt}
        return layouts

    def parse(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """``images`` uint8 [v, h, w, 3], ``state`` float32 [r] and ``prompt``; keys of no layout are not looked at.

        Raises:
            ProtocolError: naming the key that is missing or wrong, and what it must hold.
        """
        openpi = self._openpi_views()
        if openpi and "images" not in message and any(key.startswith("observation/") for key in message):
            images = self._stack({view: _get(message, key) for view, key in openpi.items()}, openpi)
            state_key = OPENPI_STATE
        else:
            images, state_key = self._images(_get(message, "images")), "state"
        prompt = (
            message["instruction"] if "prompt" not in message and "instruction" in message else _get(message, "prompt")
        )
        silent = prompt == "" and message.get("no_instruction") is True
        if not isinstance(prompt, str) or not (prompt.strip() or silent) or len(prompt) > MAX_PROMPT:
            raise ProtocolError(f"'prompt' must be a text of 1 to {MAX_PROMPT} characters, got {_described(prompt)}")
        return {"images": images, "state": self._state(_get(message, state_key), state_key), "prompt": prompt}

    def _openpi_views(self) -> dict[str, str]:
        """Which of openpi's LIBERO keys stands for which view; empty for a policy with other cameras than LIBERO's."""
        others = [view for view in self.views if view != WRIST]
        if len(others) != 1 or len(self.views) > 2:
            return {}
        return {view: OPENPI_WRIST if view == WRIST else OPENPI_IMAGE for view in self.views}

    def _images(self, value: Any) -> np.ndarray:
        if isinstance(value, Mapping):
            return self._stack(
                {view: _get(value, view) for view in self.views}, {v: f"images[{v!r}]" for v in self.views}
            )
        expected = f"uint8 [{len(self.views)}, height, width, 3] of {', '.join(self.views)}"
        if not isinstance(value, np.ndarray) or value.ndim != 4 or len(value) != len(self.views):
            raise ProtocolError(f"'images' must be {expected}, got {_described(value)}")
        for view, image in zip(self.views, value, strict=True):
            _check_image(image, f"images of {view}")
        return value

    def _stack(self, images: Mapping[str, Any], names: Mapping[str, str]) -> np.ndarray:
        for view, image in images.items():
            _check_image(image, names[view])
        shapes = {names[view]: image.shape[:2] for view, image in images.items()}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{name} {height} x {width}" for name, (height, width) in shapes.items())
            raise ProtocolError(f"All views must have one size, got {listed}; resize them to the same")
        return np.stack([images[view] for view in self.views])

    def _state(self, value: Any, key: str) -> np.ndarray:
        if not isinstance(value, np.ndarray) or value.shape != (self.proprio_dim,) or value.dtype.kind not in "fiu":
            raise ProtocolError(f"{key!r} must be an array of {self.proprio_dim} floats, got {_described(value)}")
        with np.errstate(over="ignore"):
            state = value.astype(np.float32)
        if not np.isfinite(state).all():
            raise ProtocolError(
                f"{key!r} holds a number that is not finite, at index {np.flatnonzero(~np.isfinite(state))[0]}"
            )
        return state


def _check_image(image: Any, name: str) -> None:
    valid = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not valid or not all(1 <= side <= MAX_SIDE for side in image.shape[:2]):
        raise ProtocolError(
            f"{name!r} must be uint8 [height, width, 3] with sides of 1 to {MAX_SIDE}, got {_described(image)}"
        )


def _get(message: Mapping[str, Any], key: str) -> Any:
    if key not in message:
        had = ", ".join(sorted(str(name)[:40] for name in message)[:8]) or "nothing"
        raise ProtocolError(f"The observation lacks {key!r}, it has {had}; the server's metadata lists the keys")
    return message[key]


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"a text of {len(value)} characters" if isinstance(value, str) else type(value).__name__
