"""Strict attention through PyTorch's variable-length flash attention, on a CPU: the operators' own schema, dense inside.

A stand-in is registered for the operators that PyTorch has for GPUs alone, so that arguments go through their schema. What
a card alone can show (its half precision, its speed) is in `test_gpu.py`.
"""

import pytest
import torch
from helpers import assert_close, build, cotangent, gradients, tiny_config, tokens

from hf_reformer.model import attention_varlen, reference
from hf_reformer.model.attention import ATTENTION_CLASSES
from hf_reformer.model.attention_chunked import ChunkedAttention
from hf_reformer.model.attention_layout import Layout, Rings, Windows
from hf_reformer.model.attention_rule import Rule
from hf_reformer.model.sorting import bucket_bounds, sort_by_bucket

BOTH_WAYS = {"is_decoder": False, "local_num_chunks_after": 1, "lsh_num_chunks_after": 2}


class Calls(list):
    """Sequences, longest and windows of each call."""


def scores_of(query, key, i, queries, keys, scale, left, right):
    """One sequence, with the last query at the last key, as the kernel aligns them: (H, n, m), -inf where hidden."""
    (a, b), (c, d) = queries[i : i + 2].tolist(), keys[i : i + 2].tolist()
    q, k = query[a:b].transpose(0, 1), key[c:d].transpose(0, 1)
    step = torch.arange(d - c)[None] - (torch.arange(b - a)[:, None] + (d - c) - (b - a))
    hidden = ((step < -left) if left >= 0 else step > 2**30) | ((step > right) if right >= 0 else step > 2**30)
    return (a, b), (c, d), (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)


def checked(query, key, value, queries, keys, longest, longest_keys):
    assert queries.dtype == keys.dtype == torch.int32 and len(queries) == len(keys) <= attention_varlen.SEQUENCES + 1
    assert query.dim() == key.dim() == value.dim() == 3 and key.shape == value.shape
    lengths, key_lengths = queries.diff(), keys.diff()
    assert lengths.min() >= 0 and key_lengths.min() >= 0 and queries[0] == keys[0] == 0
    assert queries[-1] == len(query) and keys[-1] <= len(key)
    assert lengths.max() <= longest and key_lengths.max() <= longest_keys


def forward(calls):
    def flash(
        query, key, value, queries, keys, longest, longest_keys, dropout, causal, debug, *, scale=None,
        window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None, block_table=None, num_splits=None,
    ):  # fmt: skip
        checked(query, key, value, queries, keys, longest, longest_keys)
        assert dropout == 0 and not causal
        calls.append((len(queries) - 1, longest, window_size_left))
        out, lse = torch.full_like(query, torch.nan), query.new_full((query.shape[1], len(query)), torch.nan)
        for i in range(len(queries) - 1):
            (a, b), (c, d), s = scores_of(query, key, i, queries, keys, scale, window_size_left, window_size_right)
            found = s.logsumexp(-1)
            out[a:b] = (torch.softmax(s, -1).nan_to_num(0) @ value[c:d].transpose(0, 1)).transpose(0, 1)
            lse[:, a:b] = found.masked_fill(
                found == -torch.inf, torch.inf
            )  # what the kernel says of a query without keys
        return out, lse, query.new_empty(2, dtype=torch.uint64), query.new_empty(0), query.new_empty(0)

    return flash


def backward(
    grad_out, query, key, value, out, lse, queries, keys, longest, longest_keys, dropout, causal, state, unused, *,
    scale=None, window_size_left=None, window_size_right=None,
):  # fmt: skip
    checked(query, key, value, queries, keys, longest, longest_keys)
    d_q, d_k, d_v = (torch.full_like(x, torch.nan) for x in (query, key, value))
    for i in range(len(queries) - 1):
        (a, b), (c, d), s = scores_of(query, key, i, queries, keys, scale, window_size_left, window_size_right)
        p = (s - lse[:, a:b, None]).exp()
        do, o, q, k, v = (x.transpose(0, 1) for x in (grad_out[a:b], out[a:b], query[a:b], key[c:d], value[c:d]))
        ds = p * (do @ v.transpose(1, 2) - (do * o).sum(-1, keepdim=True)) * scale
        d_q[a:b] = (ds @ k).transpose(0, 1)
        d_k[c:d], d_v[c:d] = (ds.transpose(1, 2) @ q).transpose(0, 1), (p.transpose(1, 2) @ do).transpose(0, 1)
    return d_q, d_k, d_v


@pytest.fixture
def kernel(monkeypatch):
    """The operators on a CPU, and strict layers that use them; gives the calls."""
    calls, library = Calls(), torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward(calls), "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    applies = lambda v, layout: layout.bounds is not None
    monkeypatch.setattr("hf_reformer.model.attention_chunked.varlen_applies", applies)
    yield calls
    library._destroy()


def both(kinds, mask=None, length=61, **changes):
    """Outputs and named gradients of a model with the kernel and of one without."""
    results = []
    for implementation in ("sdpa", "eager"):
        config = tiny_config(kinds, attn_implementation=implementation, num_hashes=3, hash_seed=5, **changes)
        model = build(config)
        output = model(tokens(config, 2, length), attention_mask=mask)
        logits = output.logits if mask is None else output.logits * mask[..., None]
        (logits * cotangent(logits)).sum().backward()
        results.append((logits, gradients(model)))
    return results


def padded(length):
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :7], mask[0, 30:33], mask[1, 50:] = 0, 0, 0
    return mask


