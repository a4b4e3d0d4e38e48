"""From a recipe to the objects of a run: arguments, model, trainer."""

import importlib.util
import math
from pathlib import Path

import torch
from transformers import AutoConfig, TrainingArguments

from ..model.configuration_reformer import ReformerConfig
from .initialisation import INITIALISATIONS
from .metrics import metrics_of
from .recipes import MUON, OWN_MODEL_KEYS
from .settings import DuplicationData, ImageData, Recipe
from .task import Plan, Task
from .tasks import MODELS
from .trainer import RecipeTrainer, statistics_for

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def training_arguments(recipe: Recipe, output: Path) -> TrainingArguments:
    """The arguments of `Trainer`: the recipe's, and what every run of ours needs.

    Raises:
        ValueError: where a value is not allowed.
    """
    given = dict(recipe.training)
    if given.get("optim") == MUON:
        given.pop("optim")
    report_to = given.pop("report_to", None)
    if report_to is None:
        report_to = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    settings = {
        "use_cache": True,  # stays in the saved configuration; training and evaluation give labels and so keep no cache
        "logging_steps": 10,
        "logging_first_step": True,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_total_limit": 2,
        "eval_on_start": True,
        "use_cpu": not torch.accelerator.is_available(),  # without it `TrainingArguments` refuses bf16 on a CPU
        "dataloader_pin_memory": torch.cuda.is_available(),
        **given,
        "report_to": report_to,
        "train_sampling_strategy": "sequential",  # the order is that of the examples
        "output_dir": str(output),
    }
    try:
        return TrainingArguments(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"training: {error}") from None


def plan_of(recipe: Recipe, arguments: TrainingArguments) -> Plan:
    """How many examples the run reads."""
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return Plan(steps=arguments.max_steps, per_step=per_step, seed=arguments.seed)


def needed_length(data) -> int:
    """Tokens of the longest input."""
    if isinstance(data, ImageData):
        return 3 * data.size**2
    return data.length if isinstance(data, DuplicationData) else data.context


def model_config(recipe: Recipe, vocab_size: int | None = None, more: dict | None = None) -> ReformerConfig:
    """The configuration of the recipe's model.

    Args:
        vocab_size: of the data; the model's is the recipe's, which must be no smaller, or this.
        more: fields that follow from the data.

    Raises:
        ValueError: where a field does not fit the others, the task or the data.
    """
    fields = {key: value for key, value in recipe.model.items() if key not in OWN_MODEL_KEYS}
    causal = recipe.task == "causal-lm"
    if fields.get("is_decoder", causal) != causal:
        raise ValueError(f"model.is_decoder is {fields['is_decoder']}, but must be {causal} for {recipe.task}")
    fields = {**fields, **(more or {}), "is_decoder": causal}
    pretrained, layers = recipe.model.get("pretrained"), recipe.model.get("num_hidden_layers")
    if "attn_layers" in fields and layers is not None:
        fields["attn_layers"] = repeated(fields["attn_layers"], layers)
    if pretrained is None:
        own = {} if vocab_size is None else {"vocab_size": vocab_size}
        config = ReformerConfig(**{"eos_token_id": None, **own, **fields})
    else:
        config = pretrained_config(pretrained, fields)
    if vocab_size is not None and config.vocab_size < vocab_size:
        raise ValueError(
            f"model.vocab_size is {config.vocab_size}, but must be at least {vocab_size}, what the data has"
        )
    if config.maximum_length < needed_length(recipe.data):
        raise ValueError(
            f"model.axial_pos_shape and model.max_position_embeddings cover {config.maximum_length} positions, but must cover the "
            f"{needed_length(recipe.data)} of the data"
        )
    return config


def config_for(recipe: Recipe, task: Task) -> ReformerConfig:
    """The configuration of the recipe's model for the task's data: its vocabulary, special tokens and labels."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    special = {} if task.tokenizer is None else {name: getattr(task.tokenizer, name) for name in names}
    special = {name: value for name, value in special.items() if value is not None}
    return model_config(recipe, task.vocab_size, {**special, **task.model_fields})


def repeated(pattern: list[str], layers: int) -> list[str]:
    """The pattern over and over, up to the number of layers."""
    if layers % len(pattern):
        raise ValueError(
            f"model.attn_layers is {pattern}, but must have a length that divides model.num_hidden_layers, {layers}: it is repeated"
        )
    return list(pattern) * (layers // len(pattern))


def pretrained_config(name: str, fields: dict) -> ReformerConfig:
    """The configuration of a checkpoint with some fields changed."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.pretrained is {name!r}, which cannot be loaded: {error}") from None
    if not isinstance(config, ReformerConfig):
        raise ValueError(f"model.pretrained is {name!r}, a {config.model_type!r} model, but must be a Reformer")
    layers = len(config.attn_layers)
    if "attn_layers" in fields and layers % len(fields["attn_layers"]) == 0:
        fields = {**fields, "attn_layers": repeated(fields["attn_layers"], layers)}
    kept = {key: value for key, value in config.to_dict().items() if key not in ("num_hidden_layers", "num_labels")}
    return ReformerConfig(**{**kept, **fields})


def build_model(recipe: Recipe, config: ReformerConfig, seed: int) -> torch.nn.Module:
    """A new model, or the checkpoint that the recipe starts from, in the recipe's dtype."""
    dtype = recipe.model.get("dtype") or "float32"
    how = recipe.model.get("initialisation")
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}")
    if how is not None and how not in INITIALISATIONS:
        raise ValueError(
            f"model.initialisation is {how!r}, but must be null (transformers' own) or one of {', '.join(INITIALISATIONS)}"
        )
    torch.manual_seed(seed)
    if recipe.model.get("pretrained"):
        model = pretrained_model(MODELS[recipe.task], recipe.model["pretrained"], config)
    else:
        model = MODELS[recipe.task](config)
        if how is not None:
            INITIALISATIONS[how](model)
    return model.to(DTYPES[dtype])


def pretrained_model(model_class, name: str, config: ReformerConfig) -> torch.nn.Module:
    """The checkpoint's weights in a model of this configuration; a head that it has not is new."""
    try:
        return model_class.from_pretrained(name, config=config)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"model.pretrained is {name!r}, which cannot be loaded as the model of this recipe: {error}"
        ) from None


def build_trainer(recipe: Recipe, arguments, task: Task, model, callbacks=()) -> RecipeTrainer:
    """The trainer of a run or of an evaluation.

    Raises:
        ValueError: for a tracker that is not installed, and for arguments that contradict each other.
    """
    arguments.label_names = task.label_names
    try:
        return RecipeTrainer(
            model=model,
            args=arguments,
            train_dataset=task.training,
            eval_dataset=task.evaluation,
            data_collator=task.collate,
            processing_class=task.tokenizer,
            compute_metrics=metrics_of(task.summary),
            preprocess_logits_for_metrics=statistics_for(task),
            callbacks=list(callbacks),
            unit=task.unit,
            muon=recipe.extra.muon_share if recipe.training.get("optim") == MUON else None,
            schedule_steps=recipe.extra.schedule_steps,
            evaluation_hashes=recipe.evaluation.num_hashes,
            reversible_from=recipe.extra.reversible_from,
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"training: {error}") from error


def parameters_of(config: ReformerConfig, task: str) -> int:
    """Number of parameters, without memory for them."""
    with torch.device("meta"):
        return sum(math.prod(parameter.shape) for parameter in MODELS[task](config).parameters())
