"""A cache gives what the full forward gives: every layer type, any cut into pieces, padding, cropping, forking.

Models are random and large-weighted (std 0.3), float64, three layers; hypothesis draws sizes, rounds, paddings and cuts.
"""

import copy
import time

import pytest
import torch
from helpers import assert_close, build, inject_rotations, rotations_by_layer, tiny_config, tokens
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_reformer import ReformerCache, ReformerModel
from hf_reformer.model import cache_decoding as decoding
from hf_reformer.model import cache_layers
from hf_reformer.model.cache import CACHE_NAMES
from hf_reformer.model.generation import CACHE_NAME

UNPUBLISHED = ["strict_local", "strict_lsh", "full", "full_shared_qk"]
EXAMPLES = 40
TOLERANCE = 1e-10


@st.composite
def configurations(draw, kinds=UNPUBLISHED):
    return tiny_config(
        draw(st.lists(st.sampled_from(kinds), min_size=3, max_size=3)),
        local_attn_chunk_length=draw(st.integers(1, 11)),
        lsh_attn_chunk_length=draw(st.integers(1, 13)),
        local_num_chunks_before=draw(st.integers(1, 3)),
        lsh_num_chunks_before=draw(st.integers(1, 3)),
        num_hashes=draw(st.integers(1, 8)),
        num_buckets=draw(st.sampled_from([1, 2, 4, 6, [2, 4]])),
        axial_pos_embds=draw(st.booleans()),
        allow_duplicate_attention=draw(st.booleans()),
    )


@st.composite
def cuts(draw, length):
    """Lengths of the pieces that an input is fed in."""
    pieces = []
    while sum(pieces) < length:
        longest = length - sum(pieces)
        pieces.append(min(longest, draw(st.one_of(st.just(1), st.integers(1, longest)))))
    return pieces


def feed(model, input_ids, pieces, mask=None, cache=None):
    """Logits of all pieces, run one after the other over a cache."""
    cache = ReformerCache(model.config) if cache is None else cache
    logits, start = [], cache.get_seq_length()
    for new in pieces:
        end = start + new
        seen = None if mask is None else mask[:, :end]
        with torch.no_grad():
            output = model(input_ids[:, start:end], attention_mask=seen, past_key_values=cache)
        assert output.past_key_values is cache and cache.get_seq_length() == end
        logits.append(output.logits)
        start = end
    return torch.cat(logits, 1)


def full(model, input_ids, mask=None):
    with torch.no_grad():
        return model(input_ids, attention_mask=mask, use_cache=False).logits


# --- equal to the full forward


@given(config=configurations(), length=st.integers(1, 150), data=st.data())
@settings(max_examples=2 * EXAMPLES)
def test_any_cut_into_pieces_equals_the_full_forward(config, length, data):
    model, input_ids = build(config), tokens(config, 2, length)
    pieces = data.draw(cuts(length))
    assert_close(feed(model, input_ids, pieces), full(model, input_ids), TOLERANCE)


@pytest.mark.parametrize("kind", UNPUBLISHED)
def test_one_token_at_a_time_equals_the_full_forward_from_the_first_token_on(kind):
    config = tiny_config([kind] * 3, num_hashes=4)
    model, input_ids = build(config), tokens(config, 2, 90)
    assert_close(feed(model, input_ids, [1] * 90), full(model, input_ids), TOLERANCE)


@given(config=configurations(), length=st.integers(1, 120), data=st.data())
@settings(max_examples=2 * EXAMPLES)
def test_padding_anywhere_and_any_cut_equal_each_row_alone(config, length, data):
    """Rows of different lengths, padded on the left or with holes; pieces may be padding from end to end."""
    mask = torch.ones(3, length, dtype=torch.long)
    for row in range(2):
        mask[row, : data.draw(st.integers(0, length - 1))] = 0
    if data.draw(st.booleans()):
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
        mask[1] = (torch.rand(length, generator=generator) < 0.6).long()
    model, input_ids = build(config), tokens(config, 3, length)
    logits = feed(model, input_ids, data.draw(cuts(length)), mask)
    assert torch.isfinite(logits).all()
    for row in range(3):
        real = mask[row].bool()
        if real.any():
            assert_close(logits[row, real], full(model, input_ids[row : row + 1, real])[0], TOLERANCE)


