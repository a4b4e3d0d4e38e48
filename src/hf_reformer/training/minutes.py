"""How long a run is: steps for a number of minutes, with all that is counted in steps scaled along."""

import dataclasses
import time
from collections import Counter

import torch

from . import examples as ex
from .resuming import examples_per_step
from .settings import Recipe

PROBES = 200  # steps whose inputs are looked at
LENGTHS = 6  # different lengths that are timed
TIMED = 3  # steps of each


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with another number of steps; warm-up, decay, evaluations and checkpoints lie where they lay (the plan of windows
    is in shares of the run anyway)."""
    ratio = steps / recipe.training["max_steps"]

    def scaled(section):
        changed = {"max_steps": steps}
        for key in ("warmup_steps", "schedule_steps", "eval_steps", "save_steps", "logging_steps"):
            value = section.get(key)
            if value is not None and value >= 1:
                changed[key] = max(1, round(value * ratio))
        return {**section, **changed}

    plain = {**recipe.plain, "training": scaled(recipe.plain["training"])}
    extra = recipe.extra
    if extra.schedule_steps is not None:
        extra = dataclasses.replace(extra, schedule_steps=plain["training"]["schedule_steps"])
    training = {key: plain["training"].get(key, value) for key, value in recipe.training.items()}
    return dataclasses.replace(recipe, training=training, extra=extra, plain=plain)


def steps_in(minutes: float, trainer) -> int:
    """Steps of a run of so many minutes, one evaluation before and one after it included; the trainer's model is spent on it.

    Raises:
        ValueError: where not even one step fits.
    """
    seconds = 60 * minutes - 2 * seconds_of_evaluation(trainer)
    steps = int(seconds / max(seconds_of_step(trainer), 1e-6))
    slowest = trainer._maximum_over_processes(-steps)  # all processes take the number of the slowest
    if -slowest < 1:
        raise ValueError(f"minutes is {minutes:g}, but not even one step fits beside the evaluations; allowed is more")
    return -slowest


def seconds_of_step(trainer) -> float:
    """Mean over the run, from steps timed on inputs of the lengths that it will have."""
    arguments, dataset = trainer.args, trainer.train_dataset
    per_step = examples_per_step(arguments)
    if not hasattr(dataset, "__len__"):
        return timed(trainer, [row for row, _ in zip(dataset, range(arguments.train_batch_size), strict=False)])
    steps = [i * per_step for i in ex.spread(arguments.max_steps, PROBES)]
    lengths = Counter(len(dataset[first]["input_ids"]) for first in steps)
    chosen = [sorted(lengths)[i] for i in ex.spread(len(lengths), LENGTHS)]
    total = 0.0
    for place, length in enumerate(chosen):
        upper = chosen[place + 1] if place + 1 < len(chosen) else float("inf")
        share = sum(count for other, count in lengths.items() if length <= other < upper) / len(steps)
        first = next(first for first in steps if len(dataset[first]["input_ids"]) == length)
        rows = [dataset[min(first + i, len(dataset) - 1)] for i in range(arguments.train_batch_size)]
        total += share * timed(trainer, rows)
    return total


def timed(trainer, rows: list[dict]) -> float:
    """Seconds of one optimizer step on these rows, the median of a few after a first one."""
    batch, model = trainer.data_collator(rows), trainer.model
    optimizer, taken = trainer.create_optimizer(), []
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        for _ in range(trainer.args.gradient_accumulation_steps):
            trainer.training_step(model, dict(batch), None)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if trainer.args.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return sorted(taken[1:])[TIMED // 2]


def seconds_of_evaluation(trainer) -> float:
    began = time.perf_counter()
    trainer.evaluate()
    return time.perf_counter() - began
