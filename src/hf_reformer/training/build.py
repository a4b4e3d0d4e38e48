"""From a recipe to the objects of a run: arguments, model, trainer."""

import importlib.util
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, EarlyStoppingCallback, TrainingArguments

from ..model.configuration_reformer import ReformerConfig
from .initialisation import INITIALISATIONS
from .machine import has_fast_bfloat16, pick_device
from .metrics import metrics_of
from .recipes import MUON, OWN_MODEL_KEYS
from .resuming import examples_per_step
from .settings import ImageData, Recipe
from .task import Plan, Task
from .tasks import MODELS
from .trainer import RecipeTrainer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SEEDS = 2**32  # NumPy's
USELESS = {
    "data_seed": "the order of the examples follows training.seed",
    "num_train_epochs": "the length of a run is training.max_steps",
    "auto_find_batch_size": "examples are planned by the step, so batches have the size that is given",
    "length_column_name": "examples come in the order of the recipe",
    "do_train": "commands say what is done",
    "do_eval": "commands say what is done",
    "do_predict": "commands say what is done",
    "hub_token": "recipes lie beside models for all to read; log in with `hf auth login`, or set HF_TOKEN",
}
USELESS_WITH_MUON = ("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")


def training_arguments(recipe: Recipe, output: Path, device: str = "auto", quiet: bool = False) -> TrainingArguments:
    """The arguments of `Trainer`: the recipe's, and what every run of ours needs.

    Raises:
        ValueError: where a value is not allowed, or would do nothing.
    """
    given = dict(recipe.training)
    check_training(given, recipe.extra)
    if given.get("optim") == MUON:
        given.pop("optim")
    report_to = given.pop("report_to", None)
    if report_to is None:
        report_to = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    if recipe.extra.half_precision == "auto" and not (given.get("bf16") or given.get("fp16")):
        given["bf16"] = has_fast_bfloat16(pick_device(device))
    if recipe.extra.early_stopping_patience is not None:
        given = {"load_best_model_at_end": True, "metric_for_best_model": "loss", **given}
    settings = {
        "use_cache": True,  # stays in the saved configuration; training and evaluation give labels and so keep no cache
        "logging_steps": 10,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is no number ends the run
        "eval_strategy": "steps",
        "eval_steps": 0.1,  # of the run
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 2,
        "eval_on_start": True,
        "hub_strategy": "end",
        "use_cpu": pick_device(device).type == "cpu",  # without it `TrainingArguments` refuses bf16 on a CPU
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": quiet,
        **given,
        "report_to": report_to,
        "restore_callback_states_from_checkpoint": True,
        "train_sampling_strategy": "sequential",  # the order is that of the examples
        "output_dir": str(output),
    }
    try:
        return TrainingArguments(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"training: {error}") from None


def check_training(given: dict, extra) -> None:
    """Raises `ValueError` for a number out of range and for a key that would do nothing."""
    seed, rate = given.get("seed", 0), given.get("learning_rate", 1.0)
    if not 0 <= seed < SEEDS:
        raise ValueError(f"training.seed is {seed}, but must be a whole number from 0 to {SEEDS - 1}")
    if not 0 < rate < math.inf:
        raise ValueError(f"training.learning_rate is {rate}, but must be a number above 0")
    useless = dict(USELESS)
    if given.get("optim") == MUON:
        useless |= dict.fromkeys(USELESS_WITH_MUON, "optim: muon has none")
    elif extra.muon_share is not None:
        raise ValueError(f"training.muon_share is {extra.muon_share}, but does nothing without training.optim=muon")
    for name in useless:
        if name in given:
            raise ValueError(f"training.{name} is given, but would do nothing: {useless[name]}. Leave it out")


def plan_of(recipe: Recipe, arguments: TrainingArguments) -> Plan:
    """How many examples the run reads."""
    return Plan(steps=arguments.max_steps, per_step=examples_per_step(arguments), seed=arguments.seed)


