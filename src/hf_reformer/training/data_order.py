"""Order and contents of training batches as functions of seed, epoch and examples, so that a resumed run sees the same ones.

Of itself a sampler, or a collator that masks at random, draws from the global generators at moments (prefetching, skipping
after a resume) that differ between an interrupted run and an uninterrupted one, and between processes.
"""

import hashlib
import io
import pickle
import random
import types
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import BatchRebalanceSampler

ATOMS = {int, float, bool, str, bytes, type(None)}  # lists of these alone hold no set


class DataOrder(TrainerCallback):
    """Makes samplers and collators repeatable, and tells them the epoch.

    Args:
        seed: of the data.
        workers: whether other processes load the data; the epoch then lies in memory that they share.
    """

    def __init__(self, seed, workers):
        self.seed, self.epoch = seed, torch.zeros(1, dtype=torch.int64)
        if workers:
            self.epoch.share_memory_()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch.fill_(int(state.epoch or 0))

    def sampler(self, sampler):
        # BatchRebalanceSampler has its own fixed order, and Trainer knows it by its class.
        return sampler if sampler is None or isinstance(sampler, BatchRebalanceSampler) else _Sampler(sampler, self)

    def collator(self, collator):
        if getattr(collator, "seed", None) is not None:
            warnings.warn(
                f"`data_collator.seed` is {collator.seed}: the collator draws from a generator of its own, which no "
                "checkpoint holds, so a resumed run will draw other numbers. Leave it None: `seed` or `data_seed` of "
                "the training arguments then decides.",
                stacklevel=2,
            )
        return _Collator(collator, self)

    @contextmanager
    def seeded(self, *contents):
        """Within it the global generators start from seed, epoch and contents; afterwards they are as before."""
        states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
        seed = seed_of(self.seed, int(self.epoch), *contents)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.random.default_generator.manual_seed(seed % 2**63)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.random.set_rng_state(states[2])


class _Sampler(torch.utils.data.Sampler):
    """The order that `sampler` takes when the global generators are seeded by the epoch: the same on every process."""

    def __init__(self, sampler, order):
        self.wrapped, self.order = sampler, order

    def __iter__(self):
        with self.order.seeded():
            return iter(list(self.wrapped))

    def __len__(self):
        return len(self.wrapped)


class _Collator:
    """`collator`, with random numbers that depend on the examples given to it and on the epoch."""

    def __init__(self, collator, order):
        self.wrapped, self.order = collator, order

    def __call__(self, examples):
        with self.order.seeded(examples):
            return self.wrapped(examples)


class _ContentPickler(pickle.Pickler):
    """Equal contents give equal bytes: tensors by value, not by address, sets in a fixed order, and nothing by identity."""

    def __init__(self, file):
        super().__init__(file)
        self.fast = True

    def reducer_override(self, value):
        if isinstance(value, torch.Tensor):
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return tuple, ([str(value.dtype), list(value.shape), raw],)
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            return NotImplemented
        reduced = value.__reduce_ex__(4)
        if not isinstance(reduced, tuple):
            return reduced
        return tuple(_ordered(part) if place in (1, 2) else part for place, part in enumerate(reduced))


def _ordered(value):
    """The same with a sorted list in place of each set, whose own order differs from process to process."""
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(map(_digest, value))
    if type(value) is dict:
        return {key: _ordered(part) for key, part in value.items()}
    if type(value) in (list, tuple) and not set(map(type, value)) <= ATOMS:
        return type(value)(map(_ordered, value))
    return value


def seed_of(*contents) -> int:
    """A seed, 64 bits, that follows from these alone."""
    return int.from_bytes(_digest(contents), "little")


def _digest(contents):
    buffer = io.BytesIO()
    _ContentPickler(buffer).dump(_ordered(contents))
    return hashlib.blake2b(buffer.getbuffer(), digest_size=8).digest()
