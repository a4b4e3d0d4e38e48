"""LoRA through peft: no target modules to name, gradients of ordinary autograd, and a base model that stays as it was."""

import subprocess
import sys

import peft
import pytest
import torch
from helpers import DROPOUT, assert_close, assert_same_tensors, build, gradients, tiny_config, tokens
from transformers import Trainer, TrainingArguments

import hf_reformer

LAYERS = ["local", "lsh", "strict_local", "strict_lsh", "full", "full_shared_qk"]
HEADS = {
    "CAUSAL_LM": ("ReformerModelWithLMHead", None),
    "SEQ_CLS": ("ReformerForSequenceClassification", "classifier"),
    "TOKEN_CLS": ("ReformerForTokenClassification", "classifier"),
    "QUESTION_ANS": ("ReformerForQuestionAnswering", "qa_outputs"),
}


def adapted(task_type="CAUSAL_LM", reversible=True, dtype=torch.float64, **settings):
    """A model with adapters that are not zero anywhere."""
    config = tiny_config(LAYERS, reversible=reversible, is_decoder=task_type == "CAUSAL_LM", **DROPOUT)
    model = build(config, getattr(hf_reformer, HEADS[task_type][0]), dtype=dtype)
    torch.manual_seed(5)
    lora = peft.LoraConfig(task_type=task_type, r=2, init_lora_weights=False, **settings)
    return peft.get_peft_model(model, lora).to(dtype)


@pytest.fixture
def fresh_table(monkeypatch):
    """peft as it is before anything told it about this model."""
    table = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.delitem(table, "reformer", raising=False)
    return table


@pytest.mark.parametrize("task_type", HEADS)
def test_queries_and_values_are_adapted_by_default(fresh_table, task_type):
    names = {name for name, parameter in adapted(task_type).named_parameters() if parameter.requires_grad}
    modules = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in names if "lora_" in name}
    assert modules == {"query_key", "query", "value"}
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in names if "lora_" in name}
    assert layers == set(range(len(LAYERS)))
    assert all("lora_" in name or f"{HEADS[task_type][1]}.modules_to_save" in name for name in names)


def test_an_entry_of_pefts_own_wins(fresh_table, monkeypatch):
    monkeypatch.setitem(fresh_table, "reformer", ["key"])
    trained = [name for name, parameter in adapted().named_parameters() if parameter.requires_grad]
    assert trained and all(".key.lora_" in name for name in trained)


def test_add_adapter_of_transformers_needs_no_targets_either(fresh_table):
    model = build(tiny_config(LAYERS))
    try:
        model.add_adapter(peft.LoraConfig(r=2))
    except ValueError as error:
        if "PEFT you are using is not compatible" not in str(error):
            raise
        pytest.skip("this transformers asks for a newer peft")
    assert any("query_key.lora_A" in name for name, _ in model.named_parameters())


BUILD = "model = hf_reformer.ReformerModel(hf_reformer.ReformerConfig(attn_layers=['lsh'], axial_pos_embds=False))"


def test_building_a_model_does_not_import_peft():
    code = f"import sys, hf_reformer; {BUILD}; sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_peft_imported_after_the_model_was_built_needs_no_targets_either():
    code = f"import hf_reformer; {BUILD}; import peft; peft.get_peft_model(model, peft.LoraConfig())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_reading_a_configuration_writes_nothing_into_pefts_table(fresh_table):
    tiny_config(LAYERS).to_dict()
    assert "reformer" not in fresh_table


@pytest.mark.parametrize("embeddings", ["frozen", "trained"])
def test_gradients_of_adapters_are_those_of_ordinary_autograd(embeddings):
    results = []
    for reversible in (True, False):
        model = adapted(reversible=reversible, lora_dropout=0.1).train()
        model.get_input_embeddings().requires_grad_(embeddings == "trained")
        input_ids = tokens(model.config, 2, 37)
        torch.manual_seed(11)
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        results.append(gradients(model))
    assert any("word_embeddings" in name for name in results[0]) == (embeddings == "trained")
    assert all(gradient.abs().max() > 0 for gradient in results[0].values())
    assert_same_tensors(*results, 1e-10)


def test_training_changes_every_adapter_and_nothing_else(tmp_path):
    model = adapted(dtype=torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    row = tokens(model.config, 1, 23)[0]
    rows = [{"input_ids": row, "labels": row} for _ in range(8)]
    arguments = TrainingArguments(
        output_dir=tmp_path, per_device_train_batch_size=2, max_steps=4, learning_rate=0.01, logging_steps=1,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:1])
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert trainer.evaluate()["eval_loss"] < first


def test_saved_adapters_come_back(tmp_path):
    model, input_ids = adapted().eval(), tokens(tiny_config(LAYERS), 2, 23)
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits
        model.save_pretrained(tmp_path)
        base = build(tiny_config(LAYERS, **DROPOUT))
        loaded = peft.PeftModel.from_pretrained(base, tmp_path).double().eval()
        assert_close(loaded(input_ids=input_ids).logits, expected, 1e-10)
        assert_close(loaded.merge_and_unload()(input_ids=input_ids).logits, expected, 1e-10)
