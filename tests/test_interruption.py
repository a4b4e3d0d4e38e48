"""Runs that are killed, stopped, torn or out of disk: what is left is whole, and resuming changes no bit of the weights.

The model has dropout and fresh rotations, the data are shuffled, padded and noisy, gradients are accumulated, and the last
step of an epoch has fewer batches than the others.
"""

import contextlib
import errno
import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import interruption_worker
import pytest
import torch
from interruption_worker import SAVE_EVERY, STEPS, trainer

from hf_reformer.training.checkpoints import latest_whole_checkpoint

COUNTS = {"module call": 6900, "file operation": 120, "half a file": 24}  # in a whole run, about


@pytest.fixture(scope="session")
def processes():
    """Children of a server that has imported everything already, so that each starts in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["interruption_worker"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def start(processes, tmp_path):
    """Starts a function of the worker in a new process; `start.log` holds what it printed."""

    started = []

    def start(function, *args, **kwargs):
        process = processes.Process(
            target=interruption_worker.call, args=(function, str(tmp_path / "log"), *args), kwargs=kwargs
        )
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def run(start, tmp_path):
    """The same, waiting for its end: the exit status, negative for a signal."""

    def run(function, *args, **kwargs):
        process = start(function, *args, **kwargs)
        process.join(timeout=120)
        assert process.exitcode in (0, -signal.SIGKILL), (tmp_path / "log").read_text()
        return process.exitcode

    return run


@pytest.fixture(scope="module")
def expected(processes, tmp_path_factory):
    """Weights of an uninterrupted run, by its settings."""
    known = {}

    def weights(**settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in known:
            folder = tmp_path_factory.mktemp("uninterrupted") / "run"
            process = processes.Process(
                target=interruption_worker.call,
                args=(interruption_worker.train, f"{folder}-log", str(folder)),
                kwargs=settings,
            )
            process.start()
            process.join(timeout=120)
            known[key] = torch.load(folder / "final.pt")
        return known[key]

    return weights


def assert_bit_equal(folder, expected):
    final = torch.load(folder / "final.pt")
    assert final.keys() == expected.keys()
    different = [name for name, weight in expected.items() if not torch.equal(final[name], weight)]
    assert not different


def train_to_the_end(run, folder, points, **settings):
    """Kills a run at each of these points in turn, then lets it end; what is left after a kill must be of use."""
    killed = 0
    for point, number in points:
        before = latest_whole_checkpoint(folder)
        killed += run(interruption_worker.train, folder, point, number, **settings) != 0
        if before is not None:
            assert interruption_worker_step(latest_whole_checkpoint(folder)) >= interruption_worker_step(before)
    run(interruption_worker.train, folder, **settings)
    return killed


def interruption_worker_step(checkpoint):
    return int(checkpoint.name.removeprefix("checkpoint-"))


def random_points(seed, count):
    draw = random.Random(seed)
    return [(kind, draw.randrange(COUNTS[kind] // 3)) for kind in draw.choices(list(COUNTS), k=count)]


SETTINGS = [{}, {"train_sampling_strategy": "group_by_length"}, {"eval_strategy": "steps", "eval_steps": 3}]


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=str)
def test_a_run_killed_several_times_ends_with_the_same_weights(run, expected, tmp_path, settings):
    points = [("module call", 2000), ("file operation", 31), ("half a file", 2), ("file operation", 18)]
    assert train_to_the_end(run, tmp_path / "run", points, **settings) == len(points)
    assert_bit_equal(tmp_path / "run", expected(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_at_random_points(run, expected, tmp_path, seed, settings):
    assert train_to_the_end(run, tmp_path / "run", random_points(seed, 20), **settings) > 5
    assert_bit_equal(tmp_path / "run", expected(**settings))


@pytest.mark.slow
def test_kills_at_random_times(run, start, expected, tmp_path):
    draw, killed = random.Random(0), 0
    while not (tmp_path / "run" / "final.pt").exists():
        process = start(interruption_worker.train, tmp_path / "run")
        process.join(timeout=draw.uniform(0.2, 0.8))
        killed += process.is_alive()
        process.kill()
        process.join()
    assert killed
    assert_bit_equal(tmp_path / "run", expected())


def test_loading_processes_and_evaluation_change_nothing(run, expected, tmp_path):
    settings = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork", "eval_strategy": "epoch"}
    train_to_the_end(run, tmp_path / "run", [("module call", 4000)], **settings)
    assert_bit_equal(tmp_path / "run", expected())


@pytest.mark.parametrize("point, number", [("module call", 2000), ("file operation", 20)])
def test_sigterm_finishes_the_step_and_saves_it(run, expected, tmp_path, point, number):
    folder = tmp_path / "run"
    assert run(interruption_worker.train, folder, point, number, signal.SIGTERM) == 0
    step, stopped_by = map(int, (folder / "steps.txt").read_text().split())
    assert stopped_by == signal.SIGTERM and 0 < step < STEPS
    assert latest_whole_checkpoint(folder).name == f"checkpoint-{step}"
    run(interruption_worker.train, folder)
    assert_bit_equal(folder, expected())


def test_sigterm_during_an_evaluation_saves_after_it(run, expected, tmp_path):
    """The first evaluation is after three steps, of about 230 calls of modules each."""
    folder, settings = tmp_path / "run", {"eval_strategy": "steps", "eval_steps": 3}
    run(interruption_worker.train, folder, "module call", 720, signal.SIGTERM, **settings)
    assert (folder / "steps.txt").read_text() == f"3 {signal.SIGTERM}\n"
    run(interruption_worker.train, folder, **settings)
    assert_bit_equal(folder, expected())


def test_a_stopped_run_keeps_its_last_checkpoint_beside_the_best(run, tmp_path):
    settings = {
        "eval_strategy": "steps", "eval_steps": SAVE_EVERY, "load_best_model_at_end": True, "metric_for_best_model": "loss",
    }  # fmt: skip
    folder = tmp_path / "run"
    run(interruption_worker.train, folder, "module call", 3720, signal.SIGTERM, **settings)
    step = int((folder / "steps.txt").read_text().split()[0])
    assert step % SAVE_EVERY != 0
    state = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).is_dir() and Path(state["best_model_checkpoint"]).parent == folder


@pytest.fixture(scope="module")
def saved(processes, tmp_path_factory):
    """A run that kept several checkpoints."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    process = processes.Process(
        target=interruption_worker.call,
        args=(interruption_worker.train, f"{folder}-log", str(folder)),
        kwargs={"save_total_limit": 3},
    )
    process.start()
    process.join(timeout=120)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_the_newest_checkpoints_are_kept(copy):
    assert sorted(path.name for path in copy.glob("*checkpoint*")) == [
        "checkpoint-24",
        "checkpoint-28",
        "checkpoint-30",
    ]


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model.safetensors", "truncated"), ("optimizer.pt", "flipped"), ("trainer_state.json", "missing"),
     ("manifest.json", "missing"), ("manifest.json", "truncated")],
)  # fmt: skip
def test_a_damaged_checkpoint_is_skipped_and_named(copy, name, damage):
    path = copy / "checkpoint-30" / name
    if damage == "missing":
        path.unlink()
    else:
        contents = path.read_bytes()
        middle = len(contents) // 2
        flipped = contents[:middle] + bytes([contents[middle] ^ 0x80]) + contents[middle + 1 :]
        path.write_bytes(contents[:middle] if damage == "truncated" else flipped)
    with pytest.warns(UserWarning, match=f"checkpoint-30 is skipped: .*({name}|cannot be read)"):
        assert latest_whole_checkpoint(copy) == copy / "checkpoint-28"


