"""Data ablation: stage 1 without the grounding corpora, for the same two epochs of what is left.

Hardware: as ``configs/pretrain_pokevlm.py``. Time: not measured.
Expected: not measured here. The paper's, after stage 2 on LIBERO-Plus: Goal and Long fall; no numbers known.
Command, then ``configs/libero_plus_finetune.py`` from its result:

    pokevla-train --config=configs/ablation_without_grounding.py --config.data.path=DATA --workdir=RUN --init-from=CKPT
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    return common.pretraining(presets.pokevla(), without="grounding")
