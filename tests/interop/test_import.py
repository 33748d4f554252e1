"""Whole imports: what goes in comes out under the same names, bit by bit; nothing half-written stays."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from pokevla_jax import checkpoints
from pokevla_jax.checkpoints import CheckpointError
from pokevla_jax.checkpoints import read_carried
from pokevla_jax.data.normalize import ColumnStatistics
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.data.normalize import normalize
from pokevla_jax.data.normalize import unnormalize
from pokevla_jax.interop import names
from pokevla_jax.interop import statistics as statistics_lib
from pokevla_jax.interop.import_torch import import_checkpoint
from pokevla_jax.interop.readers import SourceError
from pokevla_jax.interop.write import OutputError
from pokevla_jax.models import stacking
from pokevla_jax.sharding import flatten
from tests.interop import fakes
from tests.interop import published

ROOT = Path(__file__).resolve().parents[2]
STATISTICS = {
    "libero_spatial_no_noops": {
        "action": {
            **{name: [0.25 * i for i in range(6)] + [0.5] for name in ("mean", "std")},
            "min": [-1.0] * 6 + [0.0],
            "max": [1.0] * 6 + [1.0],
            "q01": [-0.7] * 6 + [0.0],
            "q99": [0.9] * 6 + [1.0],
            "mask": [True] * 6 + [False],
        },
        "proprio": {
            name: [0.1 * i + j for i in range(8)] for j, name in enumerate(("q01", "mean", "std", "min", "max", "q99"))
        },
        "num_transitions": 52_970,
        "num_trajectories": 432,
    }
}


def exported(folder) -> dict[str, np.ndarray]:
    """All tensors of an imported checkpoint by PyTorch's names, through the table's inverse."""
    config, params, _ = checkpoints.load_policy_checkpoint(folder)
    flat = flatten(params)
    tensors = {}
    for entry in names.table(config.model).entries:
        tensors |= dict(entry.to_torch(np.asarray(flat[entry.path])))
    return tensors | read_carried(checkpoints.resolve(folder))


def assert_same(ours, theirs):
    """The same names, types and bits."""
    assert set(ours) >= set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.parametrize("pro", [True, False], ids=["pro", "original"])
def test_vla_adapter_folder_there_and_back(tmp_path, pro):
    config = fakes.make_config(pro=pro)
    given = fakes.write_vla_adapter(tmp_path / "vla", pro=pro, dtype=ml_dtypes.bfloat16)
    (tmp_path / "vla" / "dataset_statistics.json").write_text(json.dumps(STATISTICS))
    seen = []
    report = import_checkpoint(
        [tmp_path / "vla"], tmp_path / "out", lambda _: config, progress=lambda *done: seen.append(done)
    )
    tensors = exported(tmp_path / "out")
    assert_same(tensors, given)
    assert set(tensors) == set(given)
    parts = {part.part: part for part in report.parts}
    assert all(part.fresh == 0 for part in report.parts)
    assert parts["SigLIP"].dtypes == ("bfloat16",)
    assert parts["action head"].dtypes == ("float32",)
    assert report.cast == 0
    assert sum(part.imported + part.carried for part in report.parts) == sum(array.size for array in given.values())
    assert seen == sorted(set(seen)) and seen[-1][0] == seen[-1][1]
    loaded, _, assets = checkpoints.load_policy_checkpoint(tmp_path / "out")
    assert loaded.model == config.model
    statistics = Statistics.from_json(assets.statistics)
    assert statistics_lib.to_dataset_statistics(statistics, "x")["x"]["num_trajectories"] == 432
    # Again, from what was exported: the same once more.
    save_file(tensors, tmp_path / "exported.safetensors")
    import_checkpoint([tmp_path / "exported.safetensors"], tmp_path / "again", lambda _: config)
    assert_same(exported(tmp_path / "again"), tensors)


def test_a_pokevla_starts_from_vla_adapter(tmp_path):
    """What PokeVLA adds inside VLA-Adapter's head is fresh, what it leaves out is carried."""
    config = fakes.with_masks(fakes.make_config())
    segmentation = dataclasses.replace(config.model.segmentation, weight=0.0)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, segmentation=segmentation))
    given = fakes.write_vla_adapter(tmp_path / "vla")
    report = import_checkpoint([tmp_path / "vla"], tmp_path / "out", lambda _: config)
    tensors = exported(tmp_path / "out")
    assert_same(tensors, given)
    fresh = set(tensors) - set(given)
    assert {names.part_of(name) for name in fresh} == {"<SEG> token", "<SEG> in the action head", "learned latents"}
    parts = {part.part: part for part in report.parts}
    assert parts["learned latents"].fresh == 8 * fakes.WIDTH
    head = "action_head.model."
    assert {f"{head}fc1.weight", f"{head}layer_norm1.bias", f"{head}mlp_resnet_blocks.1.film_gen.0.weight"} <= set(
        read_carried(checkpoints.resolve(tmp_path / "out"))
    )


