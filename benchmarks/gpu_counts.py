"""`python -m benchmarks.gpu_counts [--layers N]`: what one training step asks of a GPU, counted without one.

The step runs on tensors of the device `meta`, which have shapes and types but no numbers: kernels launched (operations that
are no views), bytes that they read and write, and that no number is read back (which would raise here). The model: hidden size
1,024, 16 heads of 64, 4 sequences of 16,384 tokens, 4 rounds, 256 buckets, weights in bfloat16. A backward operator counts as one
kernel; an estimate of order, not of time.
"""

import argparse
from collections import Counter
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_reformer import ReformerConfig, ReformerForCausalLM
from hf_reformer.model import attention_chunked

MAKE_NOTHING = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "detach",
    "alias",
    "lift_fresh",
    "_unsafe_view",
    "promote_types",
}


class Launches(TorchDispatchMode):
    """Operations that run a kernel, and the bytes of their tensors, by name."""

    def __init__(self):
        super().__init__()
        self.count, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and name not in MAKE_NOTHING:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            self.count[name] += 1
            self.bytes[name] += sum(x.numel() * x.element_size() for x in tensors)
        return result


def counted(implementation, layers, kinds, length=16384, batch=4):
    """`Launches` of one forward and backward."""
    with torch.device("meta"):
        config = ReformerConfig(
            attn_layers=(list(kinds) * layers)[:layers], hidden_size=1024, num_attention_heads=16, attention_head_size=64,
            feed_forward_size=4096, num_hashes=4, num_buckets=256, axial_pos_shape=[length // 128, 128],
            axial_pos_embds_dim=[256, 768], max_position_embeddings=length, is_decoder=True, hidden_dropout_prob=0.0,
            local_attention_probs_dropout_prob=0.0, attn_implementation=implementation,
        )  # fmt: skip
        model = ReformerForCausalLM(config).to(torch.bfloat16).train()
        ids = torch.zeros(batch, length, dtype=torch.int64)
    fused = mock.patch.object(attention_chunked, "varlen_applies", lambda v, layout: layout.bounds is not None)
    with fused, Launches() as launches:
        model(input_ids=ids, labels=ids).loss.backward()
    return launches


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_counts", description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=["strict_local", "strict_lsh"])
    parser.add_argument("--operations", type=int, default=0, help="name so many of the most frequent")
    arguments = parser.parse_args(argv)
    print("| attn_implementation | kernels | a layer | GB moved | a layer |\n|---|---|---|---|---|")
    for implementation in ("eager", "sdpa"):
        found = counted(implementation, arguments.layers, arguments.kinds)
        kernels, moved = sum(found.count.values()), sum(found.bytes.values()) / 1e9
        layers = arguments.layers
        print(f"| {implementation} | {kernels:,} | {kernels / layers:,.0f} | {moved:,.0f} | {moved / layers:,.0f} |")
        for name, count in found.count.most_common(arguments.operations):
            print(f"    {name}: {count}, {found.bytes[name] / 1e9:,.1f} GB")


if __name__ == "__main__":
    main()
