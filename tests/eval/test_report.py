"""The page: self-contained, pooled over seeds, honest about what it sets side by side."""

import csv
import html
import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from eval import __main__ as cli
from eval import report
from eval import report_media
from eval.controls import Control
from eval.controls import control_specs
from eval.errors import EvaluationError
from eval.overlays import draw_frames
from eval.overlays import intersection_over_union
from eval.overlays import place_map
from eval.overlays import spread
from eval.report_controls import discoveries
from eval.report_data import load_all
from eval.report_data import load_run
from eval.report_data import load_runs
from eval.report_data import sections
from eval.report_plots import load_training
from eval.report_plots import training_curves
from eval.report_text import headline
from eval.results import RunFolder
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


class Tables(html.parser.HTMLParser):
    """The words of every table cell, row by row, by the table's id."""

    def __init__(self, text):
        super().__init__()
        self.found = {}
        self.row = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.rows = self.found.setdefault(dict(attributes).get("id"), [])
        if tag == "tr":
            self.row = []
            self.rows.append(self.row)
        if tag in ("td", "th"):
            self.row.append("")

    def handle_endtag(self, tag):
        if tag == "tr":
            self.row = None

    def handle_data(self, data):
        if self.row:
            self.row[-1] = f"{self.row[-1]} {data}".strip()


def tables(page):
    """Table id -> rows of cells, their white space made single."""
    return {key: [[" ".join(c.split()) for c in row] for row in rows] for key, rows in Tables(page).found.items()}


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
    (section,) = sections([load_run(RunFolder(tmp_path / name)) for name in "abc"])
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
    (section,) = sections([load_run(RunFolder(tmp_path / name)) for name in order])
    policy, blind = section["groups"]
    assert (policy["runs"], policy["success"], policy["decided"]) == (3, 6, 12)
    assert blind["difference"]["pairs"] == 12
    assert (blind["difference"]["only_a"], blind["difference"]["only_b"]) == (6, 3)
    assert section["layout_seeds"] == [0, 1, 2]


def test_one_control_serves_every_seed_on_the_same_layouts(tmp_path):
    for seed in range(2):
        runs.make_run(tmp_path / f"p{seed}", "SSSF", fingerprint=f"p{seed}")
    runs.make_run(tmp_path / "r", "FFFS", label="random")
    (section,) = sections([load_run(RunFolder(tmp_path / name)) for name in ("p0", "p1", "r")])
    assert section["groups"][1]["difference"]["pairs"] == 8


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    """A LIBERO-Plus run with its ablated and trained controls, and the page, JSON and CSV about it."""
    path = tmp_path_factory.mktemp("plus")
    rng = np.random.default_rng(0)
    episodes = runs.plus_specs(6)
    share = {name: 0.9 - 0.1 * i for i, name in enumerate(runs.CATEGORIES)}
    wins = [rng.random() < share[spec.category] for spec in episodes]
    blind = [win and rng.random() < 0.2 for win in wins]
    words = {True: "success", False: "failure"}
    steps = rng.integers(20, 200, len(episodes)).tolist()
    facts = {"renderer": "robosuite", "assets": "real"}
    runs.write_run(path / "run", episodes, [words[w] for w in wins], steps=steps, simulation=facts)
    for control, label, outcomes in (
        (Control("ablate-images", "ablated"), "ablate-images", [words[b] for b in blind]),
        (Control("blind", "trained", "x"), "blind-trained", ["error", *[words[b] for b in blind[1:]]]),
    ):
        folder = control.folder(path / "run")
        specs = control_specs(control, episodes)
        context = {"control": {"name": control.name, "kind": control.kind}}
        runs.write_run(folder, specs, outcomes, context=context, label=label, simulation=facts)
    assert cli.main(["report", "--run-dir", str(path / "run"), "--no-masks", "--out", str(path / "page.html")]) == 0
    return path


def shown(cell):
    """A rate as the page writes it, written a second time."""
    if cell["success_rate"] is None:
        return "–"
    ends = [f"{100 * end:.0f}" for end in cell["interval95"]]
    text = f"{100 * cell['success_rate']:.0f} % {cell['success']}/{cell['decided']}, {ends[0]} to {ends[1]}"
    if cell.get("clustered95"):
        text += " tasks {:.0f} to {:.0f}".format(*(100 * end for end in cell["clustered95"]))
    if cell["difference"]:
        difference = cell["difference"]
        ends = (difference["difference"], *difference["difference_interval95"])
        text += " {:+d} ({:+d} to {:+d})".format(*(round(100 * end) for end in ends))
    return text


