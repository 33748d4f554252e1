"""Nested dataclasses from nested mappings and back: every key known, every value of the type its field asks for."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any
from typing import Literal
from typing import TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what to change."""


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON types; ``from_dict`` is its inverse."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: Mapping[str, Any], *, path: str = "config") -> T:
    """Builds ``cls`` from nested mappings.

    Raises:
        ConfigError: for an unknown key (naming the nearest known one), a missing key or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} is a group of keys, got {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {path}.{near[0]}?" if near else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"Unknown configuration key {path}.{key}; {hint}")
    arguments = {key: _convert(hints[key], value, f"{path}.{key}") for key, value in values.items()}
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in arguments and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"Missing configuration key {path}.{missing[0]}")
    return cls(**arguments)


def _convert(hint: Any, value: Any, path: str) -> Any:
    """``value`` as the type ``hint`` asks for; numbers may widen, nothing else is coerced."""
    origin = typing.get_origin(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path=path)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{path} must be one of {', '.join(map(repr, typing.get_args(hint)))}, got {value!r}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in typing.get_args(hint):
            return None
        (hint,) = [h for h in typing.get_args(hint) if h is not type(None)]
        return _convert(hint, value, path)
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{path} must be a sequence, got {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{path} is a group of names and values, got {value!r}")
        return {key: _convert(typing.get_args(hint)[1], v, f"{path}.{key}") for key, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{path} must be {hint.__name__}, got {value!r}")
    return value
