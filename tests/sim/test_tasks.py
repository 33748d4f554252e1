"""Tasks and stored initial states, read without torch and without a question on stdin."""

import dataclasses
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from pokevla_jax.sim import tasks
from pokevla_jax.sim.errors import SimulationError


@pytest.mark.parametrize("suite", tasks.MAX_STEPS)
def test_every_task_of_a_suite_has_its_files(suite):
    specs = tasks.list_tasks(suite)
    assert len(specs) == (90 if suite == "libero_90" else 10)
    for index, spec in enumerate(specs):
        assert spec.index == index and spec.bddl_file.is_file() and spec.init_states_file.is_file()
        assert spec.target in spec.objects_of_interest and "_" not in spec.language and "SCENE" not in spec.language


def test_order_and_instruction_are_the_benchmarks():
    soup, cheese = tasks.list_tasks("libero_object")[:2]
    assert soup.language == "pick up the alphabet soup and place it in the basket"
    assert (soup.target, soup.goal_object, soup.max_steps) == ("alphabet_soup_1", "basket_1", 280)
    assert cheese.target == "cream_cheese_1"
    assert tasks.load_task("libero_10", 2).language == "turn on the stove and put the moka pot on it"
    assert tasks.load_task("libero_object", cheese.name) is cheese


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tasks.list_tasks("libero_objects"), "did you mean libero_object?"),
        (lambda: tasks.load_task("libero_object", 10), "tasks 0 to 9"),
        (lambda: tasks.load_task("libero_object", "pick up the milk"), "did you mean pick_up_the_milk_and"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(call, words):
    with pytest.raises(SimulationError, match=words.replace("?", r"\?")):
        call()


def test_initial_states_are_fifty_finite_rows():
    states = tasks.load_init_states(tasks.load_task("libero_object", 0))
    assert states.shape == (50, 110) and states.dtype == np.float64
    # The arm starts near the same posture; the basket moves by centimetres between trials.
    assert np.ptp(states[:, 1:8], axis=0).max() < 0.2
    assert (np.ptp(states[:, 17:19], axis=0) > 0.01).all()


class _Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("damage", ["missing", "truncated", "no array", "code"])
def test_a_bad_state_file_is_named(tmp_path, damage):
    task = tasks.load_task("libero_object", 0)
    path = tmp_path / "states.pruned_init"
    content = task.init_states_file.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage != "missing":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(_Evil() if damage == "code" else ["text"], protocol=2))
    with pytest.raises(SimulationError, match=r"states\.pruned_init"):
        tasks.load_init_states(dataclasses.replace(task, init_states_file=path))


@pytest.mark.sim
def test_importing_the_simulator_is_silent_and_asks_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pokevla_jax.sim import upstream;"
        "envs = upstream.import_libero(Path('/assets'));"
        "import libero.libero; assert libero.libero.get_assets_path is not None;"
        "assert libero.libero._assets_path_cache == '/assets' and 'libero_floor_manipulation' in envs.TASK_MAPPING;"
        "bad = {'torch', 'gymnasium', 'gym', 'wandb'} & set(sys.modules); assert not bad, bad"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("LIBERO_CONFIG_PATH", None)
    run = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not (tmp_path / ".libero").exists()
