"""``pokevla-convert``: its help, its report, its one-sentence errors."""

import json

import pytest

from pokevla_jax import checkpoints
from pokevla_jax.cli import convert
from pokevla_jax.config import ConfigError
from pokevla_jax.data import tokenize
from pokevla_jax.interop.import_torch import import_checkpoint
from tests.interop import fakes

CONFIG = """
from pokevla_jax import config
from tests.interop import fakes

def get_config():
    return config.to_dict(fakes.make_config())
"""


@pytest.fixture
def folder(tmp_path):
    fakes.write_vla_adapter(tmp_path / "vla")
    (tmp_path / "tiny.py").write_text(CONFIG)
    return tmp_path


def run(folder, *arguments):
    paths = ("--source", str(folder / "vla"), "--out", str(folder / "out"))
    return convert.main(["from-torch", *paths, *map(str, arguments)])


def test_import_prints_what_it_did(folder, capsys):
    assert run(folder, "--config", folder / "tiny.py", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    parts = {part["part"]: part for part in report["parts"]}
    assert parts["SigLIP"]["carried"] > 0 and parts["SigLIP"]["dtypes"] == ["float32"]
    assert parts["action head"]["imported"] > 0 == parts["action head"]["fresh"]
    assert [origin["kind"] for origin in report["origins"]] == [
        "own or VLA-Adapter export",
        "VLA-Adapter action head",
        "proprio projector",
    ]
    config, _, assets = checkpoints.load_policy_checkpoint(folder / "out")
    assert config.model == fakes.make_config().model
    assert assets.versions["torch"]


def test_report_as_a_table(folder, capsys):
    assert run(folder, "--config", folder / "tiny.py", "--config.model.action_head.inject_seg=false") == 0
    out = capsys.readouterr().out
    assert "carried unused" in out and "proprio projector" in out
    assert "no imported parameter changed its type" in out
    assert "tokenizer: none; a policy needs one" in out


def test_mistakes_are_answered_in_one_sentence(folder, capsys):
    assert run(folder) == 2  # the sources fit no full preset
    assert "needs [" in capsys.readouterr().err
    assert run(folder, "--config", folder / "tiny.py", "--preset", "pokevla") == 2
    assert "--preset pokevla and --config (preset tiny) disagree" in capsys.readouterr().err
    (folder / "out").mkdir()
    assert run(folder, "--config", folder / "tiny.py") == 2
    error = capsys.readouterr().err
    assert "error: --out" in error and "exists already" in error and error.count("\n") == 1


def test_a_check_needs_an_observation(tmp_path, capsys):
    assert convert.main(["check", "--checkpoint", str(tmp_path), "--torch", str(tmp_path), "--frames", "0"]) == 2
    assert "--frames 0: give at least one observation" in capsys.readouterr().err


def test_overrides_need_a_configuration(folder, capsys):
    with pytest.raises(SystemExit):
        run(folder, "--config.model.dtype=float32")
    assert "has no --config, or none was given" in capsys.readouterr().err


def test_help_has_examples(capsys):
    for arguments in (["--help"], ["from-torch", "--help"]):
        with pytest.raises(SystemExit) as stop:
            convert.main(arguments)
        assert stop.value.code == 0
        assert "examples:\n" in (text := capsys.readouterr().out) and "pokevla-convert from-torch" in text


def test_params_prints_the_table(capsys):
    assert convert.main(["params", "--preset", "vla_adapter"]) == 0
    out = capsys.readouterr().out
    # The published counts: a tower with what is carried, the original head.
    assert "303,230,976" in out and "102,129,695" in out


def test_tokenizer_must_fit(folder, monkeypatch):
    """A vocabulary larger than the embedding would index beyond it."""

    class Large:
        vocab_size = fakes.VOCAB + 1

    monkeypatch.setattr(tokenize, "load_tokenizer", lambda *args, **kwargs: Large())
    with pytest.raises(ConfigError, match=r"has 31 tokens, and preset 'tiny' embeds 30"):
        import_checkpoint([folder / "vla"], folder / "out", lambda _: fakes.make_config(), tokenizer="somewhere")
    assert not (folder / "out").exists()