def needed_length(data) -> int:
    """Tokens of the longest input."""
    if isinstance(data, ImageData):
        return 3 * data.size**2
    return data.length if hasattr(data, "length") else data.context


def model_config(recipe: Recipe, vocab_size: int | None = None, from_data: dict | None = None) -> ReformerConfig:
    """The configuration of the recipe's model.

    Args:
        vocab_size: of the data; the model's is the recipe's, which must be no smaller, or this.
        from_data: fields that follow from the data.

    Raises:
        ValueError: where a field does not fit the others, the task or the data.
    """
    given = {key: value for key, value in recipe.model.items() if key not in OWN_MODEL_KEYS}
    layers = recipe.model.get("num_hidden_layers")
    if "attn_layers" in given and layers is not None:
        given["attn_layers"] = repeated(given["attn_layers"], layers)
    if recipe.model.get("revision") is not None and recipe.model.get("pretrained") is None:
        raise ValueError(f"model.revision is {recipe.model['revision']!r}, but does nothing without model.pretrained")
    derived = {"is_decoder": recipe.task == "causal-lm", "is_encoder_decoder": recipe.task == "seq2seq"}
    fields = merged(given, {**(from_data or {}), **derived})
    if recipe.model.get("pretrained") is None:
        own = {} if vocab_size is None else {"vocab_size": vocab_size}
        config = ReformerConfig(**{"eos_token_id": None, **own, **fields})
    else:
        config = pretrained_config(recipe.model["pretrained"], fields, recipe.model.get("revision"))
    if vocab_size is not None and config.vocab_size < vocab_size:
        raise ValueError(
            f"model.vocab_size is {config.vocab_size}, but must be at least {vocab_size}, what the data has"
        )
    if config.maximum_length < needed_length(recipe.data):
        raise ValueError(
            f"model.axial_pos_shape and model.max_position_embeddings cover {config.maximum_length} positions, but must cover the "
            f"{needed_length(recipe.data)} of the data"
        )
    target = getattr(recipe.data, "target_context", None) or needed_length(recipe.data)
    if config.is_encoder_decoder and config.decoder_part().maximum_length < target:
        raise ValueError(
            f"model.decoder_max_position_embeddings covers {config.decoder_part().maximum_length} positions, but must cover the "
            f"{target} of the targets"
        )
    return config


def merged(given: dict, derived: dict) -> dict:
    """Fields that the recipe gives, and those that follow from task and data; they may not differ."""
    for key in given.keys() & derived.keys():
        if given[key] != derived[key]:
            raise ValueError(
                f"model.{key} is {given[key]}, but must be {derived[key]}, what follows from task and data: leave it out"
            )
    return {**given, **derived}


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


def pretrained_config(name: str, fields: dict, revision: str | None = None) -> ReformerConfig:
    """The configuration of a checkpoint with some fields changed."""
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.pretrained is {name!r}, which cannot be loaded: {error}") from None
    if not isinstance(config, ReformerConfig):
        raise ValueError(f"model.pretrained is {name!r}, a {config.model_type!r} model, but must be a Reformer")
    layers = len(config.attn_layers)
    if "attn_layers" in fields and layers % len(fields["attn_layers"]) == 0:
        fields = {**fields, "attn_layers": repeated(fields["attn_layers"], layers)}
    kept = {key: value for key, value in config.to_dict().items() if key not in ("num_hidden_layers", "num_labels")}
    return ReformerConfig(**{**kept, **fields})


def build_model(recipe: Recipe, config: ReformerConfig, seed: int, new_head: bool = True) -> torch.nn.Module:
    """A new model, or the checkpoint that the recipe starts from, in the recipe's dtype, with adapters where it has some.

    Args:
        new_head: whether a checkpoint may lack the head of this task.
    """
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
        revision = recipe.model.get("revision")
        model = pretrained_model(MODELS[recipe.task], recipe.model["pretrained"], config, revision, new_head)
    else:
        model = MODELS[recipe.task](config)
        if how is not None:
            INITIALISATIONS[how](model)
    model = model.to(DTYPES[dtype])
    return with_adapters(model, recipe.peft) if recipe.peft else model


