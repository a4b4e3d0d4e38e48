"""`python -m benchmarks.endurance train|generate [--minutes 60]`: memory and open files of a process that works for an hour.

`train`: the recipe `text` at a small size, windows drawn anew at each step, with evaluation, checkpoints and samples on the way.
`generate`: the shipped `text-16k` continues prompts of all lengths, one after another: greedy, sampled and with beams, and forks
and crops of its cache. One JSON file for each; `python -m benchmarks.endurance page` draws both into docs/pictures/endurance.png.
"""

import argparse
import copy
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import hf_reformer
from hf_reformer.files import replacing_file
from hf_reformer.training.run import running

from .worker import memory

RESULTS = Path("benchmarks/results/endurance")
PICTURE = Path("docs/pictures/endurance.png")
EVERY = 15.0  # seconds between two measurements


class Record:
    """What the process holds, now and then: (seconds, resident GiB, open files, units of work done)."""

    def __init__(self, name: str, minutes: float):
        self.name, self.end, self.began, self.rows = name, 60 * minutes, time.monotonic(), []

    def add(self, done: int) -> bool:
        """Measures where it is due; whether there is time left."""
        now = time.monotonic() - self.began
        if not self.rows or now - self.rows[-1][0] >= EVERY:
            self.rows.append((round(now, 1), round(memory()[0], 4), len(os.listdir("/proc/self/fd")), done))
            if len(self.rows) % 20 == 0:
                self.write()
        return now < self.end

    def write(self) -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        with replacing_file(RESULTS / f"{self.name}.json") as path:
            path.write_text(json.dumps({"command": f"python -m benchmarks.endurance {self.name}", "rows": self.rows}))


class Watch(TrainerCallback):
    """Records a training, and ends it when its time is over."""

    def __init__(self, record: Record):
        self.record = record

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = not self.record.add(state.global_step)


def train(record: Record) -> None:
    changes = [
        "model.num_hidden_layers=2", "data.context=2048",
        "training.max_steps=1000000", "training.per_device_train_batch_size=2", "training.eval_steps=400",
        "training.save_steps=400", "evaluation.examples=8",
    ]  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        running("text", folder, changes, callbacks=[Watch(record)], quiet=True) as run,
    ):
        run.train()


@torch.no_grad()
def generate(record: Record) -> None:
    folder = hf_reformer.pretrained("text-16k")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    text = Path(statistics.__file__).read_text(encoding="utf-8")
    drawn, written = random.Random(0), 0
    hows = ({"do_sample": False}, {"do_sample": True, "top_p": 0.9}, {"num_beams": 3, "do_sample": False})
    while record.add(written):
        length, how = drawn.choice((1, 10, 100, 1000, 4000)), drawn.choice(hows)
        start = drawn.randrange(len(text) - length)
        ids = tokenizer(text[start : start + length], return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=60, pad_token_id=0, **how)
        cache = model(ids, use_cache=True).past_key_values
        for _ in range(20):
            fork = copy.deepcopy(cache)
            model(out[:, -8:], past_key_values=fork)
            fork.crop(-4)
        written += out.shape[1] - ids.shape[1]


def page() -> None:
    """The picture, and in a line what memory did in the second half of each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 3))
    for path in sorted(RESULTS.glob("*.json")):
        rows = json.loads(path.read_text())["rows"]
        seconds, resident, files, done = zip(*rows, strict=True)
        axis.plot([s / 60 for s in seconds], resident, label=path.stem)
        early = next(row[1] for row in rows if row[0] >= min(300, seconds[-1]))
        late = [row[1] for row in rows[len(rows) // 2 :]]
        print(
            f"{path.stem}: {seconds[-1] / 60:.0f} minutes, {done[-1]:,} steps or tokens; after 5 minutes {early:.3f} GiB, "
            f"in the second half {min(late):.3f} to {max(late):.3f}, at the end {resident[-1]:.3f}; open files "
            f"{min(files)} to {max(files)}"
        )
    axis.set(xlabel="minutes", ylabel="resident, GiB", ylim=(0, None))
    axis.legend()
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "generate", "page"))
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    if arguments.what == "page":
        page()
        return
    record = Record(arguments.what, arguments.minutes)
    {"train": train, "generate": generate}[arguments.what](record)
    record.write()


if __name__ == "__main__":
    main()
