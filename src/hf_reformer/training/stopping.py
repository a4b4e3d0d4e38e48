"""Training that stops when a signal asks it to: after the step at hand, with a checkpoint, on all processes at once.

Differs from `enable_jit_checkpoint` of transformers 5: that waits three seconds, saves between backward and optimiser step
(a resumed run then repeats the step with other random numbers), and leaves each process to stop at a step of its own.
"""

import os
import signal
import stat
import sys
import threading
from contextlib import contextmanager

from transformers import TrainerCallback


class StopOnSignal(TrainerCallback):
    """Saves and stops at the end of the step in which one of the processes received one of `signals`.

    `received` is then the signal's number, on every process; otherwise it is 0. An evaluation that was due at that
    step is left out, so that saving is not late. What the process was started to ignore (as a shell does with SIGINT for
    what it runs in the background) stays ignored, and a second Ctrl-C interrupts at once.

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
        watched = [n for n in self.signals if signal.getsignal(n) is not signal.SIG_IGN] if main else []
        previous = {number: signal.signal(number, self._note) for number in watched}
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number, frame):
        self._here = int(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            os.write(2, b"\nstopping after this step, and saving; Ctrl-C once more stops at once\n")
        elif number == getattr(signal, "SIGHUP", None):
            _leave_the_terminal()

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


def _leave_the_terminal():
    """A terminal that is gone answers every line with an error, which would end the run before it is saved."""
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        except (OSError, ValueError, AttributeError):  # no file behind it
            continue
