"""Runs of a tiny recipe: figures of the model that is kept, time over sessions, refusals, extensions, what is never lost."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
import yaml
from runs import results_of, signal_at, text_recipe, train, weights, write_recipe
from transformers import TrainerCallback

from hf_reformer import ReformerByteTokenizer, cli
from hf_reformer.training import machine, minutes, report, sealing, trainer, verify_card
from hf_reformer.training.build import build_model, build_trainer, config_for, plan_of, training_arguments
from hf_reformer.training.checkpoints import latest_whole_checkpoint
from hf_reformer.training.evaluate import evaluate_model
from hf_reformer.training.folder import LOCK_FILE
from hf_reformer.training.minutes import with_steps
from hf_reformer.training.optimizers import MuonWithAdam
from hf_reformer.training.recipes import load_recipe
from hf_reformer.training.run import running, train_recipe
from hf_reformer.training.samples import Samples, track
from hf_reformer.training.tasks import build_task
from hf_reformer.training.trainer import RecipeTrainer, work_ahead

WORST_IS_BEST = [
    "training.load_best_model_at_end=true",
    "training.metric_for_best_model=loss",
    "training.greater_is_better=true",
]


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Output folder of a finished run."""
    folder = tmp_path_factory.mktemp("done")
    assert train(write_recipe(folder), folder / "run") == 0
    return folder / "run"


# --- figures --------------------------------------------------------------------------------------------------------------


def test_the_figures_beside_the_best_model_are_its_own(recipe, tmp_path):
    assert train(recipe, tmp_path / "run", *WORST_IS_BEST) == 0
    results = results_of(tmp_path / "run")
    losses = {entry["step"]: entry["loss"] for entry in results["evaluations"]}
    assert results["best_step"] == max([2, 4, 6], key=losses.get) != 6
    assert results["after"]["loss"] == losses[results["best_step"]]
    assert evaluate_model(str(tmp_path / "run" / "model"), quiet=True)["loss"] == pytest.approx(
        results["after"]["loss"]
    )
    assert (
        f"of step {results['best_step']}, the best evaluation" in (tmp_path / "run" / "model" / "README.md").read_text()
    )


def test_seconds_are_counted_over_all_sessions(recipe, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(trainer.time, "monotonic", lambda: now[0])
    original = RecipeTrainer.training_step

    def slow(self, *args, **kwargs):
        now[0] += 100
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RecipeTrainer, "training_step", slow)
    options = ["training.logging_steps=4", "training.eval_strategy=no"]
    for step in (1, 2):
        with monkeypatch.context() as patch:
            signal_at(patch, step)
            assert train(recipe, tmp_path / "run", *options, more=["--resume"] if step > 1 else []) == 143
    assert train(recipe, tmp_path / "run", *options, more=["--resume"]) == 0
    assert results_of(tmp_path / "run")["training_seconds"] == 600


def write_texts(folder):
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"{i}: one word after another and so on\n" * (5 + i))
    return sorted(folder.glob("*.txt"))


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    assert train(text_recipe(folder, write_texts(folder)), folder / "run", "training.max_steps=1") == 0
    return str(folder / "run" / "model")


def test_evaluate_refuses_other_evaluation_data_than_the_cards_and_says_where_it_was_asked_for(texts, tmp_path):
    assert train(text_recipe(tmp_path, texts), tmp_path / "run") == 0
    model = str(tmp_path / "run" / "model")
    measured = evaluate_model(model, quiet=True)
    assert measured["same_data_as_the_card"] is True
    assert measured["loss"] == pytest.approx(results_of(tmp_path / "run")["after"]["loss"])
    for text in texts:
        text.write_text("something else altogether\n" * 20)
    with pytest.raises(ValueError, match="evaluation data has changed since the model was measured"):
        evaluate_model(model, quiet=True)
    asked = evaluate_model(model, changes=[f"data.files={json.dumps([str(t) for t in texts])}"], quiet=True)
    assert asked["same_data_as_the_card"] is False


