"""Stage 1 for a whole pod: batches of about 4,096 conversations (1,024 rows of 2,048 tokens, four a chip on 256 chips).

Learning rate: 2e-5 times the square root of 4,096 / 128, the rule of ``common.scaled_learning_rate``; as many samples.
Hardware: TPU v5e:16x16 or v6e:16x16 (256 chips), v5p:4x4x8 (128 chips, eight rows each).
Time: not measured; ``pokevla-plan --config=configs/pretrain_pokevlm_pod.py --topology=v5e:16x16`` predicts it.
Expected: not measured, and whether the rule holds at this batch neither.
Command (on every host; see ``launch/``):

    pokevla-train --config=configs/pretrain_pokevlm_pod.py --config.data.path=DATA --workdir=gs://RUN
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    config = common.pretraining(presets.pokevla(), conversations=4096)
    config.model.attention = "blockwise"
    config.model.remat = "dots"
    # 896, the language model's width, divides by 16 and not by 256.
    config.mesh.data = -1
    config.mesh.fsdp = 16
    config.checkpoint.every_steps = 100
    config.eval_every = 200
    return config