def test_an_undamaged_checkpoint_is_taken_without_a_warning(copy, recwarn):
    assert latest_whole_checkpoint(copy) == copy / "checkpoint-30"
    assert not recwarn


def test_there_may_be_no_checkpoint(tmp_path):
    assert latest_whole_checkpoint(tmp_path) is None
    assert latest_whole_checkpoint(tmp_path / "missing") is None


def test_resuming_replaces_a_damaged_checkpoint(run, expected, copy):
    (copy / "checkpoint-30" / "optimizer.pt").unlink()
    run(interruption_worker.train, copy)
    assert latest_whole_checkpoint(copy) == copy / "checkpoint-30"
    assert_bit_equal(copy, expected())


def test_resuming_from_a_damaged_checkpoint_by_its_name_is_refused(copy):
    (copy / "checkpoint-30" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="resume_from_checkpoint.*damaged: optimizer.pt is missing"):
        trainer(copy).train(resume_from_checkpoint=copy / "checkpoint-30")


def test_a_new_run_among_the_checkpoints_of_another_is_refused(copy):
    with pytest.raises(ValueError, match="output_dir.*checkpoint-30"):
        trainer(copy).train()


def test_another_number_of_processes_is_warned_of(copy):
    manifest = copy / "checkpoint-30" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "processes": 7}))
    with pytest.warns(UserWarning, match="7 processes, now there are 1"):
        trainer(copy).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("name", ["enable_jit_checkpoint", "save_only_model"])
