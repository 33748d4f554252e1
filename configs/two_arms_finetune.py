"""Fine-tuning on a robot with two arms: 14 numbers of state and action, three cameras, chunks of 16 steps.

The example of ``docs/add_your_data.md``: copy it and change what differs. Hardware: one GPU, or a TPU slice, at the
published size; the tests train it at a tiny size on a CPU.
Time: not measured.
Expected: not measured; no such data set is part of the project.
Command, after ``pokevla-ingest --source lerobot --robot configs/robots/two_arms.json --data DATA --out EPISODES``:

    pokevla-train --config=configs/two_arms_finetune.py --config.data.path=EPISODES --workdir=RUN --init-from=CHECKPOINT
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    config = common.experiment(presets.pokevla())

    # What the robot is: names of the views as in its description, widths of its state and action.
    config.model.views = ("front", "left_wrist", "right_wrist")
    config.model.proprio_dim = 14
    config.model.action_dim = 14
    config.model.action_horizon = 16

    # No masks and no frozen geometry teacher: those losses are off, and the <SEG> token has nothing to learn from.
    config.model.segmentation.weight = 0.0
    config.model.geometry.weight = 0.0

    config.batch_size = 64
    config.num_steps = 50_000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1000
    # 80 demonstrations or fewer are remembered rather than learned without it.
    config.data.proprio_noise = 0.02
    return config
