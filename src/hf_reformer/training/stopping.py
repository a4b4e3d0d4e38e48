"""Training that stops when a signal asks it to: after the step at hand, with a checkpoint, on all processes at once.

Differs from `enable_jit_checkpoint` of transformers 5: that waits three seconds, saves between backward and optimiser step
(a resumed run then repeats the step with other random numbers), and leaves each process to stop at a step of its own.
"""

import signal
import threading
from contextlib import contextmanager

from transformers import TrainerCallback


class StopOnSignal(TrainerCallback):
    """Saves and stops at the end of the step in which one of the processes received one of `signals`.

    `received` is then the signal's number, on every process; otherwise it is 0. An evaluation that was due at that
    step is left out, so that saving is not late.

    Args:
        signals: which ones.
        maximum_over_processes: int -> int, called on every process at the same time.
    """

    def __init__(self, signals, maximum_over_processes):
        self.signals, self.maximum_over_processes = signals, maximum_over_processes
        self.received = self._here = 0
        self._watching = False

    @contextmanager
    def watching(self):
        """Within it the signals are only noted. Python allows handlers in the main thread alone; elsewhere nothing happens."""
        self.received = self._here = 0
        main = threading.current_thread() is threading.main_thread()
        previous = {number: signal.signal(number, self._note) for number in self.signals} if main else {}
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number, frame):
        self._here = int(number)

    def _asked_to_stop(self):
        if self._watching and not self.received:
            self.received = self.maximum_over_processes(self._here)
        return self.received != 0

    def on_step_end(self, args, state, control, **kwargs):
        if self._asked_to_stop():
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_evaluate(self, args, state, control, **kwargs):
        if self._asked_to_stop():
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if self._asked_to_stop():
            control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.received:  # the checkpoint is there already
            control.should_save = control.should_evaluate = False
