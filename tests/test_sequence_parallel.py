"""Shards of a sequence on gloo processes give the loss and the gradients of one process, to 1e-10 in float64."""

import os
import re
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_gradients_under_data_parallelism_too(name, two):
    assert isinstance(two[name], dict), two[name]
    assert_same_tensors(two[name], sequence_worker.replicated(1), TOLERANCE)


@pytest.mark.slow
def test_four_processes_alone_and_as_two_by_two(tmp_path):
    found = run(tmp_path, 4, [*sequence_worker.EQUAL, "ddp", "fsdp2"])
    for name in sequence_worker.EQUAL:
        assert isinstance(found[name], dict), found[name]
        assert_same_tensors(found[name], sequence_worker.equal(name), TOLERANCE)
    for name in ("ddp", "fsdp2"):
        assert isinstance(found[name], dict), found[name]
        assert_same_tensors(found[name], sequence_worker.replicated(2), TOLERANCE)


@pytest.mark.slow
def test_the_loop_of_the_guide_runs(tmp_path):
    guide = Path(__file__).parents[1] / "docs" / "sequence-parallel.md"
    script = tmp_path / "loop.py"
    script.write_text(
        re.search(r"^```py\n(.*?)^```", guide.read_text(), re.M | re.S)[1] + "dist.barrier()\nimport os\nos._exit(0)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_two_processes_need_half_the_memory_each(two):
    alone, shared = two["counts"]["peaks"]
    assert 0.45 < shared / alone < 0.6


def test_bytes_that_are_exchanged_are_those_of_the_formula(two):
    for counted, theory in two["counts"]["sent"].values():
        assert counted == theory > 0


def test_a_model_without_head_gives_and_takes_shards(two):
    assert isinstance(two["body"], dict), two["body"]
    assert_same_tensors(two["body"], sequence_worker.single_body(), TOLERANCE)


def test_dropout_is_replayed_and_differs_between_processes_while_rotations_do_not(two):
    found, drawn = two["dropout"]
    assert_same_tensors(found[True], found[False], TOLERANCE)
    assert torch.equal(*drawn["rotations"]) and torch.equal(*drawn["after"])
    assert not torch.equal(*drawn["within"])


SAID = {
    "rows": "1 sequences with 3 heads has 3 rows to attend in, but the number must be a multiple of the 2 processes",
    "rows differ": r"\[4, 2\] rows of `input_ids`, but must all have the same number",
    "too long": "rows of 240 tokens, but must have at most 221",
    "cache": "cache or `use_cache` is given within `sequence_parallel`",
    "attentions": "`output_attentions` is True within `sequence_parallel`",
    "logits": "`logits_to_keep` is 1 within `sequence_parallel`",
    "positions": r"`position_ids` has the shape \(1, 41\), but must have \(4, 21\)",
    "head": "`model` is a ReformerForSequenceClassification, but must be a ReformerModel",
}


@pytest.mark.parametrize("name", SAID)
def test_what_cannot_be_is_one_clear_error(name, two):
    assert re.search(SAID[name], two["errors"][name])


def test_a_model_is_left_as_it_was_after_an_error(two):
    assert two["errors"]["left behind"] is None
