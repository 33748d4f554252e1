"""Stage 2 on the LIBERO-Plus training set, all four suites in one model.

The paper's number of steps and batch are those of LIBERO. One model for all suites is OpenVLA-OFT's protocol on this
set; which one the paper used is unknown.
Hardware: as ``configs/posttrain_pokevla.py``. Time: not measured.
Expected: not measured here. The paper's: 83.5 % on LIBERO-Plus.
Command (``TEACHERS``: docs/pretraining.md):

    pokevla-train --config=configs/libero_plus_finetune.py --config.data.path=DATA --workdir=RUN \
      --init-from=STAGE1,TEACHERS
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    return common.posttraining(presets.pokevla())
