"""Milliseconds per decoded token, prefill seconds and cache bytes per token, beside transformers' Reformer and GPT-2.

All models take turns, some tokens each, so that whatever else the machine does is shared fairly; figures are medians of one
run. `python -m benchmarks --cases generation` runs this file; `python -m benchmarks.decoding` alone has more options.

The model: 6 layers, hidden size 256, feed-forward 512, 2 heads of 64 (GPT-2: 4, its heads must add up to the hidden
size), chunks of 64, vocabulary 320, float32 unless said, batch 1.
"""

import argparse
import json
import logging
import statistics
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.reformer import configuration_reformer, modeling_reformer

from hf_reformer import ReformerCache, ReformerConfig, ReformerModelWithLMHead

CONTEXTS = (512, 4096, 32768)
PREFILL_LENGTH = 16384
TURN = 8  # tokens that a model decodes before it is the next one's turn
LAYERS = 6
VOCABULARY = 320
SIZES = {
    "hidden_size": 256, "feed_forward_size": 512, "num_attention_heads": 2, "attention_head_size": 64,
    "vocab_size": VOCABULARY, "axial_pos_shape": [256, 260], "axial_pos_embds_dim": [64, 192],
    "max_position_embeddings": 256 * 260, "is_decoder": True, "hash_seed": 1, "hidden_dropout_prob": 0.0,
    "local_attention_probs_dropout_prob": 0.0, "lsh_attention_probs_dropout_prob": 0.0,
}  # fmt: skip


