"""One libero_object task in moved layouts, small enough for two CPU cores: what ``launch/quickstart.sh`` trains.

Hardware: two CPU cores, no GPU; about 2 GiB of memory.
Time: not measured yet (target: at most 10 minutes for 3,000 steps of 16 samples).
Expected: not measured yet (target: well above its blind control on held-out moved layouts).
Command, after recording (see ``launch/quickstart.sh``):

    pokevla-train --config=configs/libero_object_quickstart.py --config.data.path=DATA --workdir=RUN

Blind control, the same network trained and run with its images zeroed: add ``--config.data.zero_images=true``.
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    config = common.experiment(presets.tiny())

    config.batch_size = 16
    config.num_steps = 3000
    config.log_every = 50
    config.eval_every = 500
    config.eval_batches = 8
    config.checkpoint.every_steps = 500

    # Localisation wants exact pixels: in earlier trials shifted or cropped views left four times the keypoint error.
    config.data.augment.crop_area = 1.0
    config.data.augment.shift = 0

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.01
    return config
