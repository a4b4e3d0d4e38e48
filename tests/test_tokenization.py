"""The byte tokenizer: every text and every byte string, there and back, fresh and reloaded."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_reformer.model.tokenization_reformer import ReformerByteTokenizer, ReformerTokenizer

TOKENIZER = ReformerByteTokenizer(model_max_length=997)
TEXTS = [
    "",
    "\0",
    "<pad></s>",
    " a  b\n\tc ",
    "é",
    "e\u0301",
    "\u00a0\u2028",
    "𝄞",
    "\U0010ffff",
    "\ufeffx",
    "日本",
    "Ġ",
]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=50))
def test_ids_are_utf8_bytes_plus_two_and_decode_to_the_same_text(text):
    ids = TOKENIZER(text)["input_ids"]
    assert ids == [byte + 2 for byte in text.encode()]
    assert TOKENIZER.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=50))
def test_any_byte_string_survives_encode_bytes_and_decode_bytes(data):
    ids = TOKENIZER.encode_bytes(data)
    assert ids == [byte + 2 for byte in data]
    assert TOKENIZER.decode_bytes(ids) == data
    assert TOKENIZER.decode(ids) == data.decode("utf-8", "replace")


def test_every_single_byte_has_its_own_token():
    assert [TOKENIZER.decode_bytes([i]) for i in range(2, 258)] == [bytes([b]) for b in range(256)]
    assert len(set(TOKENIZER.convert_ids_to_tokens(list(range(258))))) == 258


def test_vocabulary_size_and_special_ids():
    assert (len(TOKENIZER), TOKENIZER.vocab_size) == (258, 258)
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (0, 1)
    assert (TOKENIZER.bos_token, TOKENIZER.unk_token) == (None, None)


@pytest.mark.parametrize("text", TEXTS)
def test_saved_and_reloaded_tokenizer_is_the_same(tmp_path, text):
    TOKENIZER.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    reloaded = ReformerByteTokenizer.from_pretrained(tmp_path)
    assert reloaded.model_max_length == 997
    assert len(reloaded) == 258
    assert reloaded(text)["input_ids"] == [byte + 2 for byte in text.encode()]
    assert reloaded.decode(reloaded(text)["input_ids"]) == text


def test_auto_tokenizer_gives_the_byte_class_once_the_package_is_imported(tmp_path):
    import hf_reformer  # noqa: F401 (registers its classes)

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "reformer"}))
    TOKENIZER.save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is ReformerByteTokenizer


def test_auto_tokenizer_without_the_package_encodes_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    code = (
        "import json, sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "texts = json.loads(sys.argv[2]); ids = [t(x)['input_ids'] for x in texts];"
        "assert 'hf_reformer' not in sys.modules;"
        "print(json.dumps([ids, [t.decode(i) for i in ids], len(t), t.model_max_length]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(TEXTS)]
    ids, texts, size, longest = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert ids == [[byte + 2 for byte in text.encode()] for text in TEXTS]
    assert (texts, size, longest) == (TEXTS, 258, 997)


def test_batches_are_padded_with_zero_and_masked():
    batch = TOKENIZER(["ab", "cde"], padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], torch.tensor([[99, 100, 0], [101, 102, 103]]))
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert TOKENIZER.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["ab", "cde"]
    assert TOKENIZER.decode_bytes(batch["input_ids"][0]) == b"ab"


def test_special_tokens_in_text_are_found_when_asked_for():
    assert TOKENIZER("a</s>", split_special_tokens=False)["input_ids"] == [99, 1]


def test_copies_work():
    for twin in (copy.deepcopy(TOKENIZER), pickle.loads(pickle.dumps(TOKENIZER))):
        assert twin("é<pad>")["input_ids"] == TOKENIZER("é<pad>")["input_ids"]


def test_added_tokens_come_after_the_bytes_and_survive_saving(tmp_path):
    tokenizer = ReformerByteTokenizer()
    tokenizer.add_tokens(["<x>"])
    tokenizer.save_pretrained(tmp_path)
    assert ReformerByteTokenizer.from_pretrained(tmp_path)("a<x>")["input_ids"] == [99, 258]


@pytest.mark.parametrize("text", ["a\ud800b", ["fine", "\udfff"], [["one", "two\udc80"]]])
def test_a_lone_surrogate_is_refused_by_name(text):
    with pytest.raises(ValueError, match="lone surrogate.*encode_bytes"):
        TOKENIZER(text, is_split_into_words=isinstance(text, list) and isinstance(text[0], list))


@pytest.mark.parametrize("bad", [258, -1])
def test_decode_bytes_refuses_ids_outside_the_vocabulary(bad):
    with pytest.raises(ValueError, match=f"ids holds {bad}; allowed are 0 to 257"):
        TOKENIZER.decode_bytes([2, bad])


def test_encode_bytes_refuses_text():
    with pytest.raises(ValueError, match="data must be bytes, got str"):
        TOKENIZER.encode_bytes("text")


def test_a_foreign_vocabulary_is_refused(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["model"]["vocab"] |= {"Ā": 99, "a": 2}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="vocab has 258 entries that are not the byte vocabulary"):
        ReformerByteTokenizer.from_pretrained(tmp_path)


def test_sentencepiece_checkpoints_load_with_the_other_class(tmp_path):
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat sat on the mat\nthe dog sat on the log\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "spiece"), vocab_size=40, model_type="bpe", minloglevel=2
    )
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenizer = ReformerTokenizer.from_pretrained(tmp_path)
    assert tokenizer("the cat sat")["input_ids"] == peer.encode("the cat sat")
    assert tokenizer.decode(peer.encode("the dog")) == "the dog"
