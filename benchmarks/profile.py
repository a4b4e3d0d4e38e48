"""`python -m benchmarks.profile [--rounds N] [--mode train|forward] [--peer transformers]`: where the time of one step goes, by
kind of operation, from PyTorch's profiler; 16,384 tokens. What is left besides operations is Python and dispatch.
"""

import argparse
import time

import torch
from torch.profiler import ProfilerActivity, profile

from .cases import Run
from .models import build, floor_seconds
from .worker import run_step

KINDS = {
    "matrix products": "mm addmm bmm",
    "softmax, its maxima and masks": "_softmax amax sub_ clamp_ log_ logaddexp exp_ _log_softmax _log_softmax_backward_data",
    "gather and scatter": "index_select index_copy_ index_add_ index gather scatter_add_ scatter_",
    "hashing and sorting": "max abs sort",
    "layer norm": "native_layer_norm native_layer_norm_backward",
    "copies, sums, element-wise": "copy_ add add_ sub mul mul_ fill_ cat pow sum div div_ clamp_min threshold_backward addcmul"
    " addcmul_ ge random_ bernoulli_",
}


def shares(run):
    """Seconds of a step in each kind of operation."""
    model = build(run).train(run.mode == "train")
    optimizer = torch.optim.Adam(model.parameters()) if run.mode == "train" else None
    input_ids = torch.randint(320, (1, run.length))
    for _ in range(2):
        run_step(model, optimizer, input_ids)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run_step(model, optimizer, input_ids)
    seconds = {e.key.removeprefix("aten::"): e.self_cpu_time_total / 1e6 for e in profiler.key_averages()}
    found = {kind: sum(seconds.get(name, 0) for name in names.split()) for kind, names in KINDS.items()}
    total = sum(seconds.values())
    return {**found, "other operations, Python and dispatch": total - sum(found.values())}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--mode", choices=("train", "forward"), default="train")
    parser.add_argument("--peer", choices=("hf_reformer", "transformers"), default="hf_reformer")
    args = parser.parse_args()
    run = Run("profile", peer=args.peer, mode=args.mode, rounds=args.rounds)
    matrix = torch.randn(2048, 2048)
    matrix @ matrix
    start = time.perf_counter()
    matrix @ matrix
    rate = 2 * 2048**3 / (time.perf_counter() - start)
    found = shares(run)
    total = sum(found.values())
    print("| kind of operation | seconds | share |\n|---|---|---|")
    for kind, seconds in found.items():
        print(f"| {kind} | {seconds:.2f} | {100 * seconds / total:.0f} % |")
    print(f"| all, with the profiler's own cost | {total:.2f} | |")
    print(f"| matrix products alone at the rate measured now | {floor_seconds(run, rate):.2f} | |")


if __name__ == "__main__":
    main()
