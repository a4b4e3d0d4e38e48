"""`python -m benchmarks.gpu [--smoke]`: seconds and peak memory of a training step on the GPU, by attention and length.

Run `pytest tests/test_gpu.py` first: it says whether the figures are of the right thing. The model: 12 layers, hidden size 1,024,
16 heads of 64, bfloat16 autocast, 1 sequence. Runs take turns; medians. `full` is ordinary attention in every second layer.
"""

import argparse
import json
import platform
import statistics
import time

import torch

from hf_reformer import ReformerConfig, ReformerForCausalLM

RUNS = {
    "strict, eager": (("strict_local", "strict_lsh"), "eager"),
    "strict, sdpa": (("strict_local", "strict_lsh"), "sdpa"),
    "published, eager": (("local", "lsh"), "eager"),
    "full": (("strict_local", "full"), "sdpa"),
}


def build(kinds, implementation, length, layers, width):
    config = ReformerConfig(
        attn_layers=list(kinds) * (layers // 2), hidden_size=width, num_attention_heads=width // 64, attention_head_size=64,
        feed_forward_size=4 * width, num_hashes=4, max_position_embeddings=length, is_decoder=True, layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0, attn_implementation=implementation,
        chunk_size_lm_head=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    return ReformerForCausalLM(config).train()


def step(model, ids):
    """Seconds of one forward and backward, and peak GiB of the device."""
    device = ids.device
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    synchronize()
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    synchronize()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def measured(name, length, layers, width, device, repetitions):
    try:
        model = build(*RUNS[name], length, layers, width).to(device)
        ids = torch.randint(3, 300, (1, length), device=device)
        found = [step(model, ids) for _ in range(1 + repetitions)][1:]
        return {"seconds": statistics.median(s for s, _ in found), "peak_gib": max(peak for _, peak in found)}
    except torch.OutOfMemoryError:
        return {"seconds": None, "peak_gib": None}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536, 262144, 1048576])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU where there is no GPU")
    arguments = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.smoke:
        parser.error("there is no GPU here; --smoke tries the script")
    if arguments.smoke:
        arguments.lengths, arguments.layers, arguments.width, arguments.repetitions = [512], 2, 128, 1
    print(torch.cuda.get_device_name() if device == "cuda" else platform.machine(), "PyTorch", torch.__version__)
    print("| attention | tokens | seconds | peak, GiB |\n|---|---|---|---|")
    for length in arguments.lengths:
        for name in arguments.runs:
            found = measured(name, length, arguments.layers, arguments.width, device, arguments.repetitions)
            seconds = "out of memory" if found["seconds"] is None else f"{found['seconds']:.3f}"
            print(f"| {name} | {length:,} | {seconds} | {found['peak_gib'] or 0:.2f} |", flush=True)
            print(json.dumps({"run": name, "tokens": length, **found}), flush=True)


if __name__ == "__main__":
    main()
