"""Measures one run in this process, which must be fresh: `python -m benchmarks.worker '{"label": ...}'` prints JSON."""

import json
import re
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

from .cases import Run
from .models import build

STATUS = Path("/proc/self/status")


def measure(run):
    """Median seconds of a step, and the growth of the process's peak memory over what the built model took (GiB)."""
    model = build(run)
    model.train(run.mode == "train")
    optimizer = torch.optim.Adam(model.parameters()) if run.mode == "train" else None
    input_ids = torch.randint(320, (1, run.length), generator=torch.Generator().manual_seed(1))
    labels = input_ids[:, : run.target]
    before = memory()[0]
    times = [run_step(model, optimizer, input_ids, run.bf16, labels) for _ in range(1 + run.steps)]
    peak = memory()[1]
    state = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "seconds": statistics.median(times[1:] or times),
        "peak_gib": peak,
        "growth_gib": peak - before,
        "model_gib": state / 2**30,
    }


def run_step(model, optimizer, input_ids, bf16=False, labels=None):
    """Seconds of one step, its forward under autocast with `bf16`; without an optimizer a forward without gradient.

    `labels`: what is to be predicted, where that is not the input itself.
    """
    start, autocast = time.perf_counter(), torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    if optimizer is None:
        with torch.no_grad(), autocast:
            model(input_ids)
    else:
        with autocast:
            loss = model(input_ids=input_ids, labels=input_ids if labels is None else labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def memory():
    """(resident now, peak) of this process alone, in GiB; both the peak where the system does not tell the former.

    Linux' `ru_maxrss` begins with the peak of the process that started this one.
    """
    if STATUS.exists():
        kib = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE))
        return int(kib["VmRSS"]) / 2**20, int(kib["VmHWM"]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return peak, peak


if __name__ == "__main__":
    print(json.dumps(measure(Run(**json.loads(sys.argv[1])))))
