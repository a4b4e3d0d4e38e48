"""Writes docs/does-lsh-help.md and its pictures from the files of `evidence.py` and `distance.py`, and nothing else."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

from hf_reformer.files import replacing_file

PAGE = Path("docs/does-lsh-help.md")
NAMES = {
    "none": "none (a second local layer)", "full": "`full`", "full_shared_qk": "`full_shared_qk`", "strict_lsh": "`strict_lsh`",
    "lsh": "`lsh` (the original)", "coin": "`strict_lsh`, every other step `full_shared_qk` by chance",
    "full first": "`full_shared_qk` in the first half, then `strict_lsh`",
}  # fmt: skip
COLUMNS = ("as trained", "full", "8", "4", "2", "1", "attention of the last layer zeroed")
HEADINGS = ("as trained", "full", "LSH-8", "LSH-4", "LSH-2", "LSH-1", "attention zeroed")
PAPER = """
| paper, table 2 (length 1,024): trained with | full | LSH-8 | LSH-4 | LSH-2 | LSH-1 |
|---|---|---|---|---|---|
| full | 100 | 94.8 | 92.5 | 76.9 | 52.5 |
| LSH-4 | 0.8 | 100 | 99.9 | 99.4 | 91.9 |
| LSH-2 | 0.8 | 100 | 99.9 | 98.1 | 86.8 |
| LSH-1 | 0.8 | 99.9 | 99.6 | 94.8 | 77.9 |
"""


def results(folder):
    """{task: {(kind, rounds, steps): [result of each seed]}}, in the order in which they stand there."""
    found = defaultdict(lambda: defaultdict(list))
    for path in sorted(Path(folder).glob("*.json")):
        result = json.loads(path.read_text())
        setting = result["setting"]
        found[setting["task"]][setting["kind"], setting["rounds"], setting["steps"]].append(result)
    return found


def value_of(accuracy, column):
    """A column's figure, whichever LSH layer it is of."""
    if column.isdigit():
        found = [accuracy[name] for name in (f"strict_lsh-{column}", f"lsh-{column}") if name in accuracy]
        return found[0] if found else None
    return accuracy.get(column)


def label(kind, rounds, _):
    hashed = kind in ("strict_lsh", "lsh", "coin", "full first")
    return NAMES[kind] + (f", {rounds} round{'s' if rounds > 1 else ''}" if hashed else "")


def order(key):
    kinds = list(NAMES)
    return kinds.index(key[0]), -key[1], key[2]


def table(runs):
    headings = " | ".join(("last layer in training", "steps", "seeds", *HEADINGS, "steps to 90 % less loss"))
    lines = [f"| {headings} |", "|---" * (len(HEADINGS) + 4) + "|"]
    for key in sorted(runs, key=order):
        cells = []
        for column in COLUMNS:
            values = [value_of(result["accuracy"], column) for result in runs[key]]
            cells.append("" if None in values else spread(values))
        start = f"| {label(*key)} | {key[2]:,} | {len(runs[key])}"
        lines.append(f"{start} | {' | '.join(cells)} | {steps_to_learn(runs[key])} |")
    return "\n".join(lines)


def spread(values):
    """Mean of the seeds in percent, and from least to most where these differ."""
    least, most = (f"{100 * extreme(values):.1f}" for extreme in (min, max))
    return f"{100 * mean(values):.1f}" + f" ({least} to {most})" * (least != most)


def steps_to_learn(results_of_seeds):
    """Steps until the loss was a tenth of the first that was noted; a dash where it never was."""
    found = []
    for result in results_of_seeds:
        first = result["curve"][0][1]
        found.append(next((step for step, loss in result["curve"] if loss < 0.1 * first), None))
    return "-" if None in found else f"{round(mean(found)):,}"


