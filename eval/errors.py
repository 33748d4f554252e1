"""The one exception that the evaluator's commands turn into a sentence."""

from pathlib import Path


class EvaluationError(ValueError):
    """Bad input or an unusable folder; the message is one sentence that says what to do."""


def unwritable(option: str, path: Path, error: OSError, other: str = "folder") -> EvaluationError:
    """What to say when the disk refuses the ``path`` that an option names; ``other``: what to choose instead."""
    return EvaluationError(f"{option} {path} cannot be written ({error.strerror}); choose another {other}")
