"""Angular locality-sensitive hashing (paper section 2, after Andoni et al. 2015): near vectors share a bucket.

Shapes: B batch, L length, H heads, D head size, R hash rounds, S sum of the bucket factors / 2.
"""

import math
from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import _disable_current_modes

from .pieces import piece_numbers

DEFAULT_SEED = 2001_04451  # of the rotations used in evaluation when `hash_seed` is None: any fixed number would do
BLOCK_ELEMENTS = 2**21  # rotated numbers at a time on a CPU: they stay in its cache; elsewhere 32 times as many
LAYER_STRIDE = 1_000_003  # keeps the seeds of neighbouring layers apart


def sample_rotations(
    *, layer_idx, num_hashes, num_heads, head_size, rotation_size, seed=None, on_device=False, device="cpu",
    dtype=torch.float32,
):  # fmt: skip
    """Random rotations of one layer, standard normal, (H, D, R, S). Every rotation in the package is made here.

    Args:
        layer_idx, num_hashes, num_heads, head_size: which layer; R; H; D.
        rotation_size: S, half the sum of the bucket factors.
        seed: what the numbers are a function of, beside the layer; None: the global generator, which is drawn from.
        on_device: draw on `device` in `dtype`, the same for every layer: then `seed` gives the very numbers that
            transformers' `torch.manual_seed(seed)` gives. Else the same numbers whatever the device and the type.

    The numbers come from a private generator; the global one is at most drawn from, never seeded. A replacement of this
    function may return (B, H, D, R, S), one rotation per example, as Trax draws them.
    """
    where, kind = (device, dtype) if on_device else ("cpu", torch.float32)
    if seed is None:
        seed = int(torch.randint(2**62, (), device="cpu"))
    elif not on_device:
        seed = (seed + LAYER_STRIDE * (layer_idx + 1)) % 2**63
    generator = torch.Generator(device=where).manual_seed(seed)
    shape = (num_heads, head_size, num_hashes, rotation_size)
    return torch.randn(shape, generator=generator, device=where, dtype=kind).to(device=device, dtype=dtype)


def hash_rotations(config, layer_type, layer_idx, num_hashes, training, device, dtype):
    """Rotations for one forward pass of an LSH layer, (H, D, R, S) or (B, H, D, R, S): by `config.hash_seed` where that is
    set, else fresh ones in training and fixed ones in evaluation, so that two calls agree and a cache stays valid."""
    dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    fixed = DEFAULT_SEED if config.hash_seed is None and not training else config.hash_seed
    sample = sample_constant if torch.compiler.is_compiling() and not training else sample_rotations
    rotations = sample(
        layer_idx=layer_idx,
        num_hashes=num_hashes,
        num_heads=config.num_attention_heads,
        head_size=config.attention_head_size,
        rotation_size=sum(config.bucket_factors(layer_type)) // 2,
        seed=fixed,
        on_device=config.hash_seed is not None and layer_type == "lsh",
        device=device,
        dtype=dtype,
    )
    return rotations.to(device=device, dtype=dtype)


@torch.compiler.assume_constant_result
def sample_constant(**arguments):
    """`sample_rotations` while a graph is made of an evaluation: its result, which never changes, is a constant in it."""
    with _disable_current_modes():
        return sample_rotations(**arguments)


def compute_buckets(x_BLHD, rotations, factors):
    r"""Bucket numbers (B, H, R, L), int32: h(x) = argmax([xR; -xR]) for every factor (paper section 2).

    With factors n_1, n_2, ... the number is h_1 + n_1 (h_2 + n_2 (...)), the first factor least significant, as Trax
    does. `[xR; -xR]` is never formed: the winner of |xR| decides, and its sign adds half a factor. Works through blocks
    of tokens, so that the rotated vectors never exist all at once, in the rotations' type, under autocast too. No gradient.
    """
    batch, length, heads, _ = x_BLHD.shape
    rounds, size = rotations.shape[-2:]
    if math.prod(factors) == 1:
        return x_BLHD.new_zeros((batch, heads, rounds, length), dtype=torch.int32)
    budget = piece_numbers(x_BLHD.device, BLOCK_ELEMENTS, 32 * BLOCK_ELEMENTS)
    block = max(1, budget // (batch * heads * rounds * size))
    x_blocks = x_BLHD.detach().transpose(1, 2).split(block, dim=2)
    return torch.cat([hash_vectors(x, rotations, factors) for x in x_blocks], dim=2).transpose(2, 3)


def hash_vectors(x_BHLD, rotations, factors):
    """Bucket numbers (B, H, L, R), int32, of all vectors at once."""
    with without_autocast(x_BHLD):
        rotated = torch.matmul(x_BHLD.to(rotations.dtype), rotations.flatten(-2)).unflatten(-1, rotations.shape[-2:])
    bucket, start, product = 0, 0, 1
    for factor in factors:
        part = rotated[..., start : start + factor // 2]
        winner = part.abs().max(-1, keepdim=True).indices
        negative = part.gather(-1, winner) < 0
        bucket = bucket + product * (winner + negative * (factor // 2))[..., 0]
        start, product = start + factor // 2, product * factor
    return bucket.to(torch.int32)


def without_autocast(tensor):
    """A context in which products are taken in the types of their factors. (A tensor of no real device knows no autocast.)"""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
