"""Stage 1 on synthetic packs: packing changes nothing, padding and questions do not count, what is frozen stays."""

import dataclasses

import jax
import numpy as np
import pytest

from pokevla_jax import checkpoints
from pokevla_jax import sharding
from pokevla_jax.cli import train as cli
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.config import DataConfig
from pokevla_jax.config import MeshConfig
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.config import validate
from pokevla_jax.data import tokenize
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.schema import fake_batch
from pokevla_jax.models import pokevlm
from pokevla_jax.models import stacking
from pokevla_jax.training import init_from
from pokevla_jax.training import stages
from pokevla_jax.training import state as state_lib
from pokevla_jax.training import step as step_lib
from pokevla_jax.training.metrics import read_metrics
from pokevla_jax.training.optimizer import make_optimizer
from tests.data import corpora
from tests.data import synthetic
from tests.models.conftest import micro_config
from tests.training.test_stage2 import CONFIG as QUICKSTART
from tests.training.test_stage2 import MICRO

# Rows of 40 tokens and two images of 4 patches: two conversations of up to 16 words.
CONFIG = Config(
    model=dataclasses.replace(micro_config(), logits_chunk=16),
    stage="vlm",
    data=DataConfig(pack_length=40, pack_images=2),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=1),
    mesh=MeshConfig(data=1),
    batch_size=4,
    num_steps=20,
)


def objective(**optimizer):
    return stages.make_objective(
        dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, **optimizer))
    )


@pytest.fixture(scope="module")
def params():
    return jax.device_get(stacking.initialize(CONFIG.model, jax.random.key(0), stacking.Variant("vlm")))


@pytest.fixture(scope="module")
def sums(params):
    """``(batch) -> (sum of losses, tokens)`` of the fixed parameters."""
    measure = jax.jit(objective().measure)
    return lambda batch: [float(x) for x in measure(params, batch)["token_loss"]]


def alone(batch, row, conversation):
    """One conversation of a packed batch in a row of its own, the rest padding."""
    empty = {name: np.zeros_like(x[:1]) for name, x in batch.items()}
    empty["image_slots"][:] = -1
    where = np.flatnonzero(batch["segment_ids"][row] == conversation)
    own = slice(0, len(where))
    for name in ("tokens", "positions", "targets", "loss_mask"):
        empty[name][0, own] = batch[name][row, where]
    empty["segment_ids"][0, own] = 1
    slots, patches = batch["image_slots"][row, where], CONFIG.model.vision.num_patches
    # Its image is the first of its new row.
    empty["image_slots"][0, own] = np.where(slots < 0, -1, slots - (conversation - 1) * patches)
    empty["images"][0, 0] = batch["images"][row, conversation - 1]
    return empty


def test_packed_conversations_have_the_losses_of_separate_rows(sums):
    batch = fake_batch(CONFIG, 1)
    parts = [alone(batch, 0, conversation) for conversation in (1, 2)]
    separate = np.sum([sums(part) for part in parts], axis=0)
    np.testing.assert_allclose(sums(batch), separate, rtol=1e-5)
    assert separate[1] == batch["loss_mask"].sum() > 4


def test_padding_questions_and_unused_images_do_not_count(sums):
    batch = fake_batch(CONFIG, 1)
    base = sums(batch)
    changed = {name: x.copy() for name, x in batch.items()}
    padding = batch["segment_ids"] == 0
    assert padding.any()
    changed["tokens"][padding] = 7
    changed["targets"][~batch["loss_mask"]] = 3
    assert sums(changed) == pytest.approx(base, rel=1e-6)
    changed["tokens"][0, np.flatnonzero(batch["loss_mask"][0])[0]] += (
        1  # an answer's own word: everything behind sees it
    )
    assert sums(changed)[0] != pytest.approx(base[0], rel=1e-6)


