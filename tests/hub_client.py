"""Run as a script against `hub_server`: pushes, pulls, and prints one line of JSON per step.

HF_ENDPOINT, HF_HOME and HF_TOKEN are in the environment.
"""

import inspect
import json
import tempfile

import numpy as np
import torch
import transformers
from helpers import build, tiny_config
from huggingface_hub import HfApi, ModelCard, constants
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

import hf_reformer
from hf_reformer import ReformerByteTokenizer, ReformerConfig, ReformerImageProcessor, ReformerModelWithLMHead

REPOSITORY, TRAINED, IMAGES = "tester/strict", "tester/trained", "tester/images"


def say(step, **values):
    print("ANSWER " + json.dumps({"step": step} | values), flush=True)


def make_model(seed=0):
    config = tiny_config(["strict_local", "strict_lsh"], vocab_size=258, use_cache=True)
    return build(config, seed=seed, dtype=torch.float32)


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(15)[None]).logits.flatten().tolist()


def push():
    """Code, weights in shards, tokenizer, card; a branch with other weights; a tag; what Trainer pushes; a refusal."""
    ReformerConfig.register_for_auto_class()
    ReformerModelWithLMHead.register_for_auto_class("AutoModelForCausalLM")
    model, other = make_model(), make_model(seed=1)
    model.push_to_hub(REPOSITORY, max_shard_size="20KB", private=True)
    ReformerByteTokenizer(model_max_length=221).push_to_hub(REPOSITORY)
    card = ModelCard("---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n# Strict\n")
    if "ENDPOINT" not in inspect.getsource(
        ModelCard.validate
    ):  # before 2.4 it asks huggingface.co, whatever the endpoint is
        card.validate = lambda repo_type=None: None
    card.push_to_hub(REPOSITORY)
    api = HfApi()
    api.create_tag(REPOSITORY, tag="v1")
    other.push_to_hub(REPOSITORY, revision="other")
    say("pushed", logits=logits(model), other=logits(other))
    ReformerConfig._auto_class = ReformerModelWithLMHead._auto_class = None
    train(api, TRAINED, ReformerByteTokenizer(), "trained")
    train(api, IMAGES, ReformerImageProcessor(size={"height": 3, "width": 5}, token_offset=2), "trained on images")
    try:
        make_model().push_to_hub(REPOSITORY, token="hf_wrong")
    except Exception as error:
        say("refused", error=f"{type(error).__name__}: {error}")


def train(api, repository, processor, step):
    """Two steps of Trainer that push checkpoints, then the end result with its card and tokenizer or image processor."""
    rows = [{"input_ids": list(range(10)), "labels": list(range(10))}] * 4
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, push_to_hub=True, hub_model_id=repository, max_steps=2, save_steps=1, hub_strategy="checkpoint",
            per_device_train_batch_size=2, report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(make_model(), arguments, train_dataset=rows, processing_class=processor)
        trainer.train()
        trainer.push_to_hub()
        say(step, logits=logits(trainer.model))


def pull():
    """By name, at main, at a branch and at a tag; through a pipeline; with a download that breaks off; without a token."""
    constants.DOWNLOAD_CHUNK_SIZE = 500  # of 10 MB: bytes that came in less than one are asked for again
    say("main", logits=logits(AutoModelForCausalLM.from_pretrained(REPOSITORY)))
    say("other", logits=logits(AutoModelForCausalLM.from_pretrained(REPOSITORY, revision="other")))
    say("v1", logits=logits(AutoModelForCausalLM.from_pretrained(REPOSITORY, revision="v1")))
    trained = AutoModelForCausalLM.from_pretrained(TRAINED)
    say("pulled trained", logits=logits(trained), type=type(trained).__name__)
    say("tokenizer", ids=AutoTokenizer.from_pretrained(REPOSITORY)("é").input_ids)
    images = AutoImageProcessor.from_pretrained(IMAGES)
    say("image processor", type=type(images).__name__, ids=images(np.zeros((3, 5), np.uint8))["input_ids"][0].tolist())
    say("pulled with images", logits=logits(AutoModelForCausalLM.from_pretrained(IMAGES)))
    generator = pipeline("text-generation", model=REPOSITORY)
    say("pipeline", text=generator("ab", max_new_tokens=3, do_sample=False)[0]["generated_text"])
    try:
        AutoModelForCausalLM.from_pretrained(REPOSITORY, token=False, force_download=True)
    except OSError as error:
        say("anonymous", error=str(error))


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    assert hf_reformer.__version__
    push()
    pull()