class Ours:
    """hf_reformer with its cache."""

    def __init__(self, kinds, num_hashes, dtype=torch.float32):
        self.name = "hf_reformer " + "/".join(kinds) + (", bf16" if dtype == torch.bfloat16 else "")
        self.dtype = dtype
        self.config = ReformerConfig(attn_layers=list(kinds) * (LAYERS // 2), num_hashes=num_hashes, **SIZES)

    def build(self):
        self.model = ReformerModelWithLMHead(self.config).to(self.dtype).eval()

    def prefill(self, input_ids, room):
        self.cache = ReformerCache(self.model.config, reserve=room)
        self.model(input_ids, past_key_values=self.cache, logits_to_keep=1)

    def step(self, token):
        self.model(token, past_key_values=self.cache)

    def cache_bytes(self):
        """Bytes in use: buffers with room to grow count for the part that is filled."""
        total = 0
        for layer in self.cache.layers:
            room, owners = layer.keys.shape[2], [layer, getattr(layer, "latest", None)]
            for tensor in (t for owner in owners if owner for t in vars(owner).values() if torch.is_tensor(t)):
                total += tensor.nbytes * (layer.length / room if room in tensor.shape else 1)
        return total


class Stock:
    """transformers' Reformer with its cache of states and buckets. Built anew for every context: the first input fixes
    its number of buckets."""

    name = "transformers Reformer"

    def __init__(self, num_hashes):
        self.num_hashes = num_hashes

    def build(self):
        config = configuration_reformer.ReformerConfig(
            attn_layers=["local", "lsh"] * (LAYERS // 2), num_hashes=self.num_hashes, **SIZES
        )
        self.model = modeling_reformer.ReformerModelWithLMHead(config).eval()

    def prefill(self, input_ids, room):
        self.cache = self.model(input_ids, use_cache=True).past_buckets_states

    def step(self, token):
        self.cache = self.model(token, past_buckets_states=self.cache, use_cache=True).past_buckets_states

    def cache_bytes(self):
        caches = (self.cache.states_cache, self.cache.buckets_cache)
        return sum(tensor.nbytes for cache in caches for tensor in cache)


class GPT2:
    """GPT-2 of the same size with transformers' key-value cache."""

    name = "GPT-2"

    def __init__(self, positions):
        self.positions = positions

    def build(self):
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=self.positions, n_embd=256, n_layer=LAYERS, n_head=4, n_inner=512,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval()

    def prefill(self, input_ids, room):
        self.cache = self.model(input_ids, use_cache=True, logits_to_keep=1).past_key_values

    def step(self, token):
        self.model(token, past_key_values=self.cache, use_cache=True)

    def cache_bytes(self):
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def contestants(num_hashes, peers=True):
    """Every model, to be built with random weights."""
    torch.manual_seed(0)
    types = (("strict_local", "strict_lsh"), ("local", "lsh"))
    models = [Ours(kinds, num_hashes, dtype) for dtype in (torch.float32, torch.bfloat16) for kinds in types]
    return models + ([Stock(num_hashes), GPT2(SIZES["max_position_embeddings"])] if peers else [])


@torch.no_grad()
def decoding_rows(contexts=CONTEXTS, num_hashes=4, new_tokens=40, models=None):
    """One row per model and context: milliseconds per token (median and quickest), prefill seconds, bytes per token.

    Returns:
        list of dictionaries with the keys `case`, `model`, `context`, `num_hashes`, `ms_per_token`, `ms_per_token_min`,
        `prefill_seconds`, `cache_bytes_per_token`.
    """
    models = contestants(num_hashes) if models is None else models
    rows = []
    for context in contexts:
        input_ids = torch.randint(2, VOCABULARY, (1, context + new_tokens))
        prefill, times = {}, {model.name: [] for model in models}
        for model in models:
            model.build()
            prefill[model.name] = seconds(model.prefill, input_ids[:, :context], context + new_tokens)
        for turn in input_ids[:, context:].split(TURN, 1):
            for model in models:
                found = [seconds(model.step, token) for token in turn.split(1, 1)]
                times[model.name] += found[1:]  # the first one finds the processor's caches full of another model
        for model in models:
            steps = times[model.name]
            rows.append(
                {
                    "case": "decoding",
                    "model": model.name,
                    "context": context,
                    "num_hashes": num_hashes,
                    "ms_per_token": 1e3 * statistics.median(steps),
                    "ms_per_token_min": 1e3 * min(steps),
                    "prefill_seconds": prefill[model.name],
                    "cache_bytes_per_token": model.cache_bytes() / (context + new_tokens),
                }
            )
            model.cache = None
    return rows


@torch.no_grad()
def prefill_rows(length=PREFILL_LENGTH, num_hashes=4, repetitions=3, models=None):
    """Seconds to read a prompt into an empty cache, models in turn, the median of the repetitions."""
    models = contestants(num_hashes) if models is None else models
    input_ids, times = torch.randint(2, VOCABULARY, (1, length)), {model.name: [] for model in models}
    for _ in range(repetitions):
        for model in models:
            model.build()
            times[model.name].append(seconds(model.prefill, input_ids, length))
            model.cache = None
    return [
        {
            "case": "prefill",
            "model": name,
            "context": length,
            "num_hashes": num_hashes,
            "seconds": statistics.median(found),
            "seconds_min": min(found),
        }
        for name, found in times.items()
    ]


def seconds(call, *arguments):
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def main(argv=None):
    logging.getLogger("transformers").setLevel(logging.ERROR)  # its Reformer tells each time how many buckets it takes
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--num-hashes", type=int, default=4)
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--prefill-length", type=int, default=PREFILL_LENGTH, help="0: leave this case out")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--repetitions", type=int, default=3, help="of reading the prompt")
    parser.add_argument("--json", metavar="FILE", help="where to write the rows; -: the last line printed")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    models = contestants(arguments.num_hashes, not arguments.no_peers)
    found = decoding_rows(arguments.contexts, arguments.num_hashes, arguments.new_tokens, models)
    for row in found:
        print(
            f"{row['model']:<36} context {row['context']:>6}: {row['ms_per_token']:8.2f} ms per token (quickest "
            f"{row['ms_per_token_min']:7.2f}), prefill {row['prefill_seconds']:7.2f} s, "
            f"{row['cache_bytes_per_token']:8.0f} bytes per token"
        )
    if arguments.prefill_length:
        timed = prefill_rows(arguments.prefill_length, arguments.num_hashes, arguments.repetitions, models)
        for row in timed:
            print(
                f"{row['model']:<36} prefill {row['context']:>6}: {row['seconds']:7.2f} s (quickest {row['seconds_min']:.2f})"
            )
        found += timed
    if arguments.json == "-":
        print(json.dumps(found))
    elif arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
