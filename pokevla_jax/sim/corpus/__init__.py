"""Questions about simulated LIBERO scenes whose answers the simulator knows, in the four pillars of pre-training.

``facts`` holds what is known of one frame, ``general``, ``grounding``, ``affordance`` and ``reasoning`` turn facts into
questions without any simulator, ``phrasings`` words them, ``samples`` chooses and writes them down. ``states`` moves a
simulator from frame to frame, ``observe`` reads the facts off it, ``build`` writes shards.

A sample is a ``data.corpus.CorpusSample`` of one question and one answer. Its ``labels``:

=============  ========================================================================================================
``type``       what is asked, e.g. "point_object"; each type belongs to one pillar (``phrasings.TYPES``)
``form``       how the answer reads: "text", "points" ``[(0.250, 0.500)]``, or "box" ``(0.1.., 0.2.., 0.3.., 0.4..)``
``mask``       form "points": an 8-bit PNG of the last image's size, not 0 where a point is right; else absent
``box``        form "box": x1, y1, x2, y2 as fractions of the last image, exact; else absent
``view``       "agentview" or "wrist"; "what_changed" shows two pictures of agentview, before and after
``frame``      the simulated state that is shown, unique over the corpus
``suite``      LIBERO suite, with ``task`` (index) and ``layout`` (number of the layout)
``phrasing``   number of the question's wording within its type
``held_out``   which of "task", "layout" and "phrasing" no training sample has; empty for ``split`` "train"
=============  ========================================================================================================

Places are fractions of the image, as everywhere in the corpus: points are judged by ``mask``, boxes by their overlap
with ``box``, texts by equality with the reference answer, which is one of few for each type.
"""
