"""Recipes: the packaged ones against the published figures, a user's own, and what is refused."""

import math
import os

import pytest
import torch

from hf_reformer import cli
from hf_reformer.training.build import build_model, model_config, needed_length, parameters_of, training_arguments
from hf_reformer.training.recipes import load_recipe, recipe_names
from hf_reformer.training.report import write_recipe

ALL = [
    "classification", "crime-and-punishment", "dna", "dna-masked", "duplication", "emoji", "enwik8", "help-en-de",
    "imagenet64", "masked-lm", "question-answering", "quickstart", "recall", "reversal", "summarization", "text", "text-16k",
    "token-classification", "wmt14-en-de",
]  # fmt: skip
STEPS = [1, 50, 99, 100, 101, 599, 1999, 2000, 2001, 7999, 8000, 20_000]


def config_of(name, *changes):
    return model_config(load_recipe(name, changes))


def learning_rates(name, tmp_path):
    """Learning rate of each step, as `Trainer` schedules it."""
    recipe = load_recipe(name)
    arguments = training_arguments(recipe, tmp_path)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    from hf_reformer.training.trainer import RecipeTrainer

    trainer = RecipeTrainer.__new__(RecipeTrainer)
    trainer.args, trainer.lr_scheduler, trainer.optimizer = arguments, None, optimizer
    trainer.schedule_steps = recipe.extra.schedule_steps
    factor = trainer.create_scheduler(arguments.max_steps).lr_lambdas[0]
    return lambda step: arguments.learning_rate * factor(step)


def test_the_packaged_recipes_are_these():
    assert recipe_names() == ALL


@pytest.mark.parametrize("name", ALL)
def test_full_and_smoke_configurations_cover_their_data_with_strict_layers(name, tmp_path):
    for smoke in (False, True):
        recipe = load_recipe(name, smoke=smoke)
        config = model_config(recipe)
        allowed = {"full"} if name in ("help-en-de", "wmt14-en-de") else {"strict_local", "strict_lsh"}  # as published
        assert set(config.attn_layers) <= allowed
        assert config.maximum_length >= needed_length(recipe.data)
        assert training_arguments(recipe, tmp_path).max_steps == recipe.training["max_steps"]
        assert recipe.source


# published files: 597 MB and 11 MB of float32 (model.safetensors, pytorch_model.bin)
@pytest.mark.parametrize(("name", "megabytes"), [("enwik8", 597), ("crime-and-punishment", 11)])
def test_models_have_the_published_number_of_parameters(name, megabytes):
    recipe = load_recipe(name)
    assert round(4 * parameters_of(model_config(recipe), recipe.task) / 1e6) == megabytes


def test_enwik8_with_the_original_layers_is_the_published_configuration():
    config = config_of("enwik8", "model.attn_layers=[local,local,lsh,local]", "model.num_buckets=512")
    published = {
        "attention_head_size": 128, "attn_layers": ["local", "local", "lsh", "local"] * 3, "axial_pos_shape": (128, 512),
        "axial_pos_embds_dim": (256, 768), "feed_forward_size": 4096, "hidden_act": "relu", "hidden_dropout_prob": 0.2,
        "hidden_size": 1024, "local_attention_probs_dropout_prob": 0.2, "local_attn_chunk_length": 128,
        "lsh_attention_probs_dropout_prob": 0.1, "lsh_attn_chunk_length": 256, "max_position_embeddings": 65536,
        "num_attention_heads": 8, "num_buckets": 512, "num_hashes": 4, "vocab_size": 258,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in published} == published


def test_imagenet64_has_three_axes_of_positions():
    config = config_of("imagenet64")
    assert config.axial_pos_shape == (64, 64, 3)
    assert config.maximum_length == 12_288


@pytest.mark.parametrize(("name", "warmup"), [("enwik8", 2000), ("imagenet64", 8000)])
def test_the_schedule_is_trax_warmup_times_rsqrt(name, warmup, tmp_path):
    rate = learning_rates(name, tmp_path)
    for step in STEPS:
        trax = 0.03125 * min(1, step / warmup) / math.sqrt(max(step, warmup))
        assert rate(step) == pytest.approx(trax, rel=1e-6)


