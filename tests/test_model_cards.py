"""Every card in `model_cards/` can be read by the Hub and describes a model that can be built."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from hf_reformer import ReformerConfig, ReformerModelWithLMHead
from hf_reformer.training.verify_card import verify

FOLDER = Path(__file__).parent.parent / "model_cards"
CARDS = sorted(FOLDER.glob("reformer-*.md"))  # of published checkpoints
TRAINED = sorted(FOLDER.glob("hf-reformer-*.md"))
ROW = re.compile(r"^\| `(\w+)` \| `(.+)` \|$", re.MULTILINE)


def config_of(card):
    table = card.text.split("## Configuration")[1].split("\n## ")[0]
    return ReformerConfig(**{name: json.loads(value) for name, value in ROW.findall(table)})


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_the_header_parses(path):
    card = ModelCard.load(path)
    assert card.data.pipeline_tag == "text-generation" and card.data.library_name == "transformers"
    assert card.data.base_model == f"google/{path.stem}"


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_the_configuration_makes_the_model_that_the_card_describes(path):
    card = ModelCard.load(path)
    config = config_of(card)
    with torch.device("meta"):
        model = ReformerModelWithLMHead(config)
    stated = re.search(r"([\d,]+) parameters", card.text)[1]
    assert stated == f"{sum(p.numel() for p in model.parameters()):,}"
    assert f"{config.maximum_length:,}" in card.text
    assert config.attn_layers.count("lsh") == 3 and config.is_decoder


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_the_card_says_whose_numbers_these_are(path):
    assert "numbers on this card are the original's" in ModelCard.load(path).text


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_a_card_of_ours_holds_its_recipe_and_its_curve(path):
    card = ModelCard.load(path)
    assert card.data.model_name == path.stem and card.data.eval_results
    recipe = yaml.safe_load(card.text.split("```yaml")[1].split("```")[0])["model"]
    layers, kinds = recipe["num_hidden_layers"], recipe.pop("attn_layers")
    del recipe["initialisation"]
    config = ReformerConfig(**recipe, attn_layers=kinds * (layers // len(kinds)), is_decoder=True, eos_token_id=None)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in ReformerModelWithLMHead(config).parameters())
    assert f"{parameters:,} parameters" in card.text
    assert all((FOLDER / figure).is_file() for figure in re.findall(r"!\[.*?\]\((.+?)\)", card.text))


def test_the_folder_lists_its_cards():
    listed = set(re.findall(r"\]\((.+\.md)\)", (FOLDER / "README.md").read_text()))
    assert listed == {path.name for path in FOLDER.glob("*.md")} - {"README.md"}
    assert len(CARDS) >= 2 and TRAINED


@pytest.mark.parametrize("text", [b"caf\xe9", b"---\na: [\n---\n", b"---\nmodel-index: 3\n---\n"], ids=str)
def test_a_damaged_card_is_named(text, tmp_path):
    (tmp_path / "README.md").write_bytes(text)
    with pytest.raises(ValueError, match="card .*README.md"):
        verify(tmp_path, evaluate=lambda *_, **__: {})