@pytest.mark.parametrize("kind", UNPUBLISHED)
def test_rotations_of_each_example_and_float32(kind, monkeypatch):
    config = tiny_config([kind] * 3, num_hashes=3)
    model, input_ids = build(config), tokens(config, 2, 80)
    inject_rotations(monkeypatch, rotations_by_layer(config, batch=2))
    assert_close(feed(model, input_ids, [17, 1, 1, 40, 1, 20]), full(model, input_ids), TOLERANCE)
    model = model.float()
    assert_close(feed(model, input_ids, [17, 1, 1, 40, 1, 20]), full(model, input_ids), 1e-4)


@pytest.mark.parametrize("kind", UNPUBLISHED)
def test_pieces_longer_than_a_block_of_queries(kind, monkeypatch):
    monkeypatch.setattr("hf_reformer.model.cache_layers.BLOCK_QUERIES", 7)
    monkeypatch.setattr("hf_reformer.model.cache_decoding.GATHERED_ELEMENTS", 4000)
    config = tiny_config([kind] * 3)
    model, input_ids = build(config), tokens(config, 2, 200)
    assert_close(feed(model, input_ids, [100, 30, 1, 20, 49]), full(model, input_ids), TOLERANCE)


def test_a_long_piece_behind_a_short_one_goes_through_the_blocks_of_the_forward(monkeypatch):
    """And so does none that is short against what is cached: no step over a history takes all of it."""
    config, lengths = tiny_config(["strict_lsh"] * 3, use_cache=True), []
    model, input_ids = build(config), tokens(config, 1, 200)
    layer = type(model.reformer.encoder.layers[0].attention.self_attention)
    over_all = layer.over_all
    monkeypatch.setattr(
        layer,
        "over_all",
        lambda self, vectors, *others: (lengths.append(vectors[0].shape[1]), over_all(self, vectors, *others))[1],
    )
    logits = feed(model, input_ids, [20, 100, 1, 20, 1, 58])
    assert lengths == [20] * 3 + [120] * 3 + [200] * 3
    assert_close(logits, full(model, input_ids), TOLERANCE)


@pytest.mark.parametrize("kind", UNPUBLISHED)
@pytest.mark.parametrize("rounds", [1, 8])
def test_prefill_then_decode_in_half_precision_stays_near_the_full_forward(kind, rounds):
    config = tiny_config([kind] * 3, num_hashes=rounds, num_buckets=1, initializer_range=0.1)
    model, input_ids = build(config).to(torch.bfloat16), tokens(config, 2, 60)
    logits = feed(model, input_ids, [40] + [1] * 20)
    assert logits.dtype == torch.bfloat16
    assert_close(logits.float(), full(model, input_ids).float(), 0.05)


# --- published types


PUBLISHED = st.sampled_from([["local"], ["lsh"], ["strict_lsh", "local"], ["full", "lsh"], ["strict_local", "lsh"]])


@given(layers=PUBLISHED, length=st.integers(1, 100), data=st.data())
@settings(max_examples=2 * EXAMPLES)
def test_one_published_layer_attends_where_the_full_forward_over_the_same_prefix_does(layers, length, data):
    """With one layer of a published type on top, the last token of every piece equals the full forward's."""
    config = tiny_config(
        layers,
        local_attn_chunk_length=data.draw(st.integers(2, 7)),
        lsh_attn_chunk_length=data.draw(st.integers(2, 9)),
        local_num_chunks_before=data.draw(st.integers(1, 3)),
        lsh_num_chunks_before=data.draw(st.integers(1, 3)),
        num_hashes=data.draw(st.integers(1, 4)),
        num_buckets=data.draw(st.sampled_from([2, 4, [2, 4]])),
        allow_duplicate_attention=data.draw(st.booleans()),
    )
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, : data.draw(st.integers(0, length - 1))] = 0
    model, input_ids = build(config), tokens(config, 2, length)
    cache, end = ReformerCache(config), 0
    for new in data.draw(cuts(length)):
        with torch.no_grad():
            output = model(input_ids[:, end : end + new], attention_mask=mask[:, : end + new], past_key_values=cache)
        end += new
        real = mask[:, end - 1].bool()
        expected = full(model, input_ids[:, :end], mask[:, :end])[:, -1]
        assert_close(output.logits[real, -1], expected[real], TOLERANCE)


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("layers", [["local"], ["lsh"], ["strict_local", "lsh"]], ids=" and ".join)
def test_one_published_layer_token_by_token_from_the_first_token_on(layers, rounds, before):
    config = tiny_config(
        layers, num_hashes=rounds, lsh_attn_chunk_length=9, local_num_chunks_before=before, lsh_num_chunks_before=before
    )
    model, input_ids = build(config), tokens(config, 2, 60)
    logits = feed(model, input_ids, [1] * 60)
    expected = [full(model, input_ids[:, :end])[:, -1:] for end in range(1, 61)]
    assert_close(logits, torch.cat(expected, 1), TOLERANCE)


