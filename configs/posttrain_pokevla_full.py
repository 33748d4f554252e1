"""Stage 2 with the paper's batch, every parameter trained instead of adapters.

Hardware: 16 TPU chips (v5e:4x4), four samples a chip; one GPU of 80 GB with accumulation.
Time: not measured; ``pokevla-plan --config=configs/posttrain_pokevla_full.py --topology=v5e:4x4`` predicts it.
Expected: not measured; the paper has no such run.
Command (``TEACHERS``: docs/pretraining.md):

    pokevla-train --config=configs/posttrain_pokevla_full.py --config.data.path=DATA --workdir=RUN \
      --init-from=STAGE1,TEACHERS
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    return common.train_in_full(common.posttraining(presets.pokevla()))
