"""Hooks into transformers' `generate`: it makes a `ReformerCache`, and refuses to start what would not fit."""

import inspect

from transformers import GenerationMixin

from .cache import CACHE_NAMES, ReformerCache, take_cache
from .inputs import check_is_tensor

# by which transformers' `generate` knows the cache: `cache` from 5.24 on, `past_key_values` before
CACHE_NAME = next(
    x for x in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters if x in CACHE_NAMES
)
COLDEST = 1e-4  # the least temperature above 0: logits that are divided by less may overflow


class ReformerGenerationMixin(GenerationMixin):
    """`generate` for causal Reformers and encoder-decoders. Raises `ValueError` before any work where the text would not fit."""

    @property
    def _own_config(self):
        """Of the part that writes."""
        return self.config.decoder_part() if self.config.is_encoder_decoder else self.config

    @property
    def _longest_output(self):
        """Tokens: of prompt and text together, or of the start token and a whole target."""
        return self._own_config.maximum_length + self.config.is_encoder_decoder

    def _prepare_model_inputs(self, inputs=None, bos_token_id=None, model_kwargs=None):
        """What is given, before transformers looks at its last token."""
        tensor, name, kwargs = prepared = super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)
        check_is_tensor(name, tensor)
        if tensor.dim() < 2 or 0 in tensor.shape[:2]:
            raise ValueError(
                f"`{name}` has the shape {tuple(tensor.shape)}, but must have at least one row of one token."
            )
        if kwargs.get("attention_mask") is not None:
            check_is_tensor("attention_mask", kwargs["attention_mask"])
        return prepared

    def _prepare_generated_length(self, generation_config, has_default_max_length, **arguments):
        """Without `max_length` and `max_new_tokens`: 20 new tokens, as everywhere, or as many as fit."""
        prepared = super()._prepare_generated_length(
            generation_config=generation_config, has_default_max_length=has_default_max_length, **arguments
        )
        if has_default_max_length and generation_config.max_new_tokens is None:
            prepared.max_length = min(prepared.max_length, self._longest_output)
        return prepared

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length, *args
    ):
        past = take_cache(model_kwargs)
        self._check_room(generation_config, max_cache_length + 1)
        if past is not None:
            model_kwargs[CACHE_NAME] = check_cache(past, self._own_config)
            past._is_user_defined = True  # generate hands it back as it then is
        elif generation_config.use_cache is not False:
            kind = generation_config.cache_implementation
            if kind not in (None, "dynamic"):
                raise ValueError(
                    f"`cache_implementation` is {kind!r}, but must be None: Reformers have their own cache."
                )
            model_kwargs[CACHE_NAME] = ReformerCache(self.config, reserve=max_cache_length)

    def _get_candidate_generator(self, generation_config, *args, **kwargs):
        """Prompt lookup would try more tokens than there may be: of the last one, nothing can follow."""
        candidates = super()._get_candidate_generator(generation_config, *args, **kwargs)
        return _ThatFit(candidates, generation_config.max_length - 1)

    def _check_room(self, generation_config, length):
        longest = self._longest_output
        if length > longest:
            what = "start and new tokens" if self.config.is_encoder_decoder else "prompt and new tokens"
            new = generation_config.max_new_tokens
            given = f"`max_length` is {length}" if new is None else f"`max_new_tokens` is {new}"
            raise ValueError(
                f"{given}, so that {what} may become {length} tokens, but together they must be at most "
                f"{longest} (`config.maximum_length`{', and the start' * self.config.is_encoder_decoder})."
            )


def is_temperature(value) -> bool:
    """Whether it is 0, always the likeliest, or one that can be drawn with."""
    return value == 0 or COLDEST <= value < float("inf")


class _ThatFit:
    """A generator of candidates, cut to `longest` tokens, prompt and all."""

    def __init__(self, candidates, longest):
        self.candidates, self.longest = candidates, longest

    def get_candidates(self, input_ids, **arguments):
        tokens, logits = self.candidates.get_candidates(input_ids, **arguments)
        return tokens[:, : self.longest], logits if logits is None else logits[:, : self.longest - input_ids.shape[1]]

    def __getattr__(self, name):
        return getattr(self.candidates, name)


def check_cache(past, config):
    """`past`, which must be a `ReformerCache` made for this configuration."""
    # by name: a checkpoint that carries its own code has a class of its own
    if type(past).__name__ != "ReformerCache":
        raise ValueError(f"`past_key_values` is a {type(past).__name__}, but must be a ReformerCache.")
    past.check_config(config)
    return past
