"""The shared command-line helper: loading, overriding, and what a user reads when something is wrong."""

import argparse
import json
import textwrap
from concurrent.futures import Future
from pathlib import Path

import pytest

from pokevla_jax import config as config_lib
from pokevla_jax import terminal
from pokevla_jax.cli import flags

TOWER = {"width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16}
MODEL = {
    "preset": "fake",
    "vision": {"image_size": 32, "patch_size": 16, "dinov2": TOWER, "siglip": TOWER},
    "language": {},
    "action_head": {},
    "segmentation": {},
    "geometry": {},
}


@pytest.fixture
def config_file(tmp_path):
    """A configuration file around a small model, whose argument sets the batch size."""
    path = tmp_path / "small.py"
    path.write_text(
        textwrap.dedent(
            f"""
            import ml_collections

            def get_config(arg="64"):
                config = ml_collections.ConfigDict({{"model": {MODEL!r}}})
                config.batch_size = int(arg)
                return config
            """
        )
    )
    return path


def test_file_and_argument(config_file):
    assert flags.load_config(str(config_file)).batch_size == 64
    assert flags.load_config(f"{config_file}:16").batch_size == 16


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("batch_size=8", lambda c: c.batch_size, 8),
        ("optimizer.learning_rate=3e-4", lambda c: c.optimizer.learning_rate, 3e-4),
        ("optimizer.clip_norm=2", lambda c: c.optimizer.clip_norm, 2.0),
        ("data.zero_images=true", lambda c: c.data.zero_images, True),
        ("data.prompt_template=do {instruction} = now", lambda c: c.data.prompt_template, "do {instruction} = now"),
        ("data.path=123", lambda c: c.data.path, "123"),
        ("optimizer.freeze=vision/.*,language/.*", lambda c: c.optimizer.freeze, ("vision/.*", "language/.*")),
        ("optimizer.freeze=", lambda c: c.optimizer.freeze, ()),
        ("model.geometry.frequencies=(1, 2)", lambda c: c.model.geometry.frequencies, (1.0, 2.0)),
        ("model.geometry.frequencies=1,2", lambda c: c.model.geometry.frequencies, (1.0, 2.0)),
        ("model.action_head.concat=outputs", lambda c: c.model.action_head.concat, "outputs"),
    ],
)
def test_override_takes_the_type_of_its_key(config_file, override, read, value):
    result = read(flags.load_config(str(config_file), [override]))
    assert result == value
    assert type(result) is type(value)


def test_later_override_wins(config_file):
    assert flags.load_config(str(config_file), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("batchsize=8", r"Unknown configuration key config.batchsize; did you mean config.batch_size\?"),
        ("optimizer.learning_rat=1", r"did you mean config.optimizer.learning_rate\?"),
        ("optimiser.b1=0.5", r"did you mean config.optimizer\?"),
        ("zzz=1", r"known keys: model, data"),
        ("optimizer=3", r"config.optimizer is a group of keys: learning_rate"),
        ("seed.value=3", r"config.seed is a value, not a group of keys"),
        ("seed=abc", r"config.seed must be int, got 'abc'"),
        ("seed=1.5", r"config.seed must be int, got 1.5"),
        ("data.zero_images=maybe", r"config.data.zero_images must be bool, got 'maybe'"),
        ("model.action_head.concat=sum", r"must be one of 'joint_softmax', 'outputs', got 'sum'"),
        ("seed", r"Override 'seed' must read key=value"),
    ],
)
def test_wrong_override_is_one_sentence(config_file, override, sentence):
    with pytest.raises(config_lib.ConfigError, match=sentence) as error:
        flags.load_config(str(config_file), [override])
    assert "\n" not in str(error.value)


def test_misspelt_key_in_a_file_names_its_neighbour(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(f"def get_config():\n    return {{'model': {MODEL!r}, 'num_step': 3}}\n")
    with pytest.raises(config_lib.ConfigError, match=r"config.num_step; did you mean config.num_steps\?"):
        flags.load_config(str(path))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "defines no get_config"),
        ("def get_config():\n    return {}\n", "Missing configuration key config.model"),
        ("def get_config():\n    pass\n", "config is a group of keys, got None"),
        ("import no_such_module_here\n", r"cannot be loaded: ModuleNotFoundError: No module named .* \(line 1\)"),
        ("def get_config(:\n", r"cannot be loaded: SyntaxError: invalid syntax \(broken\.py, line 1\)"),
        ("def get_config():\n    return unknown\n", r"cannot be loaded: NameError: .*unknown.* \(line 2\)"),
        ("def get_config():\n    return {}['model']\n", r"cannot be loaded: KeyError: 'model' \(line 2\)"),
    ],
)
def test_unusable_file(tmp_path, text, sentence):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(config_lib.ConfigError, match=sentence):
        flags.load_config(str(path))


