"""The attention modules by themselves: the one rule, new layer types, derivatives of derivatives, no waiting for a device."""

import sys

import pytest
import torch
from helpers import assert_close, build, tiny_config, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hf_reformer import ReformerCache
from hf_reformer.model import configuration_checks
from hf_reformer.model.attention import (
    ATTENTION_CLASSES,
    StrictLocalSelfAttention,
    StrictLSHSelfAttention,
    add_layer_type,
)
from hf_reformer.model.attention_rule import FAR, Rule

CHUNKED = ["local", "lsh", "strict_local", "strict_lsh"]
BOTH_WAYS = {"is_decoder": False, "lsh_num_chunks_after": 1, "local_num_chunks_after": 1, "lsh_num_chunks_before": 2}


def layer(kind, **changes):
    """One attention module, its random vectors (B, L, H, D) and its rotations."""
    config = tiny_config([kind], **changes)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    module = ATTENTION_CLASSES[kind](config, 0).double()
    vectors = [torch.randn(2, 29, 3, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
    vectors[1] = None if module.shared else vectors[1]
    return module, vectors, module.sample_rotations(config.num_hashes, "cpu", torch.float64)


# --- the rule


@given(
    before=st.sampled_from([0, 1, 3, FAR]), after=st.sampled_from([0, 2, FAR]), exclude_self=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60)
def test_the_arithmetic_mask_hides_what_the_rule_does_not_see(before, after, exclude_self, seed):
    rule, generator = Rule(before, after, exclude_self), torch.Generator().manual_seed(seed)
    keys, queries = (torch.randint(11, (2, n), generator=generator).float() for n in (7, 5))
    keys[0, 3] = float("inf")  # padding
    keys, queries = keys[:, None, :], queries[:, :, None]
    scores = torch.zeros(2, 5, 7)
    rule.subtract_unseen_(scores, keys, queries)
    assert torch.equal(scores == 0, rule.sees(keys - queries))


def test_a_rule_ends_where_the_bucket_does():
    steps = torch.arange(-4, 5)
    seen = Rule(3, 2, exclude_self=True).sees(steps, left=torch.tensor(-1), right=torch.tensor(1))
    assert steps[seen].tolist() == [-1, 1]


# --- a new layer type is one class


class EverySecond(Rule):
    """Sees steps of an even number only."""

    def near(self, step):
        return super().near(step) & (step % 2 == 0)


class DilatedLocal(StrictLocalSelfAttention):
    @property
    def rule(self):
        return EverySecond(*super().rule)


class LocalWithoutItself(StrictLocalSelfAttention):
    @property
    def rule(self):
        return super().rule._replace(exclude_self=True)


class DilatedLSH(StrictLSHSelfAttention):
    """Sees itself, too."""

    @property
    def rule(self):
        return EverySecond(*super().rule)._replace(exclude_self=False)


NEW = {"dilated": DilatedLocal, "without_itself": LocalWithoutItself, "dilated_lsh": DilatedLSH}


@pytest.fixture
def new_types():
    for name, kind in NEW.items():
        add_layer_type(name, kind)
    yield
    for name in NEW:
        del ATTENTION_CLASSES[name]
        configuration_checks.ATTN_LAYERS.remove(name)


def by_hand(module, vectors, rotations, causal):
    """(B, L, H, D): a softmax over the multiset of keys of one's own bucket that the rule lets through, in each round."""
    q, k, v = (None if x is None else x.transpose(1, 2) for x in vectors)
    length = v.shape[2]
    k = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() if k is None else k
    buckets = torch.zeros(*v.shape[:2], 1, length, dtype=torch.long)
    if rotations is not None:
        rotated = torch.einsum("bhld,hdrs->bhrls", q, rotations)
        buckets = torch.cat([rotated, -rotated], -1).argmax(-1)
    rank = (buckets * length + torch.arange(length)).argsort(-1).argsort(-1)
    step = rank[..., None, :] - rank[..., :, None]
    seen = (buckets[..., None, :] == buckets[..., :, None]) & (step.abs() <= module.before * module.chunk_length)
    seen = seen & (step <= 0) if causal else seen
    seen = seen & (step % 2 == 0) if "dilated" in module.layer_type else seen & (step != 0)
    counts = seen.sum(2)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights = counts * scores.exp()
    alone = counts.sum(-1, keepdim=True) == 0
    return torch.where(alone, v, weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-30)).transpose(1, 2)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "traced"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kind", NEW)
def test_a_new_layer_type_has_forward_and_backward(kind, causal, implementation, new_types):
    after = {"local_num_chunks_before": 2, "local_num_chunks_after": 0 if causal else 2}
    module, vectors, rotations = layer(kind, is_decoder=causal, **after, lsh_num_chunks_after=int(not causal))
    module.config._attn_implementation = implementation
    run = module.traced if implementation == "traced" else module.over_all
    given = [x for x in vectors if x is not None]
    found = run(vectors, rotations).hidden_states
    expected = by_hand(module, vectors, rotations, causal).flatten(2)
    assert_close(found, expected, 1e-9)
    direction = torch.randn_like(expected)
    pairs = zip(*(torch.autograd.grad((x * direction).sum(), given) for x in (found, expected)), strict=True)
    for actual, right in pairs:
        assert_close(actual, right, 1e-9)


@pytest.mark.parametrize("padded", [0, 9])
@pytest.mark.parametrize("kind", NEW)
def test_a_new_layer_type_has_a_cache(kind, padded, new_types):
    config = tiny_config([kind] * 3, num_hashes=3)
    model, input_ids, cache = build(config), tokens(config, 2, 60), ReformerCache(config)
    mask = torch.ones_like(input_ids)
    mask[1, :padded] = 0
    with torch.no_grad():
        expected, logits, start = model(input_ids, attention_mask=mask, use_cache=False).logits, [], 0
        for piece in (17, 1, 1, 30, 1, 10):
            seen = mask[:, : start + piece]
            part = input_ids[:, start : start + piece]
            logits.append(model(part, attention_mask=seen, past_key_values=cache).logits)
            start += piece
    assert_close(torch.cat(logits, 1)[mask.bool()], expected[mask.bool()], 1e-10)


@pytest.mark.parametrize("kind", NEW)
def test_a_new_layer_type_is_exported(kind, new_types):
    model = build(tiny_config([kind]), dtype=torch.float32)
    length = torch.export.Dim("length", min=2, max=model.config.maximum_length)
    inputs = {"input_ids": tokens(model.config, 2, 23)}
    exported = torch.export.export(model, (), inputs, dynamic_shapes={"input_ids": {1: length}}).module()
    with torch.no_grad():
        for other in (5, 60):
            input_ids = tokens(model.config, 2, other)
            assert_close(exported(input_ids=input_ids).logits, model(input_ids).logits, 1e-5)


# --- the one expression, where counting once and dropout are concerned


@pytest.mark.parametrize("changes", [{}, BOTH_WAYS], ids=["causal", "both ways"])
@pytest.mark.parametrize("kind", ["lsh", "strict_lsh"])
def test_traced_attention_counts_a_key_once(kind, changes):
    module, vectors, rotations = layer(kind, num_hashes=4, allow_duplicate_attention=False, **changes)
    assert_close(module.traced(vectors, rotations)[0], module.over_all(vectors, rotations)[0], 1e-10)
    module.config.allow_duplicate_attention = True
    assert (module.traced(vectors, rotations)[0] - module.over_all(vectors, rotations)[0]).abs().max() < 1e-10


@pytest.mark.parametrize("kind", CHUNKED)
def test_traced_attention_has_the_dropout_of_the_blocks(kind):
    dropout = {"local_attention_probs_dropout_prob": 0.4, "lsh_attention_probs_dropout_prob": 0.4}
    module, vectors, rotations = layer(kind, **dropout)
    found = []
    for training, run in ((True, module.traced), (True, module.over_all), (False, module.over_all)):
        torch.manual_seed(3)
        module.train(training)
        found.append(run(vectors, rotations)[0])
    assert_close(found[0], found[1], 1e-10)
    assert (found[1] - found[2]).abs().max() > 1e-2


# --- derivatives of derivatives, and torch.func


@pytest.mark.parametrize(
    "changes",
    [{}, BOTH_WAYS, {"allow_duplicate_attention": False, "num_hashes": 3}, {"local_num_chunks_before": 3}],
    ids=str,
)
@pytest.mark.parametrize("kind", CHUNKED)
def test_a_gradient_can_be_differentiated(kind, changes):
    """Against finite differences of the gradient, with dropout, and with values that are made from the queries."""
    dropout = {"local_attention_probs_dropout_prob": 0.3, "lsh_attention_probs_dropout_prob": 0.3}
    module, (q, k, v), rotations = layer(kind, **changes, **dropout)
    module.train()

    def gradient(q, create_graph=False):
        torch.manual_seed(4)
        out = module.over_all((q, k, v + q * q), rotations)[0]
        return torch.autograd.grad(out, q, grad_outputs=out.cos(), create_graph=create_graph)[0]

    direction, step = torch.randn_like(q), 1e-6
    expected = (gradient(q + step * direction) - gradient(q - step * direction)) / (2 * step)
    (along,) = torch.autograd.grad((gradient(q, create_graph=True) * direction).sum(), q)
    assert_close((along * direction).sum(), (expected * direction).sum(), 1e-5)


@pytest.mark.parametrize("kind", CHUNKED)
def test_a_gradient_does_not_hang_on_a_clamp_at_its_limit(kind, monkeypatch):
    """There it is 1 up to torch 2.13 and 0 in 2.15: here it is 0 in all."""

    def clamp(x, min=None, max=None):
        for limit, inside in ((min, torch.gt), (max, torch.lt)):
            x = x if limit is None else torch.where(inside(x, limit), x, torch.full_like(x, limit))
        return x

    module, (q, k, v), rotations = layer(kind)
    (expected,) = torch.autograd.grad(module.over_all((q, k, v), rotations)[0].square().sum(), q)
    monkeypatch.setattr(torch.Tensor, "clamp", clamp)
    assert_close(torch.autograd.grad(module.traced((q, k, v), rotations)[0].square().sum(), q)[0], expected, 1e-9)


@pytest.mark.parametrize("run", ["over_all", "traced"])
@pytest.mark.parametrize("kind", CHUNKED)
def test_torch_func_gives_the_gradients_of_autograd(kind, run):
    module, vectors, rotations = layer(kind)
    (expected,) = torch.autograd.grad(module.over_all(vectors, rotations)[0].square().sum(), vectors[0])
    q, k, v = (None if x is None else x.detach() for x in vectors)

    def loss(q, v):
        return getattr(module, run)((q, k, v), rotations)[0].square().sum()

    assert_close(torch.func.grad(loss)(q, v), expected, 1e-9)
    direction = torch.randn_like(q)
    _, along = torch.func.jvp(lambda x: loss(x, v), (q,), (direction,))
    assert_close(along, (expected * direction).sum(), 1e-9)
    if k is None:
        per_row = torch.func.vmap(torch.func.grad(lambda q, v: loss(q[None], v[None])))(q, v)
        assert_close(per_row, expected, 1e-9)


# --- what a device must not be waited for, and what must not grow with the square


class Counted(TorchDispatchMode):
    """Names of the operations that run, and how many new numbers they give."""

    def __init__(self):
        super().__init__()
        self.names, self.numbers = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket.__name__)
        if isinstance(result, torch.Tensor) and not function.is_view and not self.names[-1].endswith("_"):
            self.numbers += result.numel()
        return result


