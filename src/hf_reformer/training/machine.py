"""The machine that a run is on: its devices, and how much memory was needed."""

import os
import platform
import re
from pathlib import Path

import torch

from ..model.attention_blocks import cpu_multiplies


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is a GPU where there is one.

    Raises:
        ValueError: for a device that this machine does not have.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [device for device, there in found.items() if there]
    if name == "auto":
        return torch.device(present[0])
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device is {name!r}, which cannot be used here ({str(error).splitlines()[0]}); allowed here are auto, "
            f"{', '.join(sorted(present))}"
        ) from None


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster there than in float32, as far as the device tells."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_multiplies(torch.bfloat16)


def describe_machine(device: torch.device) -> str:
    """One line: the device, and for a CPU how many of its cores work."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def peak_memory_gib(device: torch.device) -> float | None:
    """The most memory that this process has had: on a GPU what tensors took, else what was resident; None: not known.

    `getrusage` is not asked: on Linux its figure outlives `exec`, so that it may be another program's.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(peak[1]) / 2**20 if peak else None
