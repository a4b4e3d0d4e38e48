"""`python -m benchmarks`: every case in fresh processes, its runs in alternation; JSON, a table and plots come out.

What is measured replaces what the output folder holds of the same cases; all other cases stay.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from hf_reformer.files import replacing_file

from .cases import CASES
from .report import markdown, plot

GENERATION = "generation"
OPTIONAL = ("reformer_pytorch",)  # peers that are no requirement of the development packages


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [case.name for case in CASES] + [GENERATION]
    parser.add_argument("--cases", nargs="*", choices=names, help="default: all")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    if args.repetitions < 1:
        parser.error(f"--repetitions is {args.repetitions}, but must be at least 1")
    command = " ".join(["python -m benchmarks", *(sys.argv[1:] if argv is None else argv)])
    new = {"machine": machine(), "gflops": sgemm_gflops(), "command": f"`{command}`", "cases": []}
    args.output.mkdir(parents=True, exist_ok=True)
    before = read_results(args.output)
    for case in CASES:
        if not args.cases or case.name in args.cases:
            new["cases"].append(run_case(case, case.repetitions or args.repetitions))
            write_results(merged(before, new), args.output)
    if not args.cases or GENERATION in args.cases:
        new["generation"] = run_generation(args.repetitions)
        write_results(merged(before, new), args.output)
    for name in {"crossover", "lengths"} & {case["name"] for case in new["cases"]}:
        plot([new], name, args.output / f"{name}.png")
    print(markdown([new]))


def read_results(folder):
    """The records that earlier commands wrote: a list, one for each machine and command."""
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else []


def merged(records, new):
    """`records` without what `new` has measured again, and `new`."""
    measured = {case["name"] for case in new["cases"]}
    kept = [record | {"cases": [c for c in record["cases"] if c["name"] not in measured]} for record in records]
    if "generation" in new:
        kept = [{key: value for key, value in record.items() if key != "generation"} for record in kept]
    return [record for record in kept if record["cases"] or "generation" in record] + [new]


def write_results(records, folder):
    for name, text in (("results.json", json.dumps(records, indent=1)), ("results.md", markdown(records))):
        with replacing_file(folder / name) as temporary:
            temporary.write_text(text)


def run_case(case, repetitions):
    """Measures the case's runs one after the other, `repetitions` times; those of a peer that is not installed are named."""
    left_out = [run.label for run in case.runs if run.peer in OPTIONAL and importlib.util.find_spec(run.peer) is None]
    runs = [run for run in case.runs if run.label not in left_out]
    measurements = {run.label: [] for run in runs}
    for repetition in range(repetitions):
        for run in runs:
            measurements[run.label].append(in_fresh_process(run))
            seconds = measurements[run.label][-1]["seconds"]
            print(
                f"{case.name} {repetition + 1}/{repetitions} {run.label}: {seconds:.3f} s", file=sys.stderr, flush=True
            )
    return {
        "name": case.name, "title": case.title, "goal": case.goal, "repetitions": repetitions, "left_out": left_out,
        "runs": [{**asdict(run), "measurements": measurements[run.label]} for run in runs],
    }  # fmt: skip


def in_fresh_process(run):
    return python_json(run.label, "benchmarks.worker", json.dumps(asdict(run)))


def run_generation(repetitions):
    """The rows of `decoding.py`: all models take turns in one process."""
    return python_json("generation", "benchmarks.decoding", "--repetitions", str(repetitions), "--json", "-")


def python_json(label, module, *arguments):
    """What `python -m module` prints in its last line."""
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parent.parent)
    if done.returncode != 0:
        raise RuntimeError(f"{label} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def sgemm_gflops(size=2048, repetitions=9):
    """Best rate of float32 matrix products on this machine."""
    a = torch.randn(size, size)
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def machine():
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return f"{cpu}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
