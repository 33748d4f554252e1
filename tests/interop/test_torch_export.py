"""Whole exports: what PyTorch alone makes of them, and what is left when something is wrong."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from eval.errors import EvaluationError
from eval.policies import resolve_policy
from pokevla_jax import checkpoints
from pokevla_jax import config as config_lib
from pokevla_jax.checkpoints import CheckpointError
from pokevla_jax.cli import convert
from pokevla_jax.config import ConfigError
from pokevla_jax.data.normalize import unnormalize
from pokevla_jax.interop import torch_export
from pokevla_jax.interop import weights_file
from pokevla_jax.interop.check import ACTIONS
from pokevla_jax.interop.check import check
from pokevla_jax.interop.import_torch import import_checkpoint
from pokevla_jax.interop.readers import SourceError
from pokevla_jax.interop.torch_export import export
from pokevla_jax.interop.torch_model.modeling_pokevla import PokeVLA
from pokevla_jax.interop.write import CARRIED
from pokevla_jax.interop.write import OutputError
from pokevla_jax.policy import Policy
from pokevla_jax.sharding import flatten
from tests import policy_checkpoint as fake
from tests.interop import small

# What a machine has that knows nothing of this project: neither it nor JAX nor OpenCV can be imported.
ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pokevla_jax", "jax", "flax", "cv2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import numpy as np
import torch
from transformers import AutoModel

folder, observations, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert not model.training and not {"pokevla_jax", "jax", "flax", "cv2"} & set(sys.modules)
stored = np.load(observations)
results = {name: [] for name in ("actions", "environment")}
for images, state, prompt in zip(stored["images"], stored["state"], stored["prompt"]):
    results["actions"].append(model.predict_action(list(images), str(prompt), state))
    results["environment"].append(model.predict_action(images, str(prompt), state, environment=True))
rows = list(zip(stored["images"], map(str, stored["prompt"]), stored["state"]))
results["together"] = model.predict_actions(rows)
results["half"] = model.to(torch.bfloat16).predict_actions(rows)
np.savez(out, **results)
"""


