"""Writes docs/does-lsh-help.md and its pictures from the files of `evidence.py`, and nothing else."""

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
    headings = " | ".join(("last layer in training", "steps", *HEADINGS, "steps to 90 % less loss"))
    lines = [f"| {headings} |", "|---" * (len(HEADINGS) + 3) + "|"]
    for key in sorted(runs, key=order):
        cells = []
        for column in COLUMNS:
            values = [value_of(result["accuracy"], column) for result in runs[key]]
            cells.append("" if None in values else f"{100 * mean(values):.1f}")
        lines.append(f"| {label(*key)} | {key[2]:,} | {' | '.join(cells)} | {steps_to_learn(runs[key])} |")
    return "\n".join(lines)


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
        f"learning rate {s['learning_rate']:g} with warm-up and linear decay; seed(s) {', '.join(map(str, seeds))}; 512 "
        "rows evaluated."
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


def write(folder, page=PAGE, answer=""):
    """The page of all results in the folder."""
    found, parts = results(folder), [answer]
    for task, title in (("recall", "Associative recall"), ("duplication", "Duplication, 0w0w")):
        if task in found:
            picture = page.with_name(f"does-lsh-help-{task}.png")
            plot(found[task], picture)
            parts += [f"## {title}", conditions(found[task]), table(found[task]), f"![Loss over steps]({picture.name})"]
            parts += [PAPER.strip()] if task == "duplication" else []
    with replacing_file(page) as temporary:
        temporary.write_text("\n\n".join(parts).strip() + "\n")
