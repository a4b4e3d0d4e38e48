"""Results as a Markdown table and as plots over length."""

from collections import defaultdict
from dataclasses import fields
from statistics import median

from .cases import Run
from .models import floor_seconds


def summary(result):
    """Medians over repetitions of one run's measurements."""
    return {key: median(m[key] for m in result["measurements"]) for key in result["measurements"][0]}


def markdown(records):
    """The tables of all records; each stands under the machine and the command that it comes from."""
    return "\n\n".join(_tables(record) for record in records) + "\n"


def _tables(record):
    lines = [
        f"Machine: {record['machine']}. Matrix products: {record['gflops']:.0f} GFLOP/s. {record['command']}",
        "",
    ]
    for case in record["cases"]:
        lines += [*_table(case, record["gflops"] * 1e9), ""]
    return "\n".join(lines + generation(record.get("generation", []))).rstrip()


def _table(case, flops_per_second):
    """Time, ratio to the case's first run, memory growth, and times the floor of each run's own matrix products."""
    goal = f" Goal: {case['goal']}." if case["goal"] else ""
    lines = [
        f"**{case['title']}** (medians of {case['repetitions']}).{goal}",
        "",
        "| run | seconds | of the first | faster | memory growth, GiB | peak, GiB | of the floor |",
        "|" + "---|" * 7,
    ]
    first = summary(case["runs"][0])
    for run in case["runs"]:
        s, floor = summary(run), floor_seconds(run_of(run), flops_per_second)
        of_the_floor = "" if floor is None else f"{s['seconds'] / floor:.2f}"
        lines.append(
            f"| {run['label']} | {s['seconds']:.3g} | {s['seconds'] / first['seconds']:.2f} "
            f"| {first['seconds'] / s['seconds']:.2f} | {s['growth_gib']:.2f} | {s['peak_gib']:.2f} "
            f"| {of_the_floor} |"
        )
    left_out = [f"{label}: not installed, left out." for label in case.get("left_out", [])]
    return lines + ["", *left_out] if left_out else lines


def run_of(result):
    """The `Run` that a result was measured for."""
    return Run(**{field.name: result[field.name] for field in fields(Run) if field.name in result})


def generation(rows):
    """Tables of decoding and of reading a prompt, the lines of each."""
    decoding = [row for row in rows if row["case"] == "decoding"]
    prefill = [row for row in rows if row["case"] == "prefill"]
    lines = []
    if decoding:
        contexts = sorted({row["context"] for row in decoding})
        rounds = decoding[0]["num_hashes"]
        lines += [
            f"**milliseconds per decoded token after a context of so many tokens, {rounds} rounds** (medians)",
            "",
        ]
        lines += ["| model | " + " | ".join(f"{c:,}" for c in contexts) + " | cache, bytes per token |"]
        lines += ["|" + "---|" * (len(contexts) + 2)]
        for name in dict.fromkeys(row["model"] for row in decoding):
            mine = {row["context"]: row for row in decoding if row["model"] == name}
            cells = [f"{mine[c]['ms_per_token']:.2f}" for c in contexts]
            lines.append(f"| {name} | {' | '.join(cells)} | {mine[contexts[-1]]['cache_bytes_per_token']:,.0f} |")
    if prefill:
        lines += [
            "",
            f"**seconds to read a prompt of {prefill[0]['context']:,} tokens into an empty cache** (medians)",
            "",
        ]
        lines += ["| model | seconds |", "|---|---|"]
        lines += [f"| {row['model']} | {row['seconds']:.2f} |" for row in prefill]
    return lines


def plot(records, case_name, path):
    """Seconds and memory growth of a case's runs over length, log axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    case = next((c for record in records for c in record["cases"] if c["name"] == case_name), None)
    if case is None:
        return
    peers = defaultdict(list)
    for run in case["runs"]:
        s = summary(run)
        peers[run["label"].rsplit(" ", 1)[0]].append((run["length"], s["seconds"], s["growth_gib"]))
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for axis, column, name in zip(axes, (1, 2), ("seconds per training step", "memory growth, GiB"), strict=True):
        for peer, points in peers.items():
            axis.plot([p[0] for p in points], [p[column] for p in points], marker="o", label=peer)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=name)
        axis.grid(True, which="both", alpha=0.3)
    axes[0].legend()
    figure.suptitle(case["title"])
    figure.tight_layout()
    figure.savefig(path, dpi=120)
