"""Stage 2 as ``posttrain_pokevla.py``, on the teachers' features of images that are not augmented.

Hardware: as ``configs/posttrain_pokevla.py``, and 6 MiB of features a recorded step on disk.
Time: not measured; ``pokevla-plan --config=configs/posttrain_pokevla_features.py --topology=v5e:4x4`` predicts it.
Expected: not measured. Without augmentation it is another experiment than the paper's.
Commands, the first once for a dataset:

    pokevla-features --config=configs/posttrain_pokevla_features.py --config.data.path=DATA --init-from=TEACHERS
    pokevla-train --config=configs/posttrain_pokevla_features.py --config.data.path=DATA --workdir=RUN --init-from=VLM
"""

from configs import common
from pokevla_jax.models import presets


def get_config():
    config = common.posttraining(presets.pokevla())
    config.model.segmentation.source = "precomputed"
    config.model.geometry.source = "precomputed"
    config.data.augment.crop_area = 1.0
    for part in ("brightness", "contrast", "saturation", "hue"):
        config.data.augment[part] = 0.0
    return config
