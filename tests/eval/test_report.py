"""The page: self-contained, pooled over seeds, honest about what it sets side by side."""

import html.parser
import json

import numpy as np
import pytest
from PIL import Image

from eval import __main__ as cli
from eval import report
from eval.errors import EvaluationError
from eval.overlays import draw_frames
from eval.overlays import intersection_over_union
from eval.overlays import place_map
from eval.overlays import spread
from eval.report_data import headline
from eval.report_data import load_run
from eval.report_data import sections
from eval.report_plots import load_training
from eval.report_plots import training_curves
from eval.videos import encode
from pokevla_jax.data.transforms import Window
from tests import policy_checkpoint as fake
from tests.eval import runs
from tests.eval import toy


class References(html.parser.HTMLParser):
    """Collects everything that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "xlink:href", "poster", "data")]


def training_run(path, *, blind=False, lines=5):
    path.mkdir()
    config = {
        "data": {"zero_images": blind, "zero_language": False},
        "batch_size": 16,
        "seed": 0,
        "model": {"preset": "tiny"},
    }
    (path / "config.json").write_text(json.dumps(config))
    speeds = {"samples_per_second": 80.0, "step_seconds": 0.19, "data_wait_seconds": 0.01}
    rows = [
        {"step": 10 * i, "split": "train", "loss": 1 / (i + 1), "loss/action": 0.5 / (i + 1), **speeds}
        for i in range(lines)
    ]
    rows += [{"step": 40, "split": "holdout", "action_error": 0.1, "mask_iou": 0.7}]
    (path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_the_page_fetches_nothing_and_shows_everything(tmp_path, capsys):
    folder = runs.make_run(tmp_path / "policy", "SSSF")
    runs.make_run(tmp_path / "blind", "FFFS", label="blind-trained")
    for spec in folder.specs()[2:]:
        encode([np.full((32, 32, 3), 99, np.uint8)] * 4, folder.video(spec.id), 20)
    command = ["report", "--run-dir", str(tmp_path / "policy"), "--run-dir", str(tmp_path / "blind"), "--no-masks"]
    command += ["--workdir", str(training_run(tmp_path / "train")), "--out", str(tmp_path / "out" / "report.html")]
    assert cli.main(command) == 0
    assert "report.html" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    references = References(page)
    assert references.found
    assert all(value.startswith(("data:", "#")) for value in references.found)
    assert "url(http" not in page
    assert references.tags.count("video") == 2
    assert "svg" in references.tags
    for text in ("75 %", "blind-trained", "not comparable with published numbers", "python -m eval run --policy x"):
        assert text in page


def test_the_headline_states_rate_control_and_paired_difference(tmp_path):
    runs.make_run(tmp_path / "a", "SSSSSSSSFF")
    runs.make_run(tmp_path / "b", "SFFFFFFFFF", label="blind-trained")
    runs.make_run(tmp_path / "c", "FFFFFFFFFF", label="random")
    (section,) = sections([load_run(str(tmp_path / name)) for name in "abc"])
    text = headline(section)
    assert "The policy succeeds on 80% (8/10, 95 % interval 49% to 94%) of layouts it never saw" in text
    assert "trained blind on 10% (1/10" in text
    low, high = (round(100 * x) for x in section["groups"][1]["difference"]["difference_interval95"])
    assert f"a paired difference of +70 points ({low:+d} to {high:+d})" in text
    assert "Random 0%" in text


def test_seeds_are_pooled_and_paired_with_their_own_control(tmp_path):
    for seed, outcomes in enumerate(("SSSF", "SSFF", "SFFF")):
        runs.make_run(tmp_path / f"p{seed}", outcomes, layout_seed=seed, fingerprint=f"p{seed}")
        runs.make_run(tmp_path / f"b{seed}", "FFFS", layout_seed=seed, label="blind-trained")
    order = ("p0", "p1", "p2", "b2", "b0", "b1")
    (section,) = sections([load_run(str(tmp_path / name)) for name in order])
    policy, blind = section["groups"]
    assert (policy["runs"], policy["success"], policy["decided"]) == (3, 6, 12)
    assert blind["difference"]["pairs"] == 12
    assert (blind["difference"]["only_a"], blind["difference"]["only_b"]) == (6, 3)
    assert section["layout_seeds"] == [0, 1, 2]


def test_one_control_serves_every_seed_on_the_same_layouts(tmp_path):
    for seed in range(2):
        runs.make_run(tmp_path / f"p{seed}", "SSSF", fingerprint=f"p{seed}")
    runs.make_run(tmp_path / "r", "FFFS", label="random")
    (section,) = sections([load_run(str(tmp_path / name)) for name in ("p0", "p1", "r")])
    assert section["groups"][1]["difference"]["pairs"] == 8


def test_labels_can_be_given_and_errors_are_shouted(tmp_path):
    runs.make_run(tmp_path / "a", "SSSE")
    page = report.build([load_run(f"no-seg={tmp_path / 'a'}")], masks=False)
    assert "no-seg succeeds on 100%" in page
    assert "1 episodes ended in an error and are in no rate (RuntimeError: no)" in page


def test_different_simulations_get_no_common_page(tmp_path):
    runs.make_run(tmp_path / "a", "SS")
    runs.make_run(tmp_path / "b", "SF", simulation={"image_size": 256})
    with pytest.raises(EvaluationError, match=r"simulated differently \(simulation image_size: 128, not 256\)"):
        report.build([load_run(str(tmp_path / name)) for name in "ab"], masks=False)


def test_curves_take_the_pages_colours(tmp_path):
    both = [load_training(str(training_run(tmp_path / n, blind=n == "b"))) for n in "ab"]
    assert [run["label"] for run in both] == ["policy", "blind-trained"]
    assert both[0]["facts"]["waiting for data"] == "5.0%"
    svg = training_curves(both)
    assert svg.startswith("<svg")
    assert "var(--ink)" in svg
    assert "held-out mask IoU" in svg
    assert "KLD" not in svg  # nothing was logged of it
    with pytest.raises(EvaluationError, match=r"no training run: it has no config.json"):
        load_training(str(tmp_path))


def test_frames_come_from_as_many_tasks_as_there_are():
    specs = runs.specs(5, tasks=2)
    assert [(s.task, s.layout.index) for s in spread(specs, 4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_predicted_maps_are_placed_where_the_network_looked():
    window = Window(0.25, 0.25, 0.5)
    placed = place_map(np.ones((4, 4), np.float32), window, 16)
    inside = np.zeros((16, 16))
    inside[4:12, 4:12] = 1
    np.testing.assert_array_equal(placed, inside)
    whole = place_map(np.eye(4, dtype=np.float32), Window(), 4)
    np.testing.assert_allclose(whole, np.eye(4), atol=1e-6)
    assert intersection_over_union(inside > 0, inside > 0) == 1
    assert intersection_over_union(inside > 1, inside > 1) is None


def test_mask_frames_show_what_the_policy_looked_at(tmp_path):
    class Policy(toy.ToyPolicy):
        config = fake.make_config()

        def predict_masks(self, observations):
            return np.ones((len(observations), 2, 8, 8), np.float32)

    entries = draw_frames(Policy(), toy.ToyScenes(), [toy.toy_spec(0, 0, max_steps=40)], tmp_path)
    assert [entry["look"] for entry in entries] == [0]  # the toy's goal is reached before the fifth look
    image = Image.open(tmp_path / entries[0]["file"])
    assert image.size == (4 * 2 * 8, 2 * 8)
    # The toy's true mask is the left half; the prediction covers the window.
    assert entries[0]["iou"]["agentview"] == pytest.approx(0.5, abs=0.1)