def test_the_schedule_of_crime_and_punishment_is_trax_warmup_times_cosine(tmp_path):
    rate = learning_rates("crime-and-punishment", tmp_path)
    for step in [1, 50, 100, 101, 350, 599]:
        trax = 0.01 * min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * max(0, step - 100) / 900))
        assert rate(step) == pytest.approx(trax, rel=1e-6)


def test_models_of_the_released_recipes_start_as_traxs_did():
    recipe = load_recipe("enwik8", ["model.attn_layers=[local, lsh]", "model.num_hidden_layers=2"], smoke=True)
    model = build_model(recipe, model_config(recipe), seed=0)
    assert model.reformer.embeddings.word_embeddings.weight.detach().std() == pytest.approx(1, abs=0.02)
    assert model.reformer.embeddings.position_embeddings.weights[1].detach().std() == pytest.approx(1, abs=0.05)
    attention = model.reformer.encoder.layers[1].attention
    for matrix in (
        attention.self_attention.query_key.weight,
        attention.output.dense.weight,
        model.lm_head.decoder.weight,
    ):
        bound = (6 / sum(matrix.shape)) ** 0.5
        assert 0.97 * bound < matrix.abs().max() <= bound


def test_changes_win_over_smoke_and_smoke_over_the_recipe():
    full, smoke = load_recipe("text"), load_recipe("text", smoke=True)
    assert full.training["max_steps"] != smoke.training["max_steps"]
    assert full.training["optim"] == smoke.training["optim"]
    assert load_recipe("text", ["training.max_steps=7"], smoke=True).training["max_steps"] == 7


def test_values_are_read_as_the_type_of_their_field():
    recipe = load_recipe("text", ["training.learning_rate=1e-3", "training.bf16=true", "data.files=[a, b]"])
    assert recipe.training["learning_rate"] == 0.001
    assert recipe.training["bf16"] is True
    assert recipe.data.files == [os.path.abspath("a"), os.path.abspath("b")]


def test_the_word_no_of_a_strategy_stays_a_word():
    assert load_recipe("text", ["training.eval_strategy=no"]).training["eval_strategy"] == "no"


def test_a_users_own_file_works_like_a_packaged_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: causal-lm\ndata: {format: duplication, length: 8, symbols: 3}\ntraining: {max_steps: 2}\n")
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.data.length) == ("mine", 8)


def test_a_recipe_extends_others_by_name_and_by_path(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "extends: text\nname: base\nmodel: {num_hidden_layers: 4}\ntraining: {lr_scheduler_kwargs: {a: 1, b: 2}}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "extends: base.yaml\nsource: mine\ntraining: {max_steps: 7, lr_scheduler_kwargs: {b: 3}}\n"
        "smoke: {training: {max_steps: 5}}\n"
    )
    mine, text = load_recipe(str(tmp_path / "mine.yaml")), load_recipe("text")
    assert (mine.name, mine.source, mine.task) == ("mine", "mine", text.task)
    assert mine.model == text.model | {"num_hidden_layers": 4}
    assert mine.data == text.data
    assert mine.training == text.training | {"max_steps": 7, "lr_scheduler_kwargs": {"a": 1, "b": 3}}
    smoke = load_recipe(str(tmp_path / "mine.yaml"), smoke=True)
    assert smoke.training["max_steps"] == 5
    assert smoke.data == load_recipe("text", smoke=True).data


def test_what_is_named_later_wins_where_several_are_extended(tmp_path):
    (tmp_path / "short.yaml").write_text("training: {max_steps: 3}\nevaluation: {samples: 1}\n")
    (tmp_path / "mine.yaml").write_text("extends: [text, short.yaml]\nevaluation: {samples: 5}\n")
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert (recipe.training["max_steps"], recipe.evaluation.samples) == (3, 5)
    assert recipe.training["optim"] == "muon"


def test_a_change_reaches_inside_a_mapping():
    changes = ["training.lr_scheduler_kwargs.min_lr=1e-5", "training.lr_scheduler_kwargs.num_cycles=2"]
    assert load_recipe("text", changes).training["lr_scheduler_kwargs"] == {"min_lr": 1e-5, "num_cycles": 2}


