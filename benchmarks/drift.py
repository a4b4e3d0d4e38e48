"""`python -m benchmarks.drift [--layers 6 12 ...]`: how far the inputs that backward rebuilds are from those of the forward, over
the depth of a stack, with and without `exact_reversible`; float32, weights of std 0.3, one row of 64 tokens of width 32.

Prints a table, and draws docs/pictures/drift.png. `python -m benchmarks.drift --cost` times a training step of the benchmarks'
model, 8,192 tokens, 4 rounds, with and without it, in turns: CPU seconds of one thread.
"""

import argparse
import statistics
import time
from pathlib import Path
from unittest import mock

import torch

from hf_reformer import ReformerConfig, ReformerModel, ReformerModelWithLMHead
from hf_reformer.model import reversible

from .cases import Run
from .models import build

PICTURE = Path("docs/pictures/drift.png")
DEPTHS = (6, 12, 24, 48, 192, 1000)


def rebuilt(layers: int, exact: bool, dtype=torch.float32, std=0.3, length=64):
    """(largest difference of what is rebuilt from what was, at the bottom of the stack, over all numbers of both streams; how
    many of them differ; the largest number in the streams)."""
    torch.manual_seed(0)
    config = ReformerConfig(
        attn_layers=["strict_local", "strict_lsh"] * (layers // 2), hidden_size=32, feed_forward_size=64, num_attention_heads=2,
        attention_head_size=16, vocab_size=50, axial_pos_embds=False, max_position_embeddings=length, is_decoder=True,
        local_attn_chunk_length=16, lsh_attn_chunk_length=16, initializer_range=std, exact_reversible=exact, num_hashes=2,
        hidden_dropout_prob=0.1,
    )  # fmt: skip
    model, streams = ReformerModel(config).to(dtype).train(), {}
    apply = reversible.reversible_layer

    def given(place, halves, x1, x2, context):
        if place.below is None:  # the lowest layer
            streams["given"] = x1.detach().clone(), x2.detach().clone()
        out = apply(place, halves, x1, x2, context)
        streams["largest"] = max(streams.get("largest", 0.0), *(float(y.detach().abs().max()) for y in out[:2]))
        return out

    def compare(check, x1, x2, size, drift):
        if check.name == "encoder.layers[0]":
            streams["rebuilt"] = x1.clone(), x2.clone()
        return size.new_zeros(()), size.new_full((), -1.0)

    with (
        mock.patch.object(reversible, "reversible_layer", given),
        mock.patch.object(reversible.Check, "compare", compare),
    ):
        model(torch.randint(50, (1, length))).last_hidden_state.square().mean().backward()
    off = torch.stack([a - b for a, b in zip(streams["given"], streams["rebuilt"], strict=True)]).abs()
    return float(off.max()), int((off > 0).sum()), streams["largest"]


def cost(repetitions: int = 9) -> None:
    """Median of the ratios of neighbouring steps: the machine's moods are in both."""
    run = Run("strict", strict=True, length=8192)
    usual = build(run)
    exact = ReformerModelWithLMHead(ReformerConfig(**{**usual.config.to_diff_dict(), "exact_reversible": True}))
    input_ids = torch.randint(320, (1, run.length))

    def seconds(model):
        start = time.process_time()
        model(input_ids, labels=input_ids).loss.backward()
        model.zero_grad()
        return time.process_time() - start

    pairs = [(seconds(usual), seconds(exact)) for _ in range(1 + repetitions)][1:]
    times = [statistics.median(column) for column in zip(*pairs, strict=True)]
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"usual {times[0]:.3f} s, exact {times[1]:.3f} s, ratio {ratio:.3f} (median of {repetitions} pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--cost", action="store_true")
    arguments = parser.parse_args()
    if arguments.cost:
        cost()
        return
    rows = [(depth, rebuilt(depth, False), rebuilt(depth, True)) for depth in arguments.layers]
    print("| layers | drift | numbers that differ | largest number | drift, exact | that differ | largest number |")
    print("|---|---|---|---|---|---|---|")
    for depth, *pairs in rows:
        cells = " | ".join(
            f"{drift:.2g} | {count:,} of {2 * 64 * 32:,} | {largest:.0f}" for drift, count, largest in pairs
        )
        print(f"| {depth} | {cells} |")
    draw(rows)


def draw(rows) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3))
    depths = [depth for depth, *_ in rows]
    axis.plot(depths, [usual[0] for _, usual, _ in rows], marker="o", label="float32")
    axis.plot(depths, [exact[0] for _, _, exact in rows], marker="o", label="exact_reversible")
    axis.set(xscale="log", xlabel="layers", ylabel="drift of the rebuilt input")
    axis.set_yscale("symlog", linthresh=1e-7)
    axis.legend()
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
