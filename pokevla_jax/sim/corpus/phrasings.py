"""How each type of question is worded; the last wordings of each are never trained on.

A reader of the samples can tell the type from any wording, so a network that has learnt what is asked for should answer
the held-out ones too. Places are asked for in words that state their form, since the form differs.
"""

from dataclasses import dataclass

from pokevla_jax.data.corpus import PILLARS


@dataclass(frozen=True)
class Wordings:
    """The wordings of one type.

    Attributes:
        pillar: one of ``PILLARS``.
        train, held_out: templates; ``{a}``, ``{thing}`` and the like are filled from a draft's slots, ``{place}`` with
            the coordinates that a question names.
    """

    pillar: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.pillar in PILLARS
        assert len(self.train) >= 2
        assert self.held_out

    @property
    def all(self) -> tuple[str, ...]:
        """Training wordings first; a sample's ``phrasing`` is the index."""
        return self.train + self.held_out


_POINT = "Answer with a list of (x, y), in fractions of the image."
_BOX = "Answer with (x1, y1, x2, y2), in fractions of the image."
_YES_NO = "Answer yes or no."


def _points(*texts: str) -> tuple[str, ...]:
    return tuple(f"{text} {_POINT}" for text in texts)


def _boxes(*texts: str) -> tuple[str, ...]:
    return tuple(f"{text} {_BOX}" for text in texts)


def _closed(*texts: str) -> tuple[str, ...]:
    return tuple(f"{text} {_YES_NO}" for text in texts)


_GENERAL = {
    "what_is_there": Wordings(
        "general",
        ("What is there in the picture?", "Which objects do you see?", "List the objects in this scene."),
        ("Which objects are there in the picture?",),
    ),
    "is_there": Wordings(
        "general",
        _closed("Is the {thing} in the picture?", "Do you see the {thing}?", "Does the picture show the {thing}?"),
        _closed("Does this scene show the {thing}?"),
    ),
    "count": Wordings(
        "general",
        ("How many {group} are there?", "How many {group} do you see?", "Count the {group} in the picture."),
        ("Say how many {group} the picture shows.",),
    ),
    "colour": Wordings(
        "general",
        ("What colour is the {thing}?", "Which colour does the {thing} have?", "Name the colour of the {thing}."),
        ("The {thing} is of which colour?",),
    ),
    "where": Wordings(
        "general",
        (
            "Where in the picture is the {thing}?",
            "In which part of the picture is the {thing}?",
            "Say where the picture shows the {thing}.",
        ),
        ("The {thing} is in which part of this picture?",),
    ),
    "is_open": Wordings(
        "general",
        _closed("Is the {thing} open?", "Does the {thing} stand open?", "Has the {thing} been opened?"),
        _closed("The {thing}: is it open?"),
    ),
    "is_on": Wordings(
        "general",
        _closed("Is the {thing} on?", "Is the {thing} turned on?", "Has the {thing} been turned on?"),
        _closed("The {thing}: is it on?"),
    ),
    "holding": Wordings(
        "general",
        (
            "What is the gripper holding?",
            "Which object is between the fingers of the gripper?",
            "What does the robot hold?",
        ),
        ("Name the object that the gripper is holding.",),
    ),
}

_GROUNDING = {
    "point_object": Wordings(
        "grounding",
        _points("Point to the {thing}.", "Where is the {thing}?", "Show a point on the {thing}."),
        _points("Where is a point on the {thing}?"),
    ),
    "box_object": Wordings(
        "grounding",
        _boxes("Give the box of the {thing}.", "Where is the {thing}?", "Draw a box around the {thing}."),
        _boxes("Show the box around the {thing}."),
    ),
    "name_at": Wordings(
        "grounding",
        ("What is at {place}?", "Which object is at {place}?", "What does the picture show at {place}?"),
        ("Name the object at {place}.",),
    ),
    "is_at_side": Wordings(
        "grounding",
        _closed(
            "Is the {a} {side} the {b}?", "Does the {a} stand {side} the {b}?", "Do you see the {a} {side} the {b}?"
        ),
        _closed("The {a} is {side} the {b}: is that so?"),
    ),
    "which_side": Wordings(
        "grounding",
        (
            "Where is the {a}, seen from the {b}?",
            "On which side of the {b} is the {a}?",
            "How does the {a} stand to the {b}?",
        ),
        ("Say on which side of the {b} the {a} stands.",),
    ),
    "nearest": Wordings(
        "grounding",
        (
            "Which object is nearest to the {b}?",
            "What stands nearest to the {b}?",
            "Name the object nearest to the {b}.",
        ),
        ("The {b} is nearest to which object?",),
    ),
    "between": Wordings(
        "grounding",
        (
            "Which object is between the {a} and the {b}?",
            "What stands between the {a} and the {b}?",
            "Name the object between the {a} and the {b}.",
        ),
        ("Between the {a} and the {b} is which object?",),
    ),
    "nearer_to_robot": Wordings(
        "grounding",
        (
            "Which is nearer to the robot, the {a} or the {b}?",
            "Which stands nearer to the robot: the {a} or the {b}?",
            "Is the {a} or the {b} nearer to the robot?",
        ),
        ("The robot is nearer to which object, the {a} or the {b}?",),
    ),
    "point_related": Wordings(
        "grounding",
        _points(
            "Point to the {word} {relation} the {b}.",
            "Where is the {word} {relation} the {b}?",
            "Show a point on the {word} {relation} the {b}.",
        ),
        _points("Where is a point on the {word} {relation} the {b}?"),
    ),
    "box_related": Wordings(
        "grounding",
        _boxes(
            "Give the box of the {word} {relation} the {b}.",
            "Where is the {word} {relation} the {b}?",
            "Draw a box around the {word} {relation} the {b}.",
        ),
        _boxes("Show the box around the {word} {relation} the {b}."),
    ),
    "point_free": Wordings(
        "grounding",
        _points(
            "Point to a free place on the {surface} for the {thing}.",
            "Where on the {surface} could the {thing} stand?",
            "Show where on the {surface} there is room for the {thing}.",
        ),
        _points("Where is a free place on the {surface} for the {thing}?"),
    ),
    "point_free_side": Wordings(
        "grounding",
        _points(
            "Point to a free place {side} the {b} for the {thing}.",
            "Where {side} the {b} could the {thing} stand?",
            "Show where there is room for the {thing} {side} the {b}.",
        ),
        _points("Where is a free place {side} the {b} for the {thing}?"),
    ),
    "point_free_between": Wordings(
        "grounding",
        _points(
            "Point to a free place between the {a} and the {b} for the {thing}.",
            "Where between the {a} and the {b} could the {thing} stand?",
            "Show where there is room for the {thing} between the {a} and the {b}.",
        ),
        _points("Where is a free place between the {a} and the {b} for the {thing}?"),
    ),
}

