"""`python -m benchmarks.blocks`: one block of attention, forward, by each of the ways that were tried; what `blocks.py` of the
package says of them comes from here."""

import statistics
import time
from functools import partial

import torch

CHUNK, SIZE = 64, 64
FORBIDDEN = 1e30


def plain(q, k, v, mask):
    """Scores, mask, softmax and logsumexp as ordinary tensors."""
    scores = torch.bmm(q, k.transpose(1, 2)).sub_(mask, alpha=FORBIDDEN)
    probs = torch.softmax(scores, -1)
    return torch.bmm(probs, v), scores.amax(-1, keepdim=True) - probs.amax(-1, keepdim=True).log_()


def fused(q, k, v, mask):
    """PyTorch's fused kernel for CPUs; its additive mask is built besides."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    q, k, v, mask = (x[:, None] for x in (q, k, v, mask * -FORBIDDEN))
    return kernel(q, k, v, 0.0, False, attn_mask=mask, scale=1.0)


def products(q, k, v, mask):
    """The two matrix products alone."""
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)), v)


def block(chunks):
    """Queries (chunks, 64, 64), overlapping windows of keys and values (chunks, 128, 64), a causal mask."""
    windows = (torch.randn((chunks + 1) * CHUNK, SIZE) for _ in range(2))
    k, v = (x.as_strided((chunks, 2 * CHUNK, SIZE), (CHUNK * SIZE, SIZE, 1)) for x in windows)
    return torch.randn(chunks, CHUNK, SIZE), k, v, torch.ones(CHUNK, 2 * CHUNK).triu(CHUNK + 1).expand(chunks, -1, -1)


def milliseconds(call, repetitions=60):
    times = []
    for _ in range(repetitions + 3):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


@torch.no_grad()
def main():
    ways = {"products": products, "plain": plain, "compiled": torch.compile(plain, dynamic=False), "fused": fused}
    print(f"milliseconds, medians of 60, {torch.get_num_threads()} threads")
    for chunks in (32, 64, 256):
        inputs = block(chunks)
        found = {name: milliseconds(partial(way, *inputs)) for name, way in ways.items()}
        print(f"{chunks:>4} chunks: " + ", ".join(f"{name} {ms:.2f}" for name, ms in found.items()))


if __name__ == "__main__":
    main()
