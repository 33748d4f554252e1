"""What a policy is in a comparison, and which tasks need sight and language at all.

Two kinds of control are never mixed: an *ablated* one is the given policy with something taken from it, and says what
that policy uses; a *trained* one is another network that never had it, and says what the task needs.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from eval.controls import ABLATIONS
from eval.controls import IMAGES

# Among the tasks that are said to need a sense, at most this share is expected to be wrong.
FALSE_DISCOVERIES = 0.05

MEANINGS = {
    "policy": "the trained network",
    "blind-trained": "the same network, trained and run with its images zeroed",
    "no-language-trained": "the same network, trained and run without the instruction",
    "replay": "a recorded success, repeated action by action",
    "random": "uniform random actions",
    "expert": "a script that reads the simulator's state",
    **ABLATIONS,
}


class Role(NamedTuple):
    """What a policy is in a comparison.

    Attributes:
        kind: ``policy``, ``trained``, ``ablated``, ``replay``, ``random`` or ``expert``.
        sense: what it does without, ``sight``, ``language`` or both; empty for none.
        meaning: the same in a few words, for readers who meet it the first time.
    """

    kind: str
    sense: str
    meaning: str


def role_of(policy: Mapping[str, Any]) -> Role:
    """The role of a policy, from its half of the protocol."""
    label, meaning = policy["label"], MEANINGS.get(policy["label"], "")
    if label in ABLATIONS:
        return Role("ablated", "sight" if label == IMAGES else "language", meaning)
    if policy["kind"] in ("random", "expert"):
        return Role(policy["kind"], "", meaning)
    if policy["kind"] == "replay":
        return Role("replay", "sight and language", meaning)
    senses = [sense for sense, word in (("sight", "blind"), ("language", "no-language")) if word in label]
    if senses and label.endswith("-trained"):
        return Role("trained", " and ".join(senses), meaning)
    return Role("policy", "", meaning)


def verdicts(tasks: Sequence[Mapping[str, Any]], others: Sequence[tuple[str, Role]]) -> list[dict[str, Any]]:
    """For each control without a sense, the tasks on which the policy beats it, and those on which nothing shows that.

    McNemar's test per task, with Benjamini and Hochberg's correction over the tasks; also written into the control's
    cell of each row as ``better``.

    Args:
        tasks: rows with a cell per group, the policy's first.
        others: label and role of each further group.
    """
    found = []
    for column, (label, role) in enumerate(others, start=1):
        rows = [row for row in tasks if row["cells"][column]["difference"]]
        if not role.sense or not rows:
            continue
        shown = discoveries([row["cells"][column]["difference"] for row in rows])
        for row, better in zip(rows, shown, strict=True):
            row["cells"][column]["better"] = better
        names = [row["name"] for row in rows]
        found.append(
            {
                "label": label,
                "role": role.kind,
                "sense": role.sense,
                "shown": [name for name, better in zip(names, shown, strict=True) if better],
                "not_shown": [name for name, better in zip(names, shown, strict=True) if not better],
                "not_run": [row["name"] for row in tasks if not row["cells"][column]["difference"]],
            }
        )
    return found


def discoveries(differences: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether each comparison shows the first to be better, at a false discovery rate of 5 % over all of them."""
    from scipy.stats import false_discovery_control  # takes most of a second to import

    adjusted = false_discovery_control([difference["mcnemar_p"] for difference in differences])
    return [
        bool(p <= FALSE_DISCOVERIES and difference["difference"] > 0)
        for p, difference in zip(adjusted, differences, strict=True)
    ]
