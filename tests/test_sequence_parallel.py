"""Shards of a sequence on gloo processes give the loss and the gradients of one process, to 1e-10 in float64."""

import pytest
import sequence_worker
import torch
import torch.multiprocessing
from helpers import assert_same_tensors

TOLERANCE = 1e-10


def run(folder, world, names):
    processes = torch.multiprocessing.spawn(_start, args=(world, str(folder), list(names)), nprocs=world, join=False)
    while not processes.join(timeout=240):
        pass
    return {name: torch.load(folder / f"{name}.pt") for name in names}


def _start(rank, world, folder, names):
    sequence_worker.main(rank, world, folder, names)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(tmp_path_factory.mktemp("two"), 2, [*sequence_worker.EQUAL, *sequence_worker.SCENARIOS])


@pytest.mark.parametrize("name", sequence_worker.EQUAL)
def test_two_processes_give_loss_and_gradients_of_one(name, two):
    assert isinstance(two[name], dict), two[name]
    assert_same_tensors(two[name], sequence_worker.equal(name), TOLERANCE)