def test_a_saved_recipe_holds_from_another_folder(texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(text_recipe(tmp_path, [text.name for text in texts]), "run") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate_model(str(tmp_path / "run" / "model"), quiet=True)["same_data_as_the_card"]
    assert str(tmp_path) not in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize("name", ["a\u00a0b.txt", "back\\slash.txt", "both'\"quotes.txt", "[a, b].txt", "#x.txt"])
def test_any_file_name_can_be_measured(name, tmp_path, text_model):
    (tmp_path / name).write_text("one word after another\n" * 9)
    assert evaluate_model(text_model, files=[tmp_path / name], quiet=True)["loss"] > 0


def test_a_run_that_diverges_is_an_error_and_leaves_no_figures(recipe, tmp_path, capsys):
    assert train(recipe, tmp_path / "run", "training.learning_rate=1e30", "training.max_grad_norm=0") == 2
    assert "training diverged: " in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists() and not (tmp_path / "run" / "model").exists()


def test_a_loss_that_is_no_number_is_not_saved_between_two_logs(recipe, tmp_path, monkeypatch, capsys):
    original = RecipeTrainer.training_step
    monkeypatch.setattr(
        RecipeTrainer, "training_step",
        lambda self, *a, **k: original(self, *a, **k) * (float("nan") if self.state.global_step == 2 else 1),
    )  # fmt: skip
    options = ["training.logging_steps=50", "training.eval_strategy=no", "training.logging_first_step=false"]
    assert train(recipe, tmp_path / "run", *options) == 2
    assert "loss is nan" in capsys.readouterr().err
    assert latest_whole_checkpoint(tmp_path / "run").name == "checkpoint-2"


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["training.optim=muon", "training.weight_decay=0.1"], "weight_decay is given, but would do nothing: optim: muon"),
        (["training.optim=muon", "training.adam_beta1=0.8"], "adam_beta1"),
        (["training.muon_share=0.2"], "training.muon_share is 0.2, but does nothing without training.optim=muon"),
        (["training.data_seed=3"], "training.data_seed is not a key that is known"),
        (["training.num_train_epochs=3"], "num_train_epochs"),
        (["training.auto_find_batch_size=true"], "auto_find_batch_size"),
        (["training.hub_token=x"], "hub_token"),
        (["training.seed=4294967296"], "training.seed is 4294967296, but must be less than 4294967296"),
        (["model.revision=v1"], "model.revision is 'v1', but does nothing without model.pretrained"),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(changes, part, recipe, tmp_path, capsys):
    assert train(recipe, tmp_path / "run", *changes) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("field", "value"), [("eos_token_id", "null"), ("pad_token_id", "5")])
def test_a_special_token_that_is_not_the_tokenizers_is_refused(field, value, texts, tmp_path, capsys):
    assert train(text_recipe(tmp_path, texts), tmp_path / "run", f"model.{field}={value}") == 2
    assert f"model.{field} is" in capsys.readouterr().err


def test_the_saved_configuration_ends_where_the_tokenizer_does(texts, tmp_path):
    recipe = load_recipe(str(text_recipe(tmp_path, texts)))
    task = build_task(recipe, plan_of(recipe, training_arguments(recipe, tmp_path)))
    config = config_for(recipe, task)
    assert (config.eos_token_id, config.pad_token_id) == (1, 0)
    assert ReformerByteTokenizer().eos_token_id == 1


def test_peak_memory_is_of_this_process_alone_and_not_given_where_unknown(monkeypatch, tmp_path):
    code = "import torch; from hf_reformer.training.machine import peak_memory_gib as p; print(p(torch.device('cpu')))"
    filled = torch.ones(1 << 28)  # 1 GiB
    del filled
    before = machine.peak_memory_gib(torch.device("cpu"))
    assert before > 1
    assert float(subprocess.check_output([sys.executable, "-c", code], text=True)) < 0.9
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    assert machine.peak_memory_gib(torch.device("cuda")) == 3
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / "missing")
    assert machine.peak_memory_gib(torch.device("cpu")) is None


def test_a_card_of_unknown_memory_says_so(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "peak_memory_gib", lambda device: None)
    assert train(recipe, tmp_path / "run", "training.max_steps=1") == 0
    assert "peak memory unknown" in (tmp_path / "run" / "model" / "README.md").read_text()