def test_arguments_that_contradict_it_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` is True, but must be False"):
        trainer(tmp_path, **{name: True})


def test_a_disk_that_is_full_at_any_file_operation_of_saving_leaves_the_earlier_checkpoint(run, tmp_path):
    run(interruption_worker.fill_disk_at_every_file_operation, tmp_path / "run")
    *failures, (number, _, names) = torch.load(tmp_path / "run-results.pt")
    assert number is None and names == ["checkpoint-1", "checkpoint-2"]
    assert len(failures) > 4
    for number, message, names in failures:
        assert number == errno.ENOSPC and "disk is full: checkpoint-2 could not be saved" in message
        assert "latest: checkpoint-1" in message and names == ["checkpoint-1"]


def test_a_disk_that_is_really_full(run, tmp_path):
    """Where writing fails depends on the room that is left, and what the libraries at work call it differs."""
    run(interruption_worker.fill_a_small_disk, tmp_path / "run")
    if not (tmp_path / "run-results.pt").exists():
        pytest.skip("this system lets nobody mount a file system")
    results = torch.load(tmp_path / "run-results.pt")
    assert len(results) == 10 and len({cause for _, cause, *_ in results}) > 1
    for number, _, names, latest in results:
        assert (number, latest, names) == (errno.ENOSPC, "checkpoint-1", ["ballast", "checkpoint-1"])


def train_command(folder, *options):
    """`hf-reformer train` over 120 tiny steps with dropout, as a process."""
    changes = ["training.max_steps=120", "training.save_steps=10", "training.eval_steps=60"]
    changes += [f"model.{part}_dropout_prob=0.1" for part in ("hidden", "local_attention_probs", "lsh_attention_probs")]
    command = [sys.executable, "-m", "hf_reformer.cli", "train", "text", "--smoke", "--output", str(folder), *options]
    command += [word for change in changes for word in ("--set", change)]
    with open(f"{folder}-log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


@pytest.mark.slow
def test_the_train_command_killed_at_random_times_ends_with_the_same_weights(tmp_path):
    with train_command(tmp_path / "uninterrupted") as process:
        assert process.wait() == 0, (tmp_path / "uninterrupted-log").read_text()
    draw, folder, killed = random.Random(1), tmp_path / "run", 0
    while not (folder / "results.json").exists():
        with train_command(folder, *(["--resume"] if killed else [])) as process:
            known = set(folder.glob("checkpoint-*"))
            while (
                set(folder.glob("checkpoint-*")) <= known and process.poll() is None
            ):  # some progress, or it never ends
                time.sleep(0.02)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=draw.uniform(0, 1.5))
            running = process.poll() is None
            process.kill()
            assert running or process.wait() == 0, (tmp_path / "run-log").read_text()
            killed += running
    assert killed > 1
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("uninterrupted", "run")]
    assert weights[0] == weights[1]
