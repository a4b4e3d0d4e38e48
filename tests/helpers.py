"""What several test modules share: tiny models of awkward sizes, rotations by layer, gradients by name."""

import torch

import hf_reformer

SHARED_QK = ("lsh", "strict_lsh")  # the layer types that hash


def tiny_config(attn_layers, **changes):
    """A configuration whose sizes are all different, with weights large enough (std 0.3) for mistakes to show."""
    settings = {
        "attn_layers": list(attn_layers),
        "vocab_size": 19,
        "hidden_size": 14,
        "num_attention_heads": 3,
        "attention_head_size": 5,
        "feed_forward_size": 11,
        "axial_pos_shape": [17, 13],
        "axial_pos_embds_dim": [5, 9],
        "axial_norm_std": 0.5,
        "initializer_range": 0.3,
        "max_position_embeddings": 221,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 6,
        "num_buckets": 4,
        "num_hashes": 2,
        "hidden_act": "gelu",
        "is_decoder": True,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
        "eos_token_id": None,
        "use_cache": False,
    }
    return hf_reformer.ReformerConfig(**{**settings, **changes})


DROPOUT = {
    "hidden_dropout_prob": 0.2,
    "local_attention_probs_dropout_prob": 0.2,
    "lsh_attention_probs_dropout_prob": 0.2,
}


def build(config, cls=None, seed=0, dtype=torch.float64):
    """A model in evaluation mode with every parameter random, those that start at 0 or 1 too."""
    if cls is None:
        cls = hf_reformer.ReformerModelWithLMHead if config.is_decoder else hf_reformer.ReformerForMaskedLM
    torch.manual_seed(seed)
    model = cls(config).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tokens(config, batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def rotations_by_layer(config, seed=0, batch=None):
    """One set of rotations for every layer that hashes: {layer: (H, D, R, S)} or, with a batch, (B, H, D, R, S)."""
    factors = [config.num_buckets] if isinstance(config.num_buckets, int) else config.num_buckets
    shape = (config.num_attention_heads, config.attention_head_size, config.num_hashes, sum(factors) // 2)
    shape = shape if batch is None else (batch, *shape)
    generator = torch.Generator().manual_seed(seed)
    layers = [index for index, kind in enumerate(config.attn_layers) if kind in SHARED_QK]
    return {index: torch.randn(shape, generator=generator, dtype=torch.float64) for index in layers}


def inject_rotations(monkeypatch, rotations):
    """Make the model hash with these rotations; returns the list of calls, one dictionary of keywords each."""
    calls = []

    def replacement(*, layer_idx, num_hashes, **others):
        calls.append({"layer_idx": layer_idx, "num_hashes": num_hashes, **others})
        return rotations[layer_idx]

    monkeypatch.setattr("hf_reformer.model.hashing.sample_rotations", replacement)
    return calls


def cotangent(like, mask=None, seed=0):
    """A random direction to differentiate along, zero where the mask is."""
    direction = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        like.dtype
    )
    return direction if mask is None else direction * mask.unsqueeze(-1).to(like.dtype)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_tensors(actual, expected, tolerance):
    """Every named tensor equals its counterpart, to `tolerance` times the largest entry of that counterpart.

    Tensors that are a thousand times smaller than the largest one are compared on that scale.
    """
    assert actual.keys() == expected.keys(), f"only in one of the two: {sorted(actual.keys() ^ expected.keys())}"
    actual, expected = ({name: tensor.detach() for name, tensor in named.items()} for named in (actual, expected))
    floor = 1e-3 * max(float(tensor.abs().max()) for tensor in expected.values())
    wrong = {}
    for name, tensor in expected.items():
        scale = max(float(tensor.abs().max()), floor)
        error = float((actual[name] - tensor).abs().max()) / scale if scale else float(actual[name].abs().max())
        if not error <= tolerance:
            wrong[name] = error
    assert not wrong, f"relative errors above {tolerance}: {wrong}"


def assert_close(actual, expected, tolerance):
    assert_same_tensors({"": actual}, {"": expected}, tolerance)


def second_bias(theirs):
    """What a Reformer of transformers has beside `lm_head.bias`: from 5.24 on, the bias that its head adds, here 0."""
    bias = getattr(getattr(getattr(theirs, "lm_head", None), "decoder", None), "bias", None)
    return {} if bias is None else {"lm_head.decoder.bias": torch.zeros_like(bias)}
