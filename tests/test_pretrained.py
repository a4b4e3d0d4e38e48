"""Checkpoints that ship: each loads by its bare name, says what its card says it is, and together they are small."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

import hf_reformer
from hf_reformer.auto import SHIPPED, shipped
from hf_reformer.training import verify_card
from hf_reformer.training.cards import without_folders
from hf_reformer.training.examples import generator, recall_example
from hf_reformer.training.settings import RecallData


def test_these_ship():
    assert shipped() == ["emoji-16", "recall", "reversal", "text-16k"]
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 40 * 2**20


@pytest.mark.parametrize("name", shipped())
def test_each_is_whole_and_has_its_card_among_the_model_cards(name):
    folder = Path(hf_reformer.pretrained(name))
    files = {path.name for path in folder.iterdir()}
    assert files >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "run.json",
    }
    assert name in ("recall", "reversal") or files & {"tokenizer_config.json", "preprocessor_config.json"}
    for path in (
        folder / "README.md",
        folder / "recipe.yaml",
        Path(__file__).parents[1] / "model_cards" / f"{name}.md",
    ):
        text = path.read_text()
        assert without_folders(text) == text


def test_text_16k_predicts_english_and_goes_on_from_it():
    """The first inaugural address of George Washington begins so."""
    folder = hf_reformer.pretrained("text-16k")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = "Among the vicissitudes incident to life no event could have filled me with greater anxieties than that of which the "
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert model.config.maximum_length == 16384
    assert loss / torch.log(torch.tensor(2.0)).item() < 3.0
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(written[0]).startswith(text)


def test_emoji_16_predicts_a_round_face_better_than_png_and_goes_on_from_its_half():
    """A yellow disc with two eyes, drawn here; a PNG of it needs 2.96 bits per dimension, headers and all, the model 0.81."""
    y, x = np.mgrid[:64, :64] - 31.5
    disc = np.where((x**2 + y**2 < 29**2)[..., None], (255, 200, 50), (255, 255, 255)).astype(np.uint8)
    disc[22:32, 20:25] = disc[22:32, 39:44] = (90, 60, 30)
    complete = pipeline("image-completion", model=hf_reformer.pretrained("emoji-16"), device="cpu")
    ids = complete.image_processor(disc, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = complete.model(ids, labels=ids).loss.item()
    assert loss / np.log(2) < 1.5
    images = [np.asarray(image) for image in complete(disc, rows=8, num_images=2, seed=0)]
    assert all(np.array_equal(image[:8].reshape(-1), ids[0, : 8 * 16 * 3].numpy()) for image in images)


def test_reversal_writes_512_symbols_backwards_and_its_card_is_true():
    model = AutoModelForSeq2SeqLM.from_pretrained(hf_reformer.pretrained("reversal"))
    symbols = torch.randint(1, 128, (8, 512), generator=torch.Generator().manual_seed(0))
    written = model.generate(symbols, max_length=513, eos_token_id=None, do_sample=False)[:, 1:]
    assert (written == symbols.flip(1)).all(1).sum() >= 7
    verified = verify_card.verify(hf_reformer.pretrained("reversal"))
    assert {name for name, *_ in verified} == {"loss", "accuracy", "exact_match"}
    assert all(agrees for *_, agrees in verified), verified


def test_recall_finds_the_answers_among_far_more_tokens_than_it_was_trained_on_and_its_card_is_true():
    """8 rows of 16,384 tokens, 64 questions; it was trained on at most 512 tokens."""
    folder = hf_reformer.pretrained("recall")
    model = AutoModelForCausalLM.from_pretrained(folder, max_position_embeddings=16_384).eval()
    data, right = RecallData(length=16_384), 0
    for seed in range(8):
        row = recall_example(data.length, data, False, generator(seed))
        with torch.no_grad():
            guesses = model(row["input_ids"][None], num_hashes=16).logits[0, :-1].argmax(-1)
        right += int((guesses == row["labels"][1:]).sum())
    assert right >= 62
    verified = verify_card.verify(folder)
    assert {name for name, *_ in verified} == {"loss", "accuracy"}
    assert all(agrees for *_, agrees in verified), verified


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="must be one of emoji-16, recall, reversal, text-16k"):
        hf_reformer.pretrained("text-32k")