def test_the_page_shows_the_numbers_of_the_json(plus):
    data = json.loads((plus / "page.json").read_text())
    page = (plus / "page.html").read_text()
    (section,) = data["sections"]
    found = tables(page)
    for key, name in (("suites", "suite"), ("categories", "title"), ("tasks", "name")):
        assert section[key]
        assert found[f"{key}-0"][1:] == [[row[name], *map(shown, row["cells"])] for row in section[key]]
        labels = [group["label"] for group in section["groups"]]
        assert found[f"{key}-0"][0][1:] == labels == ["policy", "ablate-images", "blind-trained"]
    ours = section["published"]["ours"][0]
    numbers = [cell["success_rate"] for cell in ours["cells"].values()] + [ours["total"], ours["macro"]]
    row = next(row for row in found["published-0"] if row[0] == "policy")
    assert row[1:-1] == [f"{100 * number:.1f}" for number in numbers]
    assert row[-1] == "not comparable"
    reasons = f"policy is not comparable with the published rows: {'; '.join(ours['unlike'])}."
    assert reasons in " ".join(html.unescape(re.sub("<[^>]*>", "", page)).split())
    published = {row[0]: row[1:10] for row in found["published-0"] if row[0].startswith("PokeVLA")}
    assert published == {"PokeVLA 1.22B": ["84.7", "46.1", "84.8", "94.6", "82.6", "89.8", "77.2", "79.3", "80.0"]}
    for group, row in zip(section["groups"], found["steps-0"][1::2], strict=True):
        part = group["steps"][0]
        assert row[:3] == [group["label"], part["suite"], str(part["successes"])]
        assert row[3:] == [f"{value:.0f}" for value in [*part["quantiles"], part["budget"]]]
    words = " ".join(page.split())
    for group in section["groups"]:
        low, high = (f"{100 * end:.0f}" for end in group["interval95"])
        assert f"{group['success']}/{group['decided']}, {low} to {high} %" in words
        assert f"mean of categories {100 * group['macro']['rate']:.0f} %" in words
    for line in data["headlines"] + data["warnings"] + section["senses"]:
        assert line in html.unescape(words)
    # Every level's rate stands in a chart: one per category, and one per suite for the steps.
    assert page.count("<svg") == 7 + 2


