"""Stage 2 for a whole pod: full training in batches of 2,048, eight samples a chip on 256 chips.

Learning rate: 1e-4 times the square root of 2,048 / 64, the rule of ``common.scaled_learning_rate``; as many samples.
Hardware: TPU v5e:16x16 or v6e:16x16 (256 chips), v5p:4x4x8 (128 chips, sixteen samples each).
Time: not measured; ``pokevla-plan --config=configs/posttrain_pokevla_pod.py --topology=v5e:16x16`` predicts it.
Expected: not measured, and whether the rule holds at this batch neither.
Command (on every host; see ``launch/``; ``TEACHERS``: docs/pretraining.md):

    pokevla-train --config=configs/posttrain_pokevla_pod.py --config.data.path=DATA --workdir=gs://RUN \
      --init-from=STAGE1,TEACHERS
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    config = common.train_in_full(common.posttraining(presets.pokevla(), batch_size=2048))
    config.model.attention = "blockwise"
    # With vision tokens, <SEG> and queries 640 positions: whole blocks of attention's queries.
    config.model.max_prompt_length = 63
    # 896, the language model's width, divides by 16 and not by 256.
    config.mesh.data = -1
    config.mesh.fsdp = 16
    config.checkpoint.every_steps = 250
    config.eval_every = 250
    return config
