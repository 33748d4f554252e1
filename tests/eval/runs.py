"""Run folders without a simulator: a manifest, a protocol and outcomes chosen by the test."""

from eval.controls import control_specs
from eval.manifest import EpisodeSpec
from eval.manifest import LayoutSpec
from eval.protocol import Protocol
from eval.results import RunFolder
from eval.summary import summarize

SIMULATION = {
    "assets": "real+standins",
    "assets_sha256": "ab12",
    "renderer": "fast-v1",
    "published": False,
    "image_size": 128,
    "settle_steps": 10,
    "prompt": "clean",
    "versions": {"mujoco": "3.3.2", "robosuite": "1.4.0"},
}
NAMES = ("pick_up_the_alphabet_soup", "pick_up_the_milk")


def specs(count, *, tasks=1, layout_seed=90000):
    return [
        EpisodeSpec(
            benchmark="libero_moved",
            suite="libero_object",
            task=task,
            task_name=NAMES[task],
            prompt=NAMES[task].replace("_", " "),
            max_steps=280,
            layout=LayoutSpec("moved", layout_seed, index),
        )
        for task in range(tasks)
        for index in range(count)
    ]


def protocol(label="policy", *, fingerprint="f0", simulation=None, **facts):
    policy = {"kind": "checkpoint", "label": label, "fingerprint": fingerprint, "versions": {"jax": "0.10.2"}, **facts}
    return Protocol(simulation={**SIMULATION, **(simulation or {})}, policy=policy)


def record(spec, outcome, **more):
    facts = {
        "id": spec.id,
        "base_id": spec.base_id,
        **spec.to_dict(),
        "outcome": outcome,
        "steps": 100,
        "looks": 13,
        "final_state": "00",
    }
    seconds = {"reset": 1.0, "physics": 1.5, "rendering": 0.4, "policy": 0.1}
    if outcome == "error":
        facts |= {"reason": "RuntimeError: no", "error": "Traceback: no", "steps": 0, "looks": 0}
        seconds = {}
    return facts | {"seconds": seconds, "attempts": 1} | more


def make_run(path, outcomes, *, tasks=1, layout_seed=90000, control=None, **protocol_facts):
    """A finished run whose outcomes are spelled ``"SSFE"`` in the order of its episodes; ``.`` is missing.

    With a ``control`` it is that control's folder below the run ``path``.
    """
    words = {"S": "success", "F": "failure", "E": "error"}
    episodes = specs(len(outcomes) // tasks, tasks=tasks, layout_seed=layout_seed)
    context = {}
    if control is not None:
        path, episodes = control.folder(path), control_specs(control, episodes)
        context["control"] = {"name": control.name, "kind": control.kind}
    folder = write_run(path, episodes, [words.get(letter) for letter in outcomes], context=context, **protocol_facts)
    folder.write_summary(summarize(folder))
    return folder


CATEGORIES = ("camera", "robot", "language", "light", "background", "noise", "layout")
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


def plus_specs(count, *, suites=SUITES[:2], tasks=2, categories=CATEGORIES):
    """``count`` LIBERO-Plus episodes per base task and category, their levels going round from 1 to 5."""
    return [
        EpisodeSpec(
            benchmark="libero_plus",
            suite=suite,
            task=task,
            task_name=f"task_{task}",
            prompt=f"task {task}",
            max_steps=200,
            perturbation=f"{category}_{number}",
            category=category,
            level=1 + number % 5,
        )
        for suite in suites
        for task in range(tasks)
        for category in categories
        for number in range(count)
    ]


def write_run(path, episodes, outcomes, *, steps=None, context=None, **protocol_facts):
    """A finished run of ``episodes``: the words of ``outcomes``, None where one is missing, and the ``steps`` taken."""
    folder = RunFolder(path)
    folder.open(episodes, protocol(**protocol_facts), {"command": "python -m eval run --policy x"} | (context or {}))
    for spec, outcome, taken in zip(episodes, outcomes, steps or [None] * len(episodes), strict=True):
        if outcome is not None:
            folder.append(record(spec, outcome, **({} if taken is None else {"steps": taken})))
    folder.close()
    return folder


def ends(records):
    """How each episode ended; one that is recorded twice is an error."""
    found = {r["id"]: (r["outcome"], r["steps"], r["final_state"]) for r in records}
    assert len(found) == len(records), "an episode was recorded twice"
    return found
