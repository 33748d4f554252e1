"""The one exception that the evaluator's commands turn into a sentence."""


class EvaluationError(ValueError):
    """Bad input or an unusable folder; the message is one sentence that says what to do."""