NAMES = ["a\u00a0b.txt", "back\\slash", "both'\".txt", "C:\\text", "[1, 2]", "${x", "null", "# a: b"]


def test_names_that_are_given_as_they_are_pass_no_yaml_and_a_saved_recipe_gives_them_back(tmp_path):
    names = [str(tmp_path / name) for name in NAMES]
    recipe = load_recipe("text", [("data", "files", names)])
    assert recipe.data.files == names
    write_recipe(tmp_path / "recipe.yaml", recipe)
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_a_saved_recipe_names_whole_paths(tmp_path, monkeypatch):
    (tmp_path / "tokenizer").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("text", ["data.files=a.txt", "data.evaluation_files=[b.txt]", "data.tokenizer=tokenizer"])
    data = recipe.plain["data"]
    assert (data["files"], data["evaluation_files"]) == (str(tmp_path / "a.txt"), [str(tmp_path / "b.txt")])
    assert data["tokenizer"] == recipe.data.tokenizer == str(tmp_path / "tokenizer")
    assert load_recipe("text", ["data.dataset=owner/name"]).data.dataset == "owner/name"
    assert load_recipe("text").data.files == "standard-library"


@pytest.mark.parametrize("context", [1024, 1999, 16384])
@pytest.mark.parametrize("name", ["text", "classification"])
def test_the_context_alone_sets_the_positions_and_the_plan_of_windows(name, context):
    recipe, before = load_recipe(name, [f"data.context={context}"]), load_recipe(name)
    config = model_config(recipe)
    assert config.maximum_length == context == config.max_position_embeddings
    assert config.axial_pos_shape[0] * (config.axial_pos_shape[1] - 1) < context  # no row of positions is in vain
    assert 1 / 4 <= config.axial_pos_shape[0] / config.axial_pos_shape[1] <= 1
    if name == "text":
        plan = [[until, min(length, context)] for until, length in before.data.window_plan]
        assert recipe.data.window_plan == [*plan[:-1], [1.0, context]]


def test_positions_that_are_named_beside_the_context_stay():
    changes = ["data.context=1024", "model.axial_pos_shape=[16, 128]", "model.max_position_embeddings=2048"]
    recipe = load_recipe("text", [*changes, "data.window_plan=[[1, 500]]"])
    assert recipe.model["axial_pos_shape"] == [16, 128]
    assert recipe.model["max_position_embeddings"] == 2048
    assert recipe.data.window_plan == [[1.0, 500.0]]


def test_the_length_of_duplication_sets_the_positions():
    assert model_config(load_recipe("duplication", ["data.length=4096"])).axial_pos_shape == (64, 64)