def test_the_csv_holds_the_same_cells(plus):
    data = json.loads((plus / "page.json").read_text())
    (section,) = data["sections"]
    with (plus / "page.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (1 + 2 + 7 * (1 + 5) + 4)
    for index, label in enumerate(("policy", "ablate-images", "blind-trained")):
        mine = [row for row in rows if row["label"] == label]
        cell = section["categories"][2]["levels"][3]["cells"][index]
        (row,) = (r for r in mine if (r["cell"], r["category"], r["level"]) == ("level", "language", "4"))
        assert (int(row["success"]), int(row["decided"])) == (cell["success"], cell["decided"])
        assert float(row["interval95_high"]) == cell["interval95"][1]
        assert (row["difference"] == "") == (label == "policy")
        (total,) = (r for r in mine if r["cell"] == "total")
        assert float(total["success_rate"]) == section["groups"][index]["success_rate"]
        assert total["error"] == ("1" if label == "blind-trained" else "0")


def test_controls_stand_on_the_episodes_of_the_policy(plus):
    """The blind control's error leaves its pair out; what remains agrees with counting by hand."""
    data = json.loads((plus / "page.json").read_text())
    (section,) = data["sections"]
    policy, ablated, blind = section["groups"]
    assert [group["role"] for group in section["groups"]] == ["policy", "ablated", "trained"]
    assert (ablated["difference"]["pairs"], blind["difference"]["pairs"]) == (168, 167)
    assert (blind["error"], blind["episodes"], blind["decided"]) == (1, 168, 167)
    assert section["coverage"]["decided"] == 168
    assert data["warnings"][0].startswith(
        "LIBERO-Plus (libero_spatial, libero_object): 168 of 4,920 episodes. Not run:"
    )
    first, last = section["tasks"][0]["cells"], RunFolder(plus / "run").records().values()
    mine = [r["outcome"] for r in last if (r["suite"], r["task"]) == ("libero_spatial", 0)]
    assert (first[0]["success"], first[0]["decided"]) == (mine.count("success"), len(mine))
    uses, needs = section["senses"]
    assert uses.startswith("Policy uses sight on 4 of 4 tasks (against ablate-images)")
    assert needs.startswith("Sight shown to be needed by 4 of 4 tasks (against blind-trained)")


def test_discoveries_are_corrected_for_their_number():
    """Benjamini and Hochberg by hand: p(i) m / i, from the largest down."""
    values = [0.001, 0.02, 0.04, 0.2, 0.9]
    found = discoveries([{"mcnemar_p": p, "difference": 0.5} for p in values])
    expected = [min(p * 5 / (i + 1) for i, p in enumerate(values) if i >= k) <= 0.05 for k in range(5)]
    assert found == expected == [True, True, False, False, False]
    assert discoveries([{"mcnemar_p": 0.001, "difference": -0.5}]) == [False]


def test_a_control_is_read_once(tmp_path):
    blind = Control("blind", "trained", "x")
    runs.make_run(tmp_path, "SS")
    runs.make_run(tmp_path, "SF", control=blind, label="blind-trained")
    loaded = load_all([str(tmp_path), str(blind.folder(tmp_path))])
    assert [run.label for run in loaded] == ["policy", "blind-trained"]
    assert [run.label for run in load_all([f"new={tmp_path}"])] == ["new", "new, blind-trained"]
    # Two controls of one kind are told apart by their names, and never pooled as seeds.
    runs.make_run(tmp_path, "FF", control=Control("blind2", "trained", "x"), label="blind-trained")
    assert [run.label for run in load_all([str(tmp_path)])] == ["policy", "blind", "blind2"]


def test_failures_come_first_among_the_films(tmp_path):
    runs.make_run(tmp_path / "a", "SSFSFSSS" + "SSSSSSSF", tasks=2)
    runs.make_run(tmp_path / "r", "FF", label="random")
    loaded = [load_run(RunFolder(tmp_path / name)) for name in "ar"]
    for run in loaded:
        for spec in run.folder.specs():
            encode([np.full((16, 16, 3), 99, np.uint8)] * 2, run.folder.video(spec.id), 20)
    films = report_media.videos(loaded, 6)
    assert [(film["label"], film["outcome"]) for film in films] == [
        *[("policy", "failure")] * 3,
        ("policy", "success"),
        *[("random", "failure")] * 2,
    ]
    # Of both tasks before two of one.
    assert [film["prompt"][12:] for film in films[:3]] == ["alphabet soup", "milk", "alphabet soup"]
    assert len(report_media.videos(loaded[:1], 12)) == 12
    assert report_media.videos(loaded, 1)[0]["outcome"] == "failure"


def test_the_page_cannot_take_the_place_of_its_numbers(tmp_path, capsys):
    runs.make_run(tmp_path / "a", "S")
    assert cli.main(["report", "--run-dir", str(tmp_path / "a"), "--out", str(tmp_path / "a.json")]) == 2
    assert "name it .html" in capsys.readouterr().err


def test_labels_can_be_given_and_errors_are_shouted(tmp_path):
    runs.make_run(tmp_path / "a", "SSSE")
    loaded = load_runs(f"no-seg={tmp_path / 'a'}")
    page = report.render(report.collect(loaded), loaded, masks=False)
    assert "no-seg succeeds on 100%" in page
    assert "1 episodes ended in an error and are in no rate (RuntimeError: no)" in page
    assert tables(page)["errors"][1:] == [["no-seg", "moved layouts", "RuntimeError: no", "1"]]


def test_different_simulations_get_no_common_page(tmp_path):
    runs.make_run(tmp_path / "a", "SS")
    runs.make_run(tmp_path / "b", "SF", simulation={"image_size": 256})
    with pytest.raises(EvaluationError, match=r"simulated differently \(simulation image_size: 128, not 256\)"):
        report.collect([load_run(RunFolder(tmp_path / name)) for name in "ab"])


def test_curves_take_the_pages_colours(tmp_path):
    both = [load_training(str(training_run(tmp_path / n, blind=n == "b"))) for n in "ab"]
    assert [run["label"] for run in both] == ["policy", "blind-trained"]
    assert both[0]["facts"]["waiting for data"] == "5.0%"
    charts = training_curves(both)
    assert len(charts) == 4
    assert all(svg.startswith("<svg") and "var(--ink)" in svg for svg in charts)
    assert "held-out mask IoU" in charts[-1]
    assert "KLD" not in "".join(charts)  # nothing was logged of it
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
