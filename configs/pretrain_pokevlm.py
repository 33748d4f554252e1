"""Stage 1 with the paper's batch: PokeVLM on 2.4 M conversations about images, two epochs.

Hardware: the paper's 8 GPUs (model not stated), or 16 TPU chips (v5e:4x4): two rows of 2,048 tokens a chip.
Time: not measured; ``pokevla-plan --config=configs/pretrain_pokevlm.py --topology=v5e:4x4`` predicts it.
Expected: not measured here. The paper's: Where2Place 0.163, RefSpatial placement 0.180.
Command:

    pokevla-train --config=configs/pretrain_pokevlm.py --config.data.path=DATA --workdir=RUN --init-from=BACKBONE
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    return common.pretraining(presets.pokevla())
