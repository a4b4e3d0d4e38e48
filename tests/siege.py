"""A siege: public entries under drawn arguments (`siege_entries`), readers under damaged files (`siege_readers`).

What is allowed is a right result or one error that says what is wrong: `ValueError`, `TypeError` or `OSError`, raised on purpose
and with a message. All else is a finding: another error, an error out of the depths, a wrong result, a hang, a crash.

`python tests/siege.py --cases 1000` runs each target for so many cases in a process of its own (a fork: imports take seconds),
entries by hypothesis, readers by random damage and by atheris, which coverage guides (by damage alone where it is not
installed). The figures go to siege.json.
"""

import argparse
import contextlib
import importlib.util
import json
import linecache
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "siege.json"
ALLOWED = (ValueError, TypeError, OSError)
SECONDS = 20  # that one case may take
RIGHT, REFUSED = "right", "refused"


class Finding(AssertionError):
    """What must not happen."""


class Hang(BaseException):
    """Not to be caught by what is under siege."""


@contextlib.contextmanager
def time_limit():
    """Raises `Hang` in the main thread after `SECONDS`."""

    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(action) -> str:
    """`RIGHT` or `REFUSED`; raises `Finding` for everything else that running `action` may lead to."""
    try:
        with time_limit():
            action()
        return RIGHT
    except ALLOWED as error:
        if not on_purpose(error):
            raise Finding(f"an error that nobody wrote: {where(error)}") from error
        return REFUSED
    except Hang as error:
        raise Finding(f"more than {SECONDS} s: {where(error)}") from error
    except Finding:
        raise
    except Exception as error:
        raise Finding(where(error)) from error
    except BaseException as error:  # a panic of a library in Rust is none of Exception's
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Finding(where(error)) from error


def on_purpose(error: Exception) -> bool:
    """Whether a `raise` stands where the error comes from, and it says something; a file system's errors name their file."""
    if isinstance(error, OSError) and error.strerror:
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(frame.filename, frame.lineno).strip()
    return line.startswith("raise") and bool(str(error).strip())


def where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/src/hf_reformer/" in frame.filename or "/conversion/" in frame.filename]
    frame = (ours or frames)[-1]
    return f"{type(error).__name__}: {str(error)[:160]} ({Path(frame.filename).name}:{frame.lineno})"


class Tally:
    """Cases of one target by how they ended, and what was found, each place once."""

    def __init__(self):
        self.counts, self.findings = {RIGHT: 0, REFUSED: 0}, {}

    def add(self, action, what) -> None:
        """Runs a case; `what` (a function) describes it where something is found."""
        try:
            self.counts[judge(action)] += 1
        except Finding as finding:
            place = str(finding).rsplit("(", 1)[-1] + str(finding)[:40]
            self.findings.setdefault(place, {"finding": str(finding), "case": str(what())[:400], "times": 0})[
                "times"
            ] += 1

    def summary(self) -> dict:
        findings = list(self.findings.values())
        cases = sum(self.counts.values()) + sum(finding["times"] for finding in findings)
        return {"cases": cases, **self.counts, "findings": findings}


# --- one target -----------------------------------------------------------------------------------------------------


