"""`python -m benchmarks`: every case in fresh processes, its runs in alternation; JSON, a table and plots come out."""

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

from .cases import CASES
from .models import floor_seconds
from .report import markdown, plot

GENERATION = "generation"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [case.name for case in CASES] + [GENERATION]
    parser.add_argument("--cases", nargs="*", choices=names, help="default: all")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    if args.repetitions < 1:
        parser.error(f"--repetitions is {args.repetitions}, but must be at least 1")
    command = " ".join(["python -m benchmarks", *(argv or sys.argv[1:])])
    results = {"machine": machine(), "gflops": sgemm_gflops(), "command": f"`{command}`", "cases": []}
    args.output.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if not args.cases or case.name in args.cases:
            results["cases"].append(run_case(case, case.repetitions or args.repetitions, results["gflops"]))
            write_results(results, args.output)
    if not args.cases or GENERATION in args.cases:
        results["generation"] = run_generation(args.repetitions)
        write_results(results, args.output)
    for name in ("crossover", "lengths"):
        plot(results, name, args.output / f"{name}.png")
    print(markdown(results))


def write_results(results, folder):
    write(folder / "results.json", json.dumps(results, indent=1))
    write(folder / "results.md", markdown(results))


def run_case(case, repetitions, gflops):
    """Measures the case's runs one after the other, `repetitions` times."""
    runs = [run for run in case.runs if run.peer != "reformer_pytorch" or importlib.util.find_spec("reformer_pytorch")]
    measurements = {run.label: [] for run in runs}
    for repetition in range(repetitions):
        for run in runs:
            measurements[run.label].append(in_fresh_process(run))
            seconds = measurements[run.label][-1]["seconds"]
            print(
                f"{case.name} {repetition + 1}/{repetitions} {run.label}: {seconds:.3f} s", file=sys.stderr, flush=True
            )
    return {
        "name": case.name, "title": case.title, "goal": case.goal, "repetitions": repetitions,
        "runs": [
            {**asdict(r), "floor": floor_seconds(r, gflops * 1e9), "measurements": measurements[r.label]} for r in runs
        ],
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


def write(path, text):
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
