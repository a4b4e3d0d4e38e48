"""Layer norm between the float32 streams and halves that may work in another type."""

from torch import nn


class StreamLayerNorm(nn.LayerNorm):
    """Layer norm of (..., hidden) in the type of its weights."""

    def forward(self, hidden_states):
        return super().forward(hidden_states.to(self.weight.dtype))
