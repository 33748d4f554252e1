"""Component ablation: stage 1 alone, neither segmentation nor geometry.

Hardware and time: as ``configs/libero_plus_finetune.py``, whose data and steps these are.
Expected: not measured here. The paper's (LIBERO-Plus, 560 runs a suite): +4.7, 82.9 %.
Command (``ablation_none`` from another start):

    pokevla-train --config=configs/ablation_pretraining.py --config.data.path=DATA --workdir=RUN --init-from=STAGE1
"""

from configs import ablation_none

get_config = ablation_none.get_config
