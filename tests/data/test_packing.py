import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pokevla_jax.data import packing
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.corpus import open_corpus
from pokevla_jax.data.corpus import write_corpus_shard
from pokevla_jax.data.mixture import Order
from pokevla_jax.data.mixture import Part
from pokevla_jax.data.packing import PackedOrder
from pokevla_jax.data.packing import build_row
from pokevla_jax.data.packing import corpus_parts
from pokevla_jax.data.packing import packed_holdout
from pokevla_jax.data.packing import packed_iterator
from pokevla_jax.data.packing import plan_rows
from pokevla_jax.data.schema import stage1_batch_spec
from pokevla_jax.data.tokenize import CompactTokenizer
from pokevla_jax.data.tokenize import load_tokenizer
from tests.data import corpora

TEMPLATE = "What action should the robot take to {instruction}?"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_corpus(corpora.write(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return CompactTokenizer.from_conversations((t for i in range(60) for t in corpora.sample(i).turns), TEMPLATE)


def ids_of(batch, corpus, tokenizer):
    """The samples of every row, recognised by the number in their question."""
    found = []
    for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
        row = []
        for segment in range(1, segments.max() + 1):
            words = tokenizer.decode([t for t in tokens[segments == segment] if t != tokenizer.pad_id]).split()
            row.append(int(words[words.index("question") + 1].split("<")[0]))
        found.append(row)
    return found


def test_compact_conversations_read_back(tokenizer):
    turns = corpora.sample(3).turns
    ids, is_answer = tokenizer.encode_conversation(turns)
    assert tokenizer.decode([i for i, a in zip(ids, is_answer, strict=True) if a][:4]) == "answer 3 thing"
    assert (
        tokenizer.decode(tokenizer.encode_conversation(("and where", "at (0.003, 0.500)"))[0][4:])
        == "at (0.003, 0.500)"
    )
    prompt, none = tokenizer.encode_conversation(turns[:1])
    assert ids[: len(prompt)] == prompt
    assert not any(none)
    again = CompactTokenizer(tokenizer.to_json()["words"], TEMPLATE)
    assert again.encode_conversation(turns) == (ids, is_answer)


def test_packed_rows_hold_each_conversation_by_itself(corpus, tokenizer):
    config = corpora.config(pack_length=128)
    samples = [corpora.sample(n) for n in (5, 3, 1)]
    row = build_row(config, samples, tokenizer)
    patches = config.model.vision.num_patches
    assert row["segment_ids"].max() == 3
    start = used = 0
    for segment, sample in enumerate(samples, start=1):
        ids, is_answer = tokenizer.encode_conversation(sample.turns)
        here = row["segment_ids"] == segment
        n = len(sample.images) * patches
        np.testing.assert_array_equal(row["positions"][here], np.arange(len(ids) + n))
        np.testing.assert_array_equal(row["tokens"][here][n:], ids)
        np.testing.assert_array_equal(row["image_slots"][here], [*(used * patches + np.arange(n)), *[-1] * len(ids)])
        # Teacher forcing: what is scored at t is what stands at t + 1, and it is an answer's.
        scored = np.flatnonzero(here & row["loss_mask"])
        np.testing.assert_array_equal(row["targets"][scored], row["tokens"][scored + 1])
        assert row["targets"][scored].tolist() == [i for i, a in zip(ids, is_answer, strict=True) if a]
        for index in range(len(sample.images)):
            color = corpora.color_of((5, 3, 1)[segment - 1] + index)
            np.testing.assert_allclose(row["images"][used + index].mean((0, 1)), color, atol=3)
        start, used = start + len(ids) + n, used + len(sample.images)
    assert (row["segment_ids"][start:] == 0).all()
    assert not row["loss_mask"][start - 1 :].any()
    assert not row["images"][used:].any()


def test_images_may_stand_behind_the_first_token(tokenizer):
    config = corpora.config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vision_position="after_first_token"))
    row = build_row(config, [corpora.sample(4)], tokenizer)
    ids, _ = tokenizer.encode_conversation(corpora.sample(4).turns)
    assert row["tokens"][0] == ids[0]
    assert row["image_slots"][:6].tolist() == [-1, 0, 1, 2, 3, -1]
    assert row["tokens"][5] == ids[1]


