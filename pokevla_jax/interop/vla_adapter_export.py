"""The folder that VLA-Adapter's own code loads: a Hugging Face model, and the head's modules as files of their own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from pokevla_jax.checkpoints import Assets
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.data import tokenize
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.interop import statistics as statistics_lib
from pokevla_jax.interop import weights_file
from pokevla_jax.interop.weights_file import Announced

if TYPE_CHECKING:
    from pokevla_jax.interop.torch_export import _Tensors

MODULES = {"action_head": "action_head.", "proprio_projector": "proprio_projector."}
# What VLA-Adapter's code computes and cannot be told otherwise.
REQUIRED: dict[str, Any] = {
    "seg_token": False,
    "vision_position": "after_first_token",
    "action_head.latents": "projected",
    "action_head.shifted_context": True,
    "action_head.context": "layerwise",
    "action_head.concat": "joint_softmax",
    "action_head.gate": "vision",
    "action_head.inject_seg": False,
}


def check(config: Config) -> None:
    """Raises ``ConfigError`` naming the first field with which VLA-Adapter's code would compute something else."""
    model, required = config.model, dict(REQUIRED)
    if model.action_head.block == "pro":
        required["action_head.rotary"] = "vla_adapter"
    for name, wanted in required.items():
        value: Any = model
        for part in name.split("."):
            value = getattr(value, part)
        if value != wanted:
            raise ConfigError(
                f"--layout vla-adapter: VLA-Adapter's code has config.model.{name} {wanted!r}, and this network has "
                f"{value!r}; leave --layout out"
            )
    if config.data.tokenizer == "compact":
        raise ConfigError(
            "--layout vla-adapter: VLA-Adapter's code reads prompts with Qwen2.5's tokenizer, and this network has a "
            "vocabulary of its own; leave --layout out"
        )


def write(folder: Path, config: Config, assets: Assets, tokens: tokenize.Tokenizer, tensors: "_Tensors") -> None:
    """Writes the folder's files; tensors that the network does not use go where they came from."""
    modules: dict[str, dict[str, np.ndarray]] = {name: {} for name in MODULES}

    def main(pairs: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        """The pairs that belong to the model's own file; the others are put aside."""
        for name, array in pairs:
            module = _module_of(name)
            if module is None:
                yield name, array
            else:
                modules[module]["module." + name.removeprefix(MODULES[module])] = array
                tensors.advance(array.nbytes)

    def everything() -> Iterator[tuple[str, np.ndarray]]:
        yield from main(tensors.parameters())
        yield from main(tensors.unused())

    announced = {**tensors.announced, **tensors.carried}
    kept = {name: entry for name, entry in announced.items() if _module_of(name) is None}
    weights_file.write(folder / "model.safetensors", kept, everything(), tensors.advance)
    if config.model.action_head.block == "pro":
        _fill_film(modules["action_head"], config, announced)
    for module, arrays in modules.items():
        _save(folder / f"{module}--checkpoint.pt", arrays)
    values = hf_config(config, next(iter(tensors.counts())))
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")
    statistics = Statistics.from_json(assets.statistics or {})
    key = Path(assets.dataset).name or "dataset"
    described = statistics_lib.to_released_statistics(statistics, key)
    (folder / "dataset_statistics.json").write_text(json.dumps(described, indent=1) + "\n")
    if isinstance(tokens, tokenize.QwenTokenizer):
        tokens.save(folder)


def hf_config(config: Config, dtype: str) -> dict[str, Any]:
    """``config.json`` as VLA-Adapter's code reads it."""
    language, vision = config.model.language, config.model.vision
    text = {
        "model_type": "qwen2",
        "vocab_size": language.vocab_size,
        "hidden_size": language.width,
        "intermediate_size": language.mlp_dim,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_heads,
        "num_key_value_heads": language.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": language.norm_eps,
        "rope_theta": language.rope_theta,
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "torch_dtype": dtype,
    }
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "qwen25-0_5b-extra",
        "use_fused_vision_backbone": True,
        "image_sizes": [vision.image_size, vision.image_size],
        "image_resize_strategy": "resize-naive",
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "llm_max_length": 2048,
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "hf_llm_id": "",
        "output_projector_states": False,
        "norm_stats": {},
        "torch_dtype": dtype,
        "text_config": text,
    }


def _module_of(name: str) -> str | None:
    return next((module for module, prefix in MODULES.items() if name.startswith(prefix)), None)


def _fill_film(arrays: dict[str, np.ndarray], config: Config, announced: dict[str, Announced]) -> None:
    """Zeros for the layer that VLA-Adapter's Pro block has, never calls and insists on loading."""
    width, dtype = config.model.action_head.width, announced["action_head.model.fc1.weight"].dtype
    for index in range(config.model.action_head.num_layers):
        prefix = f"module.model.mlp_resnet_blocks.{index}.film_gen.0."
        arrays.setdefault(f"{prefix}weight", np.zeros((2 * width, width), dtype))
        arrays.setdefault(f"{prefix}bias", np.zeros(2 * width, dtype))


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import torch

    def tensor(array: np.ndarray) -> Any:
        if array.dtype.name == "bfloat16":  # unknown to PyTorch's view of numpy
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    torch.save({name: tensor(np.array(array)) for name, array in arrays.items()}, path)
