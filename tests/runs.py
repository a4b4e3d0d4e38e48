"""Recipes of seconds for tests of runs: a model of a few hundred parameters on the sequences 0w0w, or on text."""

import json
import os
import signal

import yaml
from safetensors.torch import load_file

from hf_reformer import cli
from hf_reformer.training.trainer import RecipeTrainer

MODEL = {
    "attn_layers": ["strict_local", "strict_lsh"], "hidden_size": 14, "feed_forward_size": 11, "num_attention_heads": 2,
    "attention_head_size": 5, "axial_pos_embds": False, "max_position_embeddings": 24, "local_attn_chunk_length": 4,
    "lsh_attn_chunk_length": 4, "num_hashes": 1, "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0,
    "lsh_attention_probs_dropout_prob": 0.0, "initializer_range": 0.3,
}  # fmt: skip
TRAINING = {
    "max_steps": 6, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 4, "learning_rate": 0.01,
    "logging_steps": 1, "eval_steps": 2, "save_steps": 2, "save_total_limit": 9, "disable_tqdm": True,
}  # fmt: skip


def write_recipe(folder, **sections):
    """Path of a recipe file on 0w0w sequences; `sections` are merged into it."""
    recipe = {
        "task": "causal-lm", "model": MODEL, "data": {"format": "duplication", "length": 10, "symbols": 5},
        "training": TRAINING, "evaluation": {"examples": 7},
    }  # fmt: skip
    for name, values in sections.items():
        recipe[name] = {**recipe.get(name, {}), **values} if isinstance(values, dict) else values
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def text_recipe(folder, files, **sections):
    """The same on the bytes of files."""
    data = {"format": "text", "files": [str(file) for file in files], "length": None, "symbols": None, "context": 24}
    data = {key: value for key, value in data.items() if value is not None}
    path = write_recipe(folder, **sections)
    recipe = yaml.safe_load(path.read_text())
    recipe["data"] = data
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(recipe, output, *changes, more=()):
    options = [part for change in changes for part in ("--set", change)]
    return cli.main(["train", str(recipe), "--output", str(output), *options, *more])


def results_of(output):
    return json.loads((output / "results.json").read_text())


def weights(folder):
    return load_file(folder / "model.safetensors")


def signal_at(monkeypatch, step, number=signal.SIGTERM, times=1):
    """A signal, as the system sends it, in the midst of a step."""
    original = RecipeTrainer.training_step

    def stopped(self, *args, **kwargs):
        if self.state.global_step == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RecipeTrainer, "training_step", stopped)
