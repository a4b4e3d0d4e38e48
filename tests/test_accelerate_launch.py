"""Two processes under `accelerate launch` with the shipped configurations give what one process gives on the same batches.

Losses, the first step's gradients (after accumulation and clipping) and the parameters after four steps, in float64, to 1e-6;
rows have unequal numbers of labels.
"""

import os
import subprocess
import sys
from pathlib import Path

import accelerate_worker
import pytest
import torch
from helpers import assert_same_tensors

from hf_reformer.training.accelerate_config import accelerate_config

TOLERANCE = 1e-6
DDP = ["ddp", "ddp without a search for unused parameters"]


def launch(folder, configuration, script, *arguments, **environment):
    """Runs a script under `accelerate launch` in two processes."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate_config(configuration)),
        "--num_processes", "2", "--main_process_port", "0", str(script), str(folder), *arguments,
    ]  # fmt: skip
    environment = {
        **os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment,
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return accelerate_worker.train(str(tmp_path_factory.mktemp("single")), processes=1)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    launch(folder, "ddp", Path(accelerate_worker.__file__), *DDP)
    return {name: torch.load(folder / f"{name}.pt") for name in DDP}


def assert_same_run(run, single):
    assert run["losses"] == pytest.approx(single["losses"], rel=TOLERANCE)
    assert_same_tensors(run["gradients"], single["gradients"], TOLERANCE)
    assert_same_tensors(run["parameters"], single["parameters"], TOLERANCE)


@pytest.mark.parametrize("name", DDP)
def test_ddp(name, ddp, single):
    assert ddp[name]["wrapped"] == "DistributedDataParallel"
    assert_same_run(ddp[name], single)


def test_the_single_process_learns(single):
    assert len(single["losses"]) == accelerate_worker.STEPS and single["losses"][-1] < 0.9 * single["losses"][0]


def test_the_module_prints_where_a_configuration_lies():
    command = [sys.executable, "-m", "hf_reformer.training.accelerate_config", "fsdp2"]
    assert subprocess.check_output(command, text=True) == f"{accelerate_config('fsdp2')}\n"


def test_an_unknown_configuration_is_refused():
    with pytest.raises(ValueError, match="'fsdp', but must be one of ddp, fsdp2"):
        accelerate_config("fsdp")
