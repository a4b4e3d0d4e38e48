"""`Trainer` with what recipes add: their optimizer and schedule, bits in the log, seconds over all sessions, one bar."""

import math
import signal
import sys
import time

import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_callback import ExportableState, ProgressCallback

from . import examples as ex
from .checkpoints import CheckpointedTrainer
from .optimizers import MuonWithAdam
from .resuming import examples_per_step

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
STOPPING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # SLURM gives notice with SIGUSR1; a lost connection is a SIGHUP
LINE_EVERY = 30  # seconds, where the bar is a line of a log
PROBES = 200  # steps whose inputs are looked at, to know how much work lies ahead


class RecipeTrainer(CheckpointedTrainer):
    """Trains the examples of a `Task`.

    Args:
        unit: what a token of a language model is; the training loss is logged in bits per unit too. None: no language model.
        muon: use Muon, with this share of the learning rate for what is no matrix of a layer.
        schedule_steps: length of the learning-rate schedule, where it is not that of the run.
        evaluation_hashes: rounds of hashing in evaluation; None: the model's.

    Raises:
        ValueError: as soon as a loss that is logged is no number: nothing is saved or measured of such a model.
    """

    stop_signals = tuple(getattr(signal, name) for name in STOPPING if hasattr(signal, name))

    def __init__(self, *, unit=None, muon=None, schedule_steps=None, evaluation_hashes=None, **kwargs):
        super().__init__(**kwargs)
        self.unit, self.muon = unit, muon
        self.schedule_steps, self.evaluation_hashes = schedule_steps, evaluation_hashes
        self.parameters = None
        self.add_callback(Clock())
        self.remove_callback(PrinterCallback)  # standard output is for results
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

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Evaluation with its own number of hash rounds."""
        if self.evaluation_hashes is not None:
            inputs = {**inputs, "num_hashes": self.evaluation_hashes}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def floating_point_ops(self, inputs):
        """Of a step by the number of parameters, counted once: transformers' way goes through all modules in every step."""
        if self.parameters is None:
            self.parameters = self.model.num_parameters(exclude_embeddings=True)
        return 6 * inputs["input_ids"].numel() * self.parameters

    def log(self, logs, start_time=None):
        """Adds the bits of the training loss and the seconds of training so far; refuses a loss that is no number."""
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                self._diverged(name, logs[name])
        if "loss" in logs and self.unit is not None:
            logs[f"bits_per_{self.unit}"] = logs["loss"] / math.log(2)
        logs["seconds"] = round(self.seconds(), 1)
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial):
        """No checkpoint of a model whose losses since the last log are no numbers."""
        if not torch.isfinite(self._tr_loss):
            self._diverged("loss", float(self._tr_loss))
        super()._save_checkpoint(model, trial)

    def _diverged(self, name, value):
        raise ValueError(
            f"training diverged: {name} is {value} at step {self.state.global_step}; checkpoints of earlier steps are as "
            f"they were. A lower training.learning_rate ({self.args.learning_rate}) or max_grad_norm may help"
        )

    def _load_callback_state(self):
        """Callbacks go on where they were, but a run that was stopped does not stop again."""
        control = self.control
        super()._load_callback_state()
        self.control = control

    def seconds(self) -> float:
        """Of training, over all sessions, without the time between them."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Clock)).seconds()


class Clock(TrainerCallback, ExportableState):
    """Seconds in `train`, over all sessions: each checkpoint holds those up to it."""

    def __init__(self, earlier: float = 0.0):
        self.earlier, self.began = earlier, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()

    def on_train_end(self, args, state, control, **kwargs):
        self.earlier, self.began = self.seconds(), None

    def seconds(self) -> float:
        return self.earlier + (0.0 if self.began is None else time.monotonic() - self.began)

    def state(self):
        return {"args": {"earlier": self.seconds()}, "attributes": {}}


class Progress(ProgressCallback):
    """One bar, in tokens where their number differs from step to step, so that the time that is left holds."""

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """The bar begins at the step that is resumed from."""
        if state.is_world_process_zero:
            dataset = getattr(train_dataloader, "dataset", None)
            self.ahead = work_ahead(dataset, state.max_steps, examples_per_step(args))
            self.training_bar = tqdm(
                total=self.ahead(state.max_steps), initial=self.ahead(state.global_step), unit="tok", unit_scale=True,
                desc="training", **({} if drawn() else {"file": Lines(), "mininterval": LINE_EVERY}),
            )  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar.update(self.ahead(state.global_step) - self.training_bar.n)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Within training the bar says that it waits; alone, evaluation has one of its own."""
        if self.training_bar is None:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        elif state.is_world_process_zero and self.training_bar.desc != "evaluating":
            self.training_bar.set_description_str("evaluating")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            step = f"step {state.global_step}/{state.max_steps}"
            self.training_bar.set_postfix_str(f"{step}, {shown(logs)}", refresh=False)
        elif "eval_loss" in logs:
            metrics = {name.removeprefix("eval_"): value for name, value in logs.items()}
            self.training_bar.write(f"step {state.global_step:,}: held-out {shown(metrics)}")
            self.training_bar.set_description_str("training")


def drawn() -> bool:
    """Whether a bar can be drawn over and over: in a terminal, or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Lines:
    """Standard error as a log: each state of a bar is a line."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def work_ahead(dataset, steps: int, per_step: int):
    """Function of a step: tokens that are read before it, as far as examples at `PROBES` of the steps tell."""
    probes = ex.spread(steps, PROBES)
    if not hasattr(dataset, "__len__"):
        return lambda step: step
    sizes = [per_step * len(dataset[probe * per_step]["input_ids"]) for probe in probes]
    ends = [*probes[1:], steps]
    before = [0]
    for start, end, size in zip(probes, ends, sizes, strict=True):
        before.append(before[-1] + size * (end - start))

    def ahead(step):
        place = min(step * len(probes) // steps, len(probes) - 1)
        return before[place] + sizes[place] * (step - probes[place])

    return ahead


def shown(metrics: dict) -> str:
    """The metrics that people look at, in one line."""
    return ", ".join(form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics)
