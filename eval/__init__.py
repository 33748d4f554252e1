"""The evaluator: ``python -m eval run | compare | report``.

It runs policies in simulated episodes and says what their success rates are worth. The files in the order of the work:
``manifest``, ``benchmarks`` and ``controls`` (what is to be run), ``policies``, ``presets`` and ``protocol`` (under
which conditions), ``results`` (the run folder), ``scenes`` and ``agents`` (the two sides of an episode), ``episode``
(the loop between them), ``workers`` and ``driver`` (the same over processes), ``statistics``, ``breakdown``,
``leaderboards``, ``summary``, ``compare`` and ``report`` (what the results are worth).
"""
