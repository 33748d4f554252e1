"""Shared start of every experiment: all keys with their defaults, around one network.

Not an experiment itself. A configuration file reads::

    from configs import common
    from pokevla_jax.models import presets


    def get_config():
        config = common.experiment(presets.tiny())
        config.batch_size = 16
        return config
"""

import dataclasses

import ml_collections

from pokevla_jax.config import Config
from pokevla_jax.config import ModelConfig


def experiment(model: ModelConfig) -> ml_collections.ConfigDict:
    """Every key of ``Config`` with its default value, around ``model``."""
    # Unlocked on purpose: a misspelt key reaches `config.from_dict`, whose error names the nearest known one.
    return ml_collections.ConfigDict(dataclasses.asdict(Config(model=model)))


# Stage 1's corpus: samples per category, and what the four sum to (paper, table I; thousands there).
PRETRAINING_SAMPLES = {"general": 665_000, "grounding": 694_000, "affordance": 553_000, "reasoning": 511_000}
# How many conversations of that corpus a row of 2,048 tokens and four images is taken to hold: an assumption until the
# corpus has been packed, and what turns the paper's batch of conversations into rows.
CONVERSATIONS_PER_ROW = 4

TOWERS = r"vision/(dinov2|siglip)/.*"


def scaled_learning_rate(paper: float, batch_size: int, paper_batch_size: int) -> float:
    """The rule for batches larger than the paper's: with the square root of the batch, as suits Adam.

    Gradient noise falls with the square root of the batch, and Adam divides by it. Not tried at these sizes.
    """
    return paper * (batch_size / paper_batch_size) ** 0.5


def pretraining(
    model: ModelConfig, *, conversations: int = 128, without: str | None = None
) -> ml_collections.ConfigDict:
    """Stage 1: projector and language model on packed conversations, two epochs.

    Stated by the paper: AdamW, 2e-5 with cosine decay, batch 128, 2 epochs. Prismatic's for the rest, whose one-stage
    recipe these are: towers frozen, 3 % warm-up, weight decay 0.1, clipping at 1.

    Args:
        model: the network.
        conversations: per step, about; the paper's 128, or more under the rule of ``scaled_learning_rate``.
        without: a category of the corpus to leave out.
    """
    config = experiment(model)
    config.stage = "vlm"
    config.data.tokenizer = "Qwen/Qwen2.5-0.5B"
    config.data.pack_length = 2048
    config.data.pack_images = 4
    config.batch_size = conversations // CONVERSATIONS_PER_ROW
    if without is not None:
        config.data.pillar_weights = {without: 0.0}
    samples = sum(number for name, number in PRETRAINING_SAMPLES.items() if name != without)
    config.num_steps = 2 * samples // conversations

    config.optimizer.learning_rate = scaled_learning_rate(2e-5, conversations, 128)
    config.optimizer.warmup_steps = round(0.03 * config.num_steps)
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.freeze = (TOWERS,)
    config.optimizer.frozen_dtype = "bfloat16"

    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval_every = 1000
    config.eval_batches = 64
    config.checkpoint.every_steps = 500
    return config


def posttraining(model: ModelConfig, *, batch_size: int = 64) -> ml_collections.ConfigDict:
    """Stage 2: adapters of rank 64 on the vision-language model, everything else in full.

    Stated by the paper: AdamW and LoRA, 1e-4 with 10 % warm-up and cosine decay, batch 64, 150,000 steps, clipping 1;
    rank and scale are VLA-Adapter's, whose loop these numbers are.

    Args:
        model: the network.
        batch_size: the paper's 64, or more under the rule of ``scaled_learning_rate``, for as many samples in all.
    """
    config = experiment(model)
    config.data.tokenizer = "Qwen/Qwen2.5-0.5B"
    config.batch_size = batch_size
    config.num_steps = 150_000 * 64 // batch_size

    config.optimizer.learning_rate = scaled_learning_rate(1e-4, batch_size, 64)
    config.optimizer.warmup_steps = config.num_steps // 10
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.frozen_dtype = "bfloat16"
    config.optimizer.lora_rank = 64
    config.optimizer.lora_alpha = 128.0
    # Adapters are never frozen; everything else of the vision-language model is.
    config.optimizer.freeze = ("vision/.*", "language/.*")

    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval_every = 1000
    config.eval_batches = 64
    config.checkpoint.every_steps = 1000
    return config


def train_in_full(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same run without adapters: every parameter but the frozen teachers' is trained."""
    config.optimizer.lora_rank = 0
    config.optimizer.freeze = ()
    return config
