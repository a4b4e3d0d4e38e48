"""`python -m benchmarks.mutants [--module hashing ...] [--sample N]` (`make mutants`): do the tests notice faults in the code?

Each fault (`mutations.py`) is put into a copy of the sources, in which the module's own tests run until one fails. A process
that has PyTorch loaded is forked for each of them, which saves most of the time. Faults that change nothing that can be
seen stand in `equivalent.txt`, with the reason, and do not count.
"""

import argparse
import ast
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import entry_points
from pathlib import Path

from .mutations import mutations

ROOT = Path(__file__).parent.parent
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
MODEL, TRAINING = "src/hf_reformer/model", "src/hf_reformer/training"
# module: (file, tests that run it, the quickest to fail first)
MODULES = {
    "hashing": (f"{MODEL}/hashing.py", "trax_parity randomness reference bad_inputs attention strict_attention"),
    "sorting": (f"{MODEL}/sorting.py", "trax_parity reference attention strict_attention"),
    "losses": (f"{MODEL}/losses.py", "trax_parity bad_inputs transformers_parity recompute library_contract precision"),
    "metrics": (f"{TRAINING}/metrics.py", "metrics train_data train_command"),
    "rows": (f"{TRAINING}/rows.py", "rows train_data train_command"),
    "vocabulary": (f"{TRAINING}/vocabulary.py", "vocabulary train_data train_command"),
    "text_data": (f"{TRAINING}/text_data.py", "text_data train_data train_command"),
    "checkpoints": (f"{TRAINING}/checkpoints.py", "checkpoints trainer interruption train_command"),
    "trainer": (f"{TRAINING}/trainer.py", "trainer train_data train_command interruption"),
    "torch_files": ("conversion/torch_files.py", "conversion_transformers conversion_damage"),
    "tokenizer_files": ("conversion/tokenizer_files.py", "conversion_transformers"),
    "files": ("src/hf_reformer/files.py", "files"),
}
OUTCOMES = ("killed", "timeout", "survived", "equivalent")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--module", nargs="*", choices=MODULES, help="default: all")
    parser.add_argument("--sample", type=int, metavar="N", help="faults of each module, drawn by chance; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", help="for one fault; default: 3 times the tests and 30"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every fault with what became of it")
    parser.add_argument("--list", action="store_true", help="print the faults and run nothing")
    args = parser.parse_args(argv)
    chosen = []
    for name in args.module or MODULES:
        found = faults_of(name)
        chance = random.Random(f"{args.seed} {name}")
        chosen += found if args.sample is None or args.sample >= len(found) else chance.sample(found, args.sample)
    if args.list:
        print("\n".join(describe(fault) for fault in chosen))
        return
    done = run_all(chosen, args.jobs, args.limit, args.json)
    print(report(done))


def faults_of(name):
    """Dictionaries: module, path, line, source, what, code, and `outcome` where it is known before."""
    path = ROOT / MODULES[name][0]
    if not path.exists():
        print(f"{name}: there is no {MODULES[name][0]}; correct the table", file=sys.stderr)
        return []
    known = equivalent()
    found = [{"module": name, "path": MODULES[name][0], **m._asdict()} for m in mutations(path.read_text())]
    return [f | {"outcome": "equivalent" if key(f) in known else None} for f in found]


def key(fault):
    return f"{fault['module']} | {fault['source']} | {fault['what']}"


def describe(fault):
    return f"{fault['path']}:{fault['line']}: {fault['what']}: `{fault['source']}`"


def equivalent():
    """Keys in `equivalent.txt`: `module | line of the source | fault`, each after a comment with the reason."""
    lines = EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else []
    return {line for line in lines if line and not line.startswith("#")}


def tests_of(name):
    paths = [f"tests/test_{test}.py" for test in MODULES[name][1].split()]
    return [path for path in paths if (ROOT / path).exists()]


def run_all(faults, jobs, limit, path):
    """The faults with their outcomes, by `jobs` workers in copies of the sources."""
    pending, done, lock = queue.SimpleQueue(), [f for f in faults if f["outcome"]], threading.Lock()
    usual = dict.fromkeys(MODULES), threading.Lock()
    for fault in faults:
        if not fault["outcome"]:
            pending.put(fault)

    def work():
        with Worker(limit, *usual) as worker:
            while True:
                try:
                    fault = pending.get_nowait()
                except queue.Empty:
                    return
                fault |= worker.run(fault)
                with lock:
                    done.append(fault)
                    print(
                        f"{fault['outcome']} in {fault['seconds']:.0f} s: {describe(fault)}",
                        file=sys.stderr,
                        flush=True,
                    )
                    if path:
                        path.write_text(
                            json.dumps([{k: v for k, v in f.items() if k != "code"} for f in done], indent=1)
                        )

    threads = [threading.Thread(target=work) for _ in range(min(jobs, pending.qsize()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


class Worker:
    """A copy of the sources and a process in it that runs tests, each time in a fork of its own."""

    def __init__(self, limit, usual, measuring):
        """usual: {module: seconds of its tests without a fault}, which all workers share; the first to come measures."""
        self.limit, self.usual, self.measuring = limit, usual, measuring

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="mutants."))
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode()  # fmt: skip
        for name in filter(None, names.split("\0")):
            if (ROOT / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.folder / name, follow_symlinks=False)
        environment = os.environ | {"PYTHONPATH": str(self.folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from benchmarks.mutants import serve; serve()"], cwd=self.folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, fault):
        """{"outcome", "seconds"}; the tests must pass without the fault."""
        name, path = fault["module"], self.folder / fault["path"]
        text, tests = path.read_text(), tests_of(fault["module"])
        with self.measuring:
            if self.usual[name] is None:
                path.write_text(ast.unparse(ast.parse(text)))  # without comments, as with a fault
                passed, self.usual[name] = self._tests(tests, 3600)
                if passed != "survived":
                    raise RuntimeError(f"the tests of {name} fail without any fault: {' '.join(tests)}")
                print(f"{name}: {self.usual[name]:.0f} s without a fault", file=sys.stderr, flush=True)
        try:
            path.write_text(fault["code"])
            outcome, seconds = self._tests(tests, self.limit or 3 * self.usual[name] + 30)
        finally:
            path.write_text(text)
        return {"outcome": outcome, "seconds": seconds}

    def _tests(self, tests, limit):
        start = time.monotonic()
        self.process.stdin.write(json.dumps([tests, limit]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if answer not in OUTCOMES:
            raise RuntimeError(f"the process that runs the tests has ended: {answer!r}")
        return answer, time.monotonic() - start


def serve():
    """Runs in a copy of the sources: for each line `[tests, limit]` one answer, killed, survived or timeout."""
    import pytest
    import torch
    import transformers  # noqa: F401  what takes longest to import, and is none of ours

    for plugin in entry_points(group="pytest11"):
        plugin.load()
    assert not any(name.startswith("hf_reformer") for name in sys.modules)
    torch.set_num_threads(1)
    for line in sys.stdin:
        tests, limit = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            silent = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(silent, descriptor)
            os._exit(min(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])), 100))
        print(_outcome(child, limit), flush=True)


def _outcome(child, limit):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return "survived" if status == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def report(faults):
    """A table by module, and the faults that no test noticed."""
    lines = ["| module | faults | killed | of these by time | survived | equivalent | share killed |", "|" + "---|" * 7]
    groups = {name: [f for f in faults if f["module"] == name] for name in dict.fromkeys(f["module"] for f in faults)}
    for name, group in [*groups.items(), ("all", faults)]:
        count = {outcome: sum(f["outcome"] == outcome for f in group) for outcome in OUTCOMES}
        killed = count["killed"] + count["timeout"]
        share = f"{100 * killed / (killed + count['survived']):.0f} %" if killed + count["survived"] else ""
        lines.append(
            f"| {name} | {len(group)} | {killed} | {count['timeout']} | {count['survived']} | {count['equivalent']} | {share} |"
        )
    survived = sorted((f for f in faults if f["outcome"] == "survived"), key=lambda f: (f["path"], f["line"]))
    return "\n".join([*lines, "", *(f"- {describe(fault)}" for fault in survived)])


if __name__ == "__main__":
    main()
