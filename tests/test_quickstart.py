"""`hf-reformer quickstart` at tiny sizes: what it writes, what it measures, how it stops and resumes, what it refuses."""

import gzip
import json
import lzma
import math
import os
import random
import re
import signal
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_reformer import ReformerByteTokenizer, ReformerConfig, ReformerModelWithLMHead, cli
from hf_reformer.cli import quickstart
from hf_reformer.training import lengths
from hf_reformer.training.build import plan_of, training_arguments
from hf_reformer.training.initialisation import sinusoids
from hf_reformer.training.recipes import load_recipe
from hf_reformer.training.run import chosen_recipe
from hf_reformer.training.tasks import build_task
from hf_reformer.training.trainer import RecipeTrainer

WORDS = ["import ", "return ", "self.", "def ", "None\n", "(x, y)", "    ", "= ", "for ", "in "]
CONTEXT = 61


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eleven files of 1,009 bytes, made of ten words."""
    folder = tmp_path_factory.mktemp("corpus")
    source = random.Random(0)
    for i in range(11):
        (folder / f"{i}.txt").write_text("".join(source.choices(WORDS, k=600))[:1009])
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """The quickstart without its fresh process, which takes seconds."""
    monkeypatch.setattr(quickstart, "continuation", lambda folder, prompt: f"continued {prompt}")


def quickstart_args(corpus, output, *more, steps=7):
    options = ["--steps", str(steps), "--context", str(CONTEXT), "--device", "cpu"]
    return ["quickstart", "--data", str(corpus), "--output", str(output), *options, *more]


def task_of(output):
    """What the run in a folder trains on."""
    recipe = chosen_recipe(None, output, (), smoke=False, resume=True)
    return build_task(recipe, plan_of(recipe, training_arguments(recipe, output, "cpu")))


def interrupt_at(monkeypatch, step, times=1):
    """Ctrl-C, as the terminal sends it, in the midst of a step."""
    original = RecipeTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RecipeTrainer, "training_step", interrupted)


def weights(output):
    return load_file(output / "model" / "model.safetensors")


def results_of(output):
    return json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """The output folder of a run as a user starts it, in its own process, and what it printed."""
    output = tmp_path_factory.mktemp("finished") / "output"
    command = [sys.executable, "-m", "hf_reformer.cli", *quickstart_args(corpus, output, steps=40)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output, done


def test_everything_is_written(finished):
    output, _ = finished
    written = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert written >= {
        "loss.png", "results.json", "recipe.yaml", "checkpoint-40/manifest.json", "model/README.md", "model/loss.png",
        "model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/recipe.yaml", "model/run.json",
    }  # fmt: skip
    assert not [name for name in written if "tmp" in name]
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_training_improves_held_out_bits_per_byte_and_the_figures_agree_everywhere(finished):
    output, done = finished
    results = results_of(output)
    before, after = results["before"]["bits_per_byte"], results["after"]["bits_per_byte"]
    assert 7.5 < before < 9.5
    assert after < before - 2
    card = (output / "model" / "README.md").read_text()
    assert f"| bits per byte | {before:.4f} | {after:.4f} |" in card
    assert f"bits per byte {after:.4f}  (before training {before:.4f})" in done.stdout
    for name in ("gzip", "xz"):
        assert f"`{name} -9`" in card and f"{results[name]:.4f}" in card
        assert re.search(rf"{name} -9 {results[name]:.4f}", done.stdout)


def test_the_progress_bar_shows_steps_loss_bits_per_byte_and_speed(finished):
    progress = finished[1].stderr
    for part in ("step 40/40", "bits/byte", "loss", "tok/s", "100%"):
        assert part in progress


def test_a_log_has_a_line_now_and_then_and_is_drawn_over_by_nothing(finished):
    progress = finished[1].stderr
    assert "\r" not in progress
    lines = [line for line in progress.splitlines() if line.startswith(("training", "evaluating"))]
    assert 2 <= len(lines) < 20  # 40 steps and 3 evaluations, in less than LINE_EVERY


def test_a_fresh_process_continues_held_out_text(finished):
    output, done = finished
    prompt = quickstart.prompt_of(task_of(output))
    assert len(prompt) == CONTEXT // 2
    after = done.stdout.split("continues held-out text:\n\n")[1]
    assert after.startswith(prompt)
    assert len(after.rstrip("\n").encode()) > len(prompt) + 10


def test_the_checkpoint_is_the_trained_model_and_its_figures_are_of_the_bytes_that_are_compressed(finished):
    output, _ = finished
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    assert type(model) is ReformerModelWithLMHead
    assert set(model.config.attn_layers) == {"strict_local", "strict_lsh"}
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert type(tokenizer) is ReformerByteTokenizer
    assert tokenizer.model_max_length == model.config.maximum_length == CONTEXT
    held_out = task_of(output).evaluation
    windows = [held_out[i]["input_ids"] for i in range(len(held_out))]
    with torch.no_grad():
        nats = [float(model(ids[None], labels=ids[None]).loss) * (len(ids) - 1) for ids in windows]
    bits = sum(nats) / math.log(2) / sum(len(ids) - 1 for ids in windows)
    results = results_of(output)
    assert results["after"]["bits_per_byte"] == pytest.approx(bits, abs=1e-4)
    predicted = b"".join(bytes(int(i) - 2 for i in ids[1:]) for ids in windows)
    assert len(windows) == 8 and results["evaluated_bytes"] == len(predicted)
    assert results["gzip"] == 8 * len(gzip.compress(predicted, 9, mtime=0)) / len(predicted)
    assert results["xz"] == 8 * len(lzma.compress(predicted, preset=9)) / len(predicted)


def test_the_card_has_front_matter_for_the_hub_and_the_code_that_was_run(finished):
    output, _ = finished
    card = ModelCard.load(output / "model" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.license is None  # the text is the user's
    assert str(output.parent.parent) not in card.text
    from hf_reformer.training.cards import GENERATE

    assert GENERATE in card.text


def test_a_resumed_run_equals_an_uninterrupted_one(corpus, tmp_path, tiny, monkeypatch, capsys):
    assert cli.main(quickstart_args(corpus, tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=3)
        assert cli.main(quickstart_args(corpus, tmp_path / "cut")) == 130
    assert "stopped after step 4 of 7" in capsys.readouterr().out
    AutoModelForCausalLM.from_pretrained(tmp_path / "cut" / "checkpoint-4")
    assert cli.main(["quickstart", "--resume", "--device", "cpu", "--output", str(tmp_path / "cut")]) == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert results_of(tmp_path / "whole")["after"] == results_of(tmp_path / "cut")["after"]


def test_an_unfinished_run_is_not_overwritten_by_accident(corpus, tmp_path, tiny, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=2)
        assert cli.main(quickstart_args(corpus, tmp_path)) == 130
    assert cli.main(quickstart_args(corpus, tmp_path)) == 2
    assert "holds a run: continue it with --resume" in capsys.readouterr().err


def test_a_finished_run_may_be_replaced(corpus, tmp_path, tiny):
    assert cli.main(quickstart_args(corpus, tmp_path, steps=2)) == 0
    assert cli.main(quickstart_args(corpus, tmp_path, "--seed", "1", steps=3)) == 0
    assert results_of(tmp_path)["steps"] == 3
    assert not (tmp_path / "checkpoint-2").exists()


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(corpus, tmp_path, tiny):
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert cli.main(quickstart_args(corpus, tmp_path / name, "--seed", seed, steps=3)) == 0
    losses = [results_of(tmp_path / name)["after"]["loss"] for name in "abc"]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "training.max_steps is 0, but must be greater than or equal to 1"),
        (["--context", "1"], "data.context is 1, but must be greater than or equal to 2"),
        (["--seed", "-1"], "training.seed is -1, but must be greater than or equal to 0"),
        (["--seed", "100000000000000"], "training.seed is 100000000000000, but must be less than 4294967296"),
        (["--learning-rate", "0"], "training.learning_rate is 0.0, but must be a number above 0"),
        (["--learning-rate", "nan"], "training.learning_rate is .?nan.?, but must be"),
        (["--device", "abacus"], "device is 'abacus', .* allowed here are auto, cpu"),
        (["--data", "/no/such/path"], "data path '/no/such/path' does not exist"),
        (["--resume"], "holds no run to resume"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(corpus, tmp_path, tiny, capsys, options, message):
    assert cli.main(quickstart_args(corpus, tmp_path / "output", *options)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error, re.IGNORECASE), error
    assert not (tmp_path / "output").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_missing_is_refused(corpus, tmp_path, tiny, capsys):
    assert cli.main(quickstart_args(corpus, tmp_path, "--device", "cuda")) == 2
    assert "device is 'cuda', which cannot be used here" in capsys.readouterr().err


def test_an_output_that_is_something_else_is_refused(corpus, tmp_path, tiny, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("data")
    assert cli.main(quickstart_args(corpus, tmp_path / "folder")) == 2
    assert "holds other files" in capsys.readouterr().err
    assert cli.main(quickstart_args(corpus, tmp_path / "folder" / "precious")) == 2
    assert "is a file; allowed is a folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["precious"]
    assert (tmp_path / "folder" / "precious").read_text() == "data"


def test_a_context_of_ones_own_changes_windows_and_positions(tmp_path):
    fields = quickstart.fields_of_context(1000)
    recipe = load_recipe("quickstart", [f"{key}={json.dumps(value)}" for key, value in fields.items()])
    assert [length for _, length in recipe.data.window_plan] == [31, 125, 250, 1000]
    assert recipe.model["axial_pos_shape"] == [8, 128]


def test_the_default_context_is_the_recipes_own():
    recipe = load_recipe("quickstart")
    fields = quickstart.fields_of_context(recipe.data.context)
    assert recipe.data.window_plan == fields["data.window_plan"]
    assert recipe.model["axial_pos_shape"] == fields["model.axial_pos_shape"]
    assert recipe.model["max_position_embeddings"] == fields["model.max_position_embeddings"]


@pytest.mark.parametrize("steps", [7, 200])
def test_windows_grow_to_the_full_context_in_the_last_step_and_lie_anywhere_among_the_positions(steps, tmp_path):
    changes = [f"training.max_steps={steps}", "training.seed=3"]
    recipe = load_recipe("quickstart", changes, smoke=True)
    task = build_task(recipe, plan_of(recipe, training_arguments(recipe, tmp_path, "cpu")))
    windows = [task.training[step] for step in range(steps)]
    lengths = [len(window["input_ids"]) for window in windows]
    assert lengths[-1] == 256 == max(lengths)
    assert lengths == sorted(lengths)
    starts = {int(window["position_ids"][0]) for window in windows}
    assert all(
        torch.equal(w["position_ids"], w["position_ids"][0] + torch.arange(len(w["input_ids"]))) for w in windows
    )
    if steps == 200:
        assert min(starts) < 20 and 108 < max(starts) <= 128 and len(starts) > 60


def test_inner_positions_look_the_same_from_everywhere():
    assert sinusoids(128, 191, longest=128, whole=True).shape == (128, 191)
    whole = sinusoids(128, 192, longest=128, whole=True)
    products = whole @ whole.T
    for shift in range(1, 128):
        torch.testing.assert_close(products.roll((shift, shift), (0, 1)), products, rtol=0, atol=1e-3)
    assert products[0, 0] > products[0, 1:].max() + 1


def test_the_table_of_lengths_has_full_attention_beside_it(capsys):
    config = ReformerConfig.for_bytes(256, "tiny")
    lines = lengths.table(config, torch.device("cpu"), half=False).splitlines()
    rows = [line.replace("~", " ").split() for line in lines[1:4]]
    assert [row[0] for row in rows] == ["64", "256", "1,024"]
    assert [line.count("~") for line in lines] == [0, 0, 0, 2, 1]
    seconds, kept, full_seconds, full_kept = ([float(row[i].replace(",", "")) for row in rows] for i in (2, 4, 6, 8))
    assert all(s > 0 for s in (*seconds, *full_seconds)) and kept[1] < full_kept[1]
    assert full_kept[2] == pytest.approx(4 * full_kept[1], rel=0.05)


def test_what_is_kept_for_backward_is_what_autograd_holds():
    config = ReformerConfig.for_bytes(512, "tiny", reversible=False)
    kept = lengths.step(config, 512, torch.device("cpu"), half=False)[1]
    layers = ReformerModelWithLMHead(config).reformer.encoder.layers
    assert 0.7 < kept / (512 * sum(layer.bytes_kept(torch.float32) for layer in layers) / 2**20) < 2
