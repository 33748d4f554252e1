"""One model for all ten libero_object objects in shared scenes, where only the instruction tells the target.

Hardware: two CPU cores, no GPU; about 2 GiB of memory for each of three networks: the policy, the same trained and run
with its images zeroed, and the same without the instruction.
Time: not measured yet.
Expected: not measured yet.
Command, everything from the demonstrations to the report:

    bash launch/quickstart.sh --config=configs/libero_object_small.py --layout-kind shared --tasks all --episodes 150
"""

from configs import libero_object_quickstart


def get_config():
    config = libero_object_quickstart.get_config()
    config.num_steps = 8000
    config.log_every = 100
    config.eval_every = 1000
    config.eval_batches = 24
    config.checkpoint.every_steps = 1000
    config.optimizer.warmup_steps = 400
    return config