@pytest.mark.parametrize(
    "changes", [{}, {**BOTH_WAYS, "allow_duplicate_attention": False}], ids=["causal", "both ways"]
)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("kind", CHUNKED)
def test_no_layer_reads_a_number_off_its_device(kind, masked, changes, monkeypatch):
    monkeypatch.setattr("hf_reformer.model.attention_blocks.readable", lambda tensor: False)  # as of a GPU's
    module, vectors, rotations = layer(kind, **changes)
    vectors = [x if x is None else x.detach().float().requires_grad_() for x in vectors]
    mask = torch.ones(2, 29, dtype=torch.bool)
    mask[0, :7] = False
    with Counted() as counted:
        output = module.over_all(vectors, rotations, mask if masked else None)
        output.hidden_states.sum().backward()
    assert not {"nonzero", "_local_scalar_dense", "lift_fresh"} & set(counted.names)
    assert "bmm" in counted.names


@pytest.mark.parametrize("kind", ["lsh", "strict_lsh"])
def test_counting_keys_once_costs_in_proportion_to_the_length(kind, monkeypatch):
    monkeypatch.setattr("hf_reformer.model.attention_layout.BLOCK_SCORES", 1000)
    module, _, rotations = layer(kind, allow_duplicate_attention=False)
    numbers = []
    for length in (360, 720):
        q, v = (torch.randn(1, length, 3, 5, dtype=torch.float64) for _ in range(2))
        with Counted() as counted, torch.no_grad():
            module.over_all((q, None, v), rotations)
        numbers.append(counted.numbers)
    assert numbers[1] < 2.05 * numbers[0]