def besiege_entry(attempt, cases: int, seed: int, seconds: float) -> Tally:
    """Draws cases by hypothesis; `attempt(draw)` gives the case's action and a description."""
    import hypothesis
    from hypothesis import strategies as st

    tally, end = Tally(), time.monotonic() + seconds

    @hypothesis.settings(
        max_examples=cases, deadline=None, database=None, phases=[hypothesis.Phase.generate], derandomize=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.seed(seed)
    @hypothesis.given(st.data())
    def run(data):
        case = attempt(data.draw)
        if time.monotonic() < end:
            tally.add(*case)

    run()
    return tally


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut, flipped, doubled, or with a number or a word put in."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            del data[at : at + chance.choice([1, 2, 8, 1 << 20])]
        elif kind == 1 and data:
            data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[at:at] = data[at : at + chance.choice([1, 8, 64])]
        elif kind == 3:
            data[at : at + 1] = chance.choice(
                [b"\0", b"\xff", b"-1", b"1e999", b"null", b"[", b"{", b'"', b"\n", b"9" * 30]
            )
        elif kind == 4 and len(data) > 9:
            at = min(at, len(data) - 8)
            data[at : at + 8] = chance.choice([b"\xff" * 8, b"\0" * 8, (1 << 40).to_bytes(8, "little")])
        else:
            data[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(data)


def besiege_reader(reader, cases: int, seed: int, seconds: float) -> Tally:
    """Damages the reader's sound files by chance; the first cases are those files themselves."""
    tally, chance = Tally(), random.Random(seed)
    seeds, end = reader.seeds(), time.monotonic() + seconds
    for i in range(cases):
        if time.monotonic() > end:
            break
        data = seeds[i] if i < len(seeds) else damaged(chance.choice(seeds), chance)
        tally.add(lambda data=data: reader.read(data), lambda data=data: data)
    return tally


def fuzz_reader(reader, cases: int, seed: int, seconds: float, corpus: Path, report) -> None:
    """The same guided by coverage; ends the process, so the figures are reported as they come."""
    import atheris

    tally, count = Tally(), [0]
    for i, data in enumerate(reader.seeds()):
        (corpus / f"seed-{i}").write_bytes(data)

    def run(data):
        tally.add(lambda: reader.read(data), lambda: data)
        count[0] += 1
        if count[0] % 50 == 0 or count[0] >= cases:
            report(tally)

    limits = [
        f"-runs={cases}",
        f"-max_total_time={max(int(seconds), 1)}",
        "-max_len=65536",
        "-rss_limit_mb=6000",
        "-timeout=60",
    ]
    atheris.Setup(["siege", *limits, f"-seed={seed + 1}", "-verbosity=0", str(corpus)], run)
    atheris.Fuzz()


# --- the whole siege ------------------------------------------------------------------------------------------------


def run_target(name: str, cases: int, seconds: float, seed: int, result: Path) -> None:
    """Runs one target here and writes its figures."""
    kind, _, target = name.partition(":")
    entries, readers = targets()
    report = lambda summary, by: result.write_text(json.dumps({**summary, "by": by}))
    if kind == "entry":
        report(besiege_entry(entries[target], cases, seed, seconds).summary(), "hypothesis")
        return
    guided = importlib.util.find_spec("atheris") is not None
    by_chance = besiege_reader(
        readers[target], cases // 2 if guided else cases, seed, seconds / 2 if guided else seconds
    ).summary()
    report(by_chance, "damage")
    if guided:
        with tempfile.TemporaryDirectory() as corpus:
            both = lambda tally: report(together(by_chance, tally.summary()), "damage and atheris")
            fuzz_reader(readers[target], cases - cases // 2, seed, seconds / 2, Path(corpus), both)


def together(first: dict, second: dict) -> dict:
    """The figures of both halves; what both found counts once."""
    known = {finding["finding"]: finding for finding in [*second["findings"], *first["findings"]]}
    counts = {key: first[key] + second[key] for key in ("cases", RIGHT, REFUSED)}
    return {**counts, "findings": list(known.values())}


def targets() -> tuple[dict, dict]:
    """Entries and readers by name; where atheris is installed it sees the readers' code from its import on."""
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("atheris"):
            import atheris

            stack.enter_context(atheris.instrument_imports(include=["hf_reformer.conversion", "hf_reformer.training"]))
            import hf_reformer.conversion
            import hf_reformer.training.recipes
            import hf_reformer.training.rows  # noqa: F401
    from siege_entries import ENTRIES
    from siege_readers import READERS

    return ENTRIES, READERS


def besiege(name: str, cases: int, seconds: float, seed: int) -> dict:
    """The figures of a target run in a process of its own; a process that dies is a finding."""
    with tempfile.TemporaryDirectory() as folder:
        result, said = Path(folder, "result.json"), Path(folder, "said.txt")
        child = os.fork()
        if child == 0:
            for stream in (1, 2):
                os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            os.chdir(folder)
            status = 1
            try:
                run_target(name, cases, seconds, seed, result)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = (
            json.loads(result.read_text()) if result.exists() else {"cases": 0, RIGHT: 0, REFUSED: 0, "findings": []}
        )
        if code:
            end = " | ".join(said.read_text(errors="replace").strip().splitlines()[-12:])
            found["findings"].append({"finding": f"the process ended with {code}", "case": end, "times": 1})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="of each target (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="that a target may take (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="targets whose names contain one of these")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    entries, readers = targets()
    every = [*(f"entry:{name}" for name in entries), *(f"reader:{name}" for name in readers)]
    names = [name for name in every if not arguments.only or any(part in name for part in arguments.only)]
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for name in names:
        results[name] = besiege(name, arguments.cases, arguments.seconds, arguments.seed)
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {results[name]['cases']} cases, {len(results[name]['findings'])} findings", flush=True)
        for finding in results[name]["findings"]:
            print(f"    {finding['times']} x {finding['finding']}\n        {finding['case']}", flush=True)
    return int(any(results[name]["findings"] for name in names))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import siege  # the module that the targets know, whose `Finding` is theirs

    sys.exit(siege.main())
