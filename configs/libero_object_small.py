"""One model for all ten libero_object objects in shared scenes, where only the instruction tells the target.

Hardware: two CPU cores, no GPU; about 2 GiB of memory for each of three networks: the policy, the same trained and run
with its images zeroed, and the same without the instruction.
Time: recording 32 minutes, training 75, beside other programs.
Expected: little. 2 of 30 held-out episodes succeed, and 6 of 80 after 9,000 steps more (docs/results.md): 240,000
samples do not teach it from nothing which word means which of ten objects. Give it more where there is a GPU
(`--config.num_steps`, `--steps`).
Command, everything from the demonstrations to the report:

    bash launch/quickstart.sh --config=configs/libero_object_small.py --layout-kind shared --tasks all --episodes 150
"""

from configs import libero_object_quickstart


def get_config():
    config = libero_object_quickstart.get_config()
    config.num_steps = 6000
    config.log_every = 100
    config.eval_every = 1000
    config.eval_batches = 24
    config.checkpoint.every_steps = 1000
    config.optimizer.warmup_steps = 400
    return config
