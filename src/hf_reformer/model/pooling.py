"""One vector for a whole text, from the states of its tokens."""

import torch


def pool(hidden_states, attention_mask=None, pooling="mean"):
    """Embeddings of texts: what a model says of their tokens, (B, L, D), as one vector each, (B, D).

    Args:
        hidden_states: `ReformerModel(...).last_hidden_state`, for example; D is then 2 * hidden.
        attention_mask: (B, L), 1 for real tokens, 0 for padding on either side; None: all are real.
        pooling: "first" or "last" real token, or the "mean" of all. Of a causal model the last token alone has seen the whole
            text, and the first nothing but itself.

    Returns:
        (B, D); a row that is padding alone has the mean 0.

    Raises:
        ValueError: for another `pooling`, or a mask of another shape.
    """
    if attention_mask is None:
        attention_mask = torch.ones(hidden_states.shape[:2], dtype=torch.bool)
    if not torch.is_tensor(attention_mask) or attention_mask.shape != hidden_states.shape[:2]:
        shape = getattr(attention_mask, "shape", type(attention_mask).__name__)
        raise ValueError(f"`attention_mask` is {shape}, but must be a tensor of {tuple(hidden_states.shape[:2])}.")
    real = attention_mask.to(hidden_states.device, torch.int64)
    rows = torch.arange(real.shape[0], device=hidden_states.device)
    if pooling == "first":
        return hidden_states[rows, real.argmax(1)]
    if pooling == "last":
        return hidden_states[rows, real.shape[1] - 1 - real.flip(1).argmax(1)]
    if pooling == "mean":
        total = hidden_states.masked_fill(real.unsqueeze(-1) == 0, 0).sum(1)
        return total / real.sum(1, keepdim=True).clamp(min=1)
    raise ValueError(f"`pooling` is {pooling!r}, but must be 'first', 'last' or 'mean'.")
