"""Packed rows: several documents in one, each as if it stood alone; float64, weights of std 0.3."""

import pytest
import torch
from helpers import assert_close, build, cotangent, gradients, tiny_config, tokens
from torch.nn import functional as F
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from hf_reformer import ReformerCache

KINDS = {
    "strict_local": ["strict_local"] * 3,
    "strict_lsh": ["strict_lsh"] * 3,
    "full": ["full"] * 3,
    "full_shared_qk": ["full_shared_qk"] * 3,
    "mixed": ["strict_local", "strict_lsh", "full", "full_shared_qk"],
}
LENGTHS = (23, 1, 31, 6)
BOTH_WAYS = {"is_decoder": False, "local_num_chunks_after": 1, "lsh_num_chunks_after": 1}


def packed(lengths):
    return torch.cat([torch.arange(n) for n in lengths])[None]


def split(rows, lengths):
    return rows[0].split(list(lengths))


@pytest.mark.parametrize(
    "changes", [{}, BOTH_WAYS, {"reversible": False}], ids=["causal", "both ways", "not reversible"]
)
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_each_document_is_as_if_it_stood_alone_in_logits_and_gradients(kinds, changes):
    config = tiny_config(kinds, num_hashes=2, hash_seed=3, **changes)
    ids, together, alone = tokens(config, 1, sum(LENGTHS)), build(config).train(), build(config).train()
    logits = together(ids, position_ids=packed(LENGTHS)).logits
    direction = cotangent(logits)
    (logits * direction).sum().backward()
    for document, part, way in zip(*(split(x, LENGTHS) for x in (ids, logits, direction)), strict=True):
        own = alone(document[None]).logits
        assert_close(part, own[0], 1e-10)
        (own[0] * way).sum().backward()
    for name, gradient in gradients(alone).items():
        assert_close(gradients(together)[name], gradient, 1e-9)


def test_rows_packed_in_different_ways_beside_padding_on_either_side():
    config = tiny_config(KINDS["mixed"], num_hashes=2)
    model, ids = build(config), tokens(config, 3, 40)
    mask, positions = torch.ones(3, 40, dtype=torch.long), torch.zeros(3, 40, dtype=torch.long)
    mask[1, :5], mask[2, 33:] = 0, 0
    rows = [[(0, 13), (13, 40)], [(5, 21), (21, 22), (22, 40)], [(0, 33)]]
    for row, documents in enumerate(rows):
        for start, end in documents:
            positions[row, start:end] = torch.arange(end - start)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    for row, documents in enumerate(rows):
        for start, end in documents:
            assert_close(logits[row, start:end], model(ids[row : row + 1, start:end]).logits[0], 1e-10)


def test_the_loss_of_flattened_rows_is_that_of_the_rows(tmp_path):
    """Through transformers' own collator and Trainer."""
    config = tiny_config(["strict_local", "strict_lsh"] * 2, hash_seed=3)
    rows = [{"input_ids": tokens(config, 1, n, seed=n)[0].tolist()} for n in LENGTHS if n > 1]
    batch = DataCollatorWithFlattening(return_tensors="pt")(rows)
    batch = {name: batch[name] for name in ("input_ids", "labels", "position_ids")}
    model = build(config)
    loss = model(**batch).loss
    sums, count = 0, 0
    for row in rows:
        ids = torch.tensor(row["input_ids"])[None]
        sums = sums + F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        count += ids.shape[1] - 1
    assert_close(loss, sums / count, 1e-10)
    arguments = TrainingArguments(
        tmp_path, max_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1,
        per_device_train_batch_size=3, train_sampling_strategy="sequential", learning_rate=0.0,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows * 2, data_collator=DataCollatorWithFlattening())
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_changing_a_document_changes_no_other():
    config = tiny_config(KINDS["mixed"], num_hashes=2)
    model, ids, positions = build(config), tokens(config, 1, sum(LENGTHS)), packed(LENGTHS)
    other = ids.clone()
    other[:, 24:55] = (other[:, 24:55] + 1) % config.vocab_size
    before, after = (split(model(x, position_ids=positions).logits, LENGTHS) for x in (ids, other))
    for i in (0, 1, 3):
        assert torch.equal(before[i], after[i])
    assert not torch.equal(before[2], after[2])


@pytest.mark.parametrize("kinds", [["local", "strict_lsh"], ["strict_local", "lsh"]])
def test_published_types_refuse_packed_rows(kinds):
    model = build(tiny_config(kinds))
    with pytest.raises(ValueError, match="`position_ids` begins again within a row.*'local' or 'lsh'"):
        model(tokens(model.config, 1, 12), position_ids=packed((7, 5)))


def test_a_cache_refuses_packed_rows_and_stays_as_it_was():
    model = build(tiny_config(["strict_local", "strict_lsh"]))
    cache = ReformerCache(model.config)
    with torch.no_grad(), pytest.raises(ValueError, match="begins again.*a cache"):
        model(tokens(model.config, 1, 12), position_ids=packed((7, 5)), past_key_values=cache)
    assert cache.get_seq_length() == 0


def test_positions_that_go_back_within_a_document_are_refused():
    model = build(tiny_config(["strict_local", "strict_lsh"]))
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 2, 4]])
    with pytest.raises(ValueError, match="goes from 3 back to 2 in row 0, but must go back to 0 only"):
        model(tokens(model.config, 1, 9), position_ids=positions)
