"""The evaluator: ``python -m eval run | merge | compare | report | vlm | doctor``.

It runs policies in simulated episodes and says what their success rates are worth. The files in the order of the work:

* what is to be run: ``run`` (the command), ``manifest``, ``benchmarks``, ``controls``;
* under which conditions: ``presets``, ``protocol``, ``images`` and ``jpeg`` (what published evaluators do to pixels);
* who acts: ``policies`` (``--policy``), ``agents``, ``remote_policy``, ``torch_policy``;
* an episode: ``scenes`` (its environment), ``episode`` (the loop), ``videos``;
* the same over processes and hosts: ``cluster``, ``workers``, ``policy_actors``, ``driver``;
* what is kept: ``results`` (the run folder), ``lock``, ``merge``, ``control_data``;
* what it is worth: ``statistics``, ``breakdown``, ``leaderboards``, ``summary``, ``compare``;
* the page: ``report`` (the command) and ``report_*``, ``overlays`` (predicted masks), ``html``;
* ``vlm``: the same for a vision-language checkpoint's answers;
* ``doctor`` and ``checks``: whether this machine simulates as published results assume.
"""
