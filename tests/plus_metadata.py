"""A small LIBERO-Plus: the metadata's files for a few tasks of libero_object, made from LIBERO's own.

Its tasks are named and described as the benchmark's are; the real metadata is tested where ``LIBERO_PLUS`` gives it.
"""

import json
import os
import re
import shutil

import pytest

SOUP, CHEESE = 0, 1
NEUTRAL = "view_0_0_100_0_0_initstate_0"
# Base task, perturbation, category, level.
TASKS = (
    (SOUP, "table_1", "Background Textures", 2),
    (SOUP, "view_30_15_120_4_356_initstate_0", "Camera Viewpoints", 5),
    (SOUP, "view_0_0_100_0_0_initstate_450", "Robot Initial States", 4),
    (SOUP, f"{NEUTRAL}_noise_33", "Sensor Noise", 1),
    (SOUP, f"language_2_{NEUTRAL}", "Language Instructions", 3),
    (SOUP, "add_4", "Objects Layout", 3),
    (SOUP, "level1_sample2", "Objects Layout", 1),
    (SOUP, "light_9", "Light Conditions", None),
    (CHEESE, f"{NEUTRAL}_noise_12", "Sensor Noise", 2),
)
REWRITTEN = "fetch the can of letters and drop it into the basket"


def write_metadata(root):
    """The metadata below ``root``, which is returned."""
    from pokevla_jax.sim.tasks import list_tasks

    suites = {"libero_spatial": [], "libero_object": [], "libero_goal": [], "libero_10": []}
    folder = root / "bddl_files" / "libero_object"
    states = root / "init_files" / "libero_newobj" / "libero_object"
    for path in (folder, states, root / "benchmark"):
        path.mkdir(parents=True)
    for number, (base, suffix, category, level) in enumerate(TASKS, start=1):
        task = list_tasks("libero_object")[base]
        name = f"{task.name}_{suffix}"
        suites["libero_object"].append({"id": number, "name": name, "category": category, "difficulty_level": level})
        text = task.bddl_file.read_text()
        if category == "Language Instructions":
            text = re.sub(r"\(:language [^)]*\)", f"(:language {REWRITTEN})", text)
        (folder / f"{name.partition('_view_')[0]}.bddl").write_text(text)
        if category == "Objects Layout":
            shutil.copy(task.init_states_file, states / f"{name}.pruned_init")
    (root / "benchmark" / "task_classification.json").write_text(json.dumps(suites))
    return root


def real_metadata():
    """The benchmark's own metadata, or skips the test."""
    if not os.environ.get("LIBERO_PLUS"):
        pytest.skip("needs LIBERO-Plus's metadata: set LIBERO_PLUS")
    from pokevla_jax.sim.plus.metadata import open_metadata

    metadata = open_metadata()
    if not metadata.is_release:
        pytest.skip("LIBERO_PLUS is not the release that these figures are of")
    return metadata
