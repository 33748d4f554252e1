"""Under which conditions a result was made, and the hash that keeps different conditions apart.

A protocol has two halves. ``simulation`` must be equal wherever two policies are compared; ``policy`` must be equal
too wherever results are appended to the same run.
"""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pokevla_jax
from eval.manifest import digest
from eval.presets import Preset
from pokevla_jax.sim.assets import Assets
from pokevla_jax.sim.assets import inspect_assets
from pokevla_jax.sim.upstream import choose_gl
from pokevla_jax.sim.upstream import package_versions
from pokevla_jax.sim.versions import protocol_facts

POLICY_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


@dataclass(frozen=True)
class Protocol:
    """Both halves, as plain JSON types."""

    simulation: Mapping[str, Any]
    policy: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """Equal only for results that may stand in one file."""
        return digest({"simulation": dict(self.simulation), "policy": dict(self.policy)})

    @property
    def simulation_hash(self) -> str:
        """Equal for results that may be compared."""
        return digest(dict(self.simulation))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with both hashes beside the halves."""
        return {
            "hash": self.hash,
            "simulation_hash": self.simulation_hash,
            "simulation": dict(self.simulation),
            "policy": dict(self.policy),
        }

    def unlike_training(self) -> str:
        """One sentence where the policy was trained on pictures drawn in another way, else nothing."""
        trained = self.policy.get("pictures", [])
        if not trained or any(all(self.simulation[key] == value for key, value in way.items()) for way in trained):
            return ""
        ways = " and ".join(f"{way['assets']} assets through {way['renderer']}" for way in trained)
        here = f"{self.simulation['assets']} assets through {self.simulation['renderer']}"
        return f"The policy was trained on pictures of {ways} and sees {here} here; expect it to fail"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Protocol":
        """The inverse of ``to_dict``; the hashes are computed again."""
        return cls(simulation=values["simulation"], policy=values["policy"])

    def differences(self, other: "Protocol") -> list[str]:
        """Each entry that differs, as ``name: mine, not theirs``."""
        lines = []
        for half in ("simulation", "policy"):
            mine, theirs = _flatten(getattr(self, half)), _flatten(getattr(other, half))
            changed = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
            lines += [f"{half} {key}: {mine.get(key)}, not {theirs.get(key)}" for key in changed]
        return lines

    def difference(self, other: "Protocol") -> str:
        """The first of ``differences`` and how many more there are; empty where there is none."""
        first, *more = self.differences(other) or [""]
        return f"{first} and {len(more)} more" if more else first


def simulation_half(assets: Assets, preset: Preset) -> dict[str, Any]:
    """What decides physics, pixels and budgets: the simulator's facts and the evaluator's own choices."""
    facts = protocol_facts(assets, renderer=preset.renderer, image_size=preset.image_size, hard_reset=preset.hard_reset)
    facts["versions"] = {"pokevla_jax": pokevla_jax.__version__, **facts["versions"]}
    facts["published"] = facts["published"] or (preset.published and assets.kind == "real")
    return facts | {
        "protocol": preset.name,
        "max_steps": dict(preset.max_steps),
        "settle_steps": preset.settle_steps,
        "seeding": preset.seeding,
        "image_rotation_degrees": 180,
        "prompt": "clean",
    }


def host_facts(assets: Path) -> dict[str, Any]:
    """What physics and pixels depend on and two hosts may differ in."""
    return {"OpenGL": choose_gl(), f"the assets in {assets}": inspect_assets(assets).sha256, **package_versions()}


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions; a missing package is ``"absent"``."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def machine() -> dict[str, Any]:
    """Facts that do not change a result but explain its timing."""
    return {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count()}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; an empty one is a value, or two could differ in it unseen."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
