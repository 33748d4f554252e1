"""The account of a run's time, over its restarts, by a clock that the test moves."""

import json

import numpy as np
from etils import epath

from pokevla_jax.training import goodput


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


def attempt(workdir, start, *, until_save, after_save):
    """10 s of start-up, ``until_save`` s of steps and 5 of them for data, 2 s of saving, ``after_save`` s of steps."""
    clock = Clock(start)
    account = goodput.Goodput(workdir, start, clock)
    clock.now += 10
    account.steps_begin()
    clock.now += until_save
    account.add("data", 5.0)
    with account.losing("checkpoint"):
        clock.now += 2
    account.saved()
    clock.now += after_save
    account.step(7)
    account.write()
    return account, clock.now


def test_every_second_is_counted_once_over_restarts(tmp_path):
    workdir = epath.Path(tmp_path)
    _, end = attempt(workdir, 1000.0, until_save=100, after_save=30)
    attempt(workdir, end + 60, until_save=200, after_save=0)
    totals = json.loads((tmp_path / goodput.GOODPUT).read_text())
    assert len(totals["attempts"]) == 2
    # Killed 30 s after its last save, and found 60 s later.
    assert (totals["lost"], totals["down"], totals["restarts"]) == (30, 60, 1)
    assert (totals["startup"], totals["data"], totals["checkpoint"]) == (20, 10, 4)
    assert totals["productive"] == (100 - 5) + (200 - 5)
    spent = sum(totals[kind] for kind in goodput.LOSSES) + totals["productive"]
    assert np.isclose(spent, totals["total"])
    assert np.isclose(totals["goodput"], totals["productive"] / totals["total"])


def test_an_attempt_that_ends_with_a_save_loses_nothing(tmp_path):
    workdir = epath.Path(tmp_path)
    attempt(workdir, 0.0, until_save=50, after_save=0)
    attempt(workdir, 62.0, until_save=50, after_save=0)
    totals = goodput.totals(goodput.read_attempts(workdir))
    assert (totals["lost"], totals["down"]) == (0, 0)


def test_an_account_cut_short_begins_anew(tmp_path):
    (tmp_path / goodput.GOODPUT).write_text('{"attempts": [{"sta')
    account, _ = attempt(epath.Path(tmp_path), 5.0, until_save=10, after_save=0)
    assert 0 < account.share() < 1
    assert len(goodput.read_attempts(epath.Path(tmp_path))) == 1
