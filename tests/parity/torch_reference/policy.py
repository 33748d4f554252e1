"""From vision tokens, a prompt and the robot's state to actions, in PyTorch, sample by sample and without padding."""

import torch


def sequence(language, vision, tokens, own, *, splice):
    """Embeddings of one sample: ``splice`` prompt tokens, the vision tokens, the other prompt tokens, our own."""
    prompt = language.embed_tokens(tokens)
    return torch.cat([prompt[:splice], vision, prompt[splice:], own])


def actions(language, head, proprio, vision, tokens, queries, state, *, seg=None, splice, shift, layerwise, noise=None):
    """The chunk of one sample, and every layer's states.

    Args:
        language: a ``transformers`` Qwen2Model.
        head: ``action_head.Head``.
        proprio: ``action_head.ProprioProjector``.
        vision: [n, d] vision tokens.
        tokens: [p] prompt tokens, without padding.
        queries: [q, d] learned action queries.
        state: [r].
        seg: [1, d] the <SEG> token, or None.
        splice: how many prompt tokens stand before the vision tokens.
        shift: by how many positions too early the vision and query states are read (released code: 1).
        layerwise: whether block i reads layer i + 1 or every block the last.
        noise: the training noise of the latents.
    """
    own = queries if seg is None else torch.cat([seg, queries])
    embedded = sequence(language, vision, tokens, own, splice=splice)
    states = language(inputs_embeds=embedded[None], output_hidden_states=True).hidden_states[1:]
    if not layerwise:
        states = [states[-1]] * len(states)
    first = len(embedded) - len(queries) - shift
    read_queries = [layer[:, first : first + len(queries)] for layer in states]
    read_vision = [layer[:, splice - shift : splice - shift + len(vision)] for layer in states]
    read_seg = None if seg is None else [layer[:, len(embedded) - len(queries) - 1] for layer in states]
    chunk = head(read_queries, proprio(state[None]), read_vision, read_seg, noise)
    return chunk[0], states
