"""Two gloo processes end three steps with the parameters of one process on the same examples, to 1e-10 in float64.

Dropout is on and rotations are fresh, both a function of step and rank.
"""

import distributed_worker
import pytest
import torch
import torch.multiprocessing
from helpers import assert_same_tensors

TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    processes = torch.multiprocessing.spawn(
        distributed_worker.run, args=(str(folder),), nprocs=distributed_worker.WORLD, join=False
    )
    while not processes.join(timeout=120):
        pass
    return {name: torch.load(folder / f"{name}.pt") for name in distributed_worker.SCENARIOS}


@pytest.mark.parametrize("name", distributed_worker.SCENARIOS)
def test_parameters_after_three_steps_equal_those_of_a_single_process(name, results):
    assert isinstance(results[name], dict), results[name]
    both = (distributed_worker.fresh_encoder_decoder, distributed_worker.loss_of_both)
    expected = distributed_worker.single_process(*(both if "encoder-decoder" in name else ()))
    assert_same_tensors(results[name], expected, TOLERANCE)


def test_the_steps_changed_every_parameter():
    after = distributed_worker.single_process()
    unchanged = [name for name, p in distributed_worker.fresh_model().named_parameters() if torch.equal(after[name], p)]
    assert not unchanged