@pytest.mark.parametrize("kind", [*CHUNKED, "full_shared_qk"])
def test_padding_that_is_known_on_another_device_is_moved_to_the_layers(kind):
    """With a device that only pretends: mixing devices, and reading numbers off one, are errors there."""
    config = tiny_config([kind])
    module, cache = ATTENTION_CLASSES[kind](config, 0), ReformerCache(config)
    real = torch.ones(2, 37, dtype=torch.bool)
    real[0, :5], real[1, 9] = False, False
    layer, rotations = cache.layers[0], torch.empty(3, 5, 2, 2, device="meta")
    for new in (37, 1, 2):
        vectors = [torch.empty(2, new, 3, 5, device="meta") for _ in range(3)]
        vectors[1] = None if module.shared else vectors[1]
        cache.tokens.add(new, real if new == 37 else None, 2)
        if new == 37:
            layer.fill(module, *vectors, rotations, None)
        else:
            out, _ = layer.attend(module, *vectors, rotations)
            assert out.shape == (2, new, 3, 5) and out.device.type == "meta"


# --- types


@pytest.mark.parametrize("kind", ["lsh", "strict_lsh"])
@pytest.mark.parametrize("run", ["over_all", "traced"])
def test_autocast_changes_no_bucket(kind, run, monkeypatch):
    module, vectors, _ = layer(kind, num_buckets=32, num_hashes=4)
    vectors = [None if x is None else x.detach().to(torch.bfloat16) for x in vectors]
    rotations, found = module.sample_rotations(4, "cpu", torch.float32), []
    for name in ("attention.compute_buckets", "attention_traced.hash_vectors"):
        module_name, function = name.split(".")
        place = sys.modules[f"hf_reformer.model.{module_name}"]
        hashed = getattr(place, function)
        monkeypatch.setattr(place, function, lambda *x, hashed=hashed: (found.append(hashed(*x)), found[-1])[1])
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            getattr(module, run)(vectors, rotations)
    assert len(found) == 2 and torch.equal(*found)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_unit_keys_of_half_precision_neither_vanish_nor_overflow(scale):
    module, vectors, _ = layer("full_shared_qk")
    given = [
        (scale * x.detach()).half() if i == 0 else x.detach().half() for i, x in enumerate(vectors) if x is not None
    ]
    exact = module.over_all((given[0].double(), None, given[1].double()))[0]
    q, v = (x.requires_grad_() for x in given)
    out = module.over_all((q, None, v))[0]
    out.float().square().mean().backward()
    assert_close(out.double(), exact, 5e-2 if scale > 100 else 1e-2)
    assert q.grad.isfinite().all() and v.grad.isfinite().all()


