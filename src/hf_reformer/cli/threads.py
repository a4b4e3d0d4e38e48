"""How many threads compute: as many as there are cores that others leave free.

A thread that waits for another one without a core slows all of them down: PyTorch's threads wait by spinning.
"""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SHORTEST = 0.2  # seconds to look at the machine for


@dataclass
class Spare:
    """Cores of this process, and how many of them others kept busy."""

    cores: int
    others: float = 0.0

    @property
    def threads(self) -> int:
        """Of the free cores, at least one."""
        return max(1, round(self.cores - self.others))

    @property
    def busy(self) -> bool:
        """Whether it computes with fewer threads than it has cores."""
        return self.threads < self.cores

    @property
    def note(self) -> str:
        return (
            f"other processes use {self.others:.1f} of {self.cores} cores: expect a multiple of the time on a quiet machine; "
            f"{self.threads} thread{'s' * (self.threads > 1)} (change it with --threads)"
        )


@contextmanager
def spare_cores() -> Iterator[Spare]:
    """Looks at the machine as long as it lasts (0.2 s at least); the result is filled in at its end."""
    affinity = getattr(os, "sched_getaffinity", None)
    spare = Spare(len(affinity(0)) if affinity else os.cpu_count() or 1)
    start, before, own = time.monotonic(), busy_seconds(), time.process_time()
    yield spare
    time.sleep(max(0.0, SHORTEST - (time.monotonic() - start)))
    if before is not None:
        elapsed, own = time.monotonic() - start, time.process_time() - own
        others = (busy_seconds() - before - own) / elapsed
        spare.others = min(float(spare.cores), max(0.0, others))


def busy_seconds() -> float | None:
    """Seconds that the cores of this machine have worked, all together; None where the system does not say."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, soft = map(int, file.readline().split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def count(text: str) -> int:
    """A number of threads on the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def use(number: int) -> None:
    """Compute with so many threads."""
    import torch

    torch.set_num_threads(number)
