"""`python -m benchmarks.turns RUN ...`: runs take turns step by step, each in a process that stays, so that a machine that changes
its pace meets all alike: ratios vary by 1 %, where those of fresh processes vary by 5.

RUN is what differs from the case `train-4`, as JSON: '{}' '{"bf16": true}' '{"peer": "transformers"}'. TREE@RUN takes the package
from another checkout: '../before@{}'.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from .cases import OURS
from .models import build
from .worker import run_step

HERE = Path(__file__).resolve().parent.parent


class Runner:
    """A process that has built its model and taken one step."""

    def __init__(self, name):
        tree, _, changes = name.rpartition("@")
        path = os.pathsep.join([str(Path(tree or HERE).resolve() / "src"), str(HERE)])
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.turns", "--serve", changes], env=environment, cwd=HERE, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.seconds = []
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a run ended with exit code {self.process.wait()}")
        return float(line)

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(self.read())


def serve(changes):
    """One step for each line of the input, its seconds as a line of the output."""
    run = replace(OURS, **json.loads(changes))
    model = build(run).train(run.mode == "train")
    optimizer = torch.optim.Adam(model.parameters()) if run.mode == "train" else None
    input_ids = torch.randint(320, (1, run.length), generator=torch.Generator().manual_seed(1))
    print(run_step(model, optimizer, input_ids, run.bf16), flush=True)
    for _ in sys.stdin:
        print(run_step(model, optimizer, input_ids, run.bf16), flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.turns", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--serve", metavar="RUN", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.serve is not None:
        serve(arguments.serve)
        return
    if not arguments.runs:
        parser.error("no run is given")
    runners = [Runner(name) for name in arguments.runs]
    for _ in range(arguments.repetitions):
        for runner in runners:
            runner.step()
    first = statistics.median(runners[0].seconds)
    print("| run | seconds, median | least | of the first |\n|---|---|---|---|")
    for name, runner in zip(arguments.runs, runners, strict=True):
        runner.process.kill()
        median = statistics.median(runner.seconds)
        print(f"| `{name}` | {median:.3f} | {min(runner.seconds):.3f} | {median / first:.3f} |")


if __name__ == "__main__":
    main()
