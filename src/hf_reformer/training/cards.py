"""The card of a trained model: README.md with front matter that the Hub reads."""

import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .settings import ImageData, TextData

TEMPLATE = Path(__file__).with_name("card.md")
PIPELINES = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "classification": "text-classification",
    "question-answering": "question-answering",
    "token-classification": "token-classification",
    "seq2seq": "text2text-generation",
}
AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "token-classification": "AutoModelForTokenClassification",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
# printed in the card of a language model over text as it stands, and run as it stands by `hf-reformer quickstart`
GENERATE = """\
import sys

import hf_reformer  # registers the classes; without it, transformers refuses the strict layers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline, set_seed

folder, prompt = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
room = tokenizer.model_max_length - len(tokenizer(prompt)["input_ids"])
set_seed(0)
print(generate(prompt, max_new_tokens=min(160, room), do_sample=True, temperature=0.7)[0]["generated_text"])
"""
LOAD = """\
import hf_reformer  # registers the classes; without it, transformers refuses the strict layers
from transformers import {auto_class}

model = {auto_class}.from_pretrained("PATH_OR_REPOSITORY")
"""
IMAGES = """\
import sys

import hf_reformer  # registers the classes and the task
from transformers import pipeline

folder, output = sys.argv[1:]
make = pipeline("image-completion", model=folder)
make(num_images=1, seed=0)[0].save(output)  # make("photo.png", rows=8) keeps the upper 8 rows of one
"""
FOLDERS = re.compile(r"(?<![\w.:/~])(?:~?/)(?:[^\s/,'\"\[\]]+/)+")  # of paths on the machine that trained


def model_card(recipe, results: dict, figure: str | None) -> str:
    """Text of README.md; its front matter is checked. Folders of this machine are left out of it."""
    settings = {key: value for key, value in recipe.plain.items() if key not in ("name", "source")}
    rows = [(name.replace("_", " "), name, value) for name, value in results["after"].items()]
    kinds = results["layers"]
    card = ModelCard.from_template(
        front_matter(recipe, results),
        template_path=str(TEMPLATE),
        **{**results, "command": without_folders(results["command"]), "data": without_folders(results["data"])},
        title=f"Reformer trained with the recipe {recipe.name}",
        kinds=", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)),
        rows=rows,
        source=recipe.source,
        settings=without_folders(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)),
        usage=usage_of(recipe),
        figure=figure,
    )
    return str(card)


def usage_of(recipe) -> str:
    """Code that runs as it stands where the model can be used without data of the recipe's own form."""
    if recipe.task == "causal-lm" and isinstance(recipe.data, (TextData, ImageData)):
        return GENERATE if isinstance(recipe.data, TextData) else IMAGES
    return LOAD.format(auto_class=AUTO_CLASSES[recipe.task])


def without_folders(text: str) -> str:
    """The text with absolute paths cut down to their last part."""
    return FOLDERS.sub("", text)


def front_matter(recipe, results: dict) -> ModelCardData:
    """What the Hub reads. The licence of a model of a user's own data only the user can say."""
    own = getattr(recipe.data, "files", None) == "standard-library"
    pipeline = "unconditional-image-generation" if isinstance(recipe.data, ImageData) else PIPELINES[recipe.task]
    return ModelCardData(
        model_name=f"hf-reformer-{recipe.name}",
        language="code" if own else None,
        license="apache-2.0" if own else None,
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["reformer", "hf_reformer"],
        eval_results=[
            EvalResult(
                task_type=pipeline, dataset_type=recipe.name, dataset_name=without_folders(results["data"]), metric_type=name,
                metric_value=round(value, 4),
            )
            for name, value in results["after"].items()
        ],
    )  # fmt: skip
