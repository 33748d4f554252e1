import json

import numpy as np
import pytest

from pokevla_jax.cli import stats
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.data.normalize import compute_statistics
from pokevla_jax.data.records import open_dataset
from tests.benchmarks import statistics_speed as benchmark


def test_the_table_counts_and_warns(dataset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert stats.main(["--data", str(dataset.directory)]) == 0
    output = capsys.readouterr().out
    assert "6 episodes, 120 steps" in " ".join(output.split())
    assert "30 frames of agentview, wrist, 128x128 pixels" in output
    assert output.count("near-constant") == 3
    assert output.count("passes through") == 1


def test_json_holds_the_statistics(dataset, statistics, capsys):
    assert stats.main(["--data", str(dataset.directory), "--json", "--verify"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert Statistics.from_json(values["statistics"]).to_json() == statistics.to_json()
    assert values["dataset"]["num_episodes"] == 6


def test_a_missing_dataset_is_one_line(tmp_path, capsys):
    assert stats.main(["--data", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "does not exist; record one with pokevla-record" in error


@pytest.mark.parametrize("arguments", [[], ["--data"], ["--dada", "x"]])
def test_a_wrong_command_line_exits_with_2(arguments):
    with pytest.raises(SystemExit) as exit_info:
        stats.main(arguments)
    assert exit_info.value.code == 2


def test_statistics_read_a_small_part_and_agree_with_numpy(tmp_path):
    benchmark.write(tmp_path, 2000, True)
    result = benchmark.measure(tmp_path)
    assert result["frames"] == 2000
    assert result["read_fraction"] < 0.05
    dataset = open_dataset(tmp_path)
    statistics = compute_statistics(dataset)
    for name in ("state", "action"):
        # Of the numbers that were written, not of those read.
        values = np.concatenate([getattr(benchmark.episode(n, 250), name) for n in range(8)]).astype(np.float64)
        column = getattr(statistics, name)
        np.testing.assert_array_equal(column.mean, values.mean(axis=0))
        np.testing.assert_array_equal(column.std, values.std(axis=0))
        np.testing.assert_array_equal(column.q01, np.quantile(values, 0.01, axis=0))
        np.testing.assert_array_equal(column.q99, np.quantile(values, 0.99, axis=0))
