"""How much is worked on at a time, wherever a whole tensor would take memory that nobody needs: tokens of the feed-forward, the
projections, the norms and the head, scores of a block of attention, rotated vectors while hashing.
"""

import math

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

SHARE = (
    1 / 16
)  # of the memory that is free goes to the largest tensor of a piece: with its gradient and copies, a fourth
LEAST, MOST = 2**16, 2**29  # numbers of a piece

_numbers = None  # what the user has said: None (the caller's sizes), a number, or "auto"
_chosen = {}  # device -> numbers that "auto" has found


def set_piece_memory(mib: float | str | None) -> None:
    """Limits what the pieces take in which feed-forward, projections, head, attention and hashing are worked on, in this process.

    Smaller pieces take less memory beside the streams, larger ones fewer steps; results differ by rounding alone.

    Args:
        mib: size of the largest tensor of a piece, in MiB of float32. `"auto"`: a sixteenth of the memory that is free on a device
            when it is first asked for (said once), on a CPU no more than by default. None: the default, 2 MiB on a CPU
            (8 while hashing), where that stays in its cache, and 128 to 512 MiB on a GPU.

    Raises:
        ValueError: for anything else.
    """
    global _numbers
    number = isinstance(mib, (int, float)) and not isinstance(mib, bool) and math.isfinite(mib) and mib > 0
    if not (mib is None or mib == "auto" or number):
        raise ValueError(f'`mib` is {mib!r}, but must be a number above 0, "auto" or None.')
    _numbers = max(LEAST, int(mib * 2**18)) if number else mib
    _chosen.clear()


def piece_numbers(device: torch.device, on_cpu: int, elsewhere: int) -> int:
    """How many numbers the largest tensor of a piece may have; `on_cpu`, `elsewhere`: what is fast, if memory is no concern."""
    default = on_cpu if device.type == "cpu" else elsewhere
    if _numbers is None or device.type == "meta":
        return default
    if _numbers != "auto":
        return _numbers
    if device not in _chosen:
        free = free_memory(device)
        _chosen[device] = min(MOST, max(LEAST, int(free * SHARE / 4)))
        logger.warning_once(
            f"{free / 2**20:,.0f} MiB are free on {device}: pieces of {_chosen[device] / 2**18:,.1f} MiB at most."
        )
    return min(default, _chosen[device]) if device.type == "cpu" else _chosen[device]


def free_memory(device: torch.device) -> int:
    """Bytes that a device has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        import psutil  # of accelerate
    except ImportError:
        raise ValueError('`set_piece_memory("auto")` needs psutil on a CPU: pip install psutil') from None
    return psutil.virtual_memory().available
