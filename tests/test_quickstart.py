"""`hf-reformer quickstart` at tiny sizes: what it writes, what it measures, how it stops and resumes, what it refuses."""

import gzip
import itertools
import json
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
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_reformer import ReformerByteTokenizer, ReformerModelWithLMHead, cli
from hf_reformer.cli import quickstart
from hf_reformer.training import quickstart_training
from hf_reformer.training.quickstart_training import Settings, build_model

WORDS = ["import ", "return ", "self.", "def ", "None\n", "(x, y)", "    ", "= ", "for ", "in "]


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
    options = ["--steps", str(steps), "--context", "61", "--device", "cpu"]
    return ["quickstart", "--data", str(corpus), "--output", str(output), *options, *more]


def state_of(output):
    return torch.load(output / "training" / "state.pt", weights_only=True)


def interrupt_at(monkeypatch, step, times=1):
    """Ctrl-C, as the terminal sends it, in the midst of a step."""
    original = quickstart_training.training_step

    def interrupted(run, text):
        if run.step == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return original(run, text)

    monkeypatch.setattr(quickstart_training, "training_step", interrupted)


def assert_same(left, right, where="state"):
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}.{i}")
    elif torch.is_tensor(left):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


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
        "loss.png",
        "results.json",
        "training/state.pt",
        "model/README.md",
        "model/loss.png",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
    }
    assert not [name for name in written if "tmp" in name]
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_training_improves_held_out_bits_per_byte_and_the_figures_agree_everywhere(finished):
    output, done = finished
    results = json.loads((output / "results.json").read_text())
    assert 7.5 < results["before"] < 9.5
    assert results["after"] < results["before"] - 2
    card = (output / "model" / "README.md").read_text()
    for name in ("before", "after", "gzip", "xz"):
        assert f"| {results[name]:.3f} |" in card
        assert f"{results[name]:.3f}" in done.stdout
    assert ("not below gzip" in done.stdout) == (results["after"] >= results["gzip"])
    assert results["bytes_read"] == sum(quickstart_training.window_length(Settings(40, 61), i) for i in range(40))


def test_the_progress_bar_shows_loss_bits_per_byte_and_speed(finished):
    progress = finished[1].stderr
    assert "step 40/40" in progress
    assert "bits/byte" in progress
    assert "loss" in progress
    assert "tok/s" in progress


def test_a_fresh_process_continues_held_out_text(finished, corpus):
    _, done = finished
    text = quickstart.read_text(Settings(40, 61, data=(str(corpus),)))
    prompt = quickstart.prompt_from(text.held_out, 61)
    assert len(prompt) == 30
    after = done.stdout.split("continues held-out text:\n\n")[1]
    assert after.startswith(prompt)
    assert len(after.rstrip("\n").encode()) > len(prompt) + 10


