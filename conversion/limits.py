"""What a checkpoint may claim by numbers alone: sizes that no weight backs up, and that a model would take memory for.

All bounds are far above every published model (rotations of enwik8: 0.5 million numbers, scores of a chunk: 0.13 million).
"""

import math

import torch

MAX_ROTATIONS = 2**28  # numbers drawn to hash with, and of the rotated vectors of 64 tokens, per layer
MAX_CHUNK_SCORES = 2**28  # scores between one chunk and what it looks at
MAX_BUCKETS = 2**31  # the product of the factors
MAX_POSITIONS = 2**20  # rows of a position table that is written out
MAX_TABLE = 2**31  # numbers in it
SHARED = 2  # a tensor may be there under two names; more bytes of tensors than twice the file are not honest
TOKENS = 64  # of a fingerprint


def check_settings(config):
    """Raises `ValueError` for a setting of the attention that would take gigabytes."""
    for prefix, kinds in (("local", ("local", "strict_local")), ("lsh", ("lsh", "strict_lsh"))):
        if config.uses(*kinds):
            chunk, before, after = (
                getattr(config, f"{prefix}_{name}")
                for name in ("attn_chunk_length", "num_chunks_before", "num_chunks_after")
            )
            if chunk * chunk * (1 + before + after) > MAX_CHUNK_SCORES:
                raise ValueError(
                    f"`{prefix}_attn_chunk_length` {chunk} with {before} chunks before and {after} after makes more than "
                    f"{MAX_CHUNK_SCORES:,} scores per chunk."
                )
    for kind in ("lsh", "strict_lsh"):
        if config.uses(kind):
            _check_hashing(config, config.bucket_factors(kind))


def _check_hashing(config, factors):
    per_vector = config.num_attention_heads * config.num_hashes * sum(factors)
    if max(config.attention_head_size, TOKENS) * per_vector > MAX_ROTATIONS or math.prod(factors) > MAX_BUCKETS:
        raise ValueError(
            f"`num_buckets` {config.num_buckets} ({len(factors)} factors) with `num_hashes` {config.num_hashes} needs more "
            f"than {MAX_ROTATIONS:,} numbers to hash with, or {MAX_BUCKETS:,} buckets."
        )


def check_layers(config, tensors, where):
    """Before a model is built: every layer has weights of its own."""
    if len(config.attn_layers) > len(tensors):
        raise ValueError(
            f"`attn_layers` has {len(config.attn_layers):,} layers, but {where} only {len(tensors):,} tensors."
        )


def check_positions(rows, size):
    """Before a position table is written out."""
    if rows > MAX_POSITIONS or rows * size > MAX_TABLE:
        raise ValueError(f"a position table of {rows:,} rows is too long to be written out: give --max-length.")


def check_bytes(tensors, size, where):
    """Raises `ValueError` where tensors that share memory would take much more than the file's `size` once apart."""
    claimed = sum(tensor.nbytes for tensor in tensors)
    if claimed > SHARED * size:
        raise ValueError(f"{where} holds {size:,} bytes, but its tensors claim {claimed:,}.")


def parameters_of(model_class, config):
    """The model on the meta device, where it takes no memory.

    Raises:
        ValueError: no tensor can have such sizes.
    """
    try:
        with torch.device("meta"):
            return model_class(config)
    except (RuntimeError, OverflowError) as error:
        raise ValueError(f"no model has the sizes of the configuration: {error}.") from error
