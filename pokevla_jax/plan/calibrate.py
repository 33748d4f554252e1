"""How much the prediction flatters: the same predictor on decoders whose speed was measured and published.

``pokevla-plan --calibrate --topology=v5e:16x16`` compiles the reference of one chip generation and writes its entry of
``calibration.json``, whose factor every plan is divided by. The reference runs as stage 1 with its own language model
and a vision tower too small to matter.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import Literal

from pokevla_jax.config import Config
from pokevla_jax.config import DataConfig
from pokevla_jax.config import LanguageConfig
from pokevla_jax.config import MeshConfig
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.config import TowerConfig
from pokevla_jax.config import VisionConfig
from pokevla_jax.models import presets
from pokevla_jax.plan.topologies import Chip
from pokevla_jax.plan.topologies import Topology
from pokevla_jax.plan.topologies import parse

PATH = Path(__file__).with_name("calibration.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """A decoder of published speed: shapes, batch and remat as published."""

    name: str
    topology: str
    language: LanguageConfig
    length: int
    per_chip_batch: int
    remat: Literal["none", "dots", "layers", "full"]
    tensor: int = 1
    # As published: FLOPs per chip and second, by MaxText's formula of the time (see ``flops_per_step``).
    measured_mfu: float
    causal: bool  # whether that formula counts half of the attention square
    source: str

    @property
    def flops_per_step(self) -> float:
        """FLOPs of one chip's step, as the published figure counts them: 6 per weight and token, and attention."""
        c = self.language
        tokens = self.per_chip_batch * self.length
        layer = 2 * c.width * c.head_dim * (c.num_heads + c.num_kv_heads) + 3 * c.width * c.mlp_dim
        weights = c.num_layers * layer + c.width * c.vocab_size
        scores = 12.0 * c.num_layers * c.num_heads * c.head_dim * self.length * (0.5 if self.causal else 1.0)
        return tokens * (6.0 * weights + scores)


REFERENCES = {
    "v5e": Reference(
        name="MaxText 16B on v5e-256",
        topology="v5e:16x16",
        language=LanguageConfig(
            vocab_size=32_000, width=4096, num_layers=32, num_heads=64, num_kv_heads=64, head_dim=128, mlp_dim=28_672
        ),
        length=2048,
        per_chip_batch=6,
        remat="full",
        measured_mfu=0.611,
        causal=True,
        source="github.com/AI-Hypercomputer/maxtext, MaxText/configs/v5e/README.md and 16b.sh",
    ),
    "v5p": Reference(
        name="MaxText 32B on v5p-128",
        topology="v5p:4x4x4",
        language=LanguageConfig(
            vocab_size=32_000, width=8192, num_layers=32, num_heads=64, num_kv_heads=64, head_dim=128, mlp_dim=28_672
        ),
        length=2048,
        # Published with 7, of which this project's step needs 103 of 96 GiB: it keeps the attention's output too.
        per_chip_batch=6,
        remat="dots",
        tensor=4,
        measured_mfu=0.715,
        causal=True,
        source="github.com/AI-Hypercomputer/maxtext, MaxText/configs/v5p/README.md and 32b.sh",
    ),
    "v6e": Reference(
        name="Llama 3.1 8B on v6e-8",
        topology="v6e:2x4",
        language=LanguageConfig(
            vocab_size=128_256, width=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, mlp_dim=14_336
        ),
        length=8192,
        # Published with 3 rows, whose projections went to the host's memory; this recomputes those and keeps attention.
        per_chip_batch=2,
        remat="layers",
        measured_mfu=0.4538,
        causal=False,
        source="github.com/AI-Hypercomputer/tpu-recipes, training/trillium/Llama3.1-8B-MaxText/v6e-8: 416.6 TFLOP/s",
    ),
}


def load(chip: Chip) -> dict[str, Any] | None:
    """The calibration of a chip: reference, its predicted and measured MFU, and their quotient; None without one."""
    known = json.loads(PATH.read_text()) if PATH.exists() else {}
    return known.get(chip.name)


def configuration(reference: Reference) -> Config:
    """The reference as an experiment of this project: splash attention, float32 weights, AdamW, ZeRO-3."""
    tower = TowerConfig(width=64, depth=1, num_heads=1, mlp_dim=64, feature_block=-1)
    model = dataclasses.replace(
        presets.pokevla(),
        preset=reference.name,
        vision=VisionConfig(image_size=14, patch_size=14, dinov2=tower, siglip=tower, projector_dim=64),
        language=reference.language,
        remat=reference.remat,
        attention="splash",
    )
    topology = parse(reference.topology)
    return Config(
        model=model,
        stage="vlm",
        data=DataConfig(pack_length=reference.length, pack_images=1),
        optimizer=OptimizerConfig(),
        mesh=MeshConfig(data=1, fsdp=-1, tensor=reference.tensor),
        batch_size=reference.per_chip_batch * topology.num_chips,
    )


def entry(reference: Reference, step_seconds: float, versions: Mapping[str, str]) -> dict[str, Any]:
    """What ``calibration.json`` keeps of a reference whose step was predicted to take ``step_seconds``."""
    chip = parse(reference.topology).chip
    predicted = reference.flops_per_step / (chip.peak_flops * step_seconds)
    return {
        "name": reference.name,
        "predicted_mfu": round(predicted, 4),
        "measured_mfu": reference.measured_mfu,
        "factor": round(predicted / reference.measured_mfu, 4),
        "predicted_step_ms": round(1e3 * step_seconds, 1),
        "source": reference.source,
        "command": f"pokevla-plan --calibrate --topology={reference.topology}",
        "versions": dict(versions),
    }


def save(topology: Topology, values: Mapping[str, Any]) -> None:
    """Writes the entry of one chip generation, and leaves the others as they are."""
    known = json.loads(PATH.read_text()) if PATH.exists() else {}
    known[topology.chip.name] = dict(values)
    temporary = PATH.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    temporary.replace(PATH)
