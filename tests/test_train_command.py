"""`hf-reformer train` and `evaluate` at smoke size: what they write, that they learn, agree, stop, resume and refuse."""

import errno
import json
import os
import signal

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hf_reformer import cli
from hf_reformer.training.examples import generator
from hf_reformer.training.generated import sentence
from hf_reformer.training.recipes import recipe_names
from hf_reformer.training.tasks import MODELS
from hf_reformer.training.trainer import RecipeTrainer

CAUSAL_TEXT = ["crime-and-punishment", "enwik8", "text"]
NO_SAMPLES = ["--set", "evaluation.samples=0"]


def train(recipe, output, *more):
    return cli.main(["train", recipe, "--smoke", "--output", str(output), *more])


def results_of(output):
    return json.loads((output / "results.json").read_text())


def evaluate(capsys, model, *more):
    capsys.readouterr()
    assert cli.main(["evaluate", str(model), *more]) == 0
    return json.loads(capsys.readouterr().out)


def weights(output):
    return load_file(output / "model" / "model.safetensors")


def assert_same_weights(left, right):
    left, right = weights(left), weights(right)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """The signal, as the system sends it, in the midst of a step."""
    original = RecipeTrainer.training_step

    def stopped(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RecipeTrainer, "training_step", stopped)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output folder of a smoke run of each recipe, made when it is first asked for."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp("runs") / name
            assert train(name, done[name]) == 0
        return done[name]

    return run


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_learns_at_smoke_size_and_leaves_its_files(name, runs):
    output = runs(name)
    results = results_of(output)
    assert results["after"]["loss"] < results["before"]["loss"] - 0.05
    written = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert written >= {
        "recipe.yaml", "results.json", "loss.png", "model/README.md", "model/loss.png", "model/config.json",
        "model/model.safetensors", "model/recipe.yaml", f"checkpoint-{results['steps']}/manifest.json",
    }  # fmt: skip
    assert not [path for path in written if "tmp" in path]
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", recipe_names())
def test_evaluate_gives_the_figures_of_the_last_evaluation(name, runs, capsys):
    output = runs(name)
    measured = evaluate(capsys, output / "model")
    after = results_of(output)["after"]
    assert {metric: measured[metric] for metric in after} == after


def test_figures_of_answers_do_not_depend_on_the_size_of_the_batch(runs, capsys):
    model = runs("question-answering") / "model"
    one, many = (
        evaluate(capsys, model, "--set", f"training.per_device_eval_batch_size={size}") for size in (1, 32)
    )  # fmt: skip
    assert {"exact_match", "span_f1", "squad_exact_match", "squad_f1"} <= one.keys()
    assert one == {
        name: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for name, value in many.items()
    }


@pytest.mark.parametrize("name", recipe_names())
def test_the_model_folder_loads_with_its_tokenizer_and_card(name, runs):
    output = runs(name)
    results = results_of(output)
    model = MODELS[results["task"]].from_pretrained(output / "model")
    assert model.config.use_cache
    if (output / "model" / "tokenizer.json").exists():
        assert len(AutoTokenizer.from_pretrained(output / "model")) <= model.config.vocab_size
    card = ModelCard.load(output / "model" / "README.md")
    for metric, value in results["after"].items():
        assert f"| {metric.replace('_', ' ')} | {results['before'][metric]:.4f} | {value:.4f} |" in card.content
    assert results["command"] in card.content
    assert {result.metric_type for result in card.data.eval_results} == set(results["after"])


@pytest.mark.parametrize("name", CAUSAL_TEXT)
def test_samples_continue_the_held_out_text_at_each_evaluation(name, runs):
    output = runs(name)
    for entry in results_of(output)["evaluations"]:
        before, after = (output / "samples" / f"step-{entry['step']}.txt").read_text().rstrip("\n").split("⟹")
        assert before
        assert after or entry["step"] == 0


def test_samples_of_images_are_pictures(runs):
    output = runs("imagenet64")
    for entry in results_of(output)["evaluations"]:
        assert (output / "samples" / f"step-{entry['step']}.png").read_bytes().startswith(b"\x89PNG")


