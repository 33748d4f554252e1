"""The real network under the real launcher: processes are stopped and killed, and nobody types a command again.

``launch/local.sh`` starts two processes of four devices each and restarts them; what they end with is compared, bit by
bit, with a run that was left alone.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pokevla_jax import checkpoints
from pokevla_jax.sharding import flatten
from pokevla_jax.training.goodput import read_attempts
from pokevla_jax.training.metrics import read_metrics
from tests.data import synthetic
from tests.training import processes
from tests.training.test_stage2 import arguments

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40


def start(workdir, dataset):
    train = arguments(
        workdir, dataset, num_steps=STEPS, log_every=1, eval_every=20, checkpoint__every_steps=7, mesh__fsdp=2
    )
    return subprocess.Popen(
        ["bash", "launch/local.sh", "--processes=2", "--devices=4", f"--port={processes.free_port()}", "--", *train],
        cwd=ROOT,
        env={**os.environ, "POKEVLA_PYTHON": sys.executable, "POKEVLA_PAUSE": "1"},
        stdout=(workdir.parent / f"{workdir.name}.log").open("w"),
        stderr=subprocess.STDOUT,
    )


def trainers(launcher):
    """Ids of the Python processes below the launcher, by their number in the run."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if {b"pokevla_jax.cli.train", f"--workdir={launcher.workdir}".encode()} <= set(command):
            numbers = [e.partition(b"=")[2] for e in environment if e.startswith(b"JAX_PROCESS_ID=")]
            found[int(numbers[0])] = int(entry.name)
    return found


def strike(launcher, number, name, after):
    """Sends a signal to one process as soon as the run has logged ``after`` steps; the last step it had logged."""
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        lines = [x["step"] for x in read_metrics(launcher.workdir) if x["split"] == "train"]
        if lines and lines[-1] >= after:
            os.kill(trainers(launcher)[number], name)
            return lines[-1]
        assert launcher.poll() is None, "the run ended before it was struck"
        time.sleep(0.02)
    raise TimeoutError(f"step {after} was not reached")


def losses(workdir):
    return [(line["step"], line["loss"]) for line in read_metrics(workdir) if line["split"] == "train"]


def final(workdir):
    _, params, _ = checkpoints.load_policy_checkpoint(workdir)
    return flatten(params)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(3000)
def test_a_launched_run_outlives_sigterm_and_sigkill(tmp_path):
    dataset = synthetic.write(tmp_path / "balls", num_episodes=4)
    log = tmp_path / "struck.log"
    for name in ("whole", "struck"):
        launcher = start(tmp_path / name, dataset)
        launcher.workdir = tmp_path / name
        try:
            if name == "struck":
                rng = np.random.default_rng()
                first = strike(launcher, int(rng.integers(2)), signal.SIGTERM, int(rng.integers(3, 12)))
                second = strike(launcher, int(rng.integers(2)), signal.SIGKILL, first + int(rng.integers(5, 12)))
                assert first < second < STEPS
            status = launcher.wait(1200)
        finally:
            launcher.terminate()
        assert status == 0, (tmp_path / f"{name}.log").read_text()[-5000:]
    text = log.read_text()
    assert "SIGTERM: saved step" in text
    assert "exit status 75; restart 1" in text
    assert "exit status 137; restart 2" in text
    params, others = final(tmp_path / "whole"), final(tmp_path / "struck")
    for name, value in params.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(others[name]), err_msg=name)
    assert losses(tmp_path / "struck") == losses(tmp_path / "whole")
    assert len(read_attempts(tmp_path / "struck")) == 3
