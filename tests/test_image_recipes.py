"""A run on pictures from end to end: handwritten digits (scikit-learn's), trained on, measured, completed."""

import json

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, pipeline

from hf_reformer import ReformerImageProcessor, cli


def saved_digits(folder, start, count):
    """Digits of 8 x 8 pixels, dark on white."""
    folder.mkdir()
    for i, digit in enumerate(load_digits().images[start : start + count]):
        Image.fromarray((255 - 15.9 * digit).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    digits = saved_digits(folder / "digits", 0, 400)
    changes = ["data.generated=null", f"data.files={digits}", "evaluation.examples=null", "training.max_steps=90"]
    options = [part for change in changes for part in ("--set", change)]
    output = folder / "run"
    assert cli.main(["train", "emoji", "--smoke", "--output", str(output), "--quiet", *options]) == 0
    return output


def evaluate(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(["evaluate", *map(str, arguments), "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def test_bits_per_dimension_stand_beside_png_in_report_card_and_evaluation(trained, capsys):
    results = json.loads((trained / "results.json").read_text())
    found, bits = evaluate(capsys, trained), results["after"]["bits_per_dimension"]
    assert bits == pytest.approx(results["after"]["loss"] / np.log(2)) and bits < 4.5 < results["png"]
    assert (found["bits_per_dimension"], found["png"]) == (bits, results["png"]) and found["same_data_as_the_card"]
    card = ModelCard.load(trained / "model" / "README.md")
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert "bits_per_dimension" in {result.metric_type for result in card.data.eval_results}
    assert f"PNG needs {results['png']:.4f} bits per dimension" in card.content
    compile(card.content.split("```python")[1].split("```")[0], "card", "exec")


def test_other_images_can_be_measured(trained, capsys, tmp_path):
    found = evaluate(capsys, trained, "--data", saved_digits(tmp_path / "others", 400, 5))
    assert found["examples"] == 5 and found["data"].startswith("5 held out") and found["bits_per_dimension"] < 5


@pytest.mark.parametrize("place", ["model", "checkpoint-90"])
def test_model_and_checkpoint_complete_images_with_the_processor_beside_them(trained, place):
    processor = AutoImageProcessor.from_pretrained(trained / place)
    assert type(processor) is ReformerImageProcessor and sum(processor.first_values) > 300
    complete = pipeline("image-completion", model=str(trained / place), device="cpu")
    digit = Image.open(trained.parent / "digits" / "7.png")
    images = [np.asarray(image) for image in complete(digit, rows=4, num_images=2, seed=0)]
    assert all((image[:4] == np.asarray(digit)[:4, :, None]).all() for image in images)


def test_images_are_named_as_what_to_do_next(tmp_path, capsys):
    options = ["--set", "training.max_steps=1", "--set", "training.eval_strategy=no"]
    assert cli.main(["train", "imagenet64", "--smoke", "--output", str(tmp_path / "run"), *options]) == 0
    assert f"generate {tmp_path / 'run'} --output images.png" in capsys.readouterr().out
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert type(processor) is ReformerImageProcessor and processor.image_size() == (8, 8)
