"""The examples of the guide to fine-tuning run as they stand there, and learn. (Those of README and other pages: test_guides.)"""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "fine-tuning.md"
FINE_TUNING = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8").split("## LoRA")[0], re.M | re.S)
CAUSAL, MASKED, CLASSIFICATION, ANSWERS = range(4)


def run(code, folder, monkeypatch):
    """Executes a block in `folder`; returns its names."""
    monkeypatch.chdir(folder)
    names = {"__name__": "__main__"}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_there_are_four_examples_of_fine_tuning():
    assert len(FINE_TUNING) == 4


def test_causal_language_model(tmp_path, monkeypatch):
    trainer = run(FINE_TUNING[CAUSAL], tmp_path, monkeypatch)["trainer"]
    losses = losses_of(trainer)
    assert losses[0] > 2 > losses[-1]
    assert (tmp_path / "causal" / "model" / "model.safetensors").exists()
    assert (tmp_path / "causal" / "checkpoint-30" / "manifest.json").exists()


def test_masked_language_model(tmp_path, monkeypatch):
    losses = losses_of(run(FINE_TUNING[MASKED], tmp_path, monkeypatch)["trainer"])
    assert losses[-1] < 0.8 * losses[0]


def test_classification(tmp_path, monkeypatch):
    trainer = run(FINE_TUNING[CLASSIFICATION], tmp_path, monkeypatch)["trainer"]
    assert trainer.evaluate()["eval_accuracy"] > 0.8  # of texts that it has not seen


def test_question_answering(tmp_path, monkeypatch):
    losses = losses_of(run(FINE_TUNING[ANSWERS], tmp_path, monkeypatch)["trainer"])
    assert losses[-1] < 0.6 * losses[0]
