"""The dense reference itself: against transformers, Google's arrays, and the paper's equations taken literally."""

from pathlib import Path

import dense_model
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, assert_same_tensors, cotangent, gradients
from transformers.models.reformer import modeling_reformer as published
from transformers.models.reformer.configuration_reformer import ReformerConfig as PublishedConfig

from hf_reformer.model import reference

FIXTURES = Path(__file__).parent / "fixtures"


def published_model(**changes):
    settings = {
        "attn_layers": ["local", "lsh", "lsh"],
        "vocab_size": 19,
        "hidden_size": 14,
        "num_attention_heads": 3,
        "attention_head_size": 5,
        "feed_forward_size": 11,
        "axial_pos_shape": [8, 6],
        "axial_pos_embds_dim": [5, 9],
        "axial_norm_std": 0.5,
        "initializer_range": 0.3,
        "max_position_embeddings": 48,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 6,
        "num_buckets": 4,
        "num_hashes": 2,
        "hash_seed": 3,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "is_decoder": True,
        "use_cache": False,
    }
    config = PublishedConfig(**{**settings, **changes})
    cls = published.ReformerModelWithLMHead if config.is_decoder else published.ReformerForMaskedLM
    return cls(config).double()


def published_rotations(config):
    factors = [config.num_buckets] if isinstance(config.num_buckets, int) else config.num_buckets
    shape = (config.num_attention_heads, config.attention_head_size, config.num_hashes, sum(factors) // 2)
    rotations = torch.randn(shape, generator=torch.Generator().manual_seed(config.hash_seed), dtype=torch.float64)
    return dict.fromkeys(range(len(config.attn_layers)), rotations)


def mask_with_holes(batch, length):
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, -max(1, length // 3) :] = 0
    mask[0, 2::7] = 0
    return mask


VARIANTS = {
    "causal": {},
    "bidirectional": {"is_decoder": False, "lsh_num_chunks_after": 1, "local_num_chunks_after": 1},
    "factorised buckets, 4 rounds": {"num_hashes": 4, "num_buckets": [2, 4]},
    "3 chunks before": {"num_hashes": 1, "local_num_chunks_before": 3, "lsh_num_chunks_before": 3},
    "2 chunks on both sides": {"is_decoder": False, "local_num_chunks_before": 2, "local_num_chunks_after": 2},
}


@pytest.mark.parametrize("masked", [False, True], ids=["all real", "masked"])
@pytest.mark.parametrize("length", [3, 5, 11, 12, 13, 25, 48])
@pytest.mark.parametrize("variant", VARIANTS)
def test_dense_logits_equal_those_of_transformers_in_float64(variant, length, masked):
    model = published_model(**VARIANTS[variant]).eval()
    input_ids = torch.randint(model.config.vocab_size, (2, length))
    mask = mask_with_holes(2, length) if masked else torch.ones(2, length, dtype=torch.long)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        expected = model(input_ids, attention_mask=mask if masked else None).logits
        rotations = published_rotations(model.config)
        dense = dense_model.dense_lm_logits(model.config, parameters, input_ids, mask if masked else None, rotations)
    assert_close(dense[mask.bool()], expected[mask.bool()], 1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dense_gradients_equal_those_of_transformers_in_float64(variant):
    model = published_model(**VARIANTS[variant]).train()
    input_ids, mask = torch.randint(model.config.vocab_size, (2, 48)), mask_with_holes(2, 48)
    logits = model(input_ids, attention_mask=mask).logits
    (logits * cotangent(logits, mask)).sum().backward()
    expected = gradients(model)  # without lm_head.bias, which transformers does not use
    expected.pop("lm_head.decoder.bias", None)  # which it uses from 5.24 on
    model.zero_grad()
    parameters = dict(model.named_parameters())
    dense = dense_model.dense_lm_logits(model.config, parameters, input_ids, mask, published_rotations(model.config))
    (dense * cotangent(dense, mask)).sum().backward()
    actual = gradients(model)
    actual.pop("lm_head.bias")
    assert_same_tensors(actual, expected, 1e-11)


@pytest.mark.parametrize("case", ["lay01", "lay04"])
def test_dense_layer_equals_the_original(case):
    arrays = {name: torch.from_numpy(array) for name, array in np.load(FIXTURES / f"{case}.npz").items()}
    weights = {name[7:]: array.double() for name, array in arrays.items() if name.startswith("weight.")}
    x, mask = arrays["x"].double(), arrays["mask"]
    heads = {name: torch.einsum("bld,hdk->bhlk", x, weights[name]) for name in weights if name != "w_o"}
    window = {"chunk_length": 8, "num_chunks_before": 1, "num_chunks_after": 1, "causal": False, "strict": False}
    if case == "lay01":
        buckets = reference.hash_buckets(heads["w_qk"], arrays["rotations"].double(), 8)
        out = reference.dense_lsh_attention(heads["w_qk"], heads["w_v"], buckets, attention_mask=mask, **window)
    else:
        out = reference.dense_local_attention(*(heads[n] for n in ("w_q", "w_k", "w_v")), attention_mask=mask, **window)
    out = torch.einsum("bhlk,hkd->bld", out, weights["w_o"])
    assert_close(out[mask], arrays["out"].double()[mask], 1e-5)


def test_buckets_are_those_of_the_original():
    arrays = {name: torch.from_numpy(array) for name, array in np.load(FIXTURES / "lay01.npz").items()}
    qk = torch.einsum("bld,hdk->bhlk", arrays["x"], arrays["weight.w_qk"])
    buckets = reference.hash_buckets(qk, arrays["rotations"], 8)
    original = arrays["buckets"] - torch.tensor([0, 9])[:, None]  # 8 buckets and one for padding in each round
    real = arrays["mask"][:, None, None].expand_as(buckets)
    assert torch.equal(buckets[real], original[real].long())


def literal_rounds(qk, v, counts, *, correct_duplicates):
    """Equations 13 to 16 of the paper's appendix as printed: one output per round, merged by exp(z_r - z)."""
    k = qk / torch.sqrt(qk.pow(2).mean(-1, keepdim=True) + reference.LSH_NORM_EPSILON)
    length, rounds = qk.shape[2], counts.shape[2]
    counts = counts.tril()
    scores = (qk @ k.transpose(-1, -2) / qk.shape[-1] ** 0.5).unsqueeze(2)
    mask = torch.where(counts > 0, 0.0, torch.inf).double()
    if correct_duplicates:
        mask = mask + torch.log(counts.sum(dim=2, keepdim=True).clamp(min=1).double())
    mask = torch.where(torch.eye(length, dtype=torch.bool), torch.tensor(1e5).double(), mask)
    per_round = scores - mask
    z_round = torch.logsumexp(per_round, dim=-1, keepdim=True)
    out_round = torch.exp(per_round - z_round) @ v.unsqueeze(2)
    z = torch.logsumexp(z_round, dim=2, keepdim=True)
    assert out_round.shape[2] == rounds
    return (torch.exp(z_round - z) * out_round).sum(dim=2)


@pytest.mark.parametrize("allow_duplicate_attention", [True, False])
def test_one_softmax_over_all_rounds_is_equations_13_to_16(allow_duplicate_attention):
    qk, v = torch.randn(2, 3, 29, 5).double(), torch.randn(2, 3, 29, 7).double()
    buckets = torch.randint(3, (2, 3, 4, 29))
    counts = reference.strict_counts(buckets, window_before=12, window_after=0)
    expected = literal_rounds(qk, v, counts, correct_duplicates=not allow_duplicate_attention)
    out = reference.dense_lsh_attention(
        qk, v, buckets, chunk_length=4, num_chunks_before=3, num_chunks_after=0, causal=True, strict=True,
        allow_duplicate_attention=allow_duplicate_attention,
    )  # fmt: skip
    assert_close(out, expected, 1e-10)  # 1e5 and a score have about 11 digits in common in float64


def test_a_key_met_in_two_rounds_counts_twice():
    """Three tokens; the last one meets the first in both rounds and the second in one: weights 2 e^a to 1 e^b."""
    buckets = torch.tensor([[0, 0, 0], [0, 1, 0]])[None, None]
    qk, v = torch.zeros(1, 1, 3, 2).double(), torch.eye(3).double()[None, None]
    out = reference.dense_lsh_attention(
        qk, v, buckets, chunk_length=5, num_chunks_before=1, num_chunks_after=0, causal=True, strict=True
    )
    assert_close(out[0, 0], torch.tensor([[1, 0, 0], [1, 0, 0], [2 / 3, 1 / 3, 0]], dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_full_attention_is_scaled_dot_product_attention(causal):
    q, k, v = (torch.randn(2, 3, 23, 5).double() for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert_close(reference.dense_full_attention(q, k, v, causal=causal), expected, 1e-12)
