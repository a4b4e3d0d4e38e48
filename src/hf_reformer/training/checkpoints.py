"""Trainer whose checkpoints survive anything: SIGKILL at any moment, SIGTERM, a full disk, a damaged file.

Resuming gives bit for bit the weights of an uninterrupted run with the same number of processes, if the examples of the
data set are functions of their index. With another number the examples of each step are the same (`resuming.py`).
"""

import errno
import os
import re
import shutil
import signal
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import set_seed
from transformers.trainer import TRAINER_STATE_NAME

from .data_order import DataOrder, seed_of
from .resuming import examples_per_step, keep_examples_per_step
from .sealing import MANIFEST, facts_of, flaw, flush, seal
from .sequence_trainer import SequenceParallelTrainer
from .stopping import StopOnSignal

SCRATCH = ".unfinished-checkpoint"  # in it checkpoints are written, and deleted; never read


class CheckpointedTrainer(SequenceParallelTrainer):
    """`transformers.Trainer`, with checkpoints that are whole or not there, and runs that can be interrupted.

    - Each `checkpoint-N` is written into a scratch folder beside it, sealed (see `sealing.py`), flushed and renamed;
      older ones go (`save_total_limit`) only after that.
    - SIGTERM (or whatever `stop_signals` names): the step at hand is finished, saved, and `train` returns;
      `stopped_by` is then the signal's number, otherwise 0.
    - A full disk is one `OSError` that says so; earlier checkpoints are as they were.
    - `train(resume_from_checkpoint=True)` takes `latest_whole_checkpoint(output_dir)`.
    - The order of the data, and random collators, depend on seed and epoch alone; evaluation draws no number that
      training would have drawn.

    With `ParallelismConfig(sp_size=...)` sequences are shared by processes, see `SequenceParallelTrainer`.

    Several processes need an output folder that all share, or `save_on_each_node`.

    Raises:
        ValueError: for training arguments that contradict this, checkpoints in `output_dir` that would be mixed with
            those of a new run, and a checkpoint to resume from that is damaged.
    """

    stop_signals = (signal.SIGTERM,)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _check_arguments(self.args)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._data_order = DataOrder(seed, workers=self.args.dataloader_num_workers > 0)
        self._stop = StopOnSignal(self.stop_signals, self._maximum_over_processes)
        self.add_callback(self._data_order)
        self.add_callback(self._stop)

    @property
    def stopped_by(self) -> int:
        """Number of the signal that ended the last `train` early, or 0."""
        return self._stop.received

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        checkpoint = self._checked(resume_from_checkpoint)
        if self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir, SCRATCH), ignore_errors=True)
        with self._stop.watching():
            return super().train(checkpoint, *args, **kwargs)

    def _checked(self, checkpoint):
        """The path to resume from, or None."""
        folder = self.args.output_dir
        if not checkpoint:
            if existing := _checkpoints(folder):
                raise ValueError(
                    f"`output_dir` {folder} holds {existing[-1].name} of an earlier run. Give an empty folder, or "
                    "`resume_from_checkpoint=True`."
                )
            return None
        if checkpoint is True:
            checkpoint = latest_whole_checkpoint(folder)
            if checkpoint is None:
                raise ValueError(
                    f"`resume_from_checkpoint` is True, but `output_dir` {folder} holds no whole checkpoint."
                )
        elif Path(checkpoint, MANIFEST).exists() and (problem := flaw(checkpoint)):
            raise ValueError(f"`resume_from_checkpoint` is {str(checkpoint)!r}, but it is damaged: {problem}.")
        if said := keep_examples_per_step(self.args, checkpoint):
            warnings.warn(said, stacklevel=3)
            self._train_batch_size = self.args.train_batch_size
        return str(checkpoint)

    def _load_rng_state(self, checkpoint):
        """Of another number of processes there is no state for each: then numbers follow from seed, step and process."""
        if checkpoint is None or facts_of(checkpoint).get("processes", self.args.world_size) == self.args.world_size:
            super()._load_rng_state(checkpoint)
        else:
            set_seed(seed_of(self.args.seed, self.state.global_step, self.args.process_index) % 2**32)

    # --- data and evaluation: no random number is drawn that depends on when the run was interrupted -----------------

    def get_train_dataloader(self):
        collator, self.data_collator = self.data_collator, self._data_order.collator(self.data_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _get_train_sampler(self, train_dataset=None):
        return self._data_order.sampler(super()._get_train_sampler(train_dataset))

    def evaluate(self, *args, **kwargs):
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    # --- saving ------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial):
        target = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        scratch = target.parent / SCRATCH
        with _one_clear_error(scratch, target):
            if self.args.should_save:
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            with self._writing_into(scratch):
                super()._save_checkpoint(model, trial)
            self._name_best(scratch, target)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                _publish(
                    scratch, target, processes=self.args.world_size, examples_per_step=examples_per_step(self.args)
                )
                _rotate(scratch, target, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    @contextmanager
    def _writing_into(self, scratch):
        """`Trainer` writes into the scratch folder, and pushes nothing that has not its name yet."""
        vars(self).update(_get_output_dir=lambda trial: str(scratch), _push_from_checkpoint=lambda folder: None)
        try:
            yield
        finally:
            del self._get_output_dir, self._push_from_checkpoint

    def _name_best(self, scratch, target):
        """If this checkpoint is the best so far, its state must not name the scratch folder."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent == scratch:
            self.state.best_model_checkpoint = str(target)
            if self.args.should_save:
                self.state.save_to_json(str(scratch / target.name / TRAINER_STATE_NAME))

    def _finalize_training(self, *args, **kwargs):
        """A run that was stopped keeps its last checkpoint, and does not load the best one."""
        settings = {"save_total_limit": None, "load_best_model_at_end": False} if self.stopped_by else {}
        before = {name: getattr(self.args, name) for name in settings}
        vars(self.args).update(settings)
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            vars(self.args).update(before)

    def _maximum_over_processes(self, number):
        if self.args.world_size == 1:
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.args.device)).max())


def latest_whole_checkpoint(output_dir) -> Path | None:
    """The newest `checkpoint-N` in `output_dir` that is whole, or None. Damaged ones are skipped with a warning."""
    for checkpoint in reversed(_checkpoints(output_dir)):
        problem = flaw(checkpoint)
        if problem is None:
            return checkpoint
        warnings.warn(f"{checkpoint} is skipped: {problem}.", stacklevel=2)
    return None


def _checkpoints(folder):
    """All `checkpoint-N` in a folder, by N."""
    found = Path(folder).glob("checkpoint-*")
    numbered = [path for path in found if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(numbered, key=_step)


def _step(checkpoint):
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _check_arguments(args):
    for name, why in (
        ("enable_jit_checkpoint", "CheckpointedTrainer saves on SIGTERM by itself"),
        ("save_only_model", "no run can be resumed from such a checkpoint"),
    ):
        if getattr(args, name, False):
            raise ValueError(f"`{name}` is True, but must be False: {why}.")


def _publish(scratch, target, **facts):
    """Seals what was written and gives it its name; what had that name goes."""
    seal(scratch / target.name, **facts)
    if target.exists():
        target.rename(scratch / "replaced")
    (scratch / target.name).rename(target)
    flush(target.parent)


def _rotate(scratch, newest, limit, best):
    """Keeps `limit` checkpoints, among them the newest and the best, and empties the scratch folder."""
    kept = {newest} | ({Path(best)} if best is not None and Path(best).exists() else set())
    others = [path for path in _checkpoints(newest.parent) if path not in kept]
    surplus = max(0, len(others) - max(0, limit - len(kept))) if limit is not None and limit > 0 else 0
    for path in others[:surplus]:
        path.rename(scratch / path.name)  # a deletion that is cut short leaves no half checkpoint
    shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _one_clear_error(scratch, target):
    """An error while saving leaves nothing behind; a full disk is named whatever the library at work called it."""
    try:
        yield
    except BaseException as error:
        full = isinstance(error, Exception) and _no_space_left(error, scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        if not full:
            raise
        latest = (_checkpoints(target.parent) or ["none"])[-1]
        raise OSError(
            errno.ENOSPC,
            f"The disk is full: {target.name} could not be saved in {target.parent}. Earlier checkpoints are as they "
            f"were (latest: {getattr(latest, 'name', latest)}). Free some space and resume",
        ) from error


def _no_space_left(error, folder):
    """torch.save says no more than "file write failed" when the disk is full: then try to write a little more."""
    full = (errno.ENOSPC, errno.EDQUOT)
    while error is not None:
        if isinstance(error, OSError) and error.errno in full:
            return True
        error = error.__cause__ or error.__context__
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as failure:
        return failure.errno in full
    return False
