"""What the models return. Shapes: B batch, L length, V vocabulary, 2 * hidden: both streams."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .cache import CACHE_NAMES


class _CacheOfManyNames:
    """The field `past_buckets_states`, as in the Reformer of transformers, also under the names of today (`CACHE_NAMES`)."""

    @property
    def past_key_values(self):
        return self.past_buckets_states

    cache = past_key_values

    def __getitem__(self, key):
        return super().__getitem__(_field(key))

    def __contains__(self, key):
        return super().__contains__(_field(key))

    def get(self, key, default=None):
        return super().get(_field(key), default)


def _field(key):
    return "past_buckets_states" if isinstance(key, str) and key in CACHE_NAMES else key


@dataclass
class ReformerModelOutput(_CacheOfManyNames, ModelOutput):
    """What `ReformerModel` returns.

    last_hidden_state: (B, L, 2 * hidden), both streams side by side after the layer norm.
    past_buckets_states: the cache, or None; `past_key_values` and `cache` are the same.
    hidden_states, attentions: on request; see `ReformerModel.forward`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    past_buckets_states: object | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class ReformerCausalLMOutput(_CacheOfManyNames, ModelOutput):
    """What `ReformerModelWithLMHead` returns: loss (), logits (B, L, V), and as `ReformerModelOutput`."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_buckets_states: object | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
