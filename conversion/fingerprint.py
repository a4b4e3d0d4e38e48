"""A few numbers that tell whether two checkpoints are the same, and whether a model still computes what it did."""

import hashlib

import torch

TOKENS = 64


def fingerprint(model):
    """Two lines: a hash of all weights (exact), and statistics of the output on fixed tokens (to rounding).

    The tokens are (7 i + 3) mod V for i = 0, 1, ... up to 64 or the model's longest input.

    Raises:
        ValueError: the output is not finite.
    """
    output = forward(model)
    if not bool(torch.isfinite(output).all()):
        raise ValueError("the converted model gives NaN or infinite numbers.")
    first = ", ".join(f"{x:.5g}" for x in output.flatten()[:4].tolist())
    size = "x".join(map(str, output.shape))
    statistics = f"mean {output.mean():.6g}, std {output.std(correction=0):.6g}, first {first}"
    return f"weights sha256:{weights_hash(model.state_dict())}\noutput {size} on fixed tokens: {statistics}"


@torch.no_grad()
def forward(model):
    """The first output of the model in evaluation mode on the fixed tokens, float32."""
    config = model.config

    def tokens(part):
        return ((7 * torch.arange(min(TOKENS, part.maximum_length)) + 3) % part.vocab_size)[None]

    if config.is_encoder_decoder:
        return model.eval()(tokens(config), decoder_input_ids=tokens(config.decoder_part()))[0].float()
    return model.eval()(tokens(config))[0].float()


def weights_hash(tensors):
    """Over names, types, shapes and bytes of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
