"""The byte tokenizer: every text and every byte string, there and back, fresh and reloaded."""

import copy
import json
import pickle
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

import hf_reformer
from hf_reformer.model.tokenization_reformer import ReformerByteTokenizer, ReformerTokenizer

TOKENIZER = ReformerByteTokenizer(model_max_length=997, split_special_tokens=True)  # text is its bytes, all of it
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


def test_special_tokens_in_text_are_found_unless_asked_otherwise(tmp_path):
    tokenizer = ReformerByteTokenizer(mask_token="<mask>")
    tokenizer.add_tokens(["<x>"])
    tokenizer.save_pretrained(tmp_path)
    text = "a</s> <mask><x>"
    for one in (tokenizer, ReformerByteTokenizer.from_pretrained(tmp_path)):
        assert one(text)["input_ids"] == [99, 1, 34, 258, 259]
        assert one.decode([99, 1, 34, 258, 259]) == text
        assert one.decode_bytes([99, 1, 34, 258, 259]) == b"a <x>"
        # what is asked for are the bytes of special tokens; `add_tokens` added one that is not special
        assert one(text, split_special_tokens=True)["input_ids"] == [byte + 2 for byte in b"a</s> <mask>"] + [259]


def test_raw_bytes_asked_for_once_stay_so_after_saving(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a</s>")["input_ids"] == [byte + 2 for byte in b"a</s>"]


NAMED = ("bos_token", "unk_token", "sep_token", "cls_token", "mask_token")


@pytest.mark.parametrize("how", ["given", "added"])
def test_every_special_token_survives_saving(how, tmp_path):
    tokens = {name: f"<{name[:3]}>" for name in NAMED}
    tokenizer = ReformerByteTokenizer(**tokens) if how == "given" else ReformerByteTokenizer()
    if how == "added":
        tokenizer.add_special_tokens({**tokens, "additional_special_tokens": ["<|user|>"]})
    tokenizer.save_pretrained(tmp_path)
    text = "".join(tokens.values()) + "<|user|>" * (how == "added")
    expected = list(range(258, 263 + (how == "added")))
    for one in (tokenizer, ReformerByteTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert {name: getattr(one, name) for name in NAMED} == tokens
        assert sorted(one(text)["input_ids"]) == expected
        assert one(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_tokens_of_a_chat_template_are_single_ids(tmp_path):
    tokenizer = ReformerByteTokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, ReformerByteTokenizer.from_pretrained(tmp_path)):
        ids = one.apply_chat_template([{"role": "user", "content": "hi"}], return_dict=False)
        assert ids == [258, *tokenizer.encode_bytes(b"hi"), 259]


WORDS = ["New", "York", "été", " x"]


@pytest.mark.parametrize("pair", [None, ["a", "b"]])
def test_words_given_one_by_one_stay_apart(pair):
    encoded = ReformerByteTokenizer()(WORDS, pair, is_split_into_words=True, return_offsets_mapping=True)
    text = "New York été x" + ("a b" if pair else "")
    assert ReformerByteTokenizer().decode(encoded["input_ids"]) == text
    words = [0] * 3 + [1] * 5 + [2] * 6 + [3] * 2 + ([0] + [1] * 2 if pair else [])
    assert encoded.word_ids() == words
    places = zip(encoded.sequence_ids(), words, encoded["offset_mapping"], strict=True)
    starts = {(sequence, word) for sequence, word, (start, end) in places if start == 0 and end > 0}
    assert len(starts) >= 3 + (2 if pair else 0)  # each word has a first byte (" x" begins with white space)


def test_batches_of_words_stay_apart():
    encoded = ReformerByteTokenizer()([["a", "b"], ["c"]], is_split_into_words=True, padding=True, return_tensors="pt")
    assert ReformerByteTokenizer().batch_decode(encoded["input_ids"], skip_special_tokens=True) == ["a b", "c"]


def test_words_of_a_text_have_their_own_numbers():
    assert ReformerByteTokenizer()("an ant").word_ids() == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("tensors", [None, "pt"])
def test_offsets_name_a_character_at_its_first_byte(tensors):
    text = ["aé b"] if tensors else "aé b"
    offsets = ReformerByteTokenizer()(text, return_offsets_mapping=True, return_tensors=tensors)["offset_mapping"]
    expected = [(0, 1), (1, 2), (2, 2), (3, 3), (3, 4)]
    assert (offsets[0].tolist() if tensors else offsets) == ([list(pair) for pair in expected] if tensors else expected)


def test_whole_word_masking_masks_words():
    tokenizer = ReformerByteTokenizer(mask_token="<mask>")
    text = "the été of naïve cats\nwas süß"
    row = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, whole_word_mask=True, seed=0)
    seen = set()
    for _ in range(20):
        masked = (collator([dict(row)])["labels"][0] != -100).tolist()
        at, data = 0, text.encode()
        for word in re.split(rb"(?=[ \n])", data):
            assert len(set(masked[at : at + len(word)])) == 1, word
            at += len(word)
        seen.add(tuple(masked))
    assert len(seen) > 3


def test_a_new_tokenizer_trained_from_it_loads(tmp_path):
    trained = ReformerByteTokenizer(mask_token="<mask>", model_max_length=997).train_new_from_iterator(
        ["the cat, the hat, the bat é"] * 9, 270, show_progress=False
    )
    trained.save_pretrained(tmp_path)
    for one in (trained, AutoTokenizer.from_pretrained(tmp_path)):
        ids = one("the cat é<mask>")["input_ids"]
        assert len(ids) < len("the cat é<mask>".encode()) and one.decode(ids) == "the cat é<mask>"
        assert (one.pad_token_id, one.eos_token_id, ids[-1], one.model_max_length) == (0, 1, one.mask_token_id, 997)


def test_a_new_tokenizer_smaller_than_the_bytes_is_refused():
    with pytest.raises(ValueError, match="`vocab_size` is 200, but must be at least 258"):
        ReformerByteTokenizer().train_new_from_iterator(["text"], 200)


def bare_folder(folder, vocab_size):
    config = hf_reformer.ReformerConfig(axial_pos_shape=(31, 29), vocab_size=vocab_size, axial_pos_embds_dim=(64, 192))
    config.save_pretrained(folder)
    return folder


def test_a_folder_without_tokenizer_files_and_258_tokens_is_bytes(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(bare_folder(tmp_path, 258))
    assert type(tokenizer) is ReformerByteTokenizer and tokenizer.model_max_length == 31 * 29
    assert tokenizer("é")["input_ids"] == [byte + 2 for byte in "é".encode()]


def test_a_folder_without_tokenizer_files_and_another_vocabulary_says_so(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer files, and `vocab_size` 320, which must be 258"):
        AutoTokenizer.from_pretrained(bare_folder(tmp_path, 320))


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


@pytest.mark.parametrize("text", [[], [[]], 52, None, ["a", 3], {"a": 1}, [["a", "b", 1]]], ids=str)
def test_what_is_no_text_is_refused(text):
    with pytest.raises(ValueError, match="text"):
        TOKENIZER(text)


@pytest.mark.parametrize("words", ["auto", 52, [], [["a"], 3]], ids=str)
def test_what_is_no_list_of_words_is_refused(words):
    with pytest.raises(ValueError, match="must be a list of words"):
        TOKENIZER(words, is_split_into_words=True)


@pytest.mark.parametrize("ids", [None, 3, "34", b"34", {3: 4}, ["3"], [1.5], [None], [[3]], (15, 1j)], ids=str)
def test_ids_that_are_no_whole_numbers_are_refused(ids):
    with pytest.raises(ValueError, match="ids is"):
        TOKENIZER.decode_bytes(ids)


@pytest.mark.parametrize("length", [0.0, 10**30, -1, "x", True], ids=str)
def test_a_longest_length_that_is_none_is_refused(length):
    with pytest.raises(ValueError, match="max_length"):
        TOKENIZER("a", max_length=length, truncation=True)