def test_long_text_is_cut_and_blind_rows_are_black(tokenizer):
    config = corpora.config(pack_length=16, zero_images=True)
    row = build_row(config, [corpora.sample(5)], tokenizer)
    assert (row["segment_ids"] == 1).all()
    assert not row["images"].any()


@pytest.mark.parametrize(("length", "most"), [(64, 5), (40, 2), (200, 64)])
def test_a_plan_shows_each_sample_once_within_the_limits(length, most):
    rng = np.random.default_rng(length)
    lengths, images = rng.integers(1, 40, 500), rng.integers(0, 3, 500)
    samples = rng.permutation(500)
    plan = plan_rows(samples, lengths[samples], images[samples], length, most)
    rows = [plan[r] for r in range(len(plan))]
    assert sorted(np.concatenate(rows).tolist()) == list(range(500))
    assert all(lengths[row].sum() <= length and images[row].sum() <= most and len(row) for row in rows)
    assert plan.padding == pytest.approx(1 - lengths.sum() / (len(rows) * length))


def realistic_mix(rng, n=20_000):
    """Text tokens and images as the paper's corpus has them: long dialogues, short pointing questions, reasoning."""
    pillar = rng.choice(4, n, p=[0.275, 0.286, 0.228, 0.211])
    median = np.array([230, 130, 110, 300])[pillar]
    text = np.clip(rng.lognormal(np.log(median), 0.5), 60, 1790).astype(int)
    # Six of a hundred LLaVA conversations are text only.
    images = np.where((pillar == 0) & (rng.random(n) < 0.06), 0, 1)
    return text + 256 * images, images


def test_padding_stays_below_five_percent_with_a_realistic_mix():
    lengths, images = realistic_mix(np.random.default_rng(0))
    plan = plan_rows(np.arange(len(lengths)), lengths, images, 2048, 6)
    assert plan.padding < 0.05


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_the_sequence_depends_on_seed_epoch_and_step_alone(corpus, tokenizer, process_count):
    """Record ids over three epochs, from any position, for any number of processes."""
    config = corpora.config()
    parts, lengths = corpus_parts(config, corpus, tokenizer)
    order = PackedOrder(parts, lengths, corpus.num_images, config, config.seed)
    steps = sum(len(order.epoch(e)) for e in range(3)) // config.batch_size
    names = {int(sample_id[1:]): i for i, sample_id in enumerate(corpus.ids.to_pylist())}
    rng = np.random.default_rng(process_count)
    for start in [0, *rng.integers(1, steps, 3)]:
        iterators = [
            packed_iterator(
                config, corpus, tokenizer, process_index=i, process_count=process_count, start_step=int(start)
            )
            for i in range(process_count)
        ]
        for step in range(start, min(start + 3, steps)):
            seen = [row for iterator in iterators for row in ids_of(next(iterator), corpus, tokenizer)]
            expected = [order[int(step) * config.batch_size + r] for r in range(config.batch_size)]
            assert [[names[number] for number in row] for row in seen] == [row.tolist() for row in expected]
        for iterator in iterators:
            iterator.close()


@pytest.mark.multiprocess
@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_and_a_restart_change_nothing(corpus, tokenizer, num_workers):
    config = corpora.config()
    plain = packed_iterator(config, corpus, tokenizer)
    expected = [next(plain) for _ in range(5)]
    plain.close()
    data = dataclasses.replace(config.data, num_workers=num_workers)
    iterator = packed_iterator(dataclasses.replace(config, data=data), corpus, tokenizer)
    got = [next(iterator) for _ in range(2)]
    again = packed_iterator(dataclasses.replace(config, data=data), corpus, tokenizer)
    again.set_state(iterator.get_state())
    got += [next(again) for _ in range(3)]
    iterator.close()
    again.close()
    for batch, reference in zip(got, expected, strict=True):
        for key in reference:
            np.testing.assert_array_equal(batch[key], reference[key], err_msg=key)