# every kind of data order (random, packed, whole, rows), dropout, LSH rotations, accumulation, Muon and Adam
@pytest.mark.parametrize(
    ("name", "changes"),
    [("text", ["model.hidden_dropout_prob=0.1"]), ("enwik8", []), ("crime-and-punishment", []),
     ("masked-lm", ["model.local_attention_probs_dropout_prob=0.1"]), ("dna-masked", []), ("token-classification", [])],
)  # fmt: skip
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(name, changes, tmp_path, monkeypatch, capsys):
    changes = [f"training.{key}" for key in ("max_steps=9", "eval_steps=4", "save_steps=4")] + changes
    options = [part for change in changes for part in ("--set", change)]
    assert train(name, tmp_path / "whole", *options) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, step=5)
        assert train(name, tmp_path / "cut", *options) == 128 + signal.SIGTERM
    assert "stopped after step 6 of 9" in capsys.readouterr().out
    assert not (tmp_path / "cut" / "results.json").exists()
    assert train(name, tmp_path / "cut", *options, "--resume") == 0
    assert "from checkpoint-6" in capsys.readouterr().out
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    whole, cut = results_of(tmp_path / "whole"), results_of(tmp_path / "cut")
    assert whole["evaluations"] == cut["evaluations"]


def test_a_streamed_run_learns_and_resumes_exactly_over_several_passes(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for split, count in (("train", 40), ("test", 20)):
        rows = [json.dumps({"text": sentence(generator(7, i)) * 8}) for i in range(count)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(rows))
    changes = [
        "data.generated=null",
        f"data.dataset={tmp_path / 'data'}",
        "data.streaming=true",
        "data.shuffle_buffer=16",
    ]
    changes += ["data.windows=packed", "data.window_plan=null", "data.separate_documents=true", "evaluation.samples=0"]
    changes += ["training.max_steps=60", "training.save_steps=25"]  # 10,000 bytes are some 20 steps
    options = [part for change in changes for part in ("--set", change)]
    assert train("text", tmp_path / "whole", *options) == 0
    assert results_of(tmp_path / "whole")["after"]["loss"] < results_of(tmp_path / "whole")["before"]["loss"] - 1
    with monkeypatch.context() as patch:
        stop_at(patch, step=41)
        assert train("text", tmp_path / "cut", *options) == 128 + signal.SIGTERM
    assert train("text", tmp_path / "cut", *options, "--resume") == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(self, *args):
        raise OSError(errno.ENOSPC, "The disk is full: checkpoint-5 could not be saved")

    monkeypatch.setattr(RecipeTrainer, "_save_checkpoint", full)
    assert train("text", tmp_path, "--set", "training.max_steps=5", *NO_SAMPLES) == 2
    assert "hf-reformer train: The disk is full" in capsys.readouterr().err


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, step=2, number=signal.SIGINT)
    assert train("duplication", tmp_path) == 130
    assert "--resume continues" in capsys.readouterr().out
    assert (tmp_path / "checkpoint-3" / "manifest.json").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_resumes_from_the_beginning(tmp_path, monkeypatch):
    options = ["--set", "training.max_steps=5", *NO_SAMPLES]
    assert train("text", tmp_path / "whole", *options) == 0
    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "training_step", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train("text", tmp_path / "cut", *options)
    assert train("text", tmp_path / "cut", *options, "--resume") == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_resumed_run_must_be_the_same_run(runs, capsys):
    output = runs("text")
    assert train("text", output, "--resume", "--set", "training.learning_rate=0.5") == 2
    assert "training.learning_rate is 0.5, but the run to resume has 0.04" in capsys.readouterr().err


def test_a_resumed_run_needs_the_same_data(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("one word after another\n" * 200)
    options = [
        "--set",
        "data.generated=null",
        "--set",
        f"data.files={text}",
        "--set",
        "training.max_steps=2",
        *NO_SAMPLES,
    ]
    assert train("text", tmp_path / "run", *options) == 0
    text.write_text("one word before another\n" * 200)
    assert train("text", tmp_path / "run", *options, "--resume") == 2
    assert "data has changed" in capsys.readouterr().err


def test_what_lies_in_the_output_folder_is_not_overwritten(runs, tmp_path, capsys):
    assert train("text", runs("text")) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    (tmp_path / "letter.txt").write_text("dear all")
    assert train("text", tmp_path) == 2
    assert "holds other files" in capsys.readouterr().err


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path):
    assert train("text", tmp_path / "run", "--set", "model.vocab_size=3") == 2
    assert not (tmp_path / "run").exists()


