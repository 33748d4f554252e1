"""Each perturbation's numbers against those of the benchmark's own code, which was run elsewhere.

``golden.json`` and ``noise.npz`` hold what LIBERO-plus at commit 4976dc3 computes: cameras by ``_setup_camera`` of its
scene classes, instructions by ``grab_language_from_filename``, and noise by the functions of its ``env_wrapper`` (with
scikit-image 0.25.2, Wand 0.6.13 and ImageMagick 6.9.11-60) on ``picture``, seeded with 1000 + number, every eighth
pixel of the result from the fourth on.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pokevla_jax.sim import bddl
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.plus import noise
from pokevla_jax.sim.plus.camera import PIVOT
from pokevla_jax.sim.plus.camera import agentview_pose
from pokevla_jax.sim.plus.language import prompt
from pokevla_jax.sim.plus.metadata import SUITES
from pokevla_jax.sim.plus.metadata import open_metadata
from pokevla_jax.sim.plus.names import View
from pokevla_jax.sim.plus.robot_pose import HOME
from pokevla_jax.sim.plus.robot_pose import joint_positions
from tests import plus_metadata

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden.json").read_text())


# -- camera ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["cameras"])
def test_camera_poses_are_the_benchmarks(case):
    problem, *numbers = case.split()
    pose = agentview_pose(problem, View(*map(int, numbers)))
    assert np.concatenate(pose).tolist() == GOLDEN["cameras"][case]


def test_all_camera_poses_are_the_benchmarks():
    metadata = plus_metadata.real_metadata()
    lines = []
    for suite in SUITES:
        for task in metadata.tasks(suite):
            if task.perturbation.category != "camera":
                continue
            pose = agentview_pose(bddl.problem_name(task.base_task.bddl_file), task.perturbation.view)
            lines.append(f"{suite} {task.name} " + " ".join(f"{value:.4f}" for value in np.concatenate(pose)))
    text = "\n".join(lines).replace("-0.0000", "0.0000")
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN["all_cameras_sha256"]


def test_moving_a_camera_means_what_it_says():
    problem = "libero_tabletop_manipulation"
    (position, _), (turned, _) = (agentview_pose(problem, View(azimuth=a)) for a in (0, 90))
    np.testing.assert_allclose(turned, [-position[1], position[0], position[2]], atol=1e-4)
    far, _ = agentview_pose(problem, View(distance=150))
    np.testing.assert_allclose(far - PIVOT, 1.5 * (position - PIVOT), atol=1e-4)
    raised, _ = agentview_pose(problem, View(elevation=15))
    assert raised[2] > position[2] + 0.1
    np.testing.assert_allclose(np.linalg.norm(raised - PIVOT), np.linalg.norm(position - PIVOT), atol=1e-4)
    for view in (View(yaw=5), View(pitch=355)):
        stays, looks_elsewhere = agentview_pose(problem, view)
        np.testing.assert_array_equal(stays, position)
        assert not np.allclose(looks_elsewhere, agentview_pose(problem, View())[1], atol=1e-3)
    with pytest.raises(SimulationError, match="Unknown scene class"):
        agentview_pose("libero_garden", View())


# -- robot -----------------------------------------------------------------------------------------------------------


def test_start_postures_are_the_benchmarks():
    written = [-0.18709501, -0.02687769, 0.14588571, -2.66422046, -0.22103452, 2.19240544, 0.50711094]
    assert joint_positions(450).tolist() == written
    every = [joint_positions(number).tolist() for number in range(1, 501)]
    digest = hashlib.sha256(json.dumps(every).encode()).hexdigest()
    assert digest == "22db9dc4f6e399ca47f3cf1b484de16d8b35584fdff96ea2c39ffce34ed8b1fb"
    distances = np.linalg.norm(np.array(every) - HOME, axis=1)
    np.testing.assert_allclose(distances, np.repeat([0.1, 0.2, 0.3, 0.4, 0.5], 100), atol=1e-7)
    np.testing.assert_array_equal(joint_positions(0), HOME)
    for number in (-1, 501):
        with pytest.raises(SimulationError, match="start postures 0 to 500"):
            joint_positions(number)


# -- language --------------------------------------------------------------------------------------------------------


def test_instructions_clean_and_official(tmp_path):
    metadata = open_metadata(plus_metadata.write_metadata(tmp_path / "plus"))
    tasks = {task.perturbation.text: task for task in metadata.tasks("libero_object")}
    stock = "pick up the alphabet soup and place it in the basket"
    robot = tasks["view_0_0_100_0_0_initstate_450"]
    assert prompt(metadata, robot, "clean") == stock
    assert prompt(metadata, robot, "official") == f"{stock} view 0 0 100 0 0 initstate 450"
    assert prompt(metadata, tasks["level1_sample2"], "official") == f"{stock} level1 sample2"
    rewritten = tasks[f"language_2_{plus_metadata.NEUTRAL}"]
    for mode in ("clean", "official"):
        assert prompt(metadata, rewritten, mode) == plus_metadata.REWRITTEN


def test_all_file_name_instructions_are_the_benchmarks():
    metadata = plus_metadata.real_metadata()
    prompts, clean = [], set()
    for suite in SUITES:
        for task in metadata.tasks(suite):
            if not task.perturbation.language:
                prompts.append(prompt(metadata, task, "official"))
                clean.add(prompt(metadata, task, "clean"))
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    assert digest == GOLDEN["all_file_name_prompts_sha256"]
    assert len(clean) == 40


# -- noise -----------------------------------------------------------------------------------------------------------


def picture(size=256):
    """What the noises were tried on: a gradient with coloured boxes and grain."""
    draw = np.random.RandomState(7)
    y, x = np.mgrid[:size, :size] / size
    base = np.stack([x, y, (1 - x) * y], -1) * 200
    for _ in range(12):
        top, left = draw.randint(0, size - 40, 2)
        height, width = draw.randint(10, 40, 2)
        base[top : top + height, left : left + width] = draw.randint(0, 256, 3)
    return np.clip(base + draw.normal(0, 6, base.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def reference():
    with np.load(HERE / "noise.npz") as file:
        return {int(name): file[name] for name in file.files}


@pytest.mark.parametrize("kind", range(5))
def test_noise_is_the_benchmarks_pixel_by_pixel(kind, reference):
    image = picture()
    for number in range(10 * kind + 1, 10 * kind + 11, 3 if kind == 2 else 1):
        found = noise.corrupt(image, number, np.random.RandomState(1000 + number))
        assert found.dtype == np.uint8 and found.shape == image.shape
        difference = np.abs(found[3::8, 3::8].astype(int) - reference[number])
        # Equal here; another processor's arithmetic may cut a value off on the other side of an integer.
        assert difference.max() <= 1 and (difference > 0).mean() < 0.001, number


def test_noise_depends_on_episode_and_step_alone():
    image = picture(64)
    for number in (3, 35, 44):
        one = noise.corrupt(image, number, noise.draws_of(123, 5))
        np.testing.assert_array_equal(noise.corrupt(image, number, noise.draws_of(123, 5)), one)
        for seed, step in ((123, 6), (124, 5)):
            assert (noise.corrupt(image, number, noise.draws_of(seed, step)) != one).any()
    np.testing.assert_array_equal(image, picture(64))


def test_noises_that_do_not_exist_are_refused():
    assert [noise.describe(number) for number in (1, 10, 11, 50)] == [
        ("motion blur", 1),
        ("motion blur", 10),
        ("gaussian blur", 1),
        ("glass blur", 10),
    ]
    for number in (0, 51):
        with pytest.raises(SimulationError, match="noises 1 to 50"):
            noise.describe(number)
    with pytest.raises(SimulationError, match="fog covers pictures of up to 256 pixels, not 320x320"):
        noise.corrupt(np.zeros((320, 320, 3), np.uint8), 31, noise.draws_of(0, 1))
