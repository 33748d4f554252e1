"""The ten sources of the paper's corpus, each on small files of its layout."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pokevla_jax.cli import ingest as cli
from pokevla_jax.data.corpus import decode_image
from pokevla_jax.data.corpus import open_corpus
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.grounding import format_points
from pokevla_jax.data.ingest.grounding import normalise_text
from pokevla_jax.data.ingest.jsonstream import iterate_json
from pokevla_jax.data.ingest.sources import CORPORA
from tests.data.ingest import foreign


def run(kind, data, out, *more):
    assert cli.main(["--source", kind, "--data", str(data), "--out", str(out), "--json", *more]) == 0
    corpus = open_corpus(out)
    return [corpus[i] for i in range(len(corpus))]


def make_llava_instruct(root):
    foreign.llava(root)
    return [("q 0", "a 0"), ("q 1", "a 1", "and?", "so (0.5, 0.25)"), ("q 2", "a 2")], [1, 2, 0]


def make_refspatial(root, part, name):
    foreign.save_picture(root / part / "image/7.png", 7)
    talk = foreign.conversation("<image>\nPoint to the cup", "[(0.1234, 0.5), (0.9, 1.25)]")
    foreign.write_json(root / part / name, [{"id": 7, "image": ["7.png"], "depth": ["7.png"], "conversations": talk}])
    return [("Point to the cup", "[(0.123, 0.500)]")], [1]


def make_robopoint(root):
    foreign.save_picture(root / "images/object_ref/1.jpg", 1)
    items = [
        {
            "id": "a",
            "image": "object_ref/1.jpg",
            "conversations": foreign.conversation("<image>\nmug?", "[(0.5, 0.25)]"),
        },
        {"id": "b", "conversations": foreign.conversation("interval?", "it is (3, 12)")},
    ]
    foreign.write_json(root / "robopoint_1432k.json", items)
    return [("mug?", "[(0.500, 0.250)]"), ("interval?", "it is (3, 12)")], [1, 0]


def make_robospatial(root):
    foreign.save_picture(root / "images/scene/1.jpg", 1)
    items = [
        {"image": "scene/1.jpg", "question": "Free space left of the cup?", "answer": "[(0.25, 0.5), (-0.1, 0.5)]"},
        {"img": "scene/1.jpg", "question": "Is it left?", "answer": "yes"},
    ]
    foreign.write_json(root / "context.json", items)
    return [("Free space left of the cup?", "[(0.250, 0.500)]"), ("Is it left?", "yes")], [1, 1]


def make_roborefit(root):
    foreign.save_picture(root / "final_dataset/train/image/0000000.png", 1)
    item = {"num": 0, "text": "the left cup", "bbox": [4, 6, 20, 18]}
    item["rgb_path"] = "final_dataset\\train\\image\\0000000.png"
    foreign.write_json(root / "final_dataset/train/roborefit_train.json", [item])
    # 40 x 24 pixels: 4/40, 6/24, 20/40, 18/24.
    box, point = "(0.100, 0.250, 0.500, 0.750)", "[(0.300, 0.500)]"
    return [(None, box, None, point)], [1]


def make_hova(root, part):
    foreign.save_picture(root / part / "frames/1.jpg", 1)
    heat = np.zeros((60, 100), np.uint8)
    heat[10:13, 70:73] = 255
    (root / part / "GT_gaussian").mkdir()
    Image.fromarray(heat).save(root / part / "GT_gaussian/1.png")
    shared = {"image": f"{part}/frames/1.jpg", "action": "open", "object": "drawer"}
    items = [{**shared, "heatmap": f"{part}/GT_gaussian/1.png"}, {**shared, "points": [[10, 12], [99, 1]]}]
    foreign.write_json(root / f"annotations/{part}.json", items)
    question = "Where should the hand go to open the drawer? Answer with a list of (x, y), in fractions of the image."
    return [(question, "[(0.715, 0.192)]"), (question, "[(0.250, 0.500)]")], [1, 1]


def make_molmoact(root):
    picture = {"bytes": foreign.jpeg_bytes(foreign.picture(3)), "path": "x.jpg"}
    talk = {"from": ["human", "gpt"], "value": ["The task is close the box. What action?", "..."]}
    rows = [
        {
            "primary": picture,
            "wrist": picture,
            "conversations": talk,
            "annotation": "[[1, 256], [128.5, 52], [300, 1]]",
        },
        {"primary": picture, "wrist": picture, "conversations": talk, "annotation": "[[103, 52]]"},
    ]
    (root / "train").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "train/0.parquet", row_group_size=1)
    return [(None, "[(0.000, 1.000), (0.500, 0.200)]"), (None, "[(0.400, 0.200)]")], [1, 1]


def make_cosmos(root):
    foreign.write_video(root / "robovqa/clips/1.mp4", [foreign.picture(n) for n in range(12)])
    content = json.dumps([{"type": "video", "video": "clips/1.mp4"}, {"type": "text", "text": "What is next?"}])
    turns = [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "<think>It is open.</think> Close it."},
    ]
    plain = [{"role": "user", "content": "Done?"}, {"role": "assistant", "content": "No."}]
    foreign.write_json(root / "robovqa/train.json", [{"conversations": turns}])
    (root / "robovqa/z.jsonl").write_text(json.dumps({"video": "clips/1.mp4", "conversations": plain}) + "\n")
    return [("What is next?", "<think>It is open.</think> Close it."), ("Done?", "No.")], [4, 4]


MAKERS = {
    "llava_instruct": make_llava_instruct,
    "refspatial_simulator": lambda root: make_refspatial(root, "Simulator", "metadata.json"),
    "refspatial_2d": lambda root: make_refspatial(root, "2D", "reasoning_template_qa.json"),
    "robopoint": make_robopoint,
    "robospatial": make_robospatial,
    "roborefit": make_roborefit,
    "hova_ego4d": lambda root: make_hova(root, "ego4d"),
    "hova_epic100": lambda root: make_hova(root, "epic100"),
    "molmoact": make_molmoact,
    "cosmos_reason1": make_cosmos,
}
PILLAR = {
    "general": ["llava_instruct"],
    "grounding": ["refspatial_simulator", "robopoint", "robospatial", "roborefit"],
    "affordance": ["hova_ego4d", "hova_epic100", "molmoact"],
    "reasoning": ["refspatial_2d", "cosmos_reason1"],
}


def test_all_ten_sources_are_there():
    assert set(CORPORA) == set(MAKERS) == {name for names in PILLAR.values() for name in names}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_source_is_read_as_its_layout_says(kind, tmp_path):
    (tmp_path / "in").mkdir()
    turns, images = MAKERS[kind](tmp_path / "in")
    samples = run(kind, tmp_path / "in", tmp_path / "out")
    for sample, expected, count in zip(samples, turns, images, strict=False):
        assert len(sample.turns) == len(expected)
        assert all(want in (None, got) for got, want in zip(sample.turns, expected, strict=True))
        assert len(sample.images) == count
        assert kind in PILLAR[sample.pillar]
    assert len(samples) >= len(turns)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    (count,) = manifest["counts"]
    assert (count["source"], count["samples"]) == (kind, len(samples))
    assert manifest["licences"][kind]
    assert all(len(shard["records_sha256"]) == 64 for shard in manifest["shards"].values())


def test_pictures_keep_their_bytes_or_get_the_training_size(tmp_path):
    foreign.llava(tmp_path / "in")
    (sample, *_) = run("llava_instruct", tmp_path / "in", tmp_path / "out")
    assert sample.images[0] == (tmp_path / "in/coco/0.jpg").read_bytes()
    (small, *_) = run("llava_instruct", tmp_path / "in", tmp_path / "small", "--image-size", "20")
    assert decode_image(small, 0).shape == (12, 20, 3)
    np.testing.assert_allclose(decode_image(small, 0).mean(), foreign.picture(0).mean(), atol=3)


def test_frames_of_a_video_are_spread_over_it(tmp_path):
    make_cosmos(tmp_path / "in")
    (sample, *_) = run("cosmos_reason1", tmp_path / "in", tmp_path / "out", "--num-frames", "3")
    for index, number in enumerate((2, 6, 10)):
        np.testing.assert_allclose(decode_image(sample, index)[-4, -4], foreign.picture(number)[-4, -4], atol=8)


def test_own_conversations_and_several_sources_in_one_folder(tmp_path):
    foreign.llava(tmp_path / "in")
    run("llava_instruct", tmp_path / "in", tmp_path / "out")
    mine = ("--annotation", "*.json", "--name", "mine", "--pillar", "grounding", "--licence", "CC0")
    assert len(run("llava", tmp_path / "in", tmp_path / "out", *mine)) == 12
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["pillars"] == {"general": 6, "grounding": 6, "affordance": 0, "reasoning": 0}
    assert manifest["licences"]["mine"] == "CC0"


def test_each_damage_is_named_and_the_rest_is_ingested(tmp_path):
    reasons = foreign.damaged_llava(tmp_path / "in")
    samples = run("robopoint", tmp_path / "in", tmp_path / "out")
    assert [sample.id.split("/")[1] for sample in samples] == ["0", "6", "16"]
    assert samples[0].turns[1] == "[(0.250, 0.500)]"
    summary = json.loads((tmp_path / "out/ingest-robopoint.json").read_text())
    found = {entry["id"].split("/")[1]: entry["reason"] for entry in summary["rejected_samples"]}
    assert found == reasons
    assert summary["rejected"] == len(reasons) == sum(summary["rejected_reasons"].values())


def test_a_truncated_file_gives_what_it_has(tmp_path):
    foreign.llava(tmp_path / "in")
    path = tmp_path / "in/llava_v1_5_mix665k.json"
    path.write_text(path.read_text()[:-150])
    samples = run("llava_instruct", tmp_path / "in", tmp_path / "out")
    assert len(samples) == 4 or len(samples) == 5
    summary = json.loads((tmp_path / "out/ingest-llava_instruct.json").read_text())
    assert summary["rejected_reasons"] == {"truncated shard": 1}
    assert f"after element {len(samples)}" in summary["rejected_samples"][0]["detail"]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_json_is_read_piece_by_piece(tmp_path, chunk, monkeypatch):
    monkeypatch.setattr("pokevla_jax.data.ingest.jsonstream._CHUNK", chunk)
    values = [{"a": '] , \\ [" é'}, [], 12345, "text", {"b": {"c": [1.5, None, True]}}, -3.25e10]
    path = foreign.write_json(tmp_path / "a.json", values)
    assert list(iterate_json(path)) == values
    path.write_text(json.dumps(values, indent=2) + "\n")
    assert list(iterate_json(path)) == values
    path.write_text("[]")
    assert list(iterate_json(path)) == []
    path.write_text("{}")
    with pytest.raises(Reject, match="malformed"):
        list(iterate_json(path))


@pytest.mark.parametrize(
    ("text", "scale", "expected"),
    [
        ("at (0.5, 0.25).", (1, 1), "at (0.500, 0.250)."),
        ("[(0.1, 0.2), (1.1, 0.2), (0.3, 0.4)]", (1, 1), "[(0.100, 0.200), (0.300, 0.400)]"),
        ("[(1.1, 0.2), (0.3, 0.4)]", (1, 1), "[(0.300, 0.400)]"),
        ("[(0.3, 0.4), (-0.1, 0.2)]", (1, 1), "[(0.300, 0.400)]"),
        ("box [10, 20, 30, 40]", (100, 80), "box (0.100, 0.250, 0.300, 0.500)"),
        ("of size (1, 2, 3) at 5", (1, 1), "of size (1, 2, 3) at 5"),
        ("(0, 1)", (1, 1), "(0.000, 1.000)"),
        ("no place", (1, 1), "no place"),
    ],
)
def test_places_in_text_become_fractions(text, scale, expected):
    assert normalise_text(text, scale) == expected


def test_places_outside_leave_nothing_to_learn():
    for text in ("(1.5, 0.2)", "[0.5, 0.2, 0.4, 0.8]", "[(2, 2), (-1, 0)]"):
        with pytest.raises(Reject, match="point outside"):
            normalise_text(text, (1, 1))
    assert format_points([(0.25, -0.0)]) == "[(0.250, 0.000)]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "llava_instrukt"], "did you mean llava_instruct"),
        (["--source", "llava"], "needs --annotation, --name, --pillar and --licence"),
        (["--source", "robopoint"], "robopoint\\*.json found"),
        (["--source", "robopoint", "--workers", "0"], "--workers 0 is too small"),
        (["--source", "rlds", "--robot", "libero_rds"], "did you mean libero_rlds"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, message, tmp_path, capsys):
    import re

    assert cli.main([*arguments, "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