def test_resuming_where_no_run_is_says_so(tmp_path, capsys):
    assert train("text", tmp_path / "none", "--resume") == 2
    assert "holds no run to resume" in capsys.readouterr().err


def test_the_saved_recipe_trains_the_same_model(runs, tmp_path):
    output = runs("text")
    assert cli.main(["train", str(output / "recipe.yaml"), "--output", str(tmp_path / "again")]) == 0
    assert_same_weights(output, tmp_path / "again")
    assert results_of(tmp_path / "again")["recipe"] == "text"


@pytest.mark.parametrize("change", ["training.bf16=true", "model.dtype=bfloat16"])
def test_half_precision_trains_on_a_cpu(change, tmp_path):
    assert train("text", tmp_path, "--set", change, *NO_SAMPLES) == 0
    results = results_of(tmp_path)
    assert results["after"]["loss"] < results["before"]["loss"] - 1
    wanted = torch.bfloat16 if change.startswith("model") else torch.float32
    assert {value.dtype for value in weights(tmp_path).values()} == {wanted}


def test_a_checkpoint_is_the_start_of_another_task(runs, tmp_path):
    start = [
        "--set",
        f"model.pretrained={runs('masked-lm') / 'model'}",
        "--set",
        f"data.tokenizer={runs('masked-lm') / 'model'}",
    ]
    fields = yaml.safe_load((runs("masked-lm") / "recipe.yaml").read_text())["model"]
    same = [f"model.{key}={json.dumps(value)}" for key, value in fields.items()]
    options = [part for change in same for part in ("--set", change)]
    assert train("classification", tmp_path, *options, *start, "--set", "training.max_steps=1") == 0
    name = "reformer.encoder.layers.0.feed_forward.dense.dense.weight"
    before, after = weights(runs("masked-lm"))[name], weights(tmp_path)[name]
    assert (before - after).abs().max() < 0.01


def test_evaluate_with_full_attention_and_with_more_rounds(runs, capsys):
    model = runs("duplication") / "model"
    plain = evaluate(capsys, model)
    full = evaluate(capsys, model, "--set", "model.attn_layers=[full_shared_qk]")
    more = evaluate(capsys, model, "--set", "model.num_hashes=8")
    assert (plain["attn_layers"], full["attn_layers"], more["num_hashes"]) == (["strict_lsh"], ["full_shared_qk"], 8)
    assert len({plain["loss"], full["loss"], more["loss"]}) == 3
    assert evaluate(capsys, model, "--set", "evaluation.num_hashes=8")["loss"] == more["loss"]


def test_evaluate_measures_a_language_model_on_any_file(runs, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Anna sees the red lamp in Paris.\n" * 20)
    measured = evaluate(capsys, runs("text") / "model", "--data", str(text), "--output", str(tmp_path / "metrics.json"))
    noise = tmp_path / "noise.bin"
    noise.write_bytes(bytes(torch.randint(256, (660,), generator=torch.Generator().manual_seed(0)).tolist()))
    assert (
        measured["bits_per_byte"] < evaluate(capsys, runs("text") / "model", "--data", str(noise))["bits_per_byte"] - 3
    )
    assert json.loads((tmp_path / "metrics.json").read_text()) == measured


def test_evaluate_refuses_labels_that_are_not_the_models(runs, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"text": "it", "label": "x"}) + "\n" + json.dumps({"text": "a", "label": "y"})
    )
    rows = [f"data.{key}={tmp_path / 'rows.jsonl'}" for key in ("files", "evaluation_files")]
    options = [part for change in [*rows, "data.generated=null"] for part in ("--set", change)]
    assert cli.main(["evaluate", str(runs("classification") / "model"), *options]) == 2
    assert "data has the labels x, y, but the model has blamed, praised" in capsys.readouterr().err


def test_evaluate_of_what_is_no_model_or_has_no_recipe_says_so(runs, tmp_path, capsys):
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    (tmp_path / "config.json").write_text((runs("text") / "model" / "config.json").read_text())
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "--recipe is missing" in capsys.readouterr().err