# --- a live configuration


@pytest.mark.parametrize(
    "change",
    [{"num_hashes": 5}, {"local_attn_chunk_length": 9}, {"lsh_num_chunks_before": 2}, {"num_buckets": 2}],
    ids=str,
)
def test_a_field_of_a_live_configuration_counts_from_the_next_forward_on(change):
    config = tiny_config(["strict_local", "strict_lsh"], use_cache=True)
    model, input_ids = build(config), tokens(config, 2, 60)
    other = build(tiny_config(["strict_local", "strict_lsh"], use_cache=True, **change))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        before = model(input_ids).logits
        for name, value in change.items():
            setattr(model.config, name, value)
        output = model(input_ids)
        assert_close(output.logits, other(input_ids).logits, 1e-10)
        assert (output.logits - before).abs().max() > 1e-3
    assert output.past_key_values.num_hashes == config.num_hashes


def test_attention_dropout_of_a_live_configuration_counts():
    model = build(tiny_config(["strict_local", "strict_lsh"], hash_seed=1)).train()
    input_ids = tokens(model.config, 2, 30)
    assert torch.equal(model(input_ids).logits, model(input_ids).logits)
    model.config.lsh_attention_probs_dropout_prob = 0.5
    assert not torch.equal(model(input_ids).logits, model(input_ids).logits)
