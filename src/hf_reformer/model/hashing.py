"""Angular locality-sensitive hashing (paper section 2, after Andoni et al. 2015): near vectors share a bucket.

Shapes: B batch, L length, H heads, D head size, R hash rounds, S sum of the bucket factors / 2.
"""

import math

import torch
from torch.utils._python_dispatch import _disable_current_modes

DEFAULT_SEED = 2001_04451  # of the rotations used in evaluation when `hash_seed` is None: any fixed number would do
BLOCK_ELEMENTS = 2**21  # rotated vectors at a time: they stay in cache
LAYER_STRIDE = 1_000_003  # keeps the seeds of neighbouring layers apart


def sample_rotations(
    *, layer_idx, num_hashes, num_heads, head_size, rotation_size, hash_seed=None, fresh=False, same_in_every_layer=False,
    device="cpu", dtype=torch.float32,
):  # fmt: skip
    """Random rotations of one layer, standard normal, (H, D, R, S). Every rotation in the package is made here.

    Args:
        layer_idx, num_hashes, num_heads, head_size: which layer; R; H; D.
        rotation_size: S, half the sum of the bucket factors.
        hash_seed: makes the result a fixed function of the seed and the layer.
        fresh: with `hash_seed=None`, draw the seed from the global generator (training); otherwise the seed is a
            constant of this module (evaluation), so that two calls agree and a cache stays valid.
        same_in_every_layer: ignore `layer_idx` and draw on `device` in `dtype`: then a `hash_seed` gives the very numbers
            that transformers' `torch.manual_seed(hash_seed)` gives.

    The numbers come from a private generator; the global one is at most drawn from, never seeded. A replacement of this
    function may return (B, H, D, R, S), one rotation per example, as Trax draws them.
    """
    shape = (num_heads, head_size, num_hashes, rotation_size)
    if same_in_every_layer and hash_seed is not None:
        generator = torch.Generator(device=device).manual_seed(hash_seed)
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    if hash_seed is None and fresh:
        seed = int(torch.randint(2**62, ()))
    else:
        seed = ((DEFAULT_SEED if hash_seed is None else hash_seed) + LAYER_STRIDE * (layer_idx + 1)) % 2**63
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers whatever the device
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def hash_rotations(config, layer_type, layer_idx, num_hashes, training, device, dtype):
    """Rotations for one forward pass of an LSH layer, (H, D, R, S) or (B, H, D, R, S)."""
    dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    sample = sample_constant if torch.compiler.is_compiling() and not training else sample_rotations
    rotations = sample(
        layer_idx=layer_idx,
        num_hashes=num_hashes,
        num_heads=config.num_attention_heads,
        head_size=config.attention_head_size,
        rotation_size=sum(config.bucket_factors(layer_type)) // 2,
        hash_seed=config.hash_seed,
        fresh=training,
        same_in_every_layer=layer_type == "lsh",
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
    of tokens, so that the rotated vectors never exist all at once. No gradient.
    """
    batch, length, heads, _ = x_BLHD.shape
    rounds, size = rotations.shape[-2:]
    if math.prod(factors) == 1:
        return x_BLHD.new_zeros((batch, heads, rounds, length), dtype=torch.int32)
    x_BHLD = x_BLHD.detach().transpose(1, 2)
    rotations = rotations.flatten(-2)  # (..., H, D, R * S)
    block = max(1, BLOCK_ELEMENTS // (batch * heads * rounds * size))
    buckets = []
    for x_block in x_BHLD.split(block, dim=2):
        rotated = torch.matmul(x_block.to(rotations.dtype), rotations).unflatten(-1, (rounds, size))
        buckets.append(combine_factors(rotated, factors))
    return torch.cat(buckets, dim=2).transpose(2, 3)


def combine_factors(rotated, factors):
    """Rotated vectors (..., S) to bucket numbers (...), int32."""
    bucket, start, product = 0, 0, 1
    for factor in factors:
        part = rotated[..., start : start + factor // 2]
        winner = part.abs().max(-1, keepdim=True).indices
        negative = part.gather(-1, winner) < 0
        bucket = bucket + product * (winner + negative * (factor // 2))[..., 0]
        start, product = start + factor // 2, product * factor
    return bucket.to(torch.int32)
