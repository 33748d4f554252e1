"""In exact mode an episode ends the same however many simulators run beside it, to the last bit of its last state."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.results import RunFolder
from tests import policy_checkpoint as fake
from tests.eval import drill


@pytest.mark.sim
@pytest.mark.multiprocess
@pytest.mark.slow
def test_one_two_and_four_workers_give_the_same_episodes(tmp_path):
    """A network that was never trained, whose every action depends on every pixel."""
    checkpoint = fake.write_checkpoint(tmp_path / "train", fake.make_config())
    options = ["--tasks", "0,1", "--layouts", "4", "--layout-kind", "shared", "--max-steps", "40", "--exact", "4"]
    found = {}
    for workers in (1, 2, 4):
        run_dir = tmp_path / str(workers)
        command = [sys.executable, "-m", "eval", "run", "--policy", str(checkpoint), "--run-dir", str(run_dir)]
        command += [*options, "--workers", str(workers)]
        # A process of its own: Ray is started for this number of workers.
        subprocess.run(command, cwd=drill.ROOT, check=True, env=dict(os.environ))
        found[workers] = drill.ends(Path(run_dir))
        assert RunFolder(run_dir).protocol().policy["exact_batch"] == 4
        processes = {record["process"] for record in RunFolder(run_dir).attempts()}
        assert (len(processes) > 1) == (workers > 1)
    assert len(found[1]) == 8
    assert len({end[2] for end in found[1].values()}) == 8
    assert found[1] == found[2] == found[4]