def test_statistics_normalise_as_the_reference_does():
    statistics = statistics_lib.from_dataset_statistics(STATISTICS)
    outputs = np.linspace(-1, 1, 7)[None].repeat(2, axis=0)
    outputs[:, -1] = [0.9, 0.2]  # the released networks say 1 to open and 0 to close
    q01, q99 = (np.array(STATISTICS["libero_spatial_no_noops"]["action"][q]) for q in ("q01", "q99"))
    expected = 0.5 * (outputs + 1) * (q99 - q01 + 1e-8) + q01
    # Their evaluators: to [-1, 1], its sign, and the other way round.
    expected[:, -1] = -np.sign(2 * outputs[:, -1] - 1)
    ours = unnormalize(outputs, statistics.action)
    np.testing.assert_allclose(ours[:, :-1], expected[:, :-1], rtol=1e-6)
    np.testing.assert_array_equal(np.sign(ours[:, -1]), expected[:, -1])
    # And as labels, where a released network is trained on: what LIBERO is told, in the network's terms.
    labels = normalize(np.array([[0.0] * 6 + [gripper] for gripper in (-1, 1)]), statistics.action)
    np.testing.assert_allclose(labels[:, -1], [1, 0], atol=1e-6)
    state = np.linspace(-3, 9, 8)[None]
    low, high = (np.array(STATISTICS["libero_spatial_no_noops"]["proprio"][q]) for q in ("q01", "q99"))
    expected = np.clip(2 * (state - low) / (high - low + 1e-8) - 1, -1, 1)
    np.testing.assert_allclose(normalize(state, statistics.state), expected, rtol=1e-6)


def test_statistics_come_back():
    statistics = statistics_lib.from_dataset_statistics(STATISTICS)
    again = statistics_lib.to_dataset_statistics(statistics, "a")
    assert statistics_lib.from_dataset_statistics(again).to_json() == statistics.to_json()
    released = statistics_lib.to_released_statistics(statistics, "libero_spatial_no_noops")
    entry = STATISTICS["libero_spatial_no_noops"]
    expected = entry | {"proprio": entry["proprio"] | {"mask": [True] * 8}}
    assert released == {"libero_spatial_no_noops": expected}
    with pytest.raises(SourceError, match="no statistics of dataset 'b'; there are those of 'a'"):
        statistics_lib.from_dataset_statistics(again, "b")
    with pytest.raises(SourceError, match=r"of 2 datasets \('a', 'c'\)"):
        statistics_lib.from_dataset_statistics(again | {"c": {}})


def test_statistics_of_a_network_trained_here_serve_the_released_code():
    """Its gripper speaks LIBERO's language, and one of its dimensions hardly moves; released code must do the same."""
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=7) for name in ("mean", "std")} | {"min": -np.ones(7), "max": np.ones(7)}
    q01, q99 = np.full(7, -0.5), np.full(7, 0.7)
    q99[2] = q01[2] + 1e-4
    mask = np.array([True] * 6 + [False])
    column = ColumnStatistics(**values, q01=q01, q99=q99, mask=mask, floor=1e-2)
    released = statistics_lib.to_released_statistics(Statistics(column, column, 1, 1), "x")["x"]["action"]
    outputs = rng.uniform(-1, 1, (5, 7))
    low, high = (np.array(released[q]) for q in ("q01", "q99"))
    theirs = np.where(released["mask"], 0.5 * (outputs + 1) * (high - low + 1e-8) + low, outputs)
    ours = unnormalize(outputs, column)
    np.testing.assert_allclose(theirs[:, :-1], ours[:, :-1], atol=1e-7)
    np.testing.assert_array_equal(-np.sign(2 * theirs[:, -1] - 1), np.sign(ours[:, -1]))
    back = statistics_lib.from_dataset_statistics(
        {"x": {"action": released, "proprio": released, "num_transitions": 1, "num_trajectories": 1}}
    )
    np.testing.assert_allclose(unnormalize(outputs, back.action), ours, atol=1e-7)


