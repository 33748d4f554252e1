"""A policy that answers nonsense: its episodes are errors with a reason, never failures, and the run says why."""

import dataclasses

import numpy as np
import pytest

from eval import __main__ as cli
from eval import run
from eval.policies import PolicyChoice
from eval.results import RunFolder
from tests.eval import toy

pytestmark = pytest.mark.multiprocess


@dataclasses.dataclass(frozen=True)
class Load:
    """Loads a policy whose every chunk is ``chunk``; None raises."""

    chunk: object

    def __call__(self):
        return Broken(self.chunk)


class Broken(toy.ToyPolicy):
    def __init__(self, chunk):
        super().__init__()
        self._chunk = chunk

    def infer(self, observations):
        if self._chunk is None:
            raise ValueError("the network is broken")
        return [self._chunk for _ in observations]


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (np.full((8, 7), np.nan), "the policy returned actions that are not finite"),
        (np.zeros((8, 6)), "the policy returned actions of shape (8, 6), expected (steps, 7)"),
        (None, "ValueError: the network is broken"),
    ],
)
def test_what_is_no_chunk_is_an_error_with_a_reason(chunk, reason, tmp_path, ray_session, monkeypatch, capsys):
    specs = [toy.toy_spec(0, index) for index in range(3)]
    choice = PolicyChoice({"kind": "toy", "label": "policy"}, load=Load(chunk))
    toy.stand_in(monkeypatch, specs, lambda name, **_: choice)
    command = ["run", "--policy", "x", "--layouts", "1", "--run-dir", str(tmp_path), "--workers", "2", "--retries", "1"]
    assert cli.main(command) == 1
    records = RunFolder(tmp_path).attempts()
    assert [(r["outcome"], r["attempts"], r["reason"]) for r in records] == [("error", 2, reason)] * 3
    printed = capsys.readouterr().out
    assert f"ERRORS: 3 episodes ended in an error, outside the rate ({reason}); run again to retry them" in printed
    assert "policy: no episode decided" in printed
    # Mended, the same command runs all of them.
    toy.stand_in(monkeypatch, specs, lambda name, **_: dataclasses.replace(choice, load=toy.ToyPolicy))
    assert cli.main(command) == 0
    assert "policy: 100% (3/3" in capsys.readouterr().out


def test_a_run_that_only_errs_ends_early_and_keeps_what_it_found(tmp_path, ray_session, monkeypatch, capsys):
    specs = [toy.toy_spec(0, index) for index in range(30)]
    choice = PolicyChoice({"kind": "toy", "label": "policy"}, load=Load(np.zeros((8, 6))))
    toy.stand_in(monkeypatch, specs, lambda name, **_: choice)
    command = ["run", "--policy", "x", "--layouts", "1", "--run-dir", str(tmp_path), "--workers", "2", "--retries", "0"]
    assert cli.main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(
        "all ended in the same error (the policy returned actions of shape (8, 6), expected "
        "(steps, 7)); mend that and run the same command again"
    )
    assert len(RunFolder(tmp_path).attempts()) == run.HOPELESS
