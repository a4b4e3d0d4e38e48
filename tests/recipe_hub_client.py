"""Run as a script against `hub_server`: trains twice into one repository, then measures both commits by name."""

import sys
from pathlib import Path

from hub_client import say
from huggingface_hub import HfApi
from runs import write_recipe

from hf_reformer.training.evaluate import evaluate_model
from hf_reformer.training.run import train_recipe

NAME = "tester/run"


def main(folder):
    folder = Path(folder)
    recipe = str(write_recipe(folder))
    for steps in (2, 4):
        train_recipe(recipe, folder / str(steps), [f"training.max_steps={steps}"], quiet=True, push_to_hub=NAME)
        HfApi().create_tag(NAME, tag=f"v{steps}")
    for steps in (2, 4):
        measured = evaluate_model(
            NAME, recipe=str(folder / str(steps) / "recipe.yaml"), revision=f"v{steps}", quiet=True
        )
        say(f"v{steps}", loss=measured["loss"])
    start = [f"model.pretrained={NAME}", "model.revision=v2", "training.max_steps=1", "training.learning_rate=1e-9"]
    train_recipe(recipe, folder / "more", start, quiet=True)


if __name__ == "__main__":
    main(sys.argv[1])
