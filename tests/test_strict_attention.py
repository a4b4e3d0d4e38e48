"""The laws of the strict layer types, and every strict or full layer against the dense reference. All in float64.

Random models are drawn by hypothesis: layer types, sizes of chunks, numbers of chunks, of buckets, of hash rounds,
causal or not, lengths from 1 to 150, masks with holes anywhere.
"""

import dense_model
import pytest
import torch
from helpers import (
    assert_close,
    assert_same_tensors,
    build,
    cotangent,
    gradients,
    inject_rotations,
    rotations_by_layer,
    tiny_config,
    tokens,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

STRICT = ["strict_local", "strict_lsh"]
UNPUBLISHED = [*STRICT, "full", "full_shared_qk"]
EXAMPLES = 40


@st.composite
def configurations(draw, kinds=UNPUBLISHED, is_decoder=None):
    """A random configuration of three layers."""
    is_decoder = draw(st.booleans()) if is_decoder is None else is_decoder
    after = st.just(0) if is_decoder else st.integers(0, 2)
    attn_layers = draw(st.lists(st.sampled_from(kinds), min_size=3, max_size=3))
    return tiny_config(
        attn_layers,
        is_decoder=is_decoder,
        local_attn_chunk_length=draw(st.integers(1, 11)),
        lsh_attn_chunk_length=draw(st.integers(1, 13)),
        local_num_chunks_before=draw(st.integers(1, 3)),
        lsh_num_chunks_before=draw(st.integers(1, 3)),
        local_num_chunks_after=draw(after),
        lsh_num_chunks_after=draw(after),
        num_hashes=draw(st.integers(1, 8)),
        num_buckets=draw(st.sampled_from([2, 4, 6, [2, 4]] + [1] * ("lsh" not in attn_layers))),
        axial_pos_embds=draw(st.booleans()),
        allow_duplicate_attention=draw(st.booleans()),
    )


@st.composite
def masks(draw, rows, length):
    """Masks with padding on the left, on the right or anywhere; every row keeps at least one real token."""
    kind, density = draw(st.sampled_from(["left", "right", "holes"])), draw(st.sampled_from([0.2, 0.5, 0.9]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(rows):
        if kind == "holes":
            mask[row] = (torch.rand(length, generator=generator) < density).long()
        elif kind == "left":
            mask[row, : draw(st.integers(0, length - 1))] = 0
        else:
            mask[row, draw(st.integers(1, length)) :] = 0
        mask[row, draw(st.integers(0, length - 1))] = 1
    return mask


# --- the causal law: what a token sees depends on nothing after it


@given(config=configurations(is_decoder=True), length=st.integers(2, 150), data=st.data())
@settings(max_examples=EXAMPLES)
def test_changing_a_token_changes_no_logit_before_it(config, length, data):
    model, input_ids = build(config), tokens(config, 2, length)
    place = data.draw(st.integers(1, length - 1))
    changed = input_ids.clone()
    changed[:, place] = (changed[:, place] + 1) % config.vocab_size
    with torch.no_grad():
        logits, logits_of_changed = model(input_ids).logits, model(changed).logits
    assert_close(logits_of_changed[:, :place], logits[:, :place], 1e-10)
    assert (logits_of_changed[:, place] - logits[:, place]).abs().max() > 1e-4


@given(config=configurations(is_decoder=True), length=st.integers(2, 150), data=st.data())
@settings(max_examples=EXAMPLES)
def test_a_prefix_alone_has_the_logits_it_has_in_the_whole(config, length, data):
    model, input_ids = build(config), tokens(config, 2, length)
    place = data.draw(st.integers(1, length))
    with torch.no_grad():
        assert_close(model(input_ids[:, :place]).logits, model(input_ids).logits[:, :place], 1e-10)


# --- the padding law: neither amount nor content nor place of padding matters


@given(config=configurations(), length=st.integers(1, 150), data=st.data())
@settings(max_examples=EXAMPLES)
def test_an_input_with_padding_anywhere_equals_the_input_without_it(config, length, data):
    mask = data.draw(masks(2, length)).bool()
    model, padded = build(config), tokens(config, 2, length)
    with torch.no_grad():
        logits = model(padded, attention_mask=mask.long()).logits
        for row in range(2):
            alone = model(padded[row : row + 1, mask[row]]).logits[0]
            assert_close(logits[row, mask[row]], alone, 1e-10)


@given(config=configurations(), length=st.integers(1, 150), data=st.data())
@settings(max_examples=EXAMPLES)
def test_the_content_of_padding_changes_no_gradient(config, length, data):
    mask = data.draw(masks(2, length))
    model, found = build(config), []
    for seed in (1, 2):
        input_ids = torch.where(mask.bool(), tokens(config, 2, length), tokens(config, 2, length, seed=seed))
        logits = model(input_ids, attention_mask=mask).logits
        model.zero_grad()
        (logits * cotangent(logits, mask)).sum().backward()
        found.append(gradients(model))
    assert_same_tensors(found[0], found[1], 1e-9)


@pytest.mark.parametrize("kind", UNPUBLISHED)
def test_a_row_of_nothing_but_padding_is_finite_and_disturbs_no_other_row(kind):
    config = tiny_config([kind] * 3)
    model, input_ids = build(config), tokens(config, 3, 23)
    mask = torch.ones(3, 23, dtype=torch.long)
    mask[1] = 0
    logits = model(input_ids, attention_mask=mask).logits
    (logits * cotangent(logits, mask)).sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
    with torch.no_grad():
        assert_close(logits[2], model(input_ids[2:]).logits[0], 1e-10)


# --- the dense reference


def compare_with_dense(config, length, mask, monkeypatch, tolerance=1e-9):
    """Logits at real tokens and every named gradient of a whole model, against the dense one."""
    model, input_ids = build(config), tokens(config, 2, length)
    rotations = rotations_by_layer(config)
    inject_rotations(monkeypatch, rotations)
    real = torch.ones(2, length, dtype=torch.long) if mask is None else mask
    logits = model(input_ids, attention_mask=mask).logits
    (logits * cotangent(logits, real)).sum().backward()
    actual = gradients(model)
    model.zero_grad()
    dense = dense_model.dense_lm_logits(config, dict(model.named_parameters()), input_ids, mask, rotations)
    (dense * cotangent(dense, real)).sum().backward()
    assert_close(logits.detach()[real.bool()], dense.detach()[real.bool()], tolerance)
    assert_same_tensors(actual, gradients(model), tolerance)


@given(config=configurations(), length=st.integers(1, 150), data=st.data())
@settings(max_examples=2 * EXAMPLES)
def test_logits_and_every_gradient_equal_the_dense_reference(config, length, data):
    mask = data.draw(st.one_of(st.none(), masks(2, length)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        compare_with_dense(config, length, mask, monkeypatch)


@given(config=configurations(kinds=["local", "lsh", "strict_lsh"]), length=st.integers(1, 90), data=st.data())
@settings(max_examples=EXAMPLES)
def test_published_layers_at_any_length_equal_the_dense_reference(config, length, data):
    mask = data.draw(st.one_of(st.none(), masks(2, length)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        compare_with_dense(config, length, mask, monkeypatch)


@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "ordinary autograd"])
@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kind", [*UNPUBLISHED, "local", "lsh"])
def test_each_layer_type_equals_the_dense_reference(kind, is_decoder, reversible, monkeypatch):
    after = 0 if is_decoder else 1
    config = tiny_config(
        [kind] * 3, is_decoder=is_decoder, reversible=reversible, local_num_chunks_after=after,
        lsh_num_chunks_after=after,
    )  # fmt: skip
    compare_with_dense(config, 61, None, monkeypatch)


@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
def test_all_layer_types_in_one_model_equal_the_dense_reference(is_decoder, monkeypatch):
    config = tiny_config(
        ["local", "strict_lsh", "full", "lsh", "strict_local", "full_shared_qk"], is_decoder=is_decoder
    )
    mask = torch.ones(2, 61, dtype=torch.long)
    mask[0, 9:20] = 0
    mask[1, 50:] = 0
    compare_with_dense(config, 61, mask, monkeypatch)


@pytest.mark.parametrize("scores_in_a_block", [1, 150, 800, 5000])
@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kind", ["local", "lsh", *STRICT])
def test_blocks_of_any_size_equal_the_dense_reference(kind, is_decoder, scores_in_a_block, monkeypatch):
    monkeypatch.setattr("hf_reformer.model.attention_layout.BLOCK_SCORES", scores_in_a_block)
    after = 0 if is_decoder else 2
    config = tiny_config(
        [kind] * 3, is_decoder=is_decoder, local_num_chunks_before=2, local_num_chunks_after=after,
        lsh_num_chunks_after=after, allow_duplicate_attention=scores_in_a_block != 800,
    )  # fmt: skip
    mask = torch.ones(2, 71, dtype=torch.long)
    mask[0, 20:31] = 0
    mask[1, 66:] = 0
    compare_with_dense(config, 71, mask, monkeypatch)


@pytest.mark.parametrize("length", [71, 72])
@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kind", ["local", "strict_local"])
def test_blocks_without_padding_equal_the_dense_reference(kind, is_decoder, length, monkeypatch):
    """Inside the sequence, all windows of a local layer then share one mask."""
    monkeypatch.setattr("hf_reformer.model.attention_layout.BLOCK_SCORES", 100)
    after = 0 if is_decoder else 1
    config = tiny_config([kind] * 3, is_decoder=is_decoder, local_num_chunks_after=after, lsh_num_chunks_after=after)
    compare_with_dense(config, length, None, monkeypatch)


@pytest.mark.parametrize("elements", [1, 100])
def test_hashing_in_blocks_of_any_size_equals_the_dense_reference(elements, monkeypatch):
    monkeypatch.setattr("hf_reformer.model.hashing.BLOCK_ELEMENTS", elements)
    compare_with_dense(tiny_config(["lsh", "strict_lsh", "lsh"], num_buckets=[2, 6]), 71, None, monkeypatch)


@pytest.mark.parametrize("chunk", [1, 7, 70, 71, 1000])
def test_feed_forward_in_chunks_of_any_size_equals_the_dense_reference(chunk, monkeypatch):
    config = tiny_config(["strict_local", "strict_lsh", "local"], chunk_size_feed_forward=chunk)
    compare_with_dense(config, 71, None, monkeypatch)


@pytest.mark.parametrize("kind", ["lsh", "strict_lsh"])
def test_rotations_of_each_example_equal_the_dense_reference(kind, monkeypatch):
    config = tiny_config([kind] * 3, num_hashes=3)
    model, input_ids = build(config), tokens(config, 2, 48)
    rotations = rotations_by_layer(config, batch=2)
    inject_rotations(monkeypatch, rotations)
    with torch.no_grad():
        dense = dense_model.dense_lm_logits(config, dict(model.named_parameters()), input_ids, None, rotations)
        assert_close(model(input_ids).logits, dense, 1e-10)


@pytest.mark.parametrize("kind", ["lsh", "strict_lsh"])
def test_counting_a_key_once_equals_the_dense_reference(kind, monkeypatch):
    config = tiny_config([kind] * 3, num_hashes=4, allow_duplicate_attention=False)
    compare_with_dense(config, 48, None, monkeypatch)


@pytest.mark.parametrize("kind", ["lsh", "strict_lsh"])
def test_counting_a_key_once_makes_a_difference(kind):
    logits = []
    for allowed in (True, False):
        config = tiny_config([kind] * 3, num_hashes=4, allow_duplicate_attention=allowed)
        with torch.no_grad():
            logits.append(build(config)(tokens(config, 2, 48)).logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-2


@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("length", [1, 2, 30, 47, 100])
def test_one_bucket_and_a_window_as_long_as_the_input_is_full_attention(length, is_decoder):
    after = 0 if is_decoder else 3
    changes = {"num_buckets": 1, "lsh_attn_chunk_length": 34, "lsh_num_chunks_before": 3, "lsh_num_chunks_after": after}
    hashed = build(tiny_config(["strict_lsh"] * 3, is_decoder=is_decoder, num_hashes=1, **changes))
    full = build(tiny_config(["full_shared_qk"] * 3, is_decoder=is_decoder))
    full.load_state_dict(hashed.state_dict())
    input_ids, found = tokens(hashed.config, 2, length), []
    for model in (hashed, full):
        logits = model(input_ids).logits
        (logits * cotangent(logits)).sum().backward()
        found.append((logits.detach(), gradients(model)))
    assert_close(found[0][0], found[1][0], 1e-10)
    assert_same_tensors(found[0][1], found[1][1], 1e-9)


@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
def test_a_local_window_as_long_as_the_input_is_full_attention(is_decoder):
    after = 0 if is_decoder else 2
    changes = {"local_attn_chunk_length": 31, "local_num_chunks_before": 2, "local_num_chunks_after": after}
    local = build(tiny_config(["strict_local"] * 3, is_decoder=is_decoder, **changes))
    full = build(tiny_config(["full"] * 3, is_decoder=is_decoder))
    full.load_state_dict(local.state_dict())
    input_ids = tokens(local.config, 2, 61)
    with torch.no_grad():
        assert_close(local(input_ids).logits, full(input_ids).logits, 1e-10)


@given(length=st.integers(1, 150), before=st.integers(1, 3), chunk=st.integers(1, 13))
@settings(max_examples=EXAMPLES)
@example(length=150, before=1, chunk=1)
def test_a_strict_local_token_sees_exactly_the_latest_tokens_of_its_window(length, before, chunk):
    """Read off the gradient of one output with respect to the inputs, in a model of a single layer."""
    config = tiny_config(["strict_local"], local_attn_chunk_length=chunk, local_num_chunks_before=before)
    model = build(config)
    embeds = torch.randn(1, length, config.hidden_size, dtype=torch.float64, requires_grad=True)
    place = (7 * length) // 9
    model(inputs_embeds=embeds).logits[0, place].square().sum().backward()
    reached = embeds.grad[0].abs().sum(-1) > 0
    expected = torch.zeros(length, dtype=torch.bool)
    expected[max(0, place - chunk * before) : place + 1] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("after", [0, 1])
def test_a_bidirectional_model_whose_strict_layers_look_back_only_says_so(after, monkeypatch):
    said, fields = [], ["local_num_chunks_after", "lsh_num_chunks_after"]
    monkeypatch.setattr("hf_reformer.model.modeling_reformer.logger.warning", said.append)
    build(tiny_config(STRICT, is_decoder=False, **dict.fromkeys(fields, after)))
    assert len(said) == (0 if after else 2)
    assert all(f"`{field}` is 0" in message for field, message in zip(fields, said, strict=False))