@pytest.mark.parametrize("changes", [{}, BOTH_WAYS], ids=["causal", "both ways"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("kinds", [["strict_local"] * 3, ["strict_lsh"] * 3, ["strict_lsh", "local", "strict_local"]])
def test_outputs_and_every_gradient_are_those_of_the_blocks(kinds, masked, changes, kernel):
    (ours, grads), (plain, expected) = both(kinds, padded(61) if masked else None, **changes)
    assert kernel
    assert_close(ours, plain, 1e-10)
    for name, gradient in expected.items():
        assert_close(grads[name], gradient, 1e-9)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("buckets", [2, 26, 4000])
def test_equals_the_dense_reference_with_empty_buckets_and_buckets_of_one(buckets, after, kernel):
    """With 4,000 buckets for 59 tokens nearly all are empty, and most tokens see nothing."""
    batch, length, heads, size, rounds, window = 2, 59, 3, 5, 2, 7
    generator = torch.Generator().manual_seed(0)
    q, v = (torch.randn(batch, length, heads, size, dtype=torch.float64, generator=generator) for _ in range(2))
    found = torch.randint(buckets, (batch, heads, rounds, length), generator=generator).int()
    order, sorted_buckets = (x.permute(2, 0, 1, 3).flatten(1, 2) for x in sort_by_bucket(found, None, buckets))
    layout = Layout(
        Rings(batch, length, heads, q.device, rounds, order), Windows(length, 0, 0), Rule(window, after * window, True),
        bounds=bucket_bounds(sorted_buckets), buckets=buckets + 1,
    )  # fmt: skip
    given = [x.reshape(-1, size).clone().requires_grad_() for x in (q, v)]
    out = ChunkedAttention.apply(given[0], None, given[1], layout, None, attention_varlen.VarlenRings)
    direction = cotangent(out)
    (out * direction).sum().backward()
    dense = [x.clone().requires_grad_() for x in (q, v)]
    expected = dense_attention(*dense, found, window, after * window)
    (expected.reshape(-1, size) * direction).sum().backward()
    assert_close(out, expected.reshape(-1, size), 1e-10)
    for ours, theirs in zip(given, dense, strict=True):
        assert_close(ours.grad, theirs.grad.reshape(-1, size), 1e-9)


def dense_attention(q, v, buckets, before, after):
    """Written out: every query, every round, the list of what it sees."""
    batch, length, heads, size = q.shape
    keys = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() / size**0.5
    rows = []
    for b in range(batch):
        for t in range(length):
            for h in range(heads):
                seen = []
                for found in buckets[b, h].tolist():
                    mine = [s for s in range(length) if found[s] == found[t]]
                    i = mine.index(t)
                    seen += mine[max(0, i - before) : i] + mine[i + 1 : i + 1 + after]
                seen = torch.tensor(seen or [t])
                weights = torch.softmax(keys[b, seen, h] @ q[b, t, h], 0)
                rows.append(weights @ v[b, seen, h])
    return torch.stack(rows).view(batch, length, heads, size)


def test_a_grid_of_many_sequences_is_cut(kernel, monkeypatch):
    whole = both(["strict_lsh"] * 3)[0]
    assert (
        len(kernel) == 2 * 3 * 3
    )  # 3 layers of 3 rounds, in forward and once more in the backward of reversible layers
    kernel.clear()
    monkeypatch.setattr(attention_varlen, "SEQUENCES", 20)
    cut = both(["strict_lsh"] * 3)[0]
    assert max(sequences for sequences, *_ in kernel) <= 20 and len(kernel) > 18
    assert_close(cut[0], whole[0], 1e-10)


def test_long_buckets_are_read_in_pieces_whatever_their_length(kernel):
    """So the grid is known beforehand, and no device is asked for the longest."""
    both(["strict_local"] * 3, length=101)
    assert {(longest, window) for _, longest, window in kernel} == {(4 * 4, 4)}  # 1 chunk of 4 before, and itself


def test_the_stand_in_has_the_operators_arguments():
    names = lambda operator: [a.name for a in operator._schema.arguments]
    assert names(torch.ops.aten._flash_attention_forward.default)[:10] == [
        "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal", "return_debug_mask",
    ]  # fmt: skip
    assert names(torch.ops.aten._flash_attention_backward.default)[:14] == [
        "grad_out", "query", "key", "value", "out", "logsumexp", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p",
        "is_causal", "rng_state", "unused",
    ]  # fmt: skip


class OnCuda:
    """What `varlen_applies` asks of a tensor."""

    def __init__(self, dtype):
        self.device, self.dtype = torch.device("cuda"), dtype


def layout_of(kind, **changes):
    module = build(tiny_config([kind], **changes)).reformer.encoder.layers[0].attention.self_attention
    q = torch.randn(2, 24, 3, 5)
    return module.layout(q, 24, module.sample_rotations(2, q.device, q.dtype), None, None)[0]


@pytest.mark.parametrize(
    "kind, dtype, reason",
    [
        ("strict_lsh", torch.bfloat16, None), ("strict_local", torch.float16, None),
        ("strict_lsh", torch.float32, "float32"), ("lsh", torch.bfloat16, "strict type"), ("local", torch.float16, "strict"),
    ],
)  # fmt: skip
def test_what_cannot_run_there_runs_as_eager_and_says_why(kind, dtype, reason, monkeypatch):
    said = []
    monkeypatch.setattr(attention_varlen.logger, "warning_once", said.append)
    assert attention_varlen.varlen_applies(OnCuda(dtype), layout_of(kind)) is (reason is None)
    assert (not said) if reason is None else (reason in said[0] and "'eager'" in said[0])


def test_every_strict_type_is_compared_here():
    assert {name for name, kind in ATTENTION_CLASSES.items() if kind.strict} == {"strict_local", "strict_lsh"}
    assert reference is not None