def test_threads_that_reach_an_epoch_together_see_what_one_sees(monkeypatch):
    lengths, images = realistic_mix(np.random.default_rng(2), n=200)
    parts, config = [Part("some", np.arange(200), 0.3)], corpora.config(pack_length=2048)

    def make():
        return PackedOrder(parts, lengths, images, config, 0)

    alone = make()
    sizes = [len(alone.epoch(e)) for e in range(4)]
    assert len(set(sizes)) > 1, "epochs of one size hide a wrong count of them"
    expected = [alone[g].tolist() for g in range(sum(sizes))]
    # Slow enough for all to be there while the first one packs.
    monkeypatch.setattr(packing, "plan_rows", lambda *arguments: (time.sleep(0.02), plan_rows(*arguments))[1])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(make().__getitem__, range(len(expected))))
    assert [row.tolist() for row in found] == expected


def test_every_epoch_shows_every_training_sample_once(corpus, tokenizer):
    config = corpora.config()
    parts, lengths = corpus_parts(config, corpus, tokenizer)
    order = PackedOrder(parts, lengths, corpus.num_images, config, 0)
    first, second = (np.sort(order.epoch(e).members) for e in range(2))
    np.testing.assert_array_equal(first, np.flatnonzero(~corpus.holdout))
    np.testing.assert_array_equal(first, second)
    assert order.epoch(0).members.tolist() != order.epoch(1).members.tolist()


def test_weights_of_sources_and_pillars_multiply(corpus, tokenizer):
    config = corpora.config(source_weights={"alpha": 2.0, "beta": 0.5}, pillar_weights={"grounding": 0.0})
    parts, _ = corpus_parts(config, corpus, tokenizer)
    counts = {part.name: part.count / len(part.ids) for part in parts}
    assert counts["alpha/general"] == 2
    assert counts["gamma/reasoning"] == 1
    assert counts["alpha/grounding"] == 0
    assert counts["beta/general"] == pytest.approx(0.5, abs=0.15)
    for wrong in ({"source_weights": {"alpa": 1.0}}, {"pillar_weights": {"alpha": 1.0}}):
        with pytest.raises(DataError, match=r"config\.data.*names '"):
            corpus_parts(corpora.config(**wrong), corpus, tokenizer)