def test_any_subset_is_imported_and_the_rest_starts_as_training_would(tmp_path):
    config = fakes.make_config()
    given = fakes.draw(published.projector(20, 24, fakes.WIDTH))
    save_file({f"projector.{name}": array for name, array in given.items()}, tmp_path / "projector.safetensors")
    report = import_checkpoint([tmp_path / "projector.safetensors"], tmp_path / "out", lambda _: config, seed=3)
    _, params, assets = checkpoints.load_policy_checkpoint(tmp_path / "out")
    fresh = flatten(stacking.initialize(config.model, jax.random.key(3)))
    for path, value in flatten(params).items():
        if path.startswith("vision/projector/"):
            assert not np.array_equal(value, fresh[path])
        else:
            np.testing.assert_allclose(value, fresh[path], rtol=1e-6, err_msg=path)
    assert assets.fresh == {path for path in fresh if not path.startswith("vision/projector/")}
    assert {part.part for part in report.parts if part.imported} == {"projector"}
    assert assets.statistics is None
    np.testing.assert_array_equal(params["vision"]["projector"]["fc1"]["kernel"], given["fc1.weight"].T)


def test_types_change_only_when_asked(tmp_path):
    config = fakes.make_config()
    given = fakes.write_vla_adapter(tmp_path / "vla")
    report = import_checkpoint([tmp_path / "vla"], tmp_path / "out", lambda _: config, dtype="bfloat16")
    tensors = exported(tmp_path / "out")
    assert {array.dtype for array in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    for name, array in given.items():
        np.testing.assert_array_equal(tensors[name], array.astype(ml_dtypes.bfloat16))
    assert report.cast == sum(part.imported for part in report.parts)


def test_mixed_types_in_one_parameter_are_refused(tmp_path):
    given = fakes.draw(published.under("language_model.", published.qwen(**fakes.QWEN)))
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    given[name] = given[name].astype(ml_dtypes.bfloat16)
    save_file(given, tmp_path / "a.safetensors")
    with pytest.raises(SourceError, match=r"up_proj.weight .* types bfloat16 and float32, .* --dtype"):
        import_checkpoint([tmp_path / "a.safetensors"], tmp_path / "out", lambda _: fakes.make_config())


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already; give a new folder"):
        import_checkpoint([tmp_path], tmp_path / "out", lambda _: fakes.make_config())


@pytest.mark.multiprocess
@pytest.mark.parametrize("moment", ["parameters", "renaming"])
def test_a_killed_conversion_leaves_nothing_that_looks_whole(tmp_path, moment):
    fakes.write_vla_adapter(tmp_path / "vla")
    program = f"""
        import os, signal, sys
        from etils import epath
        from pathlib import Path
        from tests.interop import fakes
        from pokevla_jax.interop import write
        from pokevla_jax.interop.import_torch import import_checkpoint

        def die(*args):
            os.kill(os.getpid(), signal.SIGKILL)

        def progress(done, total):
            if {moment!r} == "parameters" and done > total / 2:
                die()
        if {moment!r} == "renaming":
            calls = []
            write.check_free = lambda out: calls.append(out) or len(calls) < 3 or die()
        folder = Path({str(tmp_path)!r})
        import_checkpoint([folder / "vla"], folder / "out", lambda _: fakes.make_config(), progress=progress)
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, cwd=ROOT, timeout=300)
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    if moment == "parameters":
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            checkpoints.load_policy_checkpoint(tmp_path / "out.incomplete")
    # Started again, it succeeds and clears what the killed one left.
    import_checkpoint([tmp_path / "vla"], tmp_path / "out", lambda _: fakes.make_config())
    checkpoints.load_policy_checkpoint(tmp_path / "out", preset="tiny")
    assert not (tmp_path / "out.incomplete").exists()


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    fakes.write_vla_adapter(tmp_path / "vla")

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_checkpoint([tmp_path / "vla"], tmp_path / "out", lambda _: fakes.make_config(), progress=fail)
    assert {path.name for path in tmp_path.iterdir()} == {"vla"}


def test_another_preset_is_refused_by_a_policy(tmp_path):
    config = fakes.make_config()
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, preset="pokevla"))
    fakes.write_vla_adapter(tmp_path / "vla")
    import_checkpoint([tmp_path / "vla"], tmp_path / "out", lambda _: other)
    with pytest.raises(CheckpointError, match="holds preset 'pokevla', not 'tiny'"):
        checkpoints.load_policy_checkpoint(tmp_path / "out", preset="tiny")