@given(length=st.integers(1, 100), before=st.integers(0, 1), chunk=st.integers(1, 9), data=st.data())
@settings(max_examples=EXAMPLES)
def test_a_stack_of_local_layers_equals_the_full_forward(length, before, chunk, data):
    config = tiny_config(["local"] * 3, local_attn_chunk_length=chunk, local_num_chunks_before=before)
    model, input_ids = build(config), tokens(config, 2, length)
    assert_close(feed(model, input_ids, data.draw(cuts(length))), full(model, input_ids), TOLERANCE)


def test_lsh_layers_hash_new_tokens_with_the_rotations_of_the_old(monkeypatch):
    """A replacement that draws other rotations at every call is called once per layer and cache."""
    config = tiny_config(["lsh", "strict_lsh", "lsh"], use_cache=True)
    model, input_ids, calls = build(config), tokens(config, 2, 40), []

    def fresh(*, layer_idx, num_hashes, num_heads, head_size, rotation_size, **others):
        calls.append(layer_idx)
        return torch.randn(num_heads, head_size, num_hashes, rotation_size, dtype=torch.float64)

    monkeypatch.setattr("hf_reformer.model.hashing.sample_rotations", fresh)
    feed(model, input_ids, [30] + [1] * 10)
    assert calls == [0, 1, 2]


# --- what a cache can do


@given(config=configurations([*UNPUBLISHED, "local"]), length=st.integers(2, 120), data=st.data())
@settings(max_examples=EXAMPLES)
@example(config=tiny_config(["strict_lsh"] * 3), length=120, data=None)
@example(config=tiny_config(["strict_lsh"] * 3, num_buckets=1), length=120, data=None)
def test_cropping_leaves_no_trace(config, length, data):
    """Feed, take back, feed other tokens, several times: the same as if what was taken back had never been."""
    if config.uses("local"):
        config.local_num_chunks_before = 1  # longer reaches repeat a chunk in short inputs only, as the originals do
    model, cache, kept = build(config), ReformerCache(config), torch.empty(2, 0, dtype=torch.long)
    for step in range(5):
        new = (30, 60, 1, 40, 1)[step] if data is None else data.draw(st.integers(1, length))
        taken = (10, 33, 1, 50, 0)[step] if data is None else data.draw(st.integers(0, length))
        piece = tokens(config, 2, min(new, 200 - kept.shape[1]), seed=step)
        with torch.no_grad():
            logits = model(piece, past_key_values=cache).logits
        kept = torch.cat([kept, piece], 1)
        assert_close(logits, full(model, kept)[:, -piece.shape[1] :], TOLERANCE)
        cache.crop(-taken)
        kept = kept[:, : max(0, kept.shape[1] - taken)]
        assert cache.get_seq_length() == kept.shape[1]


KINDS = [*UNPUBLISHED, "local", "lsh"]