def test_missing_file_names_its_neighbour(config_file):
    with pytest.raises(FileNotFoundError, match=r"smal\.py does not exist; did you mean .*small\.py\?"):
        flags.load_config(str(config_file.with_name("smal.py")))


def test_argument_to_a_file_without_one(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(f"def get_config():\n    return {{'model': {MODEL!r}}}\n")
    with pytest.raises(config_lib.ConfigError, match="takes no argument, got 'big'"):
        flags.load_config(f"{path}:big")


def _parser() -> argparse.ArgumentParser:
    parser = flags.make_parser("Trains.", examples=["pokevla-train --config=configs/x.py --workdir=runs/x"])
    flags.add_config(parser)
    parser.add_argument("--workdir")
    return parser


def test_run_hands_the_loaded_config_over(config_file):
    seen = []
    status = flags.run(
        _parser(),
        seen.append,
        ["--config", str(config_file), "--config.seed=5", "--config.data.path", "a b", "--workdir=w"],
    )
    assert status == 0
    assert (seen[0].config.seed, seen[0].config.data.path, seen[0].workdir) == (5, "a b", "w")


def test_error_is_one_line_on_stderr_and_status_2(config_file, capsys):
    status = flags.run(_parser(), lambda _: None, ["--config", str(config_file), "--config.sed=5"])
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "did you mean config.seed?" in err


def test_traceback_on_request(config_file, monkeypatch):
    monkeypatch.setenv("POKEVLA_TRACEBACK", "1")
    with pytest.raises(config_lib.ConfigError):
        flags.run(_parser(), lambda _: None, ["--config", str(config_file), "--config.sed=5"])


def test_a_library_defect_keeps_its_traceback(config_file):
    with pytest.raises(json.JSONDecodeError):
        flags.run(_parser(), lambda _: json.loads("{"), ["--config", str(config_file)])


def test_what_the_system_says_names_the_file_and_a_way_out(config_file, tmp_path, capsys):
    """Wherever it comes from: the last frame of these errors lies in Python's own library."""
    (tmp_path / "file").write_text("")
    refused = [
        (lambda _: (tmp_path / "file" / "x").mkdir(), "x: Not a directory; check the path"),
        (lambda _: Path("/proc/x").write_text(""), "/proc/x: No such file or directory; check the path"),
        (lambda _: Path("/dev/full").write_text("x"), "No space left on device; make room there"),
    ]
    for command, words in refused:
        assert flags.run(_parser(), command, ["--config", str(config_file)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_an_error_of_ours_is_a_sentence_wherever_it_surfaces(config_file, capsys):
    """From a worker process it is raised by the library that waited for it."""
    failed = Future()
    failed.set_exception(config_lib.ConfigError("one thing;\nanother"))
    assert flags.run(_parser(), lambda _: failed.result(), ["--config", str(config_file)]) == 2
    assert capsys.readouterr().err.endswith(": error: one thing; another\n")


def test_unknown_option_names_its_neighbour(config_file, capsys):
    with pytest.raises(SystemExit) as stop:
        flags.run(_parser(), lambda _: None, ["--config", str(config_file), "--workdr=x"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "did you mean --workdir?" in err
    assert err.count("\n") == 1


def test_an_unknown_option_of_a_command_is_answered_by_that_command(capsys):
    parser = terminal.Parser(prog="tool")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("go").add_argument("--speed")
    assert parser.parse_args(["go", "--speed", "3"]).speed == "3"
    with pytest.raises(SystemExit):
        parser.parse_args(["go", "--sped", "3"])
    assert capsys.readouterr().err == "tool go: error: unknown: --sped 3; did you mean --speed? (see tool go --help)\n"


def test_help_ends_with_examples(capsys):
    with pytest.raises(SystemExit):
        flags.run(_parser(), lambda _: None, ["--help"])
    assert capsys.readouterr().out.rstrip().endswith("pokevla-train --config=configs/x.py --workdir=runs/x")
