"""Pairs of runs on the same episodes."""

import pytest

from eval import __main__ as cli
from eval import compare
from eval.errors import EvaluationError
from tests.eval import runs


def test_runs_are_paired_by_episode(tmp_path):
    runs.make_run(tmp_path / "a", "SSSFFE")
    runs.make_run(tmp_path / "b", "SFFSF.", label="blind-trained", fingerprint="f1")
    result = compare.compare([tmp_path / "a"], [tmp_path / "b"])
    cells = [result[key] for key in ("both", "only_a", "only_b", "neither", "pairs", "unpaired")]
    assert cells == [1, 2, 1, 1, 5, 0]
    assert result["difference"] == pytest.approx(0.2)
    low, high = result["difference_interval95"]
    assert low < 0.2 < high
    assert result["mcnemar_p"] == 1.0


def test_seeds_are_pooled_without_pairing_across_them(tmp_path):
    for seed in (1, 2):
        runs.make_run(tmp_path / f"a{seed}", "SSF", layout_seed=seed, fingerprint=f"a{seed}")
        runs.make_run(tmp_path / f"b{seed}", "FFS", layout_seed=seed, fingerprint=f"b{seed}", label="blind-trained")
    result = compare.compare([tmp_path / "a1", tmp_path / "a2"], [tmp_path / "b1", tmp_path / "b2"])
    assert (result["pairs"], result["only_a"], result["only_b"]) == (6, 4, 2)
    with pytest.raises(EvaluationError, match="no episode in common"):
        compare.compare([tmp_path / "a1"], [tmp_path / "b2"])
    with pytest.raises(EvaluationError, match="give equally many"):
        compare.compare([tmp_path / "a1"] * 3, [tmp_path / "b1"] * 2)


def test_different_simulations_are_not_compared(tmp_path, capsys):
    runs.make_run(tmp_path / "a", "SS")
    runs.make_run(tmp_path / "b", "SF", simulation={"renderer": "robosuite"})
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert "simulated differently (simulation renderer: fast-v1, not robosuite)" in error
    assert error.count("\n") == 1


def test_the_table_is_printed(tmp_path, capsys):
    runs.make_run(tmp_path / "a", "SSSS" + "SSFF", tasks=2)
    runs.make_run(tmp_path / "b", "SFFF" + "FFFF", tasks=2, label="random")
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert "A - B = +62.5 points" in text
    assert "pick_up_the_milk" in text
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "nowhere")]) == 2
