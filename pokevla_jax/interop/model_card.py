"""The README of an exported folder: what it is, how it is run, whose licences apply, how equal it is."""

import json
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pokevla_jax import config as config_lib
from pokevla_jax.checkpoints import Assets
from pokevla_jax.config import Config
from pokevla_jax.interop.check import CheckReport

if TYPE_CHECKING:
    from pokevla_jax.interop.torch_export import ExportReport

# By the kind of file that was imported: what it is, and the licence that its publishers state.
LICENCES = {
    "Prismatic": ("Prismatic VLM with Qwen2.5-0.5B (Stanford-ILIAD)", "see its model card; its parts are Apache-2.0"),
    "own or VLA-Adapter export": ("VLA-Adapter, or an export of this project", "MIT (VLA-Adapter); see its card"),
    "VLA-Adapter action head": ("VLA-Adapter's action head", "MIT"),
    "proprio projector": ("VLA-Adapter's proprio projector", "MIT"),
    "align projector": ("Spatial Forcing's align projector", "MIT"),
    "Qwen2 (Hugging Face)": ("Qwen2.5-0.5B (Qwen)", "Apache-2.0"),
    "SAM (Hugging Face)": ("Segment Anything (Meta)", "Apache-2.0"),
    "SAM (segment-anything)": ("Segment Anything (Meta)", "Apache-2.0"),
    "VGGT": ("VGGT-1B (Meta)", "VGGT licence; the original VGGT-1B weights are for non-commercial use only"),
    "DINOv2 (Hugging Face)": ("DINOv2 with registers (Meta)", "Apache-2.0"),
    "DINOv2 (timm or original)": ("DINOv2 with registers (Meta)", "Apache-2.0"),
    "SigLIP (Hugging Face)": ("SigLIP (Google)", "Apache-2.0"),
    "SigLIP (timm)": ("SigLIP (Google)", "Apache-2.0"),
}

_TEMPLATE = """---
library_name: transformers
pipeline_tag: robotics
tags: [vision-language-action, robotics]
---

# {title}

A vision-language-action network: {views} and an instruction in, a chunk of {horizon} actions out. Exported from
pokevla_jax (preset `{preset}`, step {step}, {weights}).

```python
import numpy as np
from transformers import AutoModel

model = AutoModel.from_pretrained(".", trust_remote_code=True).eval()  # .to("cuda", torch.bfloat16)
images = [np.zeros((256, 256, 3), np.uint8) for _ in {view_list}]  # any size
state = np.zeros({proprio_dim}, np.float32)  # as recorded: {state}
actions = model.predict_action(images, "pick up the alphabet soup", state)  # [{horizon}, {action_dim}], un-normalised
```

It needs `torch`, `transformers` and `numpy`, and nothing else. `predict_action(..., environment=True)` clips the
actions to [-1, 1] and makes the gripper's -1 or +1, as LIBERO's controller takes them.

## Contents

| parameters | stored as |
|---|---|
{dtypes}

{notes}

## Equality with the JAX network

{parity}

## Licences

{licences}

## Training configuration

{dataset}

```json
{config}
```
"""


def text(config: Config, assets: Assets, report: "ExportReport") -> str:
    """The card of one export."""
    model = config.model
    return _TEMPLATE.format(
        title=f"PokeVLA ({model.preset})",
        preset=model.preset,
        step=report.step,
        weights="moving average of the weights" if report.averaged else "weights as trained",
        views=" and ".join(model.views),
        view_list=json.dumps(list(model.views)),
        horizon=model.action_horizon,
        action_dim=model.action_dim,
        proprio_dim=model.proprio_dim,
        state="position, axis-angle and fingers of the gripper" if model.proprio_dim == 8 else "the robot's state",
        dtypes="\n".join(f"| {count:,} | {dtype} |" for dtype, count in report.dtypes.items()),
        notes="\n".join(f"- {line}" for line in notes(report)),
        parity=parity(report.parity),
        licences=licences(assets.imported_from),
        dataset=f"Data: `{Path(assets.dataset).name}`." if assets.dataset else "Data: none recorded.",
        config=json.dumps(config_lib.to_dict(config), indent=1),
    )


def notes(report: "ExportReport") -> list[str]:
    """What was cast, left out and carried along, in words."""
    cast = f"{report.cast:,} parameters were cast, as asked for." if report.cast else "No parameter changed its type."
    left_out = [f"Left out: {part} ({count:,} parameters)." for part, count in report.left_out.items()]
    carried = (
        [f"`carried.safetensors`: {report.carried:,} numbers of imported files that the network does not use."]
        if report.carried
        else []
    )
    return [cast, *left_out, *carried]


def parity(report: CheckReport | None) -> str:
    """The comparison as a table."""
    if report is None:
        return "Not checked at export; run `pokevla-convert check`."
    lines = [
        f"{report.frames} observations ({report.inputs}), our weights {report.weights}; tolerance "
        f"{report.tolerance:g}: {'passed' if report.passed else 'exceeded by ' + ', '.join(report.exceeded)}.",
        "Errors are relative to the root mean square of our float32 output; the last column is our own rounding.",
        "",
        "| part | largest error | relative error | PyTorch in bfloat16 | JAX in bfloat16 |",
        "|---|---|---|---|---|",
    ]
    for row in report.rows:
        figures = (row.max_error, row.relative_error, row.bfloat16, row.bfloat16_ours)
        lines.append(f"| {row.part} | " + " | ".join("" if x is None else f"{x:.1e}" for x in figures) + " |")
    return "\n".join(lines)


def licences(imported: Sequence[Mapping[str, str]]) -> str:
    """The licences of imported weights, one line per file."""
    if not imported:
        return "No imported weights are recorded for this checkpoint."
    lines = ["Parts of this network started from imported weights, whose licences apply to what is made of them:", ""]
    for origin in imported:
        what, licence = LICENCES.get(origin["kind"], (origin["kind"], "unknown to this project; ask its publisher"))
        lines.append(f"- {what}, from `{origin['file']}`: {licence}")
    return "\n".join(lines)
