"""Settings of the whole test run: no network, one thread, and property tests that draw the same examples every time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands in processes of their own, whatever else runs beside them

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, print_blob=False,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)  # fmt: skip
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_order():
    """Each test starts from the same global generator, whatever ran before it."""
    torch.manual_seed(0)
