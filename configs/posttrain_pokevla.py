"""Stage 2 with the paper's batch and adapters: PokeVLA on LIBERO, 150,000 steps of 64.

Hardware: the paper's 8 GPUs, or 16 TPU chips (v5e:4x4): four samples a chip.
Time: not measured; ``pokevla-plan --config=configs/posttrain_pokevla.py --topology=v5e:4x4`` predicts it.
Expected: not measured here. The paper's, trained on LIBERO: 98.2 % on LIBERO, 79.3 % on LIBERO-Plus.
Command, with the checkpoints of stage 1 and of SAM and VGGT (docs/pretraining.md):

    pokevla-train --config=configs/posttrain_pokevla.py --config.data.path=DATA --workdir=RUN \
      --init-from=STAGE1,TEACHERS
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    return common.posttraining(presets.pokevla())