@pytest.mark.parametrize("padded", [False, True], ids=["all real", "left padding"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_can_be_reordered_repeated_and_selected(kind, padded):
    config = tiny_config([kind])
    model, input_ids = build(config), tokens(config, 3, 50)
    mask = torch.ones(3, 50, dtype=torch.long)
    if padded:
        mask[1, :13] = 0
    for change, rows in (
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
        (lambda cache: cache.reorder_cache(torch.tensor([0, 1, 2])), [0, 1, 2]),
    ):
        cache = ReformerCache(config)
        feed(model, input_ids, [40, 1], mask, cache)
        change(cache)
        logits = feed(model, input_ids[rows], [1, 8], mask[rows], cache)
        assert_close(logits[:, -1], full(model, input_ids[rows], mask[rows])[:, -1], TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_was_reset_serves_another_batch(kind):
    config = tiny_config([kind])
    model, cache = build(config), ReformerCache(config)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[0, :5] = 0
    feed(model, tokens(config, 2, 30), [20, 10], mask, cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    other = tokens(config, 3, 35, seed=1)
    assert_close(feed(model, other, [33, 1, 1], None, cache)[:, -1], full(model, other)[:, -1], TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_goes_its_own_way(kind):
    config = tiny_config([kind])
    model, cache = build(config), ReformerCache(config)
    input_ids, other = tokens(config, 2, 45), tokens(config, 2, 45, seed=1)
    other[:, :30] = input_ids[:, :30]
    feed(model, input_ids, [30], None, cache)
    fork = copy.deepcopy(cache)
    for one, ids in ((cache, input_ids), (fork, other)):
        assert_close(feed(model, ids, [1, 13, 1], None, one)[:, -1], full(model, ids)[:, -1], TOLERANCE)


def test_the_answers_that_transformers_asks_a_cache_for():
    config = tiny_config(["strict_local", "lsh"])
    model, cache = build(config), ReformerCache(config)
    feed(model, tokens(config, 2, 30), [20], None, cache)
    assert cache.get_seq_length() == 20 and cache.get_mask_sizes(3, 0) == (23, 0) and cache.get_max_length() == -1
    assert cache.is_croppable and not cache.is_compileable and len(cache) == 2 and cache.is_initialized


@pytest.mark.parametrize("kind", KINDS)
def test_room_grows_and_is_never_more_than_was_asked_for(kind):
    config = tiny_config([kind])
    model = build(config)
    cache = ReformerCache(config, reserve=100)
    feed(model, tokens(config, 2, 60), [50, 10], None, cache)
    assert cache.layers[0].keys.shape[2] == 100
    feed(model, tokens(config, 2, 200), [140], None, cache)
    assert cache.layers[0].keys.shape[2] == config.maximum_length == 221


# --- when a model makes a cache


def test_a_causal_model_makes_a_cache_in_evaluation_without_gradients_only():
    config = tiny_config(["strict_lsh"], use_cache=True)
    model, input_ids = build(config), tokens(config, 2, 20)
    assert model(input_ids).past_key_values is None
    with torch.no_grad():
        output = model(input_ids)
        assert isinstance(output.past_key_values, ReformerCache)
        assert output.past_buckets_states is output.past_key_values
        assert model.reformer(input_ids).past_buckets_states.get_seq_length() == 20
        assert model(input_ids, labels=input_ids).past_key_values is None
        assert model(input_ids, use_cache=False).past_key_values is None
        assert model.train()(input_ids, use_cache=True).past_key_values is None


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_the_cache_goes_by_the_names_of_all_versions_of_transformers(name):
    config = tiny_config(["strict_lsh"], use_cache=True)
    model, input_ids = build(config), tokens(config, 2, 30)
    with torch.no_grad():
        past = getattr(model(input_ids[:, :20]), name)
        logits = model(input_ids[:, 20:], **{name: past}).logits
        assert_close(logits, full(model, input_ids)[:, 20:], TOLERANCE)
        if name == "cache" and name != CACHE_NAME:
            return  # transformers' generate refuses it before 5.24
        past.crop(-10)
        with_it = model.generate(input_ids, **{name: past}, max_new_tokens=5, do_sample=False)
        assert past.get_seq_length() == 34
        assert torch.equal(with_it, model.generate(input_ids, max_new_tokens=5, do_sample=False))


def test_two_caches_by_two_names_are_refused():
    config = tiny_config(["strict_lsh"], use_cache=True)
    model, input_ids = build(config), tokens(config, 2, 20)
    one, other = ReformerCache(config), ReformerCache(config)
    with torch.no_grad():
        assert model(input_ids, cache=one, past_buckets_states=one).past_key_values is one
        with pytest.raises(
            ValueError, match="`past_buckets_states` is given beside `cache`, but must be None or the same"
        ):
            model(input_ids, cache=other, past_buckets_states=one)
        with pytest.raises(ValueError, match="`past_key_values` is given beside|`past_buckets_states` is given beside"):
            model.reformer(input_ids, None, None, None, None, one, past_key_values=other)  # one of them by its place
        with pytest.raises(ValueError, match="`past_key_values` is a tuple"):
            model(input_ids, cache=())


def test_a_forward_with_a_cache_has_no_gradient_at_all_rather_than_a_part_of_it():
    config = tiny_config(["strict_lsh"])
    model, input_ids = build(config), tokens(config, 2, 20)
    output = model(input_ids, use_cache=True)
    assert output.past_key_values.get_seq_length() == 20 and not output.logits.requires_grad


def test_other_rounds_of_hashing_than_configured():
    config = tiny_config(["strict_lsh", "strict_local"])
    model, input_ids, cache = build(config), tokens(config, 2, 40), ReformerCache(config)
    with torch.no_grad():
        model(input_ids[:, :30], num_hashes=5, past_key_values=cache)
        logits = [model(input_ids[:, i : i + 1], past_key_values=cache).logits for i in range(30, 40)]
        expected = model(input_ids, num_hashes=5).logits[:, 30:]
    assert_close(torch.cat(logits, 1), expected, TOLERANCE)


def test_default_positions_go_on_from_the_cache():
    config = tiny_config(["local"])
    model, input_ids, cache = build(config), tokens(config, 2, 40), ReformerCache(config)
    with torch.no_grad():
        model(input_ids[:, :30], past_key_values=cache)
        given = model(input_ids[:, 30:], position_ids=torch.arange(30, 40)[None], past_key_values=copy.deepcopy(cache))
        assert_close(model(input_ids[:, 30:], past_key_values=cache).logits, given.logits, TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_new_tokens(kind):
    config = tiny_config([kind])
    model, input_ids, cache = build(config), tokens(config, 2, 40), ReformerCache(config)
    with torch.no_grad():
        model(input_ids[:, :38], past_key_values=cache)
        (attention,) = model(input_ids[:, 38:], past_key_values=cache, output_attentions=True).attentions
    assert attention.shape[:3] == (2, 3, 2)
    assert_close(attention.sum(-1), torch.ones(2, 3, 2, dtype=torch.float64), TOLERANCE)


# --- bad input


def _after_20(**arguments):
    config = tiny_config(["strict_lsh"])
    model, cache = build(config), ReformerCache(config)
    with torch.no_grad():
        model(tokens(config, 2, 20), past_key_values=cache)
        model(**{"input_ids": tokens(config, 2, 3), "past_key_values": cache, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.ones(2, 3)}, r"`attention_mask` has the shape \(2, 3\), but must have \(2, 23\)"),
        ({"num_hashes": 3}, "`num_hashes` is 3, but must be 2"),
        ({"input_ids": torch.zeros(1, 3, dtype=torch.long)}, "`past_key_values` holds 2 rows, but the input has 1"),
        ({"input_ids": torch.zeros(2, 202, dtype=torch.long)}, "at most 201 beside the 20 in the cache"),
        ({"past_key_values": [1, 2]}, "`past_key_values` is a list, but must be a ReformerCache"),
    ],
)
def test_arguments_that_do_not_go_with_the_cache(arguments, message):
    with pytest.raises(ValueError, match=message):
        _after_20(**arguments)


def test_a_cache_is_for_causal_models_and_crops_downwards():
    config = tiny_config(["strict_lsh"], is_decoder=False)
    with pytest.raises(ValueError, match="`past_key_values` must be None where `config.is_decoder` is False"):
        build(config, ReformerModel)(tokens(config, 2, 3), past_key_values=ReformerCache(config))
    with pytest.raises(ValueError, match="`tokens_to_remove` is 3, but must be a whole number of at most 0"):
        ReformerCache(config).crop(3)


def test_a_forward_that_was_interrupted_is_taken_back(monkeypatch):
    config = tiny_config(["strict_lsh"] * 3)
    model, input_ids, cache = build(config), tokens(config, 2, 40), ReformerCache(config)
    feed(model, input_ids, [30], None, cache)

    def interrupt(*args):
        raise KeyboardInterrupt

    hook = model.reformer.encoder.layers[1].feed_forward.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        feed(model, input_ids, [5], None, cache)
    hook.remove()
    with torch.no_grad():
        logits = model(input_ids[:, 30:], past_key_values=cache).logits
    assert_close(logits, full(model, input_ids)[:, 30:], TOLERANCE)


def wrong_label(model, cache):
    piece = tokens(model.config, 2, 5, seed=8)
    model(piece, past_key_values=cache, labels=torch.full_like(piece, 99))


def interrupted_head(model, cache):
    def interrupt(*args):
        raise KeyboardInterrupt

    hook = model.lm_head.register_forward_pre_hook(interrupt)
    try:
        model(tokens(model.config, 2, 5, seed=8), past_key_values=cache)
    finally:
        hook.remove()


@pytest.mark.parametrize("failing", [wrong_label, interrupted_head])
@pytest.mark.parametrize("first", [0, 30], ids=["empty", "filled"])
def test_a_forward_that_fails_leaves_the_cache_as_it_was(first, failing):
    config = tiny_config(["strict_lsh", "lsh", "strict_local"])
    model, input_ids, cache, other = build(config), tokens(config, 2, 40), ReformerCache(config), ReformerCache(config)
    for one in (cache, other):
        if first:
            feed(model, input_ids, [first], None, one)
    with pytest.raises((ValueError, KeyboardInterrupt)), torch.no_grad():
        failing(model, cache)
    assert cache.get_seq_length() == first and all(layer.length == first for layer in cache.layers)
    expected = feed(model, input_ids, [5, 1, 40 - first - 6], None, other)
    assert_close(feed(model, input_ids, [5, 1, 40 - first - 6], None, cache), expected, TOLERANCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_layers": ["strict_lsh", "strict_local"]}, r"`attn_layers` \['strict_local', 'strict_lsh'\]"),
        (
            {"attn_layers": ["strict_local", "strict_lsh", "full"]},
            "`attn_layers` .*but must have been made for .*'full'",
        ),
        ({"local_attn_chunk_length": 5}, "`local_attn_chunk_length` 4, but must have been made for 5"),
        ({"lsh_num_chunks_before": 2}, "`lsh_num_chunks_before` 1, .* 2"),
        ({"num_buckets": 6}, r"`num_buckets` \{'strict_lsh': \[4\]\}, .*\[6\]"),
        ({"num_attention_heads": 2}, "`num_attention_heads` 3, .* 2"),
        ({"attention_head_size": 6}, "`attention_head_size` 5, .* 6"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
def test_a_cache_made_for_another_configuration_is_refused(change, message, filled):
    layers = ["strict_local", "strict_lsh"]
    model, cache = build(tiny_config(layers)), ReformerCache(tiny_config(layers))
    if filled:
        feed(model, tokens(model.config, 2, 20), [20], None, cache)
    other = build(tiny_config(**{"attn_layers": layers, **change}))
    with pytest.raises(ValueError, match=message), torch.no_grad():
        other(tokens(other.config, 2, 3), past_key_values=cache)
    with pytest.raises(ValueError, match=message):
        other.generate(tokens(other.config, 2, 23), max_new_tokens=2, past_key_values=cache)


def test_a_cache_is_refused_after_a_live_configuration_has_changed():
    config = tiny_config(["strict_local"])
    model, cache = build(config), ReformerCache(config)
    feed(model, tokens(config, 2, 20), [20], None, cache)
    model.config.local_attn_chunk_length = 7
    with pytest.raises(ValueError, match="`local_attn_chunk_length` 4, .* 7"):
        feed(model, tokens(config, 2, 30), [5], None, cache)


@pytest.mark.parametrize("padded", [False, True], ids=["all real", "left padding"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_filled_in_inference_mode_goes_on_outside_of_it(kind, padded):
    config = tiny_config([kind])
    model, input_ids, cache, other = build(config), tokens(config, 2, 60), ReformerCache(config), ReformerCache(config)
    mask = torch.ones_like(input_ids)
    mask[1, : 5 * padded] = 0
    with torch.inference_mode():
        feed(model, input_ids, [40, 1], mask, cache)
    logits = [feed(model, input_ids, [1, 8], mask, cache)]
    cache.crop(-3)
    with torch.inference_mode():
        logits.append(feed(model, input_ids, [1], mask, cache).clone())
    cache.crop(-2)
    logits.append(feed(model, input_ids, [1, 13], mask, cache))
    feed(model, input_ids, [40, 1], mask, other)
    expected = [feed(model, input_ids, [1, 8], mask, other)]
    other.crop(-3)
    expected.append(feed(model, input_ids, [1], mask, other))
    other.crop(-2)
    expected.append(feed(model, input_ids, [1, 13], mask, other))
    assert_close(torch.cat(logits, 1), torch.cat(expected, 1), TOLERANCE)


def test_rows_can_be_reordered_by_a_list():
    config = tiny_config(["strict_lsh"])
    model, input_ids, cache = build(config), tokens(config, 3, 30), ReformerCache(config)
    feed(model, input_ids, [29], None, cache)
    cache.reorder_cache([2, 0, 0])
    assert_close(
        feed(model, input_ids[[2, 0, 0]], [1], None, cache), full(model, input_ids[[2, 0, 0]])[:, -1:], TOLERANCE
    )


def test_a_piece_of_several_blocks_in_an_lsh_layer_of_a_single_chunk():
    config = tiny_config(["lsh"], lsh_attn_chunk_length=200)
    model, input_ids, cache = build(config), tokens(config, 1, 190), ReformerCache(config)
    logits = feed(model, input_ids, [150, 40], None, cache)
    assert_close(logits[:, -1], full(model, input_ids)[:, -1], TOLERANCE)


# --- length


def long_model(length):
    config = tiny_config(
        ["strict_local", "strict_lsh"] * 2, axial_pos_embds=False, max_position_embeddings=length, num_buckets=None,
        local_attn_chunk_length=64, lsh_attn_chunk_length=64, num_hashes=4, attention_head_size=16, hidden_size=32,
        feed_forward_size=32, initializer_range=0.1,
    )  # fmt: skip
    return build(config)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [[65536], [8192] * 8, [32768, 1, 32767], [60000, 5000, 500, 36]], ids=str)
def test_a_prompt_of_65536_tokens_and_tokens_after_it_equal_the_full_forward(pieces):
    model = long_model(65600)
    input_ids, cache = tokens(model.config, 1, 65560), ReformerCache(model.config)
    expected = full(model, input_ids)[:, 65536:]
    for piece in input_ids[:, :65536].split(pieces, 1):
        with torch.no_grad():
            model(piece, past_key_values=cache, logits_to_keep=1)
    assert_close(feed(model, input_ids, [1] * 20 + [4], None, cache), expected, TOLERANCE)


@pytest.mark.slow
def test_a_token_costs_the_same_after_a_long_history_as_after_a_short_one():
    """Rows in turn, the quickest of many, so that what else the machine does matters little. Goal: 1.5 times."""
    model, best = long_model(65600), {}
    caches = {length: ReformerCache(model.config, reserve=65600) for length in (512, 65000)}
    token = tokens(model.config, 1, 1)
    with torch.no_grad():
        for length, cache in caches.items():
            model(tokens(model.config, 1, length), past_key_values=cache, logits_to_keep=1)
        for _ in range(200):
            for length, cache in caches.items():
                start = time.perf_counter()
                model(token, past_key_values=cache)
                best[length] = min(best.get(length, 1e9), time.perf_counter() - start)
    assert best[65000] < 1.5 * best[512]


def test_what_is_read_of_the_history_does_not_grow_with_it(monkeypatch):
    """Keys that one new token is compared with, in every layer: at most a window, or a window per round."""
    config = tiny_config(["strict_local", "strict_lsh"], num_hashes=3)
    model, read = build(config), []
    attend = decoding.attend

    def spy(q, k, *others):
        read.append(k.shape[-2])
        return attend(q, k, *others)

    for module in (decoding, cache_layers):
        monkeypatch.setattr(module, "attend", spy)
    cache = ReformerCache(config)
    for length in (60, 200):
        feed(model, tokens(config, 1, 220), [length - cache.get_seq_length()], None, cache)
        read.clear()
        feed(model, tokens(config, 1, 220), [1], None, cache)
        assert read == [1 + 4, 3 * 6]


@pytest.mark.parametrize("padded", [False, True], ids=["all real", "left padding"])
@pytest.mark.parametrize("kind", [*UNPUBLISHED, "local", "lsh"])
@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_layer_works_on_what_is_kept_of_a_prompt_alone(kind, padded, keep, monkeypatch):
    """Logits equal the full forward's, and so do those of the tokens that follow, where they do anyway."""
    monkeypatch.setattr("hf_reformer.model.encoder.WORTH_REUSING", 1)
    model = build(tiny_config(["strict_local", "strict_lsh", kind]))
    input_ids, given = tokens(model.config, 2, 43), []
    mask = torch.ones_like(input_ids)
    mask[1, : 5 * padded] = 0
    feed_forward = model.reformer.encoder.layers[-1].feed_forward.dense
    chunk = type(feed_forward).forward

    def counted(self, hidden_states):
        given.append(hidden_states.shape[1] if self is feed_forward else 0)
        return chunk(self, hidden_states)

    monkeypatch.setattr(type(feed_forward), "forward", counted)
    with torch.no_grad():
        expected = model(input_ids, attention_mask=mask).logits[:, -keep:]
        given.clear()
        output = model(input_ids, attention_mask=mask, use_cache=True, logits_to_keep=keep)
    all_attend = padded and kind in ("local", "lsh")
    assert sum(given) == (43 if all_attend else keep)
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-10)
    if kind in UNPUBLISHED:
        more = tokens(model.config, 2, 2, seed=9)
        with torch.no_grad():
            after = model(more, attention_mask=torch.ones(2, 45), past_key_values=output.past_key_values).logits
            whole = model(torch.cat([input_ids, more], 1), attention_mask=torch.cat([mask, torch.ones(2, 2)], 1)).logits
        torch.testing.assert_close(after, whole[:, -2:], rtol=0, atol=1e-10)


ODD_ROWS = ["x", None, [], [3], [-1], [0.5], [[0]], [True, False], torch.zeros(2, 2, dtype=torch.long)]


@pytest.mark.parametrize("held", [0, 9])
@pytest.mark.parametrize("rows", ODD_ROWS, ids=str)
def test_rows_that_are_none_are_refused_and_the_cache_stays(rows, held):
    config = tiny_config(["strict_lsh", "full"])
    model, input_ids, cache = build(config), tokens(config, 3, 11), ReformerCache(config)
    if held:
        feed(model, input_ids, [held], None, cache)
    elif rows in ([3], [-1]):
        pytest.skip("an empty cache has no rows yet")
    for change in (cache.reorder_cache, cache.batch_select_indices):
        with pytest.raises(ValueError, match="must be"):
            change(rows)
    assert_close(feed(model, input_ids, [11 - held], None, cache), full(model, input_ids)[:, held:], TOLERANCE)


@pytest.mark.parametrize("odd", ["x", None, 0, -1, 1.5, True], ids=str)
def test_repeats_that_are_none(odd):
    with pytest.raises(ValueError, match="`repeats` is"):
        ReformerCache(tiny_config(["strict_lsh"])).batch_repeat_interleave(odd)


@pytest.mark.parametrize("odd", ["x", None, 1, -1.5, True, [-1]], ids=str)
def test_tokens_to_remove_that_are_none(odd):
    with pytest.raises(ValueError, match="`tokens_to_remove` is"):
        ReformerCache(tiny_config(["strict_lsh"])).crop(odd)


def test_rows_chosen_by_a_mask():
    config = tiny_config(["strict_lsh"])
    model, input_ids, cache = build(config), tokens(config, 3, 11), ReformerCache(config)
    feed(model, input_ids, [9], None, cache)
    cache.batch_select_indices(torch.tensor([True, False, True]))
    assert_close(feed(model, input_ids[[0, 2]], [2], None, cache), full(model, input_ids[[0, 2]])[:, 9:], TOLERANCE)


def test_an_empty_cache_may_be_reordered():
    config = tiny_config(["strict_lsh"])
    cache = ReformerCache(config)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_select_indices(torch.tensor([1, 0]))
    assert cache.get_seq_length() == 0


def test_thousands_of_forks_and_crops_leave_nothing_behind():
    """3,000 forks of one prompt, each written on and cropped: the prompt's cache and the process's memory stay as they were."""
    psutil = pytest.importorskip("psutil")
    config = tiny_config(["strict_lsh", "strict_local"], num_hashes=1)
    model, input_ids, cache = build(config), tokens(config, 1, 60), ReformerCache(config)
    feed(model, input_ids, [50], None, cache)
    expected, memory = full(model, input_ids)[:, 50:53], []
    for i in range(3000):
        fork = copy.deepcopy(cache)
        if i % 100 == 0:
            assert_close(feed(model, input_ids, [3], None, fork), expected, TOLERANCE)
            fork.crop(-3)
            assert_close(feed(model, input_ids, [1, 2], None, fork), expected, TOLERANCE)
            memory.append(psutil.Process().memory_info().rss)
        fork.crop(-(i % 57))
    assert cache.get_seq_length() == 50
    assert memory[-1] - memory[9] < 2**24, f"{(memory[-1] - memory[9]) / 2**20:.0f} MiB more after 2,000 forks"