def test_the_checkpoint_is_the_trained_model_in_evaluation_too(finished, corpus):
    output, _ = finished
    results = json.loads((output / "results.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    assert type(model) is ReformerModelWithLMHead
    assert set(model.config.attn_layers) == {"strict_local", "strict_lsh"}
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert type(tokenizer) is ReformerByteTokenizer
    assert tokenizer.model_max_length == model.config.maximum_length == 61
    held_out = quickstart.read_text(Settings(40, 61, data=(str(corpus),))).held_out
    windows = quickstart.held_out_windows(held_out, 61)
    again = quickstart.held_out_bits_per_byte(model, windows, torch.device("cpu"))
    assert again == pytest.approx(results["after"], abs=1e-4)
    evaluated = b"".join(bytes(window.tolist()) for window in windows)
    assert results["gzip"] == 8 * len(gzip.compress(evaluated, 9, mtime=0)) / len(evaluated)


def test_the_card_has_front_matter_for_the_hub(finished):
    output, _ = finished
    data = ModelCard.load(output / "model" / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    results = json.loads((output / "results.json").read_text())
    assert data.eval_results[0].metric_value == pytest.approx(results["after"], abs=1e-4)
    assert data.license is None  # the text is the user's


def test_a_resumed_run_equals_an_uninterrupted_one(corpus, tmp_path, tiny, monkeypatch, capsys):
    assert cli.main(quickstart_args(corpus, tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=3)
        assert cli.main(quickstart_args(corpus, tmp_path / "cut")) == 130
    assert "stopped after step 4 of 7" in capsys.readouterr().out
    assert state_of(tmp_path / "cut")["step"] == 4
    assert cli.main(["quickstart", "--resume", "--device", "cpu", "--output", str(tmp_path / "cut")]) == 0
    whole, cut = state_of(tmp_path / "whole"), state_of(tmp_path / "cut")
    assert (whole.pop("seconds"), cut.pop("seconds")) != (0, 0)
    assert_same(whole, cut)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "cut")]
    assert results[0]["after"] == results[1]["after"]


@pytest.fixture
def ordinary_interrupts():
    """Python's own handler of Ctrl-C, also where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_leaves_a_model_that_loads(ordinary_interrupts, corpus, tmp_path, tiny, monkeypatch):
    interrupt_at(monkeypatch, step=2)
    assert cli.main(quickstart_args(corpus, tmp_path)) == 130
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert_same(dict(model.state_dict()), dict(state_of(tmp_path)["model"]))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once_and_keeps_the_last_saved_state(
    ordinary_interrupts, corpus, tmp_path, tiny, monkeypatch
):
    interrupt_at(monkeypatch, step=5, times=2)
    monkeypatch.setattr(quickstart_training, "SAVES_PER_RUN", 2)  # after steps 3 and 6
    assert cli.main(quickstart_args(corpus, tmp_path)) == 130
    assert state_of(tmp_path)["step"] == 3
    assert [path.name for path in (tmp_path / "training").iterdir()] == ["state.pt"]


def test_an_unfinished_run_is_not_overwritten_by_accident(corpus, tmp_path, tiny, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=2)
        assert cli.main(quickstart_args(corpus, tmp_path)) == 130
    assert cli.main(quickstart_args(corpus, tmp_path)) == 2
    assert "stopped after step 3 of 7; continue it with --resume" in capsys.readouterr().err


def test_a_finished_run_may_be_replaced(corpus, tmp_path, tiny):
    assert cli.main(quickstart_args(corpus, tmp_path, steps=2)) == 0
    assert cli.main(quickstart_args(corpus, tmp_path, "--seed", "1", steps=3)) == 0
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 3


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(corpus, tmp_path, tiny):
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert cli.main(quickstart_args(corpus, tmp_path / name, "--seed", seed, steps=3)) == 0
    losses = [state_of(tmp_path / name)["losses"] for name in "abc"]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps is 0; allowed are whole numbers from 1"),
        (["--context", "1"], "--context is 1; allowed are whole numbers from 2"),
        (["--seed", "-1"], "--seed is -1; allowed are whole numbers from 0"),
        (["--learning-rate", "0"], "--learning-rate is 0.0; allowed are numbers above 0"),
        (["--learning-rate", "nan"], "--learning-rate is nan; allowed are numbers above 0"),
        (["--context", "100000"], "too little text: 8,072 bytes to train on, --context 100000 needs"),
        (["--device", "abacus"], "--device is 'abacus'; allowed are auto, cpu, cuda, mps"),
        (["--data", "/no/such/path"], "data path '/no/such/path' does not exist"),
        (["--resume"], "resume needs the training state .*state.pt', which does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(corpus, tmp_path, tiny, capsys, options, message):
    assert cli.main(quickstart_args(corpus, tmp_path / "output", *options)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "output").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_missing_is_refused(corpus, tmp_path, tiny, capsys):
    assert cli.main(quickstart_args(corpus, tmp_path, "--device", "cuda")) == 2
    assert "--device is 'cuda', which this machine does not have; allowed here are auto, cpu" in capsys.readouterr().err


def test_an_output_that_is_something_else_is_refused(corpus, tmp_path, tiny, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("data")
    assert cli.main(quickstart_args(corpus, tmp_path / "folder")) == 2
    assert "exists and holds no quickstart run" in capsys.readouterr().err
    assert cli.main(quickstart_args(corpus, tmp_path / "folder" / "precious")) == 2
    assert "is a file; allowed is a folder" in capsys.readouterr().err
    assert (tmp_path / "folder" / "precious").read_text() == "data"


def test_a_broken_training_state_is_refused(corpus, tmp_path, tiny, capsys):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "state.pt").write_bytes(b"not a state")
    assert cli.main(quickstart_args(corpus, tmp_path, "--resume")) == 2
    assert "is not a training state of this version" in capsys.readouterr().err


def test_resuming_with_other_settings_or_other_text_is_refused(corpus, tmp_path, tiny, monkeypatch, capsys):
    own = tmp_path / "text"
    own.mkdir()
    for i in range(4):
        (own / f"{i}.txt").write_text("some text or other\n" * 30)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=1)
        assert cli.main(quickstart_args(own, tmp_path / "output")) == 130
    assert cli.main(quickstart_args(own, tmp_path / "output", "--resume", "--seed", "9")) == 2
    assert "--seed is 9, but the run to resume has 0; leave it out" in capsys.readouterr().err
    (own / "3.txt").write_text("changed" * 80)
    assert cli.main(quickstart_args(own, tmp_path / "output", "--resume")) == 2
    assert "data has changed since the run in --output began" in capsys.readouterr().err


def test_missing_matplotlib_is_said_before_training(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart.importlib.util, "find_spec", lambda name: None)
    assert cli.main(quickstart_args(corpus, tmp_path / "output")) == 2
    assert "pip install 'hf-reformer[demo]'" in capsys.readouterr().err


def test_every_byte_counts_in_bits_per_byte():
    model = build_model(Settings(context=61))
    torch.nn.init.zeros_(model.lm_head.decoder.weight)  # every id gets probability 1 / 258
    windows = [
        torch.arange(61, dtype=torch.uint8),
        torch.arange(7, dtype=torch.uint8),
        torch.arange(1, dtype=torch.uint8),
    ]
    expected = ((60 + 6) * math.log2(258) + 3 * 8) / 69
    assert quickstart.held_out_bits_per_byte(model, windows, torch.device("cpu")) == pytest.approx(expected, rel=1e-6)
    assert model.training


def test_held_out_windows_are_spread_without_overlap():
    text = bytes(i % 251 for i in range(10_007))
    windows = quickstart.held_out_windows(text, 1_009)
    assert [len(window) for window in windows] == [1_009] * 8
    starts = [i * (10_007 - 1_009) // 7 for i in range(8)]
    assert [bytes(window.tolist()) for window in windows] == [text[start : start + 1_009] for start in starts]
    assert all(later - earlier >= 1_009 for earlier, later in itertools.pairwise(starts))
    assert [len(window) for window in quickstart.held_out_windows(text[:100], 1_009)] == [100]


@pytest.mark.parametrize("steps", [1, 2, 7, 600])
def test_the_last_step_has_the_full_context_and_no_step_more(steps):
    lengths = [quickstart_training.window_length(Settings(steps=steps, context=4_096), step) for step in range(steps)]
    assert lengths[-1] == 4_096 == max(lengths)
    assert lengths == sorted(lengths)


def test_the_learning_rate_warms_up_and_falls():
    factors = [quickstart_training.learning_rate_factor(step, 100) for step in range(100)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert 0 < factors[-1] < 0.02
    assert all(0 < quickstart_training.learning_rate_factor(step, 2) <= 1 for step in range(2))


def test_inner_positions_look_the_same_from_everywhere():
    table = quickstart_training.sinusoids(128, 191, longest=128, whole=True)
    assert table.shape == (128, 191)
    whole = quickstart_training.sinusoids(128, 192, longest=128, whole=True)
    products = whole @ whole.T
    for shift in range(1, 128):
        torch.testing.assert_close(products.roll((shift, shift), (0, 1)), products, rtol=0, atol=1e-3)
    assert products[0, 0] > products[0, 1:].max() + 1
