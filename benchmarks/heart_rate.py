"""Heart rate out of raw samples of an ECG: a small Reformer that reads frames as `inputs_embeds`, trained end to end.

    pip download --no-binary :all: --no-deps systole           # its sdist has src/systole/datasets/Task1_ECG.npy
    python -m benchmarks.heart_rate Task1_ECG.npy              # 10 minutes on one core; --minutes 0.2 tries it out

The recording is of one person, 25.6 minutes at 1,000 Hz (Systole, GPL: not part of this repository). A frame is 4 samples, 250 to a
second; a row is 4,096 to 16,384 frames (16 to 65 seconds). Its label is the mean heart rate: beats from the first to the last R
peak, over the time between; R peaks are found by a threshold, with a refractory time. In training a row is read up to `--change`
times as fast or as slow, with its label. The last five minutes are held out. What is compared is the mean absolute error on rows of
them, beside that of the mean over training rows as the answer to all.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from hf_reformer import ReformerConfig, ReformerForSequenceClassification
from hf_reformer.files import replacing_file
from hf_reformer.training.optimizers import MuonWithAdam

RESULTS = Path("benchmarks/results/heart-rate.json")
RATE, FRAME = 1000, 4  # samples a second, samples of a frame
HELD_OUT = 300  # seconds
SHORTEST, LONGEST = 4_096, 16_384  # frames
SPREAD = 10.0  # beats per minute that are 1 to the model
SHARE = 0.25  # of the learning rate for what is no matrix of a layer
REFRACTORY = 0.3  # seconds in which no second beat begins


def read(path: Path) -> np.ndarray:
    """(samples,) float64 of a .npy file; `ValueError` for what is no recording of twice the held-out time."""
    try:
        samples = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"file {str(path)!r} cannot be read: {error}; allowed is a .npy file of numbers") from None
    least = 2 * HELD_OUT * RATE
    if samples.ndim != 1 or len(samples) < least or not np.issubdtype(samples.dtype, np.number):
        raise ValueError(
            f"file {str(path)!r} has shape {samples.shape}; allowed is one row of at least {least:,} samples"
        )
    return samples.astype(np.float64)


def r_peaks(samples: np.ndarray, rate: int = RATE) -> np.ndarray:
    """Places of R peaks: the highest sample of each run above half of what the highest beats reach.

    What varies slower than a fifth of a second is taken out before; of peaks within the refractory time the higher one stays.
    """
    window = rate // 5
    slow = np.convolve(np.pad(samples, window, mode="edge"), np.ones(window) / window, "same")[window:-window]
    fast = samples - slow
    above = np.concatenate([[0], fast > np.quantile(fast, 0.99) / 2, [0]])
    begins, ends = np.flatnonzero(np.diff(above) == 1), np.flatnonzero(np.diff(above) == -1)
    found = []
    for begin, end in zip(begins, ends, strict=True):
        place = begin + int(fast[begin:end].argmax())
        if not found or place - found[-1] >= REFRACTORY * rate:
            found.append(place)
        elif fast[place] > fast[found[-1]]:
            found[-1] = place
    return np.array(found, np.int64)


def heart_rate(peaks: np.ndarray, begin: int, end: int, rate: int = RATE) -> float:
    """Mean beats per minute of the samples `begin` to `end`: beats from the first to the last peak, over the time between."""
    inside = peaks[(peaks >= begin) & (peaks < end)]
    if len(inside) < 2:
        raise ValueError(f"samples {begin} to {end} have {len(inside)} R peaks; allowed are at least 2")
    return 60 * rate * (len(inside) - 1) / float(inside[-1] - inside[0])


class Row(NamedTuple):
    """Samples `first` to `last`, read as so many frames: faster or slower than they were taken where the numbers differ."""

    first: int
    last: int
    frames: int

    @property
    def speed(self) -> float:
        return (self.last - self.first) / (FRAME * self.frames)


def rows_within(begin: int, end: int, count: int, chance: random.Random, change: float = 1.0) -> list[Row]:
    """Rows of any length from SHORTEST to LONGEST frames, anywhere between two samples, up to `change` times as fast or slow."""
    rows = []
    for _ in range(count):
        frames = chance.randint(SHORTEST, LONGEST)
        size = round(FRAME * frames * change ** chance.uniform(-1, 1))
        first = chance.randint(begin, end - size)
        rows.append(Row(first, first + size, frames))
    return rows


class Batches:
    """Frames, masks and labels of rows. Samples are scaled by what the training part has, labels by its mean and SPREAD."""

    def __init__(self, samples: np.ndarray, training: int):
        self.peaks = r_peaks(samples)
        scaled = (samples - samples[:training].mean()) / samples[:training].std()
        self.samples = torch.tensor(scaled, dtype=torch.float32)
        self.mean = self.rates(rows_within(0, training, 1000, random.Random(0))).mean().item()

    def rates(self, rows: list[Row]) -> torch.Tensor:
        return torch.tensor([heart_rate(self.peaks, row.first, row.last) * row.speed for row in rows])

    def frames(self, row: Row) -> torch.Tensor:
        """(frames, FRAME), between the samples where the row is not as fast as they are."""
        samples = self.samples[row.first : row.last]
        if len(samples) != FRAME * row.frames:
            samples = torch.nn.functional.interpolate(samples[None, None], FRAME * row.frames, mode="linear")[0, 0]
        return samples.view(-1, FRAME)

    def batch(self, rows: list[Row]) -> dict:
        mask = pad_sequence([torch.ones(row.frames, dtype=torch.long) for row in rows], batch_first=True)
        frames = pad_sequence([self.frames(row) for row in rows], batch_first=True)
        return {"frames": frames, "attention_mask": mask, "labels": (self.rates(rows) - self.mean) / SPREAD}


class Reader(torch.nn.Module):
    """Frames -> `inputs_embeds` by a convolution over a few of them, then a Reformer that sees both sides and answers one number.

    It has no positions: the convolution knows the order of near frames, and all else is a mean over the row.
    """

    def __init__(self, width: int, layers: list[str], chunk: int = 64):
        super().__init__()
        self.embedding = torch.nn.Conv1d(FRAME, width, kernel_size=15, padding="same")
        config = ReformerConfig(
            attn_layers=layers, is_decoder=False, num_labels=1, problem_type="regression", vocab_size=2, hidden_size=width,
            num_attention_heads=2, attention_head_size=width // 2, feed_forward_size=2 * width, num_hashes=1,
            max_position_embeddings=LONGEST, use_absolute_position_embeddings=False, local_attn_chunk_length=chunk,
            local_num_chunks_after=1, lsh_attn_chunk_length=chunk, lsh_num_chunks_after=1, hidden_dropout_prob=0.0,
            local_attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.model = ReformerForSequenceClassification(config)

    def forward(self, frames, attention_mask, labels=None):
        embedded = self.embedding(frames.mT).mT
        return self.model(inputs_embeds=embedded, attention_mask=attention_mask, labels=labels)


def train(model, data: Batches, end: int, args) -> dict:
    """Trains on rows of the samples before `end` for so many minutes; the learning rate falls to 0 with the time."""
    optimizer, chance = MuonWithAdam(model, args.learning_rate, SHARE), random.Random(args.seed)
    rates = [group["lr"] for group in optimizer.param_groups]
    began, steps, done, recent = time.perf_counter(), 0, 0.0, []
    while done < 1:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (steps + 1) / 20, 2 * (1 - done))
        loss = model(**data.batch(rows_within(0, end, args.batch, chance, args.change))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps, done = steps + 1, (time.perf_counter() - began) / (60 * args.minutes)
        recent = [*recent[-19:], loss.item()]
        if steps % 20 == 0:
            print(f"step {steps}, loss {np.mean(recent):.3f}", flush=True)
    return {"steps": steps, "seconds": round(time.perf_counter() - began), "loss_of_last_steps": float(np.mean(recent))}


@torch.no_grad()
def errors(model, data: Batches, rows) -> dict:
    """Mean absolute error in beats per minute: the model, the mean of training rows, the best constant for these rows."""
    model.eval()
    truth = data.rates(rows)
    said = torch.cat([model(**data.batch([row])).logits[:, 0] for row in rows]) * SPREAD + data.mean
    model.train()
    found = {
        "rows": len(rows),
        "model": (said - truth).abs().mean().item(),
        "mean": (data.mean - truth).abs().mean().item(),
    }
    found["best_constant"] = (truth.median() - truth).abs().mean().item()
    return {**found, "lowest": truth.min().item(), "highest": truth.max().item()}


def options(argv):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heart_rate", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="Task1_ECG.npy")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--layers", nargs="+", default=["strict_local", "strict_lsh"])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument(
        "--change", type=float, default=1.25, help="training rows are up to so many times as fast or slow"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser, parser.parse_args(argv)


def run(args) -> dict:
    samples = read(args.file)
    torch.manual_seed(args.seed)
    end = len(samples) - HELD_OUT * RATE
    data, model = Batches(samples, end), Reader(args.width, args.layers)
    held_out = rows_within(end, len(samples), 40, random.Random(1))
    known = rows_within(0, end, 40, random.Random(2))
    before = errors(model, data, held_out)
    trained = train(model, data, end, args)
    return {
        "seed": args.seed,
        "python": sys.version.split()[0], "torch": torch.__version__, "threads": torch.get_num_threads(),
        "peaks": len(data.peaks), "parameters": sum(p.numel() for p in model.parameters()), "training": trained,
        "before": before, "held_out": errors(model, data, held_out), "training_rows": errors(model, data, known),
    }  # fmt: skip


def main(argv=None):
    parser, args = options(argv)
    command = " ".join([parser.prog, *(sys.argv[1:] if argv is None else argv)])
    try:
        result = {"command": command, **run(args)}
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")
    with replacing_file(args.output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
