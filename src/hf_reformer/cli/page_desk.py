"""One visitor at a time: the work of the page runs in threads of its own, in the order in which it was asked for."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

POLL = 0.1  # seconds between two looks at the line, and between two reports


class Stopped(Exception):
    """Raised inside a job whose visitor wants no more."""


@dataclass(frozen=True)
class Waiting:
    """So many visitors come first."""

    before: int


class Mailbox:
    """The newest report of a job, its end, and its error. One thread writes, one reads."""

    def __init__(self):
        self.changed = threading.Condition()
        self.newest, self.fresh, self.ended, self.error = None, False, False, None

    def report(self, value) -> None:
        with self.changed:
            self.newest, self.fresh = value, True
            self.changed.notify()

    def end(self, error: Exception | None) -> None:
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify()

    def __iter__(self):
        """What is new, until the end, where the error is raised if there was one."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.fresh or self.ended)
                fresh, self.fresh = self.fresh, False
            if not fresh:
                break
            yield self.newest
        if self.error is not None:
            raise self.error


class Desk:
    """Whoever asks is served alone, first come, first served. A job that nobody listens to any more holds nobody up."""

    def __init__(self):
        self.line, self.lock = [], threading.Lock()

    def serve(self, job: Callable[[Callable], Any], stop: threading.Event) -> Iterator[Any]:
        """Yields `Waiting`, then what the job reports, only the newest where several came at once; raises what the job raises.

        Args:
            job: called with a function to report to, in another thread.
            stop: once it is set, a job that waits does not begin, and one that works is stopped at its next report.
        """
        mailbox = Mailbox()
        threading.Thread(target=self._work, args=(job, mailbox, stop), daemon=True).start()
        try:
            for value in mailbox:
                yield value
                time.sleep(POLL)
        finally:
            stop.set()  # where the reader went away

    def _work(self, job, mailbox, stop):
        def report(value):
            if stop.is_set():
                raise Stopped
            mailbox.report(value)

        ticket, failed = object(), None
        with self.lock:
            self.line.append(ticket)
        try:
            while before := self._before(ticket):
                report(Waiting(before))
                time.sleep(POLL)
            if not stop.is_set():
                job(report)
        except Stopped:
            pass
        except Exception as error:  # whatever it is, the visitor hears of it
            failed = error
        with self.lock:
            self.line.remove(ticket)
        mailbox.end(failed)

    def _before(self, ticket):
        with self.lock:
            return self.line.index(ticket)
