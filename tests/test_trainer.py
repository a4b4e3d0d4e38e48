"""What Trainer makes of our losses: accumulation, clipping, evaluation, padding and grouping by length, in float64.

Rows have 3 to 29 tokens, are padded to the longest of their batch, and hold unequal numbers of labels: one has none at all.
"""

import pytest
import torch
from helpers import assert_same_tensors, build, gradients, tiny_config
from transformers import DataCollatorForTokenClassification, Trainer, TrainerCallback, TrainingArguments

import hf_reformer
from hf_reformer import ReformerByteTokenizer

LAYERS = ["strict_lsh", "strict_local", "full", "strict_lsh"]
BATCH, STEPS = 8, 3
TOLERANCE = 1e-10
HEADS = {
    "causal": ("ReformerModelWithLMHead", {}),
    "causal, loss in chunks": ("ReformerModelWithLMHead", {"chunk_size_lm_head": 5}),
    "masked": ("ReformerForMaskedLM", {}),
    "tokens": ("ReformerForTokenClassification", {"num_labels": 3}),
    "sequences": ("ReformerForSequenceClassification", {"num_labels": 3}),
    "answers": ("ReformerForQuestionAnswering", {}),
}


def model_of(head, reversible=True):
    name, settings = HEADS[head]
    config = tiny_config(LAYERS, is_decoder="LMHead" in name, reversible=reversible, hash_seed=3, **settings)
    return build(config, getattr(hf_reformer, name))


def rows_of(head, count=BATCH * STEPS):
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        length = 3 + 7 * index % 27
        ids = torch.randint(2, 19, (length,), generator=generator)
        labels = torch.where(torch.rand(length, generator=generator) < 0.6, ids % 3 if head == "tokens" else ids, -100)
        row = {"input_ids": ids.tolist(), "labels": [-100] * length if index == 1 else labels.tolist()}
        if head == "sequences":
            row["labels"] = int(ids.sum() % 3)
        if head == "answers":
            del row["labels"]
            row |= {"start_positions": index % length, "end_positions": length - 1}
        made.append(row)
    return made


def padded(examples):
    """A batch, padded on the right with id 0; labels of tokens with -100."""
    if "labels" in examples[0] and isinstance(examples[0]["labels"], list):
        return DataCollatorForTokenClassification(ReformerByteTokenizer())(examples)
    return ReformerByteTokenizer().pad(examples, return_tensors="pt")


class FirstGradients(TrainerCallback):
    def __init__(self):
        self.gradients = None

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients = gradients(model) if self.gradients is None else self.gradients


def trainer_of(model, folder, rows, **settings):
    settings = {"max_steps": STEPS, "train_sampling_strategy": "sequential", "max_grad_norm": 0.0, **settings}
    arguments = TrainingArguments(
        output_dir=folder, learning_rate=0.01, lr_scheduler_type="constant", logging_steps=1, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, **settings,
    )  # fmt: skip
    return Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=padded, callbacks=[FirstGradients()]
    )


def trained(model, folder, rows, **settings):
    """Losses, the gradients of the first step (after clipping), and the parameters at the end."""
    trainer = trainer_of(model, folder, rows, **settings)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seen = next(c for c in trainer.callback_handler.callbacks if isinstance(c, FirstGradients)).gradients
    return losses, seen, dict(model.named_parameters()), trainer


@pytest.mark.parametrize("head", HEADS)
def test_accumulation_over_unequal_rows_equals_one_big_batch(head, tmp_path):
    big, pieces = (
        trained(model_of(head), tmp_path, rows_of(head), per_device_train_batch_size=BATCH // n, gradient_accumulation_steps=n)
        for n in (1, 4)
    )  # fmt: skip
    assert pieces[0] == pytest.approx(big[0], rel=1e-6)  # logged in float32
    assert_same_tensors(pieces[1], big[1], TOLERANCE)
    assert_same_tensors(pieces[2], big[2], 1e-7)  # after three steps of AdamW


@pytest.mark.parametrize("head", ["causal", "masked", "tokens"])
def test_the_loss_is_a_mean_over_all_labels_of_a_batch(head, tmp_path):
    """Rows one by one, each without padding, give the sum; the first token of a causal model's labels predicts nothing."""
    rows, model = rows_of(head, BATCH), model_of(head)
    loss = trained(model_of(head), tmp_path, rows, per_device_train_batch_size=BATCH, max_steps=1)[0][0]
    total = count = 0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        number = int((labels[:, 1:] if head == "causal" else labels).ne(-100).sum())
        if number > 0:
            total += number * float(model(torch.tensor([row["input_ids"]]), labels=labels).loss.detach())
        count += number
    assert loss == pytest.approx(total / count, rel=1e-6)


def test_clipping_scales_all_gradients_to_the_norm_that_is_asked_for(tmp_path):
    settings = {"per_device_train_batch_size": BATCH, "max_steps": 1}
    _, whole, _, trainer = trained(model_of("causal"), tmp_path, rows_of("causal"), **settings)
    clipped = trained(model_of("causal"), tmp_path, rows_of("causal"), max_grad_norm=0.1, **settings)[1]
    norm = float(torch.stack([gradient.norm() for gradient in whole.values()]).norm())
    assert norm > 0.1
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(norm, rel=1e-6)
    assert_same_tensors(clipped, {name: gradient * 0.1 / (norm + 1e-6) for name, gradient in whole.items()}, TOLERANCE)


@pytest.mark.parametrize("head", HEADS)
def test_evaluation_gives_a_loss(head, tmp_path):
    rows = rows_of(head, BATCH)
    trainer = trainer_of(model_of(head), tmp_path, rows, per_device_eval_batch_size=BATCH)
    with torch.no_grad():
        expected = float(model_of(head)(**padded(rows)).loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_rows_grouped_by_length_are_all_seen_and_learned_from(tmp_path):
    rows = rows_of("causal")
    model = model_of("causal")
    seen = []
    trainer = trainer_of(
        model, tmp_path, rows, max_steps=-1, num_train_epochs=2, per_device_train_batch_size=4,
        train_sampling_strategy="group_by_length",
    )  # fmt: skip
    trainer.data_collator = lambda examples: seen.extend(tuple(e["input_ids"]) for e in examples) or padded(examples)
    trainer.train()
    assert sorted(seen) == sorted(2 * [tuple(row["input_ids"]) for row in rows])
    assert trainer.evaluate()["eval_loss"] < 2.9


@pytest.mark.parametrize("head", ["sequences", "answers"])
def test_rows_padded_together_have_the_mean_loss_of_rows_alone(head):
    rows, model = rows_of(head, BATCH), model_of(head)
    with torch.no_grad():
        alone = [float(model(**padded([row])).loss) for row in rows]
        together = float(model(**padded(rows)).loss)
    assert together == pytest.approx(sum(alone) / BATCH, rel=TOLERANCE)


def test_an_answer_in_the_padding_makes_padding_a_candidate_in_its_row():
    """As in transformers, where it always is one; the loss is finite, and that of the other rows does not change."""
    rows = rows_of("answers", BATCH)
    whole = padded(rows)
    model = model_of("answers")
    expected = model(**{name: x[:2] for name, x in whole.items()}).loss
    rows[2]["end_positions"] = 20
    moved = padded(rows)
    assert torch.isfinite(model(**moved).loss)
    torch.testing.assert_close(model(**{name: x[:2] for name, x in moved.items()}).loss, expected)
