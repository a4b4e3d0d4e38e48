"""A run begun on two processes goes on with one or four: the same examples in each step, the same weights but for rounding."""

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import resume_worker
import torch
from helpers import assert_same_tensors
from test_accelerate_launch import launch

from hf_reformer.training.resuming import keep_examples_per_step

TOLERANCE = 1e-9  # float64; Adam divides small gradients by their size


def launched(folder, processes):
    launch(folder, "ddp", Path(resume_worker.__file__), processes=processes)
    return results(folder)


def results(folder):
    """Weights, and by step the rows that were read and the numbers that would have been drawn."""
    read, drawn = {}, {}
    for path in folder.glob("noted-*.pt"):
        for step, rows, number in torch.load(path):
            read.setdefault(step, []).extend(rows)
            drawn.setdefault(step, []).append(number)
    return torch.load(folder / "weights.pt"), {step: sorted(rows) for step, rows in read.items()}, drawn


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run on two processes, and its folder."""
    folder = tmp_path_factory.mktemp("begun")
    return launched(folder, 2), folder


@pytest.fixture
def copy(begun, tmp_path):
    """A folder that holds the checkpoint in the middle alone."""
    shutil.copytree(begun[1] / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    return tmp_path / "run"


def assert_goes_on(found, begun):
    (weights, read, _), (expected, all_read, _) = found, begun[0]
    assert read == {step: all_read[step] for step in range(resume_worker.SAVED, resume_worker.STEPS)}
    assert_same_tensors(weights, expected, TOLERANCE)


def test_each_step_reads_other_examples(begun):
    read = begun[0][1]
    assert [len(read[step]) for step in range(resume_worker.STEPS)] == [8] * resume_worker.STEPS
    assert sorted(row for step in range(4) for row in read[step]) == list(range(resume_worker.ROWS))
    assert [read[step] for step in range(3)] != [read[step] for step in range(4, 7)]


def test_with_one_process(begun, copy):
    with pytest.warns(
        UserWarning, match="2 processes, now there are 1: each step has 8 examples.*accumulation_steps=4"
    ):
        resume_worker.train(copy)
    assert_goes_on(results(copy), begun)
    facts = json.loads((copy / "checkpoint-6" / "manifest.json").read_text())
    assert (facts["processes"], facts["examples_per_step"]) == (1, 8)
    shutil.rmtree(copy / "checkpoint-7")
    with pytest.warns(UserWarning, match="1 processes, now there are 1: each step has 8 examples"):
        resume_worker.train(copy)  # and once more, with what the settings say by themselves
    assert_same_tensors(results(copy)[0], begun[0][0], TOLERANCE)


@pytest.mark.slow
def test_with_four_processes(begun, copy):
    assert_goes_on(launched(copy, 4), begun)


@pytest.mark.slow
def test_with_two_processes_that_share_each_sequence(begun, copy):
    """In the middle of an epoch, too: what was read is skipped."""
    launch(copy, "ddp", Path(resume_worker.__file__), "sequence")
    assert_same_tensors(torch.load(copy / "weights.pt"), begun[0][0], TOLERANCE)


def test_with_the_same_number_nothing_is_said(begun, copy):
    manifest = copy / "checkpoint-3" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "processes": 1, "examples_per_step": 4}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        resume_worker.train(copy)


def test_numbers_drawn_after_it_are_not_those_of_the_beginning(begun, copy):
    """They follow from seed, step and process: twice the same, and those of no step before."""
    drawn = []
    for name in ("first", "second"):
        shutil.copytree(copy, copy.parent / name)
        resume_worker.train(copy.parent / name, dropout=True)
        drawn.append(results(copy.parent / name)[2])
    assert drawn[0] == drawn[1]
    resume_worker.train(copy.parent / "new", dropout=True)
    assert drawn[0][resume_worker.SAVED][0] != results(copy.parent / "new")[2][0][0]


def arguments_of(processes, batch, steps):
    names = {"per_device_train_batch_size": batch, "train_batch_size": batch, "gradient_accumulation_steps": steps}
    return SimpleNamespace(world_size=processes, n_gpu=0, **names)


def test_examples_that_cannot_be_dealt_out_are_refused(copy):
    with pytest.raises(ValueError, match="The number of processes is 3, but the 8 examples of a step"):
        keep_examples_per_step(arguments_of(3, 2, 2), copy / "checkpoint-3")


@pytest.mark.parametrize(("processes", "batch", "steps"), [(1, 2, 4), (4, 2, 1), (8, 1, 1)])
def test_batches_stay_as_large_as_they_can(processes, batch, steps, copy):
    arguments = arguments_of(processes, 2, 2)
    keep_examples_per_step(arguments, copy / "checkpoint-3")
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (batch, steps)