# --- folders --------------------------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder_are_refused(recipe, tmp_path, capsys):
    with running(str(recipe), tmp_path / "run", quiet=True):
        code = (
            "import sys; from hf_reformer import cli\n"
            f"sys.exit(cli.main(['train', {str(recipe)!r}, '--output', {str(tmp_path / 'run')!r}, '--resume']))"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode == 2 and "is in use: another run is writing there" in other.stderr


def test_a_run_that_failed_at_its_first_step_makes_room_for_the_next(recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "training_step", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "recipe.yaml").exists()
    assert train(recipe, tmp_path / "run") == 0


def test_a_run_with_a_checkpoint_makes_no_room(recipe, tmp_path, monkeypatch, capsys):
    signal_at(monkeypatch, 1)
    assert train(recipe, tmp_path / "run") == 143
    assert train(recipe, tmp_path / "run") == 2
    assert "continue it with --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [("recipe.yaml", ""), ("recipe.yaml", "task: ["), ("recipe.yaml", "- a"), ("run.json", ""), ("run.json", "[]"),
     ("run.json", None)],
)  # fmt: skip
def test_a_damaged_file_of_the_run_is_one_line_that_names_it(name, content, recipe, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signal_at(patch, 1)
        assert train(recipe, tmp_path / "run") == 143
    path = tmp_path / "run" / name
    path.unlink() if content is None else path.write_text(content)
    assert train(recipe, tmp_path / "run", more=["--resume"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(path) in error and "damaged" in error


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("model", "hidden_size", 12), ("data", "symbols", 4), ("training", "learning_rate", 0.5), ("training", "max_steps", 5)],
)  # fmt: skip
def test_a_resumed_run_is_the_same_in_every_section(section, key, value, done, tmp_path, capsys):
    changed = write_recipe(tmp_path, **{section: {key: value}})
    assert train(changed, done, more=["--resume"]) == 2
    assert f"{section}.{key} is {value}, but the run to resume has" in capsys.readouterr().err


def test_a_resumed_run_has_the_same_task(texts, tmp_path, capsys):
    recipe = text_recipe(tmp_path, texts)
    assert train(recipe, tmp_path / "run", "training.max_steps=1") == 0
    recipe.write_text(recipe.read_text().replace("causal-lm", "masked-lm"))
    assert train(recipe, tmp_path / "run", "training.max_steps=1", more=["--resume"]) == 2
    assert "task is masked-lm, but the run to resume has causal-lm" in capsys.readouterr().err


def test_a_run_goes_on_by_itself_and_for_longer_than_it_was_begun(recipe, tmp_path):
    assert train(recipe, tmp_path / "run") == 0
    assert train_recipe(None, tmp_path / "run", ["training.max_steps=9"], resume=True) == 0
    results = results_of(tmp_path / "run")
    assert (results["steps"], results["extended"]) == (9, [[6, 6, 9]])
    assert [entry["step"] for entry in results["evaluations"]] == [0, 2, 4, 6, 8, 9]
    assert "At step 6 the run was extended from 6 to 9 steps" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert train_recipe(None, tmp_path / "run", resume=True) == 0
    assert results_of(tmp_path / "run")["extended"] == [[6, 6, 9]]


def test_an_own_recipe_is_evaluated_a_few_times_and_not_at_every_log(tmp_path):
    recipe = write_recipe(tmp_path)
    content = yaml.safe_load(recipe.read_text())
    del content["training"]["eval_steps"], content["training"]["save_steps"]
    recipe.write_text(yaml.safe_dump(content))
    assert train(recipe, tmp_path / "run", "training.max_steps=30") == 0
    assert [entry["step"] for entry in results_of(tmp_path / "run")["evaluations"]] == list(range(0, 31, 3))


# --- what is never lost -----------------------------------------------------------------------------------------------------


def test_a_picture_that_fails_costs_no_model(recipe, tmp_path, monkeypatch, capsys):
    def broken(*args):
        raise RuntimeError("no font")

    monkeypatch.setattr(report, "plot_losses", broken)
    assert train(recipe, tmp_path / "run") == 0
    assert "loss.png could not be drawn (RuntimeError: no font)" in capsys.readouterr().out
    assert weights(tmp_path / "run" / "model")
    assert "loss.png" not in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_run_without_matplotlib_has_pictures_of_samples(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = ["training.max_steps=1", "training.eval_strategy=no", "evaluation.examples=1"]
    assert train("imagenet64", tmp_path / "run", *options, more=["--smoke"]) == 0
    assert (tmp_path / "run" / "samples" / "step-0.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run" / "loss.png").exists()


def test_a_reader_who_has_gone_does_not_end_the_run(recipe, tmp_path):
    code = f"from hf_reformer import cli; import sys; sys.exit(cli.main(['train', {str(recipe)!r}, '--output', 'run']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 0, error
    assert (tmp_path / "run" / "results.json").exists()


def test_a_stopped_run_keeps_the_weights_it_was_stopped_with(recipe, tmp_path, monkeypatch):
    signal_at(monkeypatch, 4)
    with running(str(recipe), tmp_path / "run", WORST_IS_BEST, quiet=True) as run:
        assert run.carry_out() == 143
    last = weights(latest_whole_checkpoint(tmp_path / "run"))
    assert run.trainer.state.best_global_step == 2 and latest_whole_checkpoint(tmp_path / "run").name == "checkpoint-5"
    assert all(torch.equal(value, last[name]) for name, value in run.trainer.model.state_dict().items() if name in last)


def test_sealing_flushes_every_file_and_the_folder(tmp_path, monkeypatch):
    flushed = set()
    monkeypatch.setattr(sealing.os, "fsync", lambda fd: flushed.add(sealing.os.readlink(f"/proc/self/fd/{fd}")))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("x")
    sealing.seal(tmp_path)
    assert flushed == {str(tmp_path), *map(str, tmp_path.rglob("*"))}


def test_windows_flushes_files_that_it_may_write_and_no_folders(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(sealing, "WINDOWS", True)
    original = sealing.os.open
    monkeypatch.setattr(sealing.os, "open", lambda path, flags: opened.append((path, flags)) or original(path, flags))
    (tmp_path / "file").write_text("x")
    sealing.seal(tmp_path)
    assert {path.name for path, _ in opened} == {"file", "manifest.json"}
    assert {flags for _, flags in opened} == {sealing.os.O_RDWR}


# --- models ---------------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_there_are_an_error_but_for_the_head_of_a_training(done, tmp_path):
    recipe = load_recipe(str(done / "model" / "recipe.yaml"))
    start = {**recipe.model, "pretrained": str(done / "model")}
    masked = dataclasses.replace(recipe, task="masked-lm", model=start)
    config = config_for(recipe, build_task(recipe, plan_of(recipe, training_arguments(recipe, tmp_path))))
    config.is_decoder = False
    classes = dataclasses.replace(masked, task="classification")
    assert build_model(classes, config, seed=0).classifier is not None
    with pytest.raises(ValueError, match="lacks .* weights of a ReformerForSequenceClassification"):
        build_model(classes, config, seed=0, new_head=False)
    from safetensors.torch import save_file

    kept = {name: value for name, value in weights(done / "model").items() if ".layers.1." not in name}
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text((done / "model" / "config.json").read_text())
    save_file(kept, tmp_path / "cut" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks .* as reformer\.encoder\.layers\.1"):
        config.is_decoder = True
        build_model(dataclasses.replace(recipe, model={**start, "pretrained": str(tmp_path / "cut")}), config, seed=0)


def test_adam_gets_its_share_of_the_learning_rate_and_muon_the_matrices(done, tmp_path):
    recipe = load_recipe(str(done / "model" / "recipe.yaml"))
    model = build_model(
        recipe, config_for(recipe, build_task(recipe, plan_of(recipe, training_arguments(recipe, tmp_path)))), seed=0
    )
    frozen = model.reformer.encoder.layers[0].feed_forward.dense.dense.weight.requires_grad_(False)
    optimizer = MuonWithAdam(model, lr=0.5, share=0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.15]
    matrices, others = (set(map(id, group["params"])) for group in optimizer.param_groups)
    assert id(frozen) not in matrices | others
    assert id(model.reformer.embeddings.word_embeddings.weight) in others
    assert all(p.ndim == 2 for p in optimizer.param_groups[0]["params"]) and matrices
    assert len(matrices | others) == len(list(model.parameters())) - 1


def test_adapters_are_trained_alone_merged_and_kept(done, tmp_path):
    pytest.importorskip("peft")
    recipe = write_recipe(tmp_path, model={"pretrained": str(done / "model")}, peft={"r": 2, "lora_alpha": 8})
    assert train(recipe, tmp_path / "run", "training.max_steps=4") == 0
    before, after = weights(done / "model"), weights(tmp_path / "run" / "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".query" in name or ".value" in name for name in changed)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    results = results_of(tmp_path / "run")
    assert evaluate_model(str(tmp_path / "run" / "model"), quiet=True)["loss"] == pytest.approx(
        results["after"]["loss"], rel=1e-4
    )


def test_code_travels_where_it_is_asked_for(recipe, tmp_path):
    assert train_recipe(str(recipe), tmp_path / "run", ["training.max_steps=1"], with_code=True, quiet=True) == 0
    assert (tmp_path / "run" / "model" / "modeling_reformer.py").exists()
    assert train_recipe(str(recipe), tmp_path / "plain", ["training.max_steps=1"], quiet=True) == 0
    assert not list((tmp_path / "plain" / "model").glob("*.py"))


# --- from Python -------------------------------------------------------------------------------------------------------------


class Seen(TrainerCallback):
    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def test_callbacks_metrics_and_model_init_come_from_python(recipe, tmp_path):
    seen, made = Seen(), []

    def metrics(prediction):
        counted = prediction.label_ids[:, 1:] != -100
        right = prediction.predictions.argmax(-1)[:, :-1] == prediction.label_ids[:, 1:]
        return {"own_accuracy": right[counted].mean()}

    loaded = load_recipe(str(recipe))
    task = build_task(loaded, plan_of(loaded, training_arguments(loaded, tmp_path)))
    config = config_for(loaded, task)

    def model_init():
        made.append(build_model(loaded, config, seed=7))
        return made[-1]

    code = train_recipe(
        str(recipe), tmp_path / "run", quiet=True, callbacks=[seen], compute_metrics=metrics, model_init=model_init
    )
    assert code == 0 and seen.steps == 6 and made
    after = results_of(tmp_path / "run")["after"]
    assert after["own_accuracy"] == pytest.approx(after["accuracy"])


def test_a_run_stops_early_and_goes_on_counting_when_it_is_resumed(recipe, tmp_path, monkeypatch):
    options = [*WORST_IS_BEST[2:], "training.early_stopping_patience=2", "training.max_steps=20"]
    with monkeypatch.context() as patch:
        signal_at(patch, 4)
        assert train(recipe, tmp_path / "run", *options) == 143
    assert train(recipe, tmp_path / "run", *options, more=["--resume"]) == 0
    results = results_of(tmp_path / "run")
    assert (results["steps"], results["best_step"]) == (6, 2)


def test_hyperparameters_can_be_searched(recipe, tmp_path):
    pytest.importorskip("optuna")
    with running(str(recipe), tmp_path / "run", quiet=True, model_init=True) as run:
        best = run.trainer.hyperparameter_search(
            lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)}, n_trials=2
        )
    assert best.objective > 0


def test_a_model_made_anew_starts_as_the_one_that_is_made_before(recipe, tmp_path):
    for name, init in (("new", True), ("before", None)):
        assert train_recipe(str(recipe), tmp_path / name, ["training.max_steps=1"], quiet=True, model_init=init) == 0
    assert results_of(tmp_path / "new")["before"] == results_of(tmp_path / "before")["before"]


def test_predictions_of_each_example_add_up_to_the_figures(done, tmp_path):
    measured = evaluate_model(str(done / "model"), predictions=tmp_path / "lines.jsonl", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(7))
    total = sum(line["loss"] for line in lines) / sum(line["tokens"] for line in lines)
    assert total == pytest.approx(measured["loss"])
    assert measured["loss"] == pytest.approx(evaluate_model(str(done / "model"), quiet=True)["loss"])


def test_predictions_of_a_head_are_names(tmp_path):
    assert (
        train(
            "classification", tmp_path / "run", "training.max_steps=2", "training.disable_tqdm=true", more=["--smoke"]
        )
        == 0
    )
    measured = evaluate_model(str(tmp_path / "run" / "model"), predictions=tmp_path / "lines.jsonl", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    right = [line["prediction"] == line["label"] for line in lines]
    assert sum(right) / len(right) == pytest.approx(measured["accuracy"])
    assert {line["label"] for line in lines} <= {"praised", "blamed"}


def test_evaluate_prints_json_alone(done, capsys):
    assert cli.main(["evaluate", str(done / "model"), "--set", "training.disable_tqdm=true"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] > 0


# --- samples ----------------------------------------------------------------------------------------------------------------


def sampler(done, tmp_path, **settings):
    recipe = load_recipe(str(done / "model" / "recipe.yaml"), [f"evaluation.{k}={v}" for k, v in settings.items()])
    task = build_task(recipe, plan_of(recipe, training_arguments(recipe, tmp_path)))
    model = build_model(recipe, config_for(recipe, task), seed=0)
    return Samples([torch.arange(1, 6)], recipe.evaluation, tmp_path, None), model


def test_samples_end_where_the_models_positions_do(done, tmp_path):
    samples, model = sampler(done, tmp_path, sample_tokens=100)
    assert len(samples.continued(model, torch.arange(1, 6))) == model.config.maximum_length == 24


def test_samples_leave_the_training_as_it_was(done, tmp_path):
    samples, model = sampler(done, tmp_path, sample_tokens=5)
    model.train()
    torch.manual_seed(3)
    torch.randn(1)
    state = torch.get_rng_state()
    first = samples.continued(model, torch.arange(1, 6))
    assert torch.equal(torch.get_rng_state(), state) and model.training
    torch.manual_seed(4)
    assert torch.equal(samples.continued(model, torch.arange(1, 6)), first)


def test_samples_reach_the_trackers():
    class Writer:
        def __init__(self):
            self.calls = []

        def __getattr__(self, name):
            return lambda *args, **kwargs: self.calls.append((name, *args))

    board, weights_and_biases = Seen(), Seen()
    board.tb_writer, weights_and_biases._wandb = Writer(), Writer()
    track([board, weights_and_biases, Seen()], "text", "a⟹b", 3)
    assert board.tb_writer.calls == [("add_text", "samples", "a⟹b", 3)]
    assert [call[0] for call in weights_and_biases._wandb.calls] == ["Html", "log"]


# --- lengths ----------------------------------------------------------------------------------------------------------------


def test_a_run_of_minutes_scales_all_that_is_counted_in_steps():
    recipe = with_steps(load_recipe("crime-and-punishment"), 150)  # a quarter
    assert {key: recipe.training[key] for key in ("max_steps", "warmup_steps", "eval_steps")} == {
        "max_steps": 150, "warmup_steps": 25, "eval_steps": 25,
    }  # fmt: skip
    assert recipe.extra.schedule_steps == recipe.plain["training"]["schedule_steps"] == 250
    assert recipe.plain["training"]["max_steps"] == 150


def test_a_run_of_minutes_has_the_steps_that_fit_beside_two_evaluations(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(minutes, "timed", lambda trainer, rows: 0.5 * len(rows) * len(rows[0]["input_ids"]) / 20)
    monkeypatch.setattr(minutes, "seconds_of_evaluation", lambda trainer: 1.0)
    assert train_recipe(str(recipe), tmp_path / "run", ["training.max_steps=100000"], minutes=0.1) == 0
    assert results_of(tmp_path / "run")["steps"] == 8
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).training["max_steps"] == 8
    assert "8 steps fit into 0.1 minutes" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not even one step fits"):
        train_recipe(str(recipe), tmp_path / "short", minutes=0.03)


def test_steps_are_timed_on_the_lengths_that_the_run_will_have(tmp_path, monkeypatch):
    recipe = load_recipe("quickstart", smoke=True)  # 80 % of 60 steps of 128 bytes, the rest of 256
    arguments = training_arguments(recipe, tmp_path, quiet=True)
    task = build_task(recipe, plan_of(recipe, arguments))
    trial = build_trainer(recipe, arguments, task, build_model(recipe, config_for(recipe, task), seed=0))
    seconds = []
    real = minutes.timed
    monkeypatch.setattr(minutes, "timed", lambda *args: seconds.append(real(*args)) or seconds[-1])
    assert minutes.seconds_of_step(trial) == pytest.approx(0.8 * seconds[0] + 0.2 * seconds[1])


def test_the_bar_knows_that_steps_grow():
    rows = [{"input_ids": torch.zeros(3 if i < 14 else 11)} for i in range(2 * 10)]
    ahead = work_ahead(rows, 10, per_step=2)
    assert [ahead(step) for step in (0, 1, 7, 8, 10)] == [0, 6, 42, 64, 108]


def test_the_lock_stays_out_of_the_way(done):
    assert LOCK_FILE in {path.name for path in done.iterdir()}


def test_the_figures_of_a_card_are_verified_by_measuring_again(texts, tmp_path, capsys):
    model = tmp_path / "run" / "model"
    train(text_recipe(tmp_path, texts), tmp_path / "run")
    assert verify_card.main([str(model)]) == 0
    assert "DIFFERENT" not in capsys.readouterr().out
    card = (model / "README.md").read_text()
    figure = json.loads((tmp_path / "run" / "results.json").read_text())["after"]["bits_per_byte"]
    (model / "README.md").write_text(card.replace(f"value: {round(figure, 4)}", f"value: {round(figure * 0.98, 4)}"))
    assert verify_card.main([str(model)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.endswith("DIFFERENT")] == ["bits_per_byte"]
    texts[0].write_bytes(b"another text altogether\n" * 9)
    assert verify_card.main([str(model)]) == 2
    assert "has changed since" in capsys.readouterr().err
    (model / "README.md").unlink()
    assert verify_card.main([str(model)]) == 2
    assert "has no card" in capsys.readouterr().err
