"""The corpus from real simulated frames: geometry against masks, repeatable, resumable, the same from two processes."""

import json

import cv2
import numpy as np
import pytest

from pokevla_jax.cli import corpus as cli
from pokevla_jax.data.codec import decode_jpeg
from pokevla_jax.data.corpus import encode_sample
from pokevla_jax.data.corpus import open_corpus
from pokevla_jax.sim.corpus import samples
from pokevla_jax.sim.corpus import states
from pokevla_jax.sim.corpus.chains import workspace
from pokevla_jax.sim.corpus.episodes import Episode
from pokevla_jax.sim.corpus.observe import Observer
from pokevla_jax.sim.experts.expert import ScriptedExpert

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def seen(soup_environment):
    """A chain and the begin of an expert's episode of the first libero_object task."""
    return {layout: list(states.looks(soup_environment, 5, layout, 3)) for layout in (0, 1)}


def test_known_points_project_into_the_mask(seen):
    """Surface points of the simulator's collision shapes, whatever the renderer drew."""
    checked = 0
    for look in seen[0] + seen[1]:
        view = look.frame.views["agentview"]
        for thing in look.frame.visible("agentview").values():
            mask = view.mask(thing.labels)
            corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
            places = view.project(thing.center + corners * thing.half)
            x1, y1, x2, y2 = np.concatenate([places.min(0), places.max(0)])
            # What is seen of a thing lies within the outline of its box: two pixels for the drawn surface.
            found = [value * 128 for value in (*_box(mask),)]
            assert found[0] >= x1 * 128 - 2
            assert found[1] >= y1 * 128 - 2
            assert found[2] <= x2 * 128 + 2
            assert found[3] <= y2 * 128 + 2
            # Nothing hides the centre: then its pixel is the thing's.
            (middle,) = view.project(thing.center[None])
            u, v = (middle * 128).astype(int)
            if thing.name != "basket_1" and 0 <= u < 128 and 0 <= v < 128:
                front = np.linalg.norm(thing.center - view.base_from_camera[:3, 3]) - np.linalg.norm(thing.half)
                hidden = np.linalg.norm(view.points[v, u] - view.base_from_camera[:3, 3]) < front
                assert mask[v, u] or hidden
                checked += bool(mask[v, u])
            # And the pixels' places, from the depth, lie on the thing.
            gap = np.abs(view.points[mask] - thing.center) - thing.half
            assert np.quantile(gap.max(1), 0.95) < 0.012
    assert checked >= 15


def _box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 128


def test_the_pictures_left_is_the_robots_left(seen):
    view = seen[0][0].frame.views["agentview"]
    left, right = view.project(np.array([[0.5, 0.1, 0.0], [0.5, -0.1, 0.0]]))
    assert left[0] < right[0]


def test_frames_are_repeatable_and_differ(soup_environment, seen):
    again = list(states.looks(soup_environment, 5, 0, 3))
    for look, other in zip(seen[0], again, strict=True):
        for view in ("agentview", "wrist"):
            np.testing.assert_array_equal(look.frame.views[view].image, other.frame.views[view].image)
            np.testing.assert_array_equal(look.frame.views[view].labels, other.frame.views[view].labels)
    images = [look.frame.views["agentview"].image for looks in seen.values() for look in looks]
    for i, image in enumerate(images):
        for other in images[:i]:
            assert (np.abs(image.astype(int) - other).max(-1) > 30).mean() > 0.003


def test_objects_rest_on_the_floor(seen):
    for look in seen[0]:
        frame = look.frame
        for thing in frame.things.values():
            if thing.inside is None and thing.name != frame.held:
                assert thing.bottom == pytest.approx(frame.surface, abs=0.006)


def test_branching_leaves_the_episode_as_it_was(soup_environment):
    """An episode that is looked at, branches included, goes on as if nobody had looked."""
    observer = Observer(soup_environment, workspace(soup_environment))
    ends, outcomes = [], []
    for branches in (False, True):
        episode = Episode(soup_environment, observer, np.random.default_rng(0), "x", 1)
        episode.start()
        expert = ScriptedExpert(soup_environment)
        for step in range(60):
            if branches and step % 6 == 5:
                outcomes += episode._branches()
            episode.step(expert.act())
        ends.append(soup_environment.proprio())
    assert outcomes
    np.testing.assert_allclose(ends[0], ends[1], atol=2e-3)


@pytest.mark.slow
def test_the_command_makes_a_corpus(tmp_path, capsys, libero_assets):
    """By one process and by two: the same bytes; one shard lost: only that is made; other settings: refused."""
    options = [
        "--suites",
        "libero_object,libero_goal",
        "--tasks",
        "3",
        "--layouts",
        "2",
        "--frames",
        "3",
        "--seed",
        "3",
    ]
    assert cli.main([*options, "--out", str(tmp_path / "one"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames"] == 12 - 3 * summary["rejected"]
    assert cli.main([*options, "--out", str(tmp_path / "two"), "--workers", "2", "--json"]) == 0
    capsys.readouterr()
    one, two = open_corpus(tmp_path / "one"), open_corpus(tmp_path / "two")
    assert [header["records_sha256"] for header in one.headers] == [header["records_sha256"] for header in two.headers]
    for index in range(len(one)):
        assert encode_sample(one[index]) == encode_sample(two[index])
        labels = one[index].labels
        if "mask" in labels:
            mask = cv2.imdecode(np.frombuffer(labels["mask"], np.uint8), cv2.IMREAD_UNCHANGED)
            assert mask.shape == decode_jpeg(one[index].images[-1], "image").shape[:2]
    assert {path.name for path in (tmp_path / "one").glob("*.png")} == {
        f"sheet-{pillar}.png" for pillar in samples.PER_FRAME
    }
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["held_out"][samples.SOURCE]["tasks"]["libero_object"] == [4]
    (tmp_path / "one" / f"{one.shards[0]}.parquet").unlink()
    assert cli.main([*options, "--out", str(tmp_path / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused_shards"] == 1
    again = open_corpus(tmp_path / "one")
    assert [header["records_sha256"] for header in again.headers] == [h["records_sha256"] for h in one.headers]
    assert cli.main([*options[:-1], "4", "--out", str(tmp_path / "one")]) != 0
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layouts", "0"], "--layouts 0 is too small"),
        (["--suites", "libero_gaol"], "did you mean libero_goal"),
        (["--suites", "libero_90"], "not for libero_90"),
    ],
)
def test_bad_options_are_answered_in_one_sentence(tmp_path, capsys, options, message):
    assert cli.main(["--out", str(tmp_path), *options]) != 0
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