def pretrained_model(model_class, name: str, config: ReformerConfig, revision=None, new_head=False) -> torch.nn.Module:
    """The checkpoint's weights in a model of this configuration.

    Args:
        new_head: whether the head may be missing, and is then new; all other weights must be there.

    Raises:
        ValueError: for a checkpoint that cannot be loaded as this model, or lacks weights.
    """
    try:
        model, loaded = model_class.from_pretrained(name, config=config, revision=revision, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"model.pretrained is {name!r}, which cannot be loaded as the model of this recipe: {error}"
        ) from None
    body = f"{model.base_model_prefix}."
    missing = sorted(key for key in loaded["missing_keys"] if key.startswith(body) or not new_head)
    if missing:
        raise ValueError(f"model {name!r} lacks {len(missing)} weights of a {model_class.__name__}, as {missing[0]}")
    return model


def with_adapters(model, settings: dict):
    """The model with `peft`'s LoRA; only what that adds is trained."""
    try:
        import peft
    except ImportError:
        raise ValueError(
            "peft is not installed, which the recipe's section needs: pip install 'hf-reformer[peft]'"
        ) from None
    try:
        return peft.get_peft_model(model, peft.LoraConfig(**settings))
    except (TypeError, ValueError) as error:
        raise ValueError(f"peft: {' '.join(str(error).split())}; allowed are the fields of peft.LoraConfig") from None


def build_trainer(
    recipe: Recipe, arguments, task: Task, model=None, callbacks=(), compute_metrics=None, model_init=None
) -> RecipeTrainer:
    """The trainer of a run or of an evaluation.

    Args:
        compute_metrics: further metrics of logits and labels, as `Trainer` takes it.
        model_init: in place of `model`, as `Trainer` takes it.

    Raises:
        ValueError: for a tracker that is not installed, and for arguments that contradict each other.
    """
    extra, callbacks = recipe.extra, list(callbacks)
    if extra.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(extra.early_stopping_patience))
    muon_share = 0.15 if extra.muon_share is None else extra.muon_share
    arguments.label_names = task.label_names
    try:
        return RecipeTrainer(
            model=model,
            model_init=model_init,
            args=arguments,
            train_dataset=task.training,
            eval_dataset=task.evaluation,
            data_collator=task.collate,
            processing_class=task.image_processor if task.tokenizer is None else task.tokenizer,
            compute_metrics=partial(all_metrics, metrics_of(task.summary), compute_metrics),
            preprocess_logits_for_metrics=partial(statistics_of, task, compute_metrics is not None),
            callbacks=callbacks,
            unit=task.unit,
            muon=muon_share if recipe.training.get("optim") == MUON else None,
            schedule_steps=extra.schedule_steps,
            evaluation_hashes=recipe.evaluation.num_hashes,
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"training: {error}") from error


@torch.no_grad()
def statistics_of(task: Task, keep_logits: bool, logits, labels):
    """A `preprocess_logits_for_metrics`: sums per example in place of logits, or beside them."""
    rows = task.statistics(logits, labels)
    return (rows, logits) if keep_logits else rows


def all_metrics(own, more, prediction) -> dict:
    """A `compute_metrics`: the task's figures, and those of a user's function of logits and labels."""
    if more is None:
        return own(prediction)
    rows, *logits = prediction.predictions
    prediction.predictions = logits[0] if len(logits) == 1 else tuple(logits)
    given = {name: float(value) for name, value in more(prediction).items()}
    prediction.predictions = np.asarray(rows)
    return {**own(prediction), **given}


def parameters_of(config: ReformerConfig, task: str) -> int:
    """Number of parameters, without memory for them."""
    with torch.device("meta"):
        return sum(math.prod(parameter.shape) for parameter in MODELS[task](config).parameters())
