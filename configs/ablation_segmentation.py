"""Component ablation: goal-aware segmentation alone, a backbone without stage 1.

Hardware and time: as ``configs/libero_plus_finetune.py``, whose data and steps these are.
Expected: not measured here. The paper's (LIBERO-Plus, 560 runs a suite): +4.3, about 82.5 %.
Command (``TEACHERS``: docs/pretraining.md):

    pokevla-train --config=configs/ablation_segmentation.py --config.data.path=DATA --workdir=RUN \
      --init-from=BACKBONE,TEACHERS
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    config = common.posttraining(presets.pokevla())
    config.model.geometry.weight = 0.0
    return config
