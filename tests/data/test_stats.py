import json

import pytest

from pokevla_jax.cli import stats
from pokevla_jax.data.normalize import Statistics


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