def conditions(runs):
    settings = [result["setting"] for seeds in runs.values() for result in seeds]
    s, seeds = settings[0], sorted({setting["seed"] for setting in settings})
    pairs = f"{s['pairs']} pairs, " if s["task"] == "recall" else ""
    layers = "2 layers" if s["task"] == "recall" else "1 layer with a table of positions"
    return (
        f"Length {s['length']}, {pairs}{s['symbols']} symbols; {layers}, width {s['width']}, {s['heads']} heads, LSH chunks of "
        f"{s['chunk']}, all weights from a normal of std {s['std']}; {s['batch']} new rows a step, AdamW, "
        f"learning rate {s['learning_rate']:g} with warm-up and linear decay; of the seeds {', '.join(map(str, seeds))} the first "
        "ones; 512 rows evaluated. Means over the seeds, in brackets from the least to the most."
    )


def plot(runs, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for key in sorted(runs, key=order):
        axes.plot(*zip(*runs[key][0]["curve"], strict=True), label=f"{label(*key)}, {key[2]:,} steps".replace("`", ""))
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend(fontsize=7)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


def distance_runs(folder):
    """{(kind, rounds): [result of each seed]} of `distance.py`."""
    found = defaultdict(list)
    for path in sorted(Path(folder).glob("*.json")):
        result = json.loads(path.read_text())
        found[result["setting"]["kind"], result["setting"]["rounds"]].append(result)
    return found


def distance_table(runs):
    """Accuracy over length, by what was trained and how it is run."""
    lengths = list(next(iter(runs.values()))[0]["accuracy"]["as trained"])
    headings = " | ".join(f"{int(length):,}" for length in lengths)
    lines = [f"| last layer in training | run with | seeds | {headings} |", "|---" * (len(lengths) + 3) + "|"]
    for key in sorted(runs, key=lambda key: order((*key, 0))):
        for way in runs[key][0]["accuracy"]:
            cells = [spread([result["accuracy"][way][length] for result in runs[key]]) for length in lengths]
            lines.append(f"| {label(*key, 0)} | {way} | {len(runs[key])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_distance(runs, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    for key in sorted(runs, key=lambda key: order((*key, 0))):
        found = [result["accuracy"]["as trained"] for result in runs[key]]
        lengths = list(found[0])
        values = [100 * mean(accuracy[length] for accuracy in found) for length in lengths]
        axis.plot([int(length) for length in lengths], values, marker="o", label=label(*key, 0).replace("`", ""))
    axis.axvspan(64, 1024, color="0.93", label="lengths in training")
    axis.set(xscale="log", xlabel="length of the row, tokens", ylabel="right values, %", ylim=(-3, 103))
    axis.set_xticks([int(length) for length in lengths], [f"{int(length):,}" for length in lengths], minor=False)
    axis.legend(fontsize=8)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def write(folder, page=PAGE, answer=""):
    """The page of all results in the folder, and of those of `distance.py` in the folder beside it."""
    found, parts, far = results(folder), [answer], distance_runs(folder.with_name("distance"))
    if far:
        picture = page.with_name("does-lsh-help-distance.png")
        plot_distance(far, picture)
        s = next(iter(far.values()))[0]["setting"]
        parts += [
            "## Recall over distance",
            "8 pairs, then fillers and each key once, at places drawn by chance; trained on rows of 64 to 1,024 tokens for "
            f"{s['steps']:,} steps and tried on longer ones, at least 128 questions each; 2 layers of width 128, LSH chunks of 16, "
            f"no positions; AdamW, learning rate {s['learning_rate']:g}. `python -m benchmarks.distance`",
            f"![Right values over the length of the row]({picture.name})",
            distance_table(far),
        ]
    for task, title in (("recall", "Associative recall"), ("duplication", "Duplication, 0w0w")):
        if task in found:
            picture = page.with_name(f"does-lsh-help-{task}.png")
            plot(found[task], picture)
            parts += [f"## {title}", conditions(found[task]), table(found[task]), f"![Loss over steps]({picture.name})"]
            parts += [PAPER.strip()] if task == "duplication" else []
    with replacing_file(page) as temporary:
        temporary.write_text("\n\n".join(parts).strip() + "\n")
