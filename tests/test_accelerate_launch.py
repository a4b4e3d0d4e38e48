"""Two processes under `accelerate launch` with the shipped configurations give what one process gives on the same batches.

Losses, the first step's gradients (after accumulation and clipping) and the parameters after four steps, in float64, to 1e-6;
rows have unequal numbers of labels.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import accelerate_worker
import interruption_worker
import pytest
import recipe_worker
import torch
from helpers import assert_close, assert_same_tensors
from runs import results_of, train, weights, write_recipe

from hf_reformer.training.accelerate_config import accelerate_config
from hf_reformer.training.checkpoints import latest_whole_checkpoint

TOLERANCE = 1e-6
DDP = ["ddp", "ddp without a search for unused parameters"]


def launch(folder, configuration, script, *arguments, check=True, processes=2):
    """Runs a script under `accelerate launch`."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate_config(configuration)),
        "--num_processes", str(processes), "--main_process_port", "0", str(script), str(folder), *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return accelerate_worker.train(str(tmp_path_factory.mktemp("single")), processes=1)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    launch(folder, "ddp", Path(accelerate_worker.__file__), *DDP)
    return {name: torch.load(folder / f"{name}.pt") for name in DDP}


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    launch(folder, "fsdp2", Path(accelerate_worker.__file__), "fsdp2")
    return torch.load(folder / "fsdp2.pt")


def assert_same_run(run, single):
    assert run["losses"] == pytest.approx(single["losses"], rel=TOLERANCE)
    assert_same_tensors(run["gradients"], single["gradients"], TOLERANCE)
    assert_same_tensors(run["parameters"], single["parameters"], TOLERANCE)
    assert run["evaluation"] == pytest.approx(single["evaluation"], rel=TOLERANCE)
    assert_close(run["predictions"], single["predictions"], TOLERANCE)


@pytest.mark.parametrize("name", DDP)
def test_ddp(name, ddp, single):
    assert ddp[name]["wrapped"] == "DistributedDataParallel"
    assert_same_run(ddp[name], single)


@pytest.mark.slow
def test_fsdp2(fsdp2, single):
    assert fsdp2["wrapped"].startswith("FSDP")
    assert_same_run(fsdp2, single)


def test_a_sequence_shared_by_two_processes(tmp_path, single):
    """Ordinary data parallelism around it; evaluation and predictions are sharded too."""
    launch(tmp_path, "ddp", Path(accelerate_worker.__file__), "sequence")
    run = torch.load(tmp_path / "sequence.pt")
    assert run["wrapped"] == "DistributedDataParallel"
    assert_same_run(run, single)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_a_sequence_shared_by_two_processes_by_configuration_alone(processes, tmp_path, single):
    """FSDP2 over all processes; of four, two share the one sequence and two the other."""
    name = "sequence by configuration"
    launch(tmp_path, "sequence", Path(accelerate_worker.__file__), name, processes=processes)
    run = torch.load(tmp_path / f"{name}.pt")
    assert run["wrapped"].startswith("FSDP")
    assert_same_run(run, single)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["ddp", "fsdp2"])
def test_two_processes_of_which_one_is_stopped_or_killed(configuration, tmp_path):
    """Dropout is on and rotations are fresh; resumed runs end with the bits of an uninterrupted one."""
    sharded = "sharded" if configuration == "fsdp2" else "whole"

    def run(name, rank="0", *interruption):
        script = Path(interruption_worker.__file__)
        return launch(tmp_path / name, configuration, script, sharded, rank, *map(str, interruption), check=False)

    assert run("uninterrupted").returncode == 0
    assert run("run", "1", "module call", 2000, int(signal.SIGTERM)).returncode == 0
    step, stopped_by = map(int, (tmp_path / "run" / "steps.txt").read_text().split())
    assert stopped_by == signal.SIGTERM and 0 < step < interruption_worker.STEPS
    assert latest_whole_checkpoint(tmp_path / "run").name == f"checkpoint-{step}"
    assert run("run", "0", "file operation", 20, int(signal.SIGKILL)).returncode != 0
    assert run("run", "1", "module call", 1500, int(signal.SIGKILL)).returncode != 0
    assert run("run").returncode == 0
    final, expected = (torch.load(tmp_path / name / "final.pt") for name in ("run", "uninterrupted"))
    assert final.keys() == expected.keys() and all(torch.equal(final[name], expected[name]) for name in expected)


@pytest.mark.parametrize("configuration", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_the_train_command_under_two_processes_writes_the_model_of_one(configuration, tmp_path):
    """Half the rows on each process, the same in all: the same model, its figures and its card."""
    alone = write_recipe(tmp_path)
    assert train(alone, tmp_path / "alone", "training.max_steps=4") == 0
    script = Path(recipe_worker.__file__)
    changes = [
        "--set",
        "training.max_steps=4",
        "--set",
        "training.per_device_train_batch_size=1",
        "--set",
        "training.use_cpu=true",
    ]
    launch(
        tmp_path / "two",
        configuration,
        script,
        "sharded" if configuration == "fsdp2" else "whole",
        str(alone),
        *changes,
    )
    one, two = weights(tmp_path / "alone" / "model"), weights(tmp_path / "two" / "model")
    assert_same_tensors(two, one, 1e-3)
    results = results_of(tmp_path / "two")
    assert results["processes"] == 2
    assert results["after"]["loss"] == pytest.approx(results_of(tmp_path / "alone")["after"]["loss"], rel=1e-3)
    assert latest_whole_checkpoint(tmp_path / "two").name == "checkpoint-4"


def test_the_single_process_learns(single):
    assert len(single["losses"]) == accelerate_worker.STEPS and single["losses"][-1] < 0.9 * single["losses"][0]


def test_the_module_prints_where_a_configuration_lies():
    command = [sys.executable, "-m", "hf_reformer.training.accelerate_config", "fsdp2"]
    assert subprocess.check_output(command, text=True) == f"{accelerate_config('fsdp2')}\n"


def test_an_unknown_configuration_is_refused():
    with pytest.raises(ValueError, match="'fsdp', but must be one of ddp, fsdp2, sequence"):
        accelerate_config("fsdp")
