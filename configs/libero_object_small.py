"""One model for all ten libero_object objects in shared scenes, where only the instruction tells the target.

Hardware: two CPU cores for a few hours, or one GPU.
Time: not measured yet.
Expected: not measured yet; beside it stand ``blind-trained`` (``--config.data.zero_images=true``) and
``no-language-trained`` (``--config.data.zero_language=true``) on the same layouts.
Command, after recording shared scenes of all ten tasks (see ``docs/results.md``):

    pokevla-train --config=configs/libero_object_small.py --config.data.path=DATA --workdir=RUN
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    config = common.experiment(presets.tiny())

    config.batch_size = 64
    config.num_steps = 20_000
    config.log_every = 100
    config.eval_every = 1000
    config.eval_batches = 8
    config.checkpoint.every_steps = 1000

    config.data.augment.crop_area = 1.0
    config.data.augment.shift = 0

    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.95
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 0.01
    config.optimizer.ema_decay = 0.999
    return config