WRONG = {
    "model.hiden_size=3": ["model.hiden_size", "hidden_size"],
    "data.contxt=3": ["data.contxt", "context"],
    "training.max_step=3": ["training.max_step", "max_steps"],
    "evaluation.example=1": ["evaluation.example", "examples"],
    "optimizer.lr=1": ["optimizer.lr=1", "model, data, training, evaluation"],
    "max_steps=3": ["max_steps=3", "SECTION.KEY=VALUE"],
    "training.max_steps": ["training.max_steps", "SECTION.KEY=VALUE"],
    "training.max_steps=many": ["training.max_steps", "'many'", "valid integer"],
    "training.max_steps=0": ["training.max_steps is 0", "greater than or equal to 1"],
    "training.bf16=3": ["training.bf16", "3", "valid boolean"],
    "training.optim=adamm": ["adamm", "adamw_torch"],
    "training.eval_strategy=3": ["training.eval_strategy is 3", "'steps'"],
    "training.report_to=nothing": ["training: nothing is not supported"],
    "training.output_dir=x": ["training.output_dir"],
    "data.windows=some": ["data.windows", "'some'", "'packed', 'random' or 'whole'"],
    "data.context=1": ["data.context is 1,", "greater than or equal to 2"],
    "model.max_position_embeddings=100": ["100 positions", "256"],
    "data.block_size=64": ["data.block_size", "near are data.context"],
    "data.dataset_name=x": ["data.dataset_name", "near are data.dataset"],
    "training.lr=1": ["training.lr", "near are training.learning_rate"],
    "training.num_train_epochs=3": ["training.num_train_epochs", "near are training.max_steps"],
    "training.data_seed=3": ["training.data_seed", "near are training.seed"],
    "training.learning_rate=.nan": ["training.learning_rate is nan", "finite number"],
    "training.learning_rate=-1": ["training.learning_rate is -1", "greater than or equal to 0"],
    "training.seed=-1": ["training.seed is -1", "greater than or equal to 0"],
    "training.lr_scheduler_kwargs.=1": ["training.lr_scheduler_kwargs.", "SECTION.KEY=VALUE"],
    "training.max_steps.inner=1": ["training.max_steps is {'inner': 1}", "valid integer"],
    "training.max_steps=[": ["'['", "no YAML"],
    "evaluation.temperature=.nan": ["evaluation.temperature is nan", "finite number"],
    "data.window_plan=[[0.5, 64]]": ["data.window_plan", "share of the steps"],
    "data.tokenizer=nowhere": ["data.tokenizer is 'nowhere'", "byte-bpe"],
    "data.files=nowhere": ["data.generated and data.files are both given", "data.generated=null"],
    "data.training_range=[0, 9]": ["data.training_range is [0, 9]", "must be null"],
    "data.revision=main": ["data.revision is 'main'", "without a data.dataset"],
    "data.tokenizer_revision=main": ["data.tokenizer_revision is 'main'", "must be null for tokenizer byte"],
    "data.format=images2": ["data.format", "text, images, duplication"],
    "data.held_out=1.5": ["data.held_out is 1.5", "less than 1"],
    "model.attn_layers=[strict_lsh, lsh, full]": ["model.attn_layers", "num_hidden_layers"],
    "model.attn_layers=[none]": ["attn_layers", "strict_local"],
    "model.vocab_size=100": ["model.vocab_size is 100", "258"],
    "model.initialisation=zeros": ["model.initialisation is 'zeros'", "trax, sinusoidal"],
    "model.dtype=int8": ["model.dtype is 'int8'", "bfloat16"],
    "model.is_decoder=false": ["model.is_decoder", "True"],
    "evaluation.temperature=1e-9": ["evaluation.temperature is 1e-09", "at least 0.0001"],
    "evaluation.samples=-1": ["evaluation.samples is -1", "greater than or equal to 0"],
    "evaluation.top_p=0": ["evaluation.top_p is 0", "greater than 0"],
    "model.pretrained=nowhere": ["model.pretrained is 'nowhere'"],
}


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_change_is_one_line_that_names_it(change, tmp_path, capsys):
    output = tmp_path / "output"
    assert cli.main(["train", "text", "--smoke", "--output", str(output), "--set", change]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-reformer train: ")
    for part in WRONG[change]:
        assert part in error
    assert not output.exists()


def test_missing_data_says_where_to_get_it(tmp_path, capsys):
    assert cli.main(["train", "enwik8", "--output", str(tmp_path / "output")]) == 2
    assert "data.files is missing" in (error := capsys.readouterr().err)
    assert "mattmahoney.net/dc/enwik8.zip" in error


def test_an_unknown_recipe_lists_the_packaged_ones(capsys):
    assert cli.main(["train", "enwik9"]) == 2
    assert ", ".join(ALL) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "part"),
    [("- a", "must be a mapping"), ("task: [", "no YAML"), ("task: x\nmodels: {}", "unknown key 'models'"),
     ("task: translation", "task is 'translation'"), ("extends: own.yaml", "extends itself"), ("extends: 3", "extends is 3"),
     ("extends: enwik9", "'enwik9' is unknown"), ("extends: text\nmodel: 3", "model is 3"), ("", "task is None")],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_refused(text, part, tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    assert cli.main(["train", str(path)]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("able", [True, False])
def test_half_precision_is_used_where_the_processor_has_it(able, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able}, raising=False)
    assert training_arguments(load_recipe("quickstart"), tmp_path, "cpu").bf16 is able
    assert training_arguments(load_recipe("duplication"), tmp_path, "cpu").bf16 is False
    asked = load_recipe("quickstart", ["training.bf16=true"])
    assert training_arguments(asked, tmp_path, "cpu").bf16 is True
