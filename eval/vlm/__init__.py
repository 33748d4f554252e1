"""``python -m eval vlm``: what a vision-language checkpoint answers to the held-out questions of a corpus.

``questions`` reads them, ``scores`` judges answers and sums them up, ``page`` shows them, ``command`` is the command.
"""