@pytest.mark.parametrize("weight", [0.3, 1.0, 1.7, 2.0])
def test_a_fraction_of_a_source_is_another_one_in_the_next_epoch(weight):
    order = Order([Part("a", np.arange(100), weight), Part("b", np.arange(100, 110))], seed=1)
    assert order.num_samples == round(100 * weight) + 10
    epochs = [order.epoch(e) for e in range(10)]
    shown = np.bincount(np.concatenate(epochs), minlength=110)
    # Over ten epochs every sample was shown equally often, up to one.
    assert set(shown[:100]) <= {int(10 * weight), -int(-10 * weight // 1)}
    assert (shown[100:] == 10).all()
    assert epochs[3].tolist() == [order[3 * order.num_samples + i][1] for i in range(order.num_samples)]


def test_an_edited_mixture_begins_where_the_old_one_stopped(corpus, tokenizer, caplog):
    before = packed_iterator(corpora.config(), corpus, tokenizer)
    for _ in range(3):
        next(before)
    state = before.get_state()
    before.close()
    config = corpora.config(source_weights={"alpha": 0.0})
    edited = packed_iterator(config, corpus, tokenizer)
    edited.set_state(state)
    assert "mixture" in caplog.text
    assert edited.step == 3
    batches = [next(edited) for _ in range(4)]
    parts, lengths = corpus_parts(config, corpus, tokenizer)
    order = PackedOrder(parts, lengths, corpus.num_images, config, config.seed + (3 << 32))
    numbers = [int(corpus.ids[int(i)].as_py()[1:]) for i in order[0]]
    assert ids_of(batches[0], corpus, tokenizer)[0] == numbers
    assert {n % 3 for batch in batches for row in ids_of(batch, corpus, tokenizer) for n in row} == {1, 2}
    # And a later restart continues the edited order, not a new one.
    saved = {**edited.get_state(), "step": 5}
    edited.close()
    again = packed_iterator(config, corpus, tokenizer)
    again.set_state(saved)
    np.testing.assert_array_equal(next(again)["tokens"], batches[2]["tokens"])
    again.close()


def test_held_out_samples_are_shown_once_and_never_trained_on(corpus, tokenizer):
    config = corpora.config()
    batches = list(packed_holdout(config, corpus, tokenizer))
    seen = [n for batch in batches for row in ids_of(batch, corpus, tokenizer) for n in row]
    assert sorted(seen) == [9, 19, 29, 39, 49, 59]
    halves = [list(packed_holdout(config, corpus, tokenizer, process_index=i, process_count=2)) for i in range(2)]
    for batch, *split in zip(batches, *halves, strict=True):
        np.testing.assert_array_equal(batch["tokens"], np.concatenate([part["tokens"] for part in split]))
    spec = stage1_batch_spec(config, 4)
    assert {key: (value.shape, value.dtype) for key, value in batches[0].items()} == {
        k: tuple(v) for k, v in spec.items()
    }


def test_a_source_without_a_split_gives_some_of_its_samples(tmp_path, tokenizer):
    numbers = range(40)
    write_corpus_shard(tmp_path, "a", [corpora.sample(n, source="alpha", split="train") for n in numbers])
    write_corpus_shard(tmp_path, "b", [corpora.sample(9, source="beta"), corpora.sample(11, source="beta")])
    corpus = open_corpus(tmp_path)
    chosen = corpus.held_out(0.3)
    assert 3 < chosen[:40].sum() < 25
    assert chosen[40:].tolist() == [True, False]
    assert corpus.held_out(0.0).tolist() == [False] * 40 + [True, False]
    write_corpus_shard(tmp_path, "a2", [corpora.sample(n, source="alpha", split="train") for n in range(40, 50)])
    grown = open_corpus(tmp_path)
    assert grown.held_out(0.3)[:40].tolist() == chosen[:40].tolist()
    config = corpora.config(holdout_fraction=0.3)
    trained = np.concatenate([part.ids for part in corpus_parts(config, corpus, tokenizer)[0]])
    assert sorted(trained.tolist()) == np.flatnonzero(~chosen).tolist()


QWEN = os.environ.get("QWEN_TOKENIZER", "")


@pytest.mark.skipif(not QWEN, reason="QWEN_TOKENIZER names no folder")
def test_qwen_conversations_are_the_reference_s_bytes(tmp_path):
    tokenizer = load_tokenizer(QWEN)
    ids, is_answer = tokenizer.encode_conversation(("What is it? ", " A cup.", "Where?", "(0.412, 0.500)"))
    text = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cup.<|im_end|>\n"
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n(0.412, 0.500)<|im_end|><|endoftext|>"
    )
    inner = tokenizer._tokenizer
    assert inner.decode(ids, skip_special_tokens=False) == text
    assert ids == inner(text)["input_ids"]
    answers = inner.decode([i for i, a in zip(ids, is_answer, strict=True) if a], skip_special_tokens=False)
    assert answers == "A cup.<|im_end|>\n(0.412, 0.500)<|im_end|><|endoftext|>"
    # The prompt of stage 2 is the first question of a conversation.
    assert (
        tokenizer.encode("open it")
        == tokenizer.encode_conversation((tokenizer.prompt_template.format(instruction="open it"),))[0]
    )
    corpus = open_corpus(corpora.write(tmp_path, tokenizer=tokenizer))
    lengths = corpus.text_lengths(tokenizer)
    assert lengths[7] == len(tokenizer.encode_conversation(corpus[7].turns)[0])
    plain = open_corpus(corpora.write(tmp_path / "plain"))
    with pytest.raises(DataError, match="--tokenizer"):
        plain.text_lengths(tokenizer)