_AFFORDANCE = {
    "grasp": Wordings(
        "affordance",
        _points(
            "Where should the gripper take the {thing}{part}?",
            "Point to where the {thing} is grasped{part}.",
            "Show a point for grasping the {thing}{part}.",
        ),
        _points("Where is a place for the fingers to take the {thing}{part}?"),
    ),
    "grasp_part": Wordings(
        "affordance",
        _points(
            "Where should the gripper take hold to {to}?",
            "Point to what the gripper takes to {to}.",
            "Show where to grasp to {to}.",
        ),
        _points("Point to the place to grasp to {to}."),
    ),
    "put_where": Wordings(
        "affordance",
        _points(
            "Where should the {thing} be put to lie {where}?",
            "Point to where the {thing} goes to be {where}.",
            "Show where to put the {thing} {where}.",
        ),
        _points("Point to the place for the {thing} {where}."),
    ),
    "goal_where": Wordings(
        "affordance",
        _points(
            "The task is to {task}. Where does it go?",
            "Point to where it goes: {task}.",
            "Show the place that is meant: {task}.",
        ),
        _points("Where is the place that is meant: {task}?"),
    ),
    "can_open": Wordings(
        "affordance",
        _closed(
            "Can the {thing} be pulled open?",
            "Is the {thing} something to pull open?",
            "Could the robot pull the {thing} open?",
        ),
        _closed("Does the {thing} pull open?"),
    ),
    "fits_gripper": Wordings(
        "affordance",
        _closed(
            "Does the {thing} fit between the fingers of the gripper?",
            "Is the {thing} narrow enough for the gripper?",
            "Can the gripper close around the {thing}?",
        ),
        _closed("Can the fingers of the gripper close around the {thing}?"),
    ),
    "can_put_inside": Wordings(
        "affordance",
        _closed(
            "Can the {thing} be put into the {part} as it is now?",
            "Is the {part} open, so that the {thing} can go in?",
            "Could the robot put the {thing} into the {part} now?",
        ),
        _closed("Is there a way into the {part} for the {thing} now?"),
    ),
}

_REASONING = {
    "goal_reached": Wordings(
        "reasoning",
        _closed("The task is to {task}. Is it done?", "Is this task done: {task}?", "Has the robot done it: {task}?"),
        _closed("Say if it is done: {task}."),
    ),
    "next_subtask": Wordings(
        "reasoning",
        (
            "The task is to {task}. What is to be done next?",
            "What is the next step of this task: {task}?",
            "Which step comes next: {task}?",
        ),
        ("Say the next step of the task: {task}.",),
    ),
    "direction": Wordings(
        "reasoning",
        (
            "Which way must the gripper move to be above the {thing}?",
            "Where does the gripper go to be above the {thing}?",
            "The gripper should be above the {thing}. Which way must it move?",
        ),
        ("To be above the {thing}, which way must the gripper go?",),
    ),
    "next_motion": Wordings(
        "reasoning",
        (
            "The task is to {task}. What should the gripper do now, and why?",
            "What does the gripper do next, and why: {task}?",
            "Which motion comes now, and why: {task}?",
        ),
        ("Say the next motion of the gripper, and why: {task}.",),
    ),
    "will_succeed": Wordings(
        "reasoning",
        (
            "The gripper {motion}. Will it {aim}, and why?",
            "If the gripper {motion}, will it {aim}, and why?",
            "Will the robot {aim} if the gripper {motion}, and why?",
        ),
        ("Say if the robot will {aim}, and why: the gripper {motion}.",),
    ),
    "what_changed": Wordings(
        "reasoning",
        (
            "What changed from the first picture to the second?",
            "What was done between the two pictures?",
            "Which thing was changed from one picture to the other?",
        ),
        ("Say what was done from the first picture to the second.",),
    ),
}

TYPES: dict[str, Wordings] = {**_GENERAL, **_GROUNDING, **_AFFORDANCE, **_REASONING}
"""Every type of question."""