def test_images_reach_the_positions_of_their_slots():
    vision = np.float32(np.random.default_rng(0).normal(size=(2, 8, 3)))
    slots = np.array([[-1, 7, 0, -1], [4, 5, -1, 4]])
    filled = pokevlm.fill_slots(vision, slots)
    expected = np.where(slots[..., None] < 0, 0, np.take_along_axis(vision, np.maximum(slots, 0)[..., None], axis=1))
    np.testing.assert_array_equal(filled, expected)


def run(steps=2, **optimizer):
    """Final state and scalars of every step on one device."""
    config = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, **optimizer))
    objective = stages.make_objective(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    tx = make_optimizer(config.optimizer, config.num_steps)
    factory = state_lib.StateFactory(objective, config.optimizer, tx, mesh)
    spec = step_lib.abstract_batch(batch_spec(config, config.batch_size), mesh)
    step = step_lib.make_train_step(objective, config, tx, mesh, factory.abstract, spec)
    state, history = factory.initialize(0), []
    for i in range(steps):
        batch = fake_batch(config, config.batch_size, seed=i % 2)
        state, scalars = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
        history.append(jax.device_get(scalars))
    return state, history


def test_the_loss_falls_with_frozen_towers_and_accumulation_weighs_by_tokens():
    freeze = ("vision/(dinov2|siglip)/.*",)
    state, history = run(12, freeze=freeze, frozen_dtype="bfloat16", moment_dtype="bfloat16")
    losses = [float(scalars["loss"]) for scalars in history]
    assert losses[0] == pytest.approx(np.log(CONFIG.model.language.vocab_size), rel=0.1)
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])
    frozen = sharding.flatten(state.frozen)
    assert all(name.startswith(("vision/dinov2/", "vision/siglip/")) for name in frozen)
    assert {x.dtype.name for name, x in frozen.items() if name.endswith("kernel")} == {"bfloat16"}
    assert {x.dtype.name for name, x in frozen.items() if "norm" in name} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(state.opt_state[1][0].mu)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(state.opt_state[1][0].nu)} == {"float32"}
    # Rows of different numbers of answer tokens: the mean of means would be another loss.
    _, accumulated = run(1, freeze=freeze, frozen_dtype="bfloat16", moment_dtype="bfloat16", accumulation_steps=4)
    for name, value in accumulated[0].items():
        np.testing.assert_allclose(value, history[0][name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_with_adapters_only_they_and_what_is_not_frozen_move():
    state, history = run(3, lora_rank=2, lora_alpha=4.0, freeze=("vision/.*", "language/.*"), frozen_dtype="bfloat16")
    trained = sharding.flatten(state.trained)
    assert all(name.endswith(("lora_a", "lora_b")) for name in trained)
    assert all(np.abs(x).max() > 0 for name, x in trained.items() if name.endswith("lora_b"))
    assert state_lib.num_bytes(state.opt_state) == 2 * state_lib.num_bytes(state.trained) + 8
    assert history[2]["loss"] < history[0]["loss"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folder of a run of a few steps through the command."""
    folder = tmp_path_factory.mktemp("pretrained")
    corpus = corpora.write(folder / "corpus")
    changes = MICRO | {
        "stage": "vlm",
        "data.path": corpus,
        "data.pack_length": 64,
        "data.pack_images": 3,
        "model.language.vocab_size": 1200,
        "batch_size": 8,
        "num_steps": 4,
        "log_every": 2,
        "eval_every": 4,
    }
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        arguments = [f"--config={QUICKSTART}", f"--workdir={folder / 'run'}", *overrides]
        assert cli.main(arguments) == 0
    return folder / "run"


def test_the_command_trains_on_a_corpus_and_leaves_a_start_for_a_policy(pretrained):
    lines = read_metrics(pretrained)
    losses = [line["loss/tokens"] for line in lines if line["split"] == "train"]
    assert losses[0] == pytest.approx(np.log(1200), rel=0.2)
    (holdout,) = (line for line in lines if line["split"] == "holdout")
    assert holdout["token_loss"] < losses[0]
    config, params, assets = checkpoints.load_policy_checkpoint(pretrained, "best")
    assert params.keys() == {"vision", "language"}
    assert assets.tokenizer_json["kind"] == "compact"
    policy = dataclasses.replace(config, stage="vla")
    started, report = init_from.load([pretrained], policy, stages.make_objective(policy))
    np.testing.assert_array_equal(started["language"]["norm"]["scale"], params["language"]["norm"]["scale"])
    assert "fresh: action_head" in report


def test_a_policy_starts_with_the_words_that_both_know(pretrained):
    """Whatever their ids, and however large the vocabularies."""
    config, params, assets = checkpoints.load_policy_checkpoint(pretrained)
    language = dataclasses.replace(config.model.language, vocab_size=20)
    policy = dataclasses.replace(config, stage="vla", model=dataclasses.replace(config.model, language=language))
    known = tokenize.from_json(assets.tokenizer_json)
    own = tokenize.CompactTokenizer.from_corpus(["question the thing here"], "{instruction}")
    started, report = init_from.load([pretrained], policy, stages.make_objective(policy), own.to_json())
    table, source = started["language"]["embed_tokens"], params["language"]["embed_tokens"]
    assert table.shape[0] == 20
    fresh = stages.make_objective(policy).initialize(jax.random.key(policy.seed))["language"]["embed_tokens"]
    words = ("<pad>", "<unk>", "<bos>", "question", "thing", "here")
    for word in words:
        np.testing.assert_array_equal(table[own.tokens.index(word)], source[known.tokens.index(word)])
    for index in (own.tokens.index("the"), 19):
        np.testing.assert_array_equal(table[index], fresh[index])
    assert f"embeddings by word: {len(words)} of {own.vocab_size}, the others fresh" in report
    released = {"kind": "qwen", "path": "somewhere", "fingerprint": "", "prompt_template": "{instruction}"}
    with pytest.raises(checkpoints.CheckpointError, match="of kind 'compact', this run one of kind 'qwen'"):
        init_from.load([pretrained], policy, stages.make_objective(policy), released)
    with pytest.raises(checkpoints.CheckpointError, match="language/embed_tokens is 1200x128 there and 20x128 here"):
        init_from.load([pretrained], policy, stages.make_objective(policy))


@pytest.mark.slow
def test_a_policy_trains_on_from_it(pretrained, tmp_path, capsys):
    dataset = synthetic.write(tmp_path / "balls", num_episodes=4)
    changes = MICRO | {"data.path": dataset, "batch_size": 8, "num_steps": 2, "eval_every": 2, "log_every": 1}
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    arguments = [f"--config={QUICKSTART}", f"--workdir={tmp_path / 'run'}", *overrides]
    assert cli.main([*arguments, f"--init-from={pretrained}"]) == 0
    said = capsys.readouterr().out
    assert "embeddings by word: " in said and "fresh: action_head" in said
    # Its vocabulary is its own: a policy that is loaded reads its instructions with it.
    _, params, assets = checkpoints.load_policy_checkpoint(tmp_path / "run")
    assert tokenize.from_json(assets.tokenizer_json).end_ids == ()
    assert params["language"]["embed_tokens"].shape[0] == 256


def test_rows_too_short_for_their_images_are_refused():
    with pytest.raises(ConfigError, match="pack_length 8 leaves no room for text beside pack_images 2 x 4 patches = 8"):
        validate(dataclasses.replace(CONFIG, data=DataConfig(pack_length=8, pack_images=2)))


def test_its_parameters_are_a_part_of_the_policy():
    policy = sharding.flatten(stacking.abstract_params(CONFIG.model))
    own = sharding.flatten(stacking.abstract_params(CONFIG.model, stacking.Variant("vlm")))
    assert own.keys() == {name for name in policy if name.startswith(("vision/", "language/"))}
