"""`Trainer` with what recipes add: their optimizer and schedule, metrics as sums, bits in the log, seconds over all sessions."""

import math
import signal
import time

import torch
from tqdm.auto import tqdm
from transformers.trainer_callback import ProgressCallback

from .checkpoints import CheckpointedTrainer
from .optimizers import MuonWithAdam

SHOWN = {
    "loss": "loss {:.4f}",
    "bits_per_byte": "{:.4f} bits/byte",
    "bits_per_token": "{:.4f} bits/token",
    "bits_per_dimension": "{:.4f} bits/dim",
    "bits_per_masked_token": "{:.4f} bits/masked token",
    "accuracy": "accuracy {:.2%}",
    "exact_match": "exact match {:.2%}",
    "macro_f1": "macro F1 {:.4f}",
}


class RecipeTrainer(CheckpointedTrainer):
    """Trains the examples of a `Task`.

    Args:
        unit: what a token of a language model is; the training loss is logged in bits per unit too. None: no language model.
        muon: use Muon, with this share of the learning rate for what is no matrix of a layer.
        schedule_steps: length of the learning-rate schedule, where it is not that of the run.
        evaluation_hashes: rounds of hashing in evaluation; None: the model's.
        reversible_from: tokens; inputs shorter than this keep their activations. None: as the model's configuration says.
    """

    stop_signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(
        self, *, unit=None, muon=None, schedule_steps=None, evaluation_hashes=None, reversible_from=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.unit, self.muon, self.reversible_from = unit, muon, reversible_from
        self.schedule_steps, self.evaluation_hashes = schedule_steps, evaluation_hashes
        self.clock = None  # (seconds of earlier sessions, when this one began)
        self.remove_callback(ProgressCallback)
        if not self.args.disable_tqdm:
            self.add_callback(Progress())

    def create_optimizer(self, model=None):
        """Muon where the recipe asks for it; all others are `Trainer`'s."""
        if self.muon is not None and self.optimizer is None:
            self.optimizer = MuonWithAdam(self.model if model is None else model, self.args.learning_rate, self.muon)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps, optimizer=None):
        """The schedule over `schedule_steps`."""
        return super().create_scheduler(self.schedule_steps or num_training_steps, optimizer)

    def _get_train_sampler(self, train_dataset=None):
        """In the order of the examples, which are functions of seed and index: there is nothing to draw."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return torch.utils.data.SequentialSampler(dataset) if hasattr(dataset, "__len__") else None

    def training_step(self, model, inputs, num_items_in_batch=None):
        """A step that keeps the activations of short inputs."""
        if self.reversible_from is not None:
            encoder = self.accelerator.unwrap_model(model).reformer.encoder
            encoder.reversible = inputs["input_ids"].shape[1] >= self.reversible_from
        return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Evaluation with its own number of hash rounds."""
        if self.evaluation_hashes is not None:
            inputs = {**inputs, "num_hashes": self.evaluation_hashes}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def log(self, logs, start_time=None):
        """Adds the bits of the training loss and the seconds of training so far, over all sessions."""
        if "loss" in logs and self.unit is not None:
            logs[f"bits_per_{self.unit}"] = logs["loss"] / math.log(2)
        logs["seconds"] = round(self.seconds(), 1)
        super().log(logs, start_time)

    def seconds(self) -> float:
        """Since training began, without the time between sessions."""
        if self.clock is None:
            history = self.state.log_history
            self.clock = (history[-1].get("seconds", 0.0) if history else 0.0, time.monotonic())
        return self.clock[0] + time.monotonic() - self.clock[1]


class Progress(ProgressCallback):
    """A bar with steps, loss and bits beside it, and one line per evaluation."""

    def on_train_begin(self, args, state, control, **kwargs):
        """The bar begins at the step that is resumed from."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", desc="training")
        self.current_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(shown(logs), refresh=False)
        elif "eval_loss" in logs:
            metrics = {name.removeprefix("eval_"): value for name, value in logs.items()}
            self.training_bar.write(f"step {state.global_step:,}: held-out {shown(metrics)}")


def shown(metrics: dict) -> str:
    """The metrics that people look at, in one line."""
    return ", ".join(form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics)


def statistics_for(task):
    """A `preprocess_logits_for_metrics`: sums per example in place of logits."""

    def statistics(logits, labels):
        with torch.no_grad():
            return task.statistics(logits, labels)

    return statistics