def write_checkpoint(folder, config, *, params=None, trained=None, carried=None, step=10, **assets):
    """A checkpoint as training writes it, or, with ``carried``, as an import does."""
    params = small.make_params(config.model) if params is None else params
    assets = {
        "config": config_lib.to_dict(config),
        "statistics": fake.make_statistics().to_json(),
        "tokenizer": fake.make_tokenizer(config).to_json(),
        "versions": {"pokevla_jax": "0.1.0"},
        "dataset": "data/soup",
        **assets,
    }
    items = {"params": ocp.args.StandardSave(params), "assets": ocp.args.JsonSave(assets)}
    if trained is not None:
        items["train_state"] = ocp.args.StandardSave({"step": np.int32(step), "opt_state": {}, "trained": trained})
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        manager.save(step, args=ocp.args.Composite(**items))
    if carried is not None:
        save_file(carried, folder / "checkpoints" / str(step) / "assets" / CARRIED)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    origins = [{"kind": "Qwen2 (Hugging Face)", "file": "qwen.safetensors"}, {"kind": "VGGT", "file": "model.pt"}]
    folder = tmp_path_factory.mktemp("run")
    carried = {"vision_backbone.featurizer.norm.weight": np.arange(16, dtype=np.float32)}
    return write_checkpoint(folder, small.make_config(), imported_from=origins, carried=carried)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The folder and its report; the check has run both networks."""
    out = tmp_path_factory.mktemp("export") / "network"
    return out, export(checkpoint, out, include_training_parts=True)


def observations(count, size=(100, 120), seed=0):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (count, 2, *size, 3), dtype=np.uint8),
        "state": rng.uniform(-0.5, 0.5, (count, 8)).astype(np.float32),
        "prompt": np.array([fake.PROMPT, "pick up the soup"] * count)[:count],
    }


def test_pytorch_alone_returns_the_same_actions(checkpoint, exported, tmp_path):
    stored = observations(4)
    np.savez(tmp_path / "observations.npz", **stored)
    keep = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")
    environment = {key: os.environ[key] for key in keep if key in os.environ}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ALONE, str(exported[0]), "observations.npz", "out.npz"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    policy = Policy.load(checkpoint, batch_size=4)
    rows = [{name: stored[name][i] for name in stored} for i in range(4)]
    normalized = policy._batched(policy._actions, rows)
    assert np.abs(normalized).max() > 0.1
    expected = unnormalize(normalized, fake.make_statistics().action)
    # Of the normalised actions: un-normalised ones are 0.8 times as large.
    np.testing.assert_allclose(found["actions"], expected, atol=0.8e-4)
    np.testing.assert_allclose(found["together"], expected, atol=0.8e-4)
    np.testing.assert_allclose(found["environment"], policy.infer(rows), atol=0.8e-4)
    assert 1e-5 < np.abs(found["half"] - expected).max() < 0.5


def test_the_evaluator_runs_the_export(checkpoint, exported, tmp_path, monkeypatch):
    """Under the interface that the policy process expects, and with a protocol of its own."""
    # Loading copies the folder's code, by default to the user's home.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    choice = resolve_policy(f"torch:{exported[0]}", specs=[], scenes=None, workers=4, execute=5)
    assert choice.facts["kind"] == "torch" and choice.facts["step"] == 10 and choice.execute == 5
    policy = choice.load()
    assert policy.max_batch_size == 4
    stored = observations(2, seed=1)
    rows = [{name: stored[name][i] for name in stored} for i in range(2)]
    np.testing.assert_allclose(policy.infer(rows), Policy.load(checkpoint, batch_size=2).infer(rows), atol=0.8e-4)
    exact = resolve_policy(f"torch:{exported[0]}", specs=[], scenes=None, workers=2, exact=3)
    assert exact.facts["exact_batch"] == 3 and "exact_batch" not in choice.facts
    alone = exact.load()
    np.testing.assert_array_equal(alone.infer(rows)[1:], alone.infer(rows[1:]))
    with pytest.raises(EvaluationError, match="--execute 9: the policy's chunks have 8 actions"):
        resolve_policy(f"torch:{exported[0]}", specs=[], scenes=None, execute=9)


def test_the_folder_says_what_it_is(exported):
    out, report = exported
    card = (out / "README.md").read_text()
    assert report.parity.passed and f"| {ACTIONS} |" in card and "passed" in card
    assert "Apache-2.0" in card and "non-commercial" in card and "qwen.safetensors" in card
    assert json.loads((out / "parity.json").read_text())["passed"]
    assert json.loads((out / "training.json").read_text())["step"] == 10
    assert report.cast == 0 and report.left_out == {} and report.dtypes == {"float32": sum(report.dtypes.values())}
    assert {row.part for row in report.parity.rows} >= {
        *("preprocessed images", "DINOv2", "SigLIP", "projector", "language layer 0", "language layer 1"),
        *("actions", "mask logits", "coarse mask logits", "align projector", "keypoint head", "predict_action"),
    }
    for row in report.parity.rows:
        # Rounding to bfloat16 is what it is in both networks, and far from the float32 errors.
        if row.bfloat16 is not None:
            assert 10 * row.relative_error < row.bfloat16 < 4 * row.bfloat16_ours + 0.01
    files = {path.name for path in out.iterdir()}
    assert files == {
        *("config.json", "model.safetensors", "carried.safetensors", "training.json", "dataset_statistics.json"),
        *("parity.json", "README.md", *(file.name for file in torch_export.code_files())),
    }


def test_import_of_an_export_is_bit_exact(checkpoint, exported, tmp_path):
    report = import_checkpoint([exported[0]], tmp_path / "back", lambda preset: pytest.fail("the export has its own"))
    assert report.cast == 0
    config, params, assets = checkpoints.load_policy_checkpoint(checkpoint)
    config_back, params_back, assets_back = checkpoints.load_policy_checkpoint(tmp_path / "back")
    assert config_back == config
    assert assets_back.statistics == assets.statistics
    assert assets_back.tokenizer_json == assets.tokenizer_json
    assert assets_back.imported_from == assets.imported_from
    assert assets_back.dataset == assets.dataset
    before, after = flatten(params), flatten(params_back)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        np.testing.assert_array_equal(np.asarray(array), np.asarray(after[name]), err_msg=name)
    export(tmp_path / "back", tmp_path / "again", include_training_parts=True, check=False)
    for file in ("model.safetensors", CARRIED):
        assert (tmp_path / "again" / file).read_bytes() == (exported[0] / file).read_bytes()


def test_training_parts_stay_behind_unless_asked_for(checkpoint, tmp_path):
    report = export(checkpoint, tmp_path / "out", check=False)
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    left = ("image_encoder.", "coarse.", "fine.", "text_hidden_fcs.", "align_projector.", "keypoint_head.")
    assert not [name for name in names if name.startswith(left)]
    assert {"align projector", "keypoint head", "fine mask decoder"} <= report.left_out.keys()
    assert "Left out: align projector" in (tmp_path / "out" / "README.md").read_text()


def test_types_change_only_when_asked(checkpoint, tmp_path):
    report = export(checkpoint, tmp_path / "half", dtype="bfloat16", check=False)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert report.cast == report.carried + sum(array.size for array in stored.values())
    assert "were cast, as asked for" in (tmp_path / "half" / "README.md").read_text()
    _, params, _ = checkpoints.load_policy_checkpoint(checkpoint)
    queries = np.asarray(params["action_queries"]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(stored["action_queries.weight"], queries)


def test_the_average_or_the_weights_as_trained(tmp_path):
    config = small.make_config(ema_decay=0.9)
    average, trained = small.make_params(config.model, seed=1), small.make_params(config.model, seed=2)
    # A frozen part is in neither.
    frozen = trained.pop("seg_token")
    run = write_checkpoint(tmp_path / "run", config, params=average, trained=trained)
    for asked, expected in ((None, average), (True, average), (False, trained)):
        out = tmp_path / f"out-{asked}"
        report = export(run, out, use_ema=asked, check=False)
        stored = load_file(out / "model.safetensors")
        np.testing.assert_array_equal(stored["action_queries.weight"], expected["action_queries"])
        np.testing.assert_array_equal(stored["projector.fc3.bias"], expected["vision"]["projector"]["fc3"]["bias"])
        np.testing.assert_array_equal(stored["seg_token.weight"], average["seg_token"])
        assert report.averaged == (asked is not False)
    assert not np.array_equal(frozen, average["seg_token"])


def test_an_average_that_was_not_kept_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="has no moving average"):
        export(checkpoint, tmp_path / "out", use_ema=True)
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten_or_left_half_done(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        export(checkpoint, tmp_path / "taken")

    write = weights_file.write
    # A device on which every write says that the disk is full.
    monkeypatch.setattr(weights_file, "write", lambda path, *rest: write(Path("/dev/full"), *rest))
    with pytest.raises(OutputError, match=r"out cannot be written \(No space left on device\); make room there"):
        export(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    (tmp_path / "taken" / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/out cannot be written \(Not a directory\)"):
        export(checkpoint, tmp_path / "taken" / "file" / "out")


def test_a_checkpoint_without_statistics_is_no_policy(tmp_path):
    run = write_checkpoint(tmp_path / "run", small.make_config(), statistics=None)
    with pytest.raises(ConfigError, match="no statistics of states and actions"):
        export(run, tmp_path / "out")


def perturbed(exported, tmp_path, change):
    """A copy of the export whose tensors went through ``change``."""
    copy = tmp_path / "copy"
    shutil.copytree(exported[0], copy)
    tensors = dict(load_file(copy / "model.safetensors"))
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_the_check_finds_one_changed_tensor(checkpoint, exported, tmp_path, capsys):
    name = "language_model.model.layers.1.self_attn.v_proj.weight"

    def change(tensors):
        tensors[name] = tensors[name] + 1e-2 * np.random.default_rng(0).normal(size=tensors[name].shape).astype("f")

    copy = perturbed(exported, tmp_path, change)
    report = check(checkpoint, copy)
    errors = {row.part: row.relative_error for row in report.rows}
    assert not report.passed
    # Everything in front of the tensor is as it was.
    assert errors["language layer 0"] < 1e-5 < 1e-3 < errors["language layer 1"]
    assert "language layer 1" in report.exceeded and "projector" not in report.exceeded
    command = ["check", "--checkpoint", str(checkpoint), "--json", "--torch"]
    assert convert.main([*command, str(copy)]) == 1
    assert convert.main([*command, str(exported[0])]) == 0
    wrong, right = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert wrong["exceeded"] == list(report.exceeded) and right["passed"]


def test_damaged_exports_are_refused_in_a_sentence(checkpoint, exported, tmp_path):
    lacking = perturbed(exported, tmp_path / "a", lambda tensors: tensors.pop("projector.fc2.bias"))
    surplus = perturbed(exported, tmp_path / "b", lambda tensors: tensors.update(more=np.zeros(3, np.float32)))
    shaped = perturbed(
        exported, tmp_path / "e", lambda tensors: tensors.update({"projector.fc2.bias": np.zeros(3, np.float32)})
    )
    for folder, ours, theirs in (
        (lacking, r"lacks tensor projector\.fc2\.bias of shape \[24\]", r"lacks tensor projector\.fc2\.bias"),
        (surplus, "has a tensor more that the network does not", "surplus tensor more"),
        (shaped, r"projector\.fc2\.bias of shape \[3\], and the network needs \[24\]", "mismatch"),
    ):
        with pytest.raises(SourceError, match=ours):
            check(checkpoint, folder)
        # Whoever has the folder alone is told too.
        with pytest.raises((ValueError, RuntimeError), match=theirs):
            PokeVLA.from_pretrained(str(folder))
    truncated = perturbed(exported, tmp_path / "c", lambda tensors: None)
    with (truncated / "model.safetensors").open("r+b") as file:
        file.truncate((truncated / "model.safetensors").stat().st_size - 100)
    with pytest.raises(SourceError, match="truncated"):
        check(checkpoint, truncated)
    changed = perturbed(exported, tmp_path / "d", lambda tensors: None)
    with (changed / "modeling_pokevla.py").open("a") as file:
        file.write("print('run by whoever loads this')\n")
    with pytest.raises(SourceError, match="not the code that this version exports"):
        check(checkpoint, changed)
    with pytest.raises(SourceError, match="no exported folder"):
        check(checkpoint, tmp_path)


def test_another_network_is_named(exported, tmp_path):
    other = dataclasses.replace(small.make_model(), proprio_dim=9)
    run = write_checkpoint(tmp_path / "run", small.make_config(other))
    with pytest.raises(ConfigError, match=r"config\.model\.proprio_dim is 8 there and 9 here"):
        check(run, exported[0])


@pytest.mark.parametrize("block", ["original", "pro"])
def test_the_layout_of_vla_adapter(block, tmp_path, monkeypatch):
    """What its loader expects, and back again bit by bit."""
    torch = pytest.importorskip("torch")
    config = small.make_config(small.make_vla_adapter(block))
    run = write_checkpoint(tmp_path / "run", config)
    with pytest.raises(ConfigError, match=r"Qwen2\.5's tokenizer"):
        export(run, tmp_path / "out", layout="vla-adapter")
    # Only the tokenizer's name stands in the way of this network.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer="qwen"))
    run = write_checkpoint(tmp_path / "run2", config)
    export(run, tmp_path / "out", layout="vla-adapter")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        *("config.json", "model.safetensors", "action_head--checkpoint.pt", "proprio_projector--checkpoint.pt"),
        "dataset_statistics.json",
    }
    head = torch.load(tmp_path / "out" / "action_head--checkpoint.pt", weights_only=True)
    assert all(name.startswith("module.model.") for name in head)
    assert ("module.model.mlp_resnet_blocks.1.film_gen.0.weight" in head) == (block == "pro")
    report = import_checkpoint([tmp_path / "out"], tmp_path / "back", lambda preset: config)
    assert report.cast == 0
    before = flatten(checkpoints.load_policy_checkpoint(run)[1])
    after = flatten(checkpoints.load_policy_checkpoint(tmp_path / "back")[1])
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, after))


def test_the_layout_of_vla_adapter_needs_its_network(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.model\.seg_token False, and this network has True"):
        export(checkpoint, tmp_path / "out", layout="vla-adapter")
