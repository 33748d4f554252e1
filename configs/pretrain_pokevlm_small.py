"""Stage 1 at a small size: the tiny network on the corpus from simulation, every part trained from scratch.

Hardware: two CPU cores (a core each for the model and its blind control), or one GPU.
Time: an hour.
Expected: of the held-out questions 51 % answered exactly, 22 % of points on their object, box IoU 0.12; trained without
images (``--config.data.zero_images=true``) 46 %, 17 % and 0.04 (docs/results.md).
Command:

    pokevla-train --config=configs/pretrain_pokevlm_small.py --config.data.path=CORPUS --workdir=RUN

Stage 2 starts from it with ``--init-from=RUN``: towers, projector and language model of the ``tiny`` preset.
"""

from configs import common
from pokevla_jax.models import presets

# The words of the corpus, and every coordinate of three decimals.
VOCABULARY = 2048


def get_config():
    config = common.experiment(presets.tiny(vocab_size=VOCABULARY))
    config.stage = "vlm"
    config.data.prompt_template = "{instruction}"
    # Mostly five pictures of 64 patches with short questions and answers: 2 % of the positions stay empty.
    config.data.pack_length = 448
    config.data.pack_images = 5

    config.batch_size = 16
    config.num_steps = 3000
    config.log_every = 100
    config.eval_every = 500
    config.eval_batches = 16
    config.checkpoint.every_steps = 500

    config.optimizer.learning_rate = 2e-3
    config.optimizer.b2 = 0.95
    config.optimizer.warmup_steps = 200
    config.optimizer.weight_decay = 0.01
    config.optimizer.ema_decay = 0.999
    return config
