"""Others' tools read our models: sentence-transformers, lm-evaluation-harness, trl. Each test is skipped where its tool is not
installed; `make test` installs none of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

import hf_reformer
from hf_reformer import ReformerByteTokenizer, ReformerConfig, ReformerModel, ReformerModelWithLMHead

HIDDEN, LENGTH = 28, 211
SMALL = {"hidden_size": HIDDEN, "num_attention_heads": 1, "attention_head_size": 16, "feed_forward_size": 44}
TEXTS = [
    "a text",
    "another one, which is longer than a chunk of tokens, and so is not in one with its end",
    "été",
    "a text",
]
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer():
    return ReformerByteTokenizer(model_max_length=LENGTH)


@pytest.fixture
def sentence_encoder(tmp_path):
    """A SentenceTransformer that reads a Reformer from a folder, and the Reformer."""
    tools = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(0)
    model = ReformerModel(ReformerConfig.for_bytes(LENGTH, "tiny", is_decoder=False, hash_seed=5, **SMALL)).eval()
    model.save_pretrained(tmp_path / "reformer")
    tokenizer().save_pretrained(tmp_path / "reformer")
    parts = [modules.Transformer(str(tmp_path / "reformer")), modules.Pooling(2 * HIDDEN, "mean")]
    return tools.SentenceTransformer(modules=parts, device="cpu"), model


def test_embeddings_of_sentence_transformers_are_those_of_pool(sentence_encoder):
    encoder, model = sentence_encoder
    assert isinstance(encoder[0].model, ReformerModel)
    assert encoder.get_embedding_dimension() == 2 * HIDDEN
    batch = tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = hf_reformer.pool(model(**batch).last_hidden_state, batch.attention_mask, "mean")
    theirs = encoder.encode(TEXTS, convert_to_tensor=True)
    assert theirs.shape == (len(TEXTS), 2 * HIDDEN)
    torch.testing.assert_close(theirs, ours, atol=2e-6, rtol=1e-5)
    alone = torch.stack([encoder.encode(text, convert_to_tensor=True) for text in TEXTS])  # no padding
    torch.testing.assert_close(theirs, alone, atol=2e-6, rtol=1e-5)


def test_a_saved_sentence_transformer_is_read_back_with_its_width(sentence_encoder, tmp_path):
    tools = pytest.importorskip("sentence_transformers")
    encoder, _ = sentence_encoder
    encoder.save(str(tmp_path / "saved"))
    again = tools.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert isinstance(again[0].model, ReformerModel)
    assert again.get_embedding_dimension() == 2 * HIDDEN and again.max_seq_length == LENGTH
    assert (again.encode(TEXTS) == encoder.encode(TEXTS)).all()


def test_multiple_negatives_ranking_brings_pairs_together(sentence_encoder, tmp_path):
    tools = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    encoder, _ = sentence_encoder
    anchors = ["zero one", "two three", "four five", "six seven", "eight nine", "ten eleven", "twelve", "thirteen"]
    pairs = Dataset.from_dict({"anchor": anchors, "positive": [text.upper() for text in anchors]})
    arguments = tools.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=50, per_device_train_batch_size=8, learning_rate=5e-3, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = tools.SentenceTransformerTrainer(
        encoder, arguments, train_dataset=pairs, loss=losses.MultipleNegativesRankingLoss(encoder)
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
    similarities = encoder.encode(pairs["anchor"], convert_to_tensor=True) @ encoder.encode(
        pairs["positive"], convert_to_tensor=True
    ).transpose(0, 1)
    assert (similarities.argmax(1) == torch.arange(8)).sum() >= 6  # by chance 1


def losses_of_sft(rows, tmp_path, byte_tokenizer, **settings):
    """Losses that trl's SFTTrainer logs in some steps of a tiny Reformer."""
    trl = pytest.importorskip("trl")
    torch.manual_seed(0)
    model = ReformerModelWithLMHead(ReformerConfig.for_bytes(LENGTH, "tiny", **SMALL))
    arguments = trl.SFTConfig(
        str(tmp_path / "sft"), max_steps=15, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, max_length=LENGTH,
        save_strategy="no", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=byte_tokenizer)
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_sft_trainer_learns_from_plain_text(tmp_path):
    rows = [{"text": f"line {i % 4} of a text that repeats itself"} for i in range(64)]
    trainer, losses = losses_of_sft(rows, tmp_path, tokenizer())
    assert isinstance(trainer.model, ReformerModelWithLMHead)
    assert losses[-1] < 0.7 * losses[0]


def test_sft_trainer_learns_from_chats_with_a_template(tmp_path):
    byte_tokenizer = tokenizer()
    byte_tokenizer.chat_template = CHAT
    turns = [{"role": "user", "content": "how are you?"}, {"role": "assistant", "content": "well, and you?"}]
    trainer, losses = losses_of_sft([{"messages": turns}] * 64, tmp_path, byte_tokenizer)
    assert losses[-1] < 0.7 * losses[0]
    assert byte_tokenizer.decode(trainer.train_dataset[0]["input_ids"]).startswith(
        "user: how are you?\nassistant: well"
    )


TASK = """
task: twice
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: [" right", " wrong"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


@pytest.mark.parametrize("code", ["imported", "carried"])
def test_lm_eval_reads_a_checkpoint_by_the_commands_of_the_guide(code, tmp_path):
    pytest.importorskip("lm_eval")
    made = f"""
from hf_reformer import ReformerByteTokenizer, ReformerConfig, ReformerModelWithLMHead
if {code == "carried"}:
    ReformerConfig.register_for_auto_class()
    ReformerModelWithLMHead.register_for_auto_class("AutoModelForCausalLM")
ReformerModelWithLMHead(ReformerConfig.for_bytes({LENGTH}, "tiny", **{SMALL})).save_pretrained("model")
ReformerByteTokenizer(model_max_length={LENGTH}).save_pretrained("model")
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", made], cwd=tmp_path, env=environment, check=True, timeout=300)
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "another"}\n')
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "twice.yaml").write_text(TASK.replace("ROWS", str(tmp_path / "rows.jsonl")))
    guide = (Path(__file__).parents[1] / "docs/guides/evaluation-tools.md").read_text(encoding="utf-8")
    line = "import hf_reformer; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    start, arguments = (["-c", line], "") if code == "imported" else (["-m", "lm_eval"], ",trust_remote_code=True")
    assert f'python -c "{line}" run' in guide and "trust_remote_code=True --device" in guide
    command = [sys.executable, *start, "run", "--model", "hf", "--model_args", f"pretrained=model{arguments}"]
    command += ["--device", "cpu", "--tasks", "twice", "--include_path", "tasks"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "|twice" in done.stdout, done.stdout
