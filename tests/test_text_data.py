"""Text as bytes: which files are found, how they are split and joined, how many bytes tokens stand for."""

import os
import random
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_reformer import ReformerByteTokenizer
from hf_reformer.training import text_data, vocabulary
from hf_reformer.training.corpus import Stream, read_corpus
from hf_reformer.training.settings import TextData
from hf_reformer.training.text_data import (
    as_bytes_tensor,
    draw_windows,
    find_files,
    gzip_bits_per_byte,
    split_by_file,
    standard_library_files,
    xz_bits_per_byte,
)


def write(folder, **texts):
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text)
    return sorted(folder.glob("*.txt"))


def noise(size, seed):
    return random.Random(seed).randbytes(size)


def settings(**changes):
    return TextData(**{"context": 7, "tokenizer": "byte", **changes})


def corpus(*paths, seed=0, **changes):
    return read_corpus(settings(files=[str(path) for path in paths], **changes), seed)


# --- which files ----------------------------------------------------------------------------------------------------


def test_the_standard_library_is_found_without_tests_and_installed_packages():
    files = standard_library_files()
    assert any(file.name == "argparse.py" for file in files)
    assert all(file.suffix == ".py" for file in files)
    assert not {"site-packages", "test", "tests"} & {part for file in files for part in file.parts[-3:-1]}
    assert files == standard_library_files()


def test_folders_give_their_text_files_and_files_are_taken_as_they_are(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / ".hidden").write_text("no")
    (inner / "picture").write_bytes(b"\x89PNG\0\0")
    (inner / "b").write_text("yes")
    (tmp_path / "a").write_text("yes")
    assert find_files([tmp_path, tmp_path / "a"]) == [tmp_path / "a", inner / "b"]
    assert find_files([inner / "picture"]) == [inner / "picture"]


def test_what_a_folder_passes_over_is_counted(tmp_path):
    data = tmp_path / "data"
    (data / "inner").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (data / "a").write_text("yes")
    (data / "wide").write_text("wide", encoding="utf-16")
    (data / "picture").write_bytes(b"\x89PNG\0\0")
    counts = Counter()
    assert find_files([data], counts) == [data / "a"]
    assert counts == {
        "folders_passed_over_as_links": 1,
        "files_passed_over_as_UTF-16": 1,
        "files_passed_over_as_binary": 1,
    }


def test_a_folder_that_cannot_be_read_is_counted(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("yes")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refused(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    counts = Counter()
    assert find_files([tmp_path], counts) == [tmp_path / "a"]
    assert counts == {"folders_passed_over_as_unreadable": 1}


def test_paths_without_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere.*does not exist; allowed are files, pipes and folders"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="holds no text file"):
        find_files([tmp_path])


def test_a_pipe_is_read_once_as_training_and_held_out_text(tmp_path):
    pipe, text = tmp_path / "pipe", b"0123456789" * 10
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(text,), daemon=True)
    writer.start()
    read = corpus(pipe)
    writer.join(10)
    assert [*read.training[:], *read.held_out[:]] == [byte + 2 for byte in text]


def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path):
    (tmp_path / "a").write_text("yes")

    def refused(self):
        raise PermissionError(13, "Permission denied")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="a' cannot be read: Permission denied"):
        patch.setattr("pathlib.Path.read_bytes", refused)
        text_data.contents(tmp_path / "a")


# --- what is held out -----------------------------------------------------------------------------------------------


def test_the_split_is_by_file_and_depends_on_contents_and_seed_alone(tmp_path):
    texts = {f"f{i}": noise(101, i) for i in range(40)}
    split = split_by_file(write(tmp_path / "a", **texts), seed=3, held_out_bytes=0, held_out_share=0.1)
    renamed = {f"g{97 - i}": text for i, text in enumerate(texts.values())}
    again = split_by_file(write(tmp_path / "b", **renamed), seed=3, held_out_bytes=0, held_out_share=0.1)
    assert (split.training, split.held_out) == (again.training, again.held_out)
    other = split_by_file(write(tmp_path / "a", **texts), seed=4, held_out_bytes=0, held_out_share=0.1)
    assert split.held_out != other.held_out
    parts = [*split.training_documents, *split.held_out_documents]
    assert sorted(map(bytes, parts)) == sorted(texts.values())


def test_files_that_are_added_move_none_from_training_to_held_out_text(tmp_path):
    for seed in range(10):
        texts = {f"f{i}": noise(101, 1000 * seed + i) for i in range(80)}
        before = split_by_file(write(tmp_path / f"{seed}", **texts), seed=seed, held_out_bytes=0, held_out_share=0.1)
        more = {f"more{i}": noise(1009 * (i + 1), 1000 * seed + 500 + i) for i in range(3)}
        after = split_by_file(
            write(tmp_path / f"{seed}", **texts, **more), seed=seed, held_out_bytes=0, held_out_share=0.1
        )
        assert not set(map(bytes, after.held_out_documents)) & set(map(bytes, before.training_documents))


def test_about_the_share_asked_for_is_held_out(tmp_path):
    files = write(tmp_path, **{f"f{i}": noise(100, i) for i in range(1000)})
    for share in (0.05, 0.2):
        split = split_by_file(files, seed=0, held_out_bytes=0, held_out_share=share)
        assert split.held_out_files == pytest.approx(1000 * share, rel=0.25)


@pytest.mark.parametrize("sizes", [[100, 10_000], [97] * 12, [5000, 5000], [1, 2, 3, 3000]])
def test_no_more_than_a_quarter_is_held_out_of_files_of_any_size(sizes, tmp_path):
    files = write(tmp_path, **{f"f{i}": noise(size, i) for i, size in enumerate(sizes)})
    for seed in range(8):
        split = split_by_file(files, seed=seed, held_out_bytes=10**6)
        size = sum(map(len, split.held_out_documents))
        assert 0 < size <= sum(sizes) / 4
        assert size + sum(map(len, split.training_documents)) == sum(sizes)


def test_equal_files_are_on_one_side(tmp_path):
    texts = [noise(101, i // 3) for i in range(60)]  # each three times
    split = split_by_file(
        write(tmp_path, **{f"f{i}": text for i, text in enumerate(texts)}), seed=0, held_out_bytes=0, held_out_share=0.2
    )
    assert split.held_out_files
    assert not set(map(bytes, split.training_documents)) & set(map(bytes, split.held_out_documents))


def test_of_copies_of_one_file_the_end_is_in_none_that_is_trained_on(tmp_path):
    text = noise(400, 0)
    split = split_by_file(write(tmp_path, **{f"f{i}": text for i in range(20)}), seed=0, held_out_bytes=0)
    assert split.held_out_files == 1
    assert text.endswith(split.held_out)
    assert all(bytes(part) + split.held_out == text for part in split.training_documents)


def test_of_a_single_file_the_end_is_held_out(tmp_path):
    split = split_by_file(write(tmp_path, only=b"abcdefgh", empty=b""), seed=0, held_out_bytes=100)
    assert (split.training, split.held_out) == (b"abcdef", b"gh")


def test_too_little_text_says_how_much_is_needed(tmp_path):
    with pytest.raises(ValueError, match=r"data has 7 bytes in 1 file\(s\); allowed are at least 8 bytes"):
        split_by_file(write(tmp_path, a=b"seven b"), seed=0, held_out_bytes=0)


def test_the_held_out_fingerprint_follows_the_held_out_text_alone(tmp_path):
    texts = {f"f{i}": noise(101, i) for i in range(40)}
    (tmp_path / "a").mkdir()
    before = corpus(*write(tmp_path / "a", **texts), held_out=0.1)
    kept = {bytes(d) for d in split_by_file(write(tmp_path / "a", **texts), seed=0, held_out_bytes=0, held_out_share=0.1)
            .held_out_documents}  # fmt: skip
    trained = next(name for name, text in texts.items() if text not in kept)
    held = next(name for name, text in texts.items() if text in kept)
    less = {name: text for name, text in texts.items() if name != trained}
    same = corpus(*write(tmp_path / "b", **less), held_out=0.1)
    other = corpus(*write(tmp_path / "c", **{n: t for n, t in texts.items() if n != held}), held_out=0.1)
    assert same.held_out_fingerprint == before.held_out_fingerprint != other.held_out_fingerprint
    assert same.fingerprint != before.fingerprint


# --- ranges, sources, overlap ---------------------------------------------------------------------------------------


def test_ranges_of_bytes_split_files_laid_end_to_end(tmp_path):
    files = write(tmp_path, a=bytes(range(60)), b=bytes(range(60, 100)))
    read = corpus(*files, training_range=[0, 50], evaluation_range=[55, 100])
    assert read.training[:].tolist() == list(range(2, 52))
    held_out = read.held_out[:].tolist()
    assert held_out == [*range(57, 62), 10 + 2, *range(62, 102)]  # a line end between two files


@pytest.mark.parametrize(
    ("ranges", "part"),
    [
        ({"training_range": [0, 60]}, "data.evaluation_range is missing"),
        ({"evaluation_range": [0, 60]}, "data.training_range is missing"),
        ({"training_range": [0, 60], "evaluation_range": [50, 100]}, "must not overlap data.training_range"),
        ({"training_range": [0, 9], "evaluation_range": [80, 101]}, "must end within the 100 bytes"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(ranges, part, tmp_path):
    with pytest.raises(ValueError, match=part):
        corpus(*write(tmp_path, a=bytes(range(100))), **ranges)


def test_ranges_beside_files_to_evaluate_on_are_refused(tmp_path):
    (file,) = write(tmp_path, a=bytes(range(100)))
    with pytest.raises(ValueError, match="data.training_range is .*must be null"):
        corpus(file, evaluation_files=[str(file)], training_range=[0, 9], evaluation_range=[10, 20])


@pytest.mark.parametrize(
    "given", [{"generated": 9, "files": "x"}, {"dataset": "x", "files": "x"}, {"dataset": "x", "evaluation_files": "x"}]
)
def test_two_sources_are_an_error_that_names_both(given):
    with pytest.raises(ValueError) as error:
        read_corpus(settings(**given), 0)
    assert all(f"data.{name}" in str(error.value) for name in given)


def test_training_text_that_is_measured_on_itself_is_said(tmp_path):
    files = write(tmp_path, a=b"first text\n", b=b"second text\n")
    same = corpus(*files, evaluation_files=[str(file) for file in files])
    assert "measured on the text that it was trained on" in same.description
    assert "measured on" not in corpus(files[0], evaluation_files=[str(files[1])]).description


def test_documents_on_both_sides_are_counted(tmp_path):
    a, b, c = write(tmp_path, a=b"one text\n", b=b"other text\n", c=b"one text\n")
    read = corpus(a, b, evaluation_files=[str(c)])
    assert read.counts == {"held-out_documents_that_are_training_documents_too": 1}


def test_files_to_evaluate_on_are_enough_to_measure_and_too_little_to_train(tmp_path):
    (file,) = write(tmp_path, a=b"some text to measure on\n")
    data = settings(evaluation_files=str(file))
    assert len(read_corpus(data, 0, trained=False).held_out) == 24
    with pytest.raises(ValueError, match="data.files is missing"):
        read_corpus(data, 0)


# --- joined into a stream -------------------------------------------------------------------------------------------


def test_documents_are_separated_by_end_tokens_or_line_ends(tmp_path):
    write(tmp_path / "data", **{f"f{i}": b"a%d" % i for i in range(10)})
    separated = corpus(tmp_path / "data", separate_documents=True, held_out=0.2)
    assert (separated.training[:] == 1).sum() == 20 // 2 - separated.held_out_sizes.tolist().count(0)
    plain = bytes(ReformerByteTokenizer().decode_bytes(corpus(tmp_path / "data", held_out=0.2).training[:]))
    lines = plain.split(b"\n")
    assert all(len(line) == 2 for line in lines)
    assert len(lines) > 5


def test_a_stream_gives_any_slice_of_its_parts():
    parts = [
        np.arange(3, 8, dtype=np.uint8),
        np.array([1], np.int32),
        np.zeros(0, np.uint8),
        np.arange(9, dtype=np.uint16),
    ]
    stream, flat = Stream(parts), [5, 6, 7, 8, 9, 1, *range(9)]
    assert len(stream) == 15
    for start in range(16):
        for stop in range(start, 17):
            assert stream[start:stop].tolist() == flat[start:stop]


def test_large_files_stay_on_disk(tmp_path, monkeypatch):
    (file,) = write(tmp_path, a=noise(1000, 0))
    whole = corpus(file)
    monkeypatch.setattr(text_data, "MAPPED", 100)
    mapped = corpus(file)
    assert isinstance(mapped.training.parts[0].base, np.memmap) or isinstance(mapped.training.parts[0], np.memmap)
    assert mapped.training[:].tolist() == whole.training[:].tolist()
    assert mapped.fingerprint == whole.fingerprint


# --- tokens and the bytes that they stand for ------------------------------------------------------------------------

TEXT = (
    "Anna sees the red lamp in Paris.\nBoris sells  two boats, žluťoučký!\n  indented\ttwice </s> <mask> <pad>\n日本"
    * 20
)


def foreign(kind):
    """Tokenizers in the layouts of other families, trained on other text than they are measured on."""
    special = ["<pad>", "</s>", "<unk>", "<mask>"]
    split = Regex(r"\w+|[^\w\s]+|\s+(?!\S)|\s+")
    by_bytes = pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])  # fmt: skip
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model, before, decoder, trainer = {
        "split and bytes": (models.BPE(), by_bytes, decoders.ByteLevel(),
                            trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)),
        "word pieces": (models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(),
                        trainers.WordPieceTrainer(vocab_size=120, special_tokens=special)),
        "unigram": (models.Unigram(), pre_tokenizers.Metaspace(), decoders.Metaspace(),
                    trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>")),
        "byte fallback": (models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True), pre_tokenizers.Metaspace(),
                          decoders.ByteFallback(),
                          trainers.BpeTrainer(vocab_size=340, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))])),
    }[kind]  # fmt: skip
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = before, decoder
    trainer.show_progress = False
    backend.train_from_iterator(["Clara paints the blue door in Lagos.\n Boris finds  the ring"] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>"
    )


FOREIGN = ["split and bytes", "word pieces", "unigram", "byte fallback"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_the_tokens_of_any_tokenizer_stand_for_all_bytes_of_the_text(kind):
    document = np.frombuffer(TEXT.encode(), np.uint8)
    found = vocabulary.encoded(foreign(kind), document)
    assert len(found.ids) == len(found.sizes) > 100
    assert found.sizes.sum() == len(document)
    assert found.sizes.min() >= 0
    assert found.undecodable == 0


def test_a_token_stands_for_the_bytes_from_the_token_before_to_its_end():
    sizes = vocabulary.bytes_between("a  éb ", [(0, 1), (3, 4), (3, 4), (4, 5)])
    assert sizes.tolist() == [1, 4, 0, 2]  # two spaces dropped, é of two bytes in two tokens, a space at the end


@pytest.mark.parametrize("kind", [kind for kind in FOREIGN if kind != "unigram"])
def test_special_tokens_that_the_text_spells_are_its_characters(kind):
    tokenizer = foreign(kind)
    found = vocabulary.encoded(tokenizer, np.frombuffer(b"the </s> and the <mask> and <pad>", np.uint8))
    special = {tokenizer.eos_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id}
    assert not special & set(found.ids.tolist())


def test_special_tokens_that_a_vocabulary_finds_in_the_text_are_counted():
    found = vocabulary.encoded(foreign("unigram"), np.frombuffer(b"the </s> and the <mask> and <pad>", np.uint8))
    assert found.special == 3
    assert found.sizes.sum() == 33


def test_bytes_that_are_no_text_are_counted_one_each():
    document = np.frombuffer("café à la crème\n".encode("latin-1") * 50, np.uint8)
    found = vocabulary.encoded(foreign("split and bytes"), document)
    assert found.undecodable == 150
    assert found.sizes.sum() == len(document)


def test_unknown_tokens_and_undecodable_bytes_are_said(tmp_path):
    files = write(tmp_path, a=b"Anna sees the lamp \xe9\xe8\n" * 40, b="日本語\n".encode() * 40)
    tokenizer = foreign("unigram")
    data = settings(files=str(files[0]), evaluation_files=str(files[1]))
    read = read_corpus(data, 0, tokenizer=tokenizer)
    assert read.counts["bytes_of_training_text_that_are_no_UTF-8"] == 80
    unknown = (read.held_out[:] == tokenizer.unk_token_id).sum()
    assert read.counts["unknown_tokens_in_held_out_text"] == unknown > 0


def test_separators_stand_for_no_byte(tmp_path):
    (file,) = write(tmp_path, a=b"some text that is trained on\n")
    for tokenizer in (ReformerByteTokenizer(), foreign("split and bytes")):
        data = settings(files=str(file), evaluation_files=[str(file)], separate_documents=True)
        read = read_corpus(data, 0, tokenizer=tokenizer)
        assert read.held_out[:][-1] == tokenizer.eos_token_id
        assert read.held_out_sizes[-1] == 0
        assert read.held_out_sizes.sum() == 29


@pytest.mark.parametrize(("kind", "size"), [("byte", None), ("bpe", 120), ("byte-bpe", 300)])
def test_tokens_of_our_own_vocabularies_give_the_text_back(kind, size, tmp_path):
    tokenizer = vocabulary.build_tokenizer(settings(tokenizer=kind, vocab_size=size), [TEXT.encode()])
    assert len(tokenizer) <= (size or 258)
    tokenizer.save_pretrained(tmp_path)
    document = np.frombuffer(TEXT.encode(), np.uint8)
    for used in (tokenizer, vocabulary.load_tokenizer(str(tmp_path), 7)):
        found = vocabulary.encoded(used, document)
        assert used.decode(Stream([found.ids])[:].tolist()) == TEXT
        assert found.sizes.sum(dtype=int) == len(document)
        assert found.unknown == 0


def test_a_vocabulary_too_small_for_the_characters_says_how_many_there_are():
    with pytest.raises(ValueError, match=r"data.vocab_size is 10, but must be at least \d+"):
        vocabulary.build_tokenizer(settings(tokenizer="bpe", vocab_size=10), [TEXT.encode()])


# --- windows and compressors ----------------------------------------------------------------------------------------


def test_windows_are_a_function_of_seed_and_step_and_reach_both_ends():
    text = as_bytes_tensor(bytes(range(13)))
    state = torch.get_rng_state()
    windows = draw_windows(text, length=11, count=50, seed=5, step=7)
    assert torch.equal(windows, draw_windows(text, length=11, count=50, seed=5, step=7))
    assert not torch.equal(windows, draw_windows(text, length=11, count=50, seed=5, step=8))
    assert not torch.equal(windows, draw_windows(text, length=11, count=50, seed=6, step=7))
    assert {tuple(window) for window in windows.tolist()} == {tuple(range(i, i + 11)) for i in range(3)}
    assert torch.equal(state, torch.get_rng_state())


def test_compressors_need_little_for_repetition_and_all_bits_for_noise():
    text = noise(50_000, 0)
    for bits_per_byte in (gzip_bits_per_byte, xz_bits_per_byte):
        assert 8.0 < bits_per_byte(text) < 8.1
        assert bits_per_byte(b"ab" * 25_000) < 0.05
    assert xz_bits_per_byte(text * 2) < 4.1 < gzip_bits_per_byte(text * 2)  # gzip looks 32,768 bytes back


# --- near-duplicates --------------------------------------------------------------------------------------------------


def words(seed, count):
    generator = random.Random(seed)
    return [f"w{generator.randrange(10_000)}" for _ in range(count)]


def document(*parts):
    return np.frombuffer(" ".join(word for part in parts for word in part).encode(), np.uint8)


def test_documents_that_share_runs_of_words_with_held_out_ones_are_left_out_of_training():
    held_out, other, more = words(0, 400), words(1, 400), words(2, 4000)
    training = {
        "half of it is held out": document(held_out[:200], other[:200]),
        "holds a held-out document": document(more, held_out),
        "a tenth of it is held out": document(held_out[:40], other[:360]),
        "another": document(other),
        "the same words in another order": document(sorted(held_out)),
        "short": document(other[:3]),
    }
    kept = text_data.without_near_duplicates(list(training.values()), [document(held_out), document(words(3, 50))], 0.3)
    names = {bytes(array): name for name, array in training.items()}
    assert [names[bytes(array)] for array in kept] == list(training)[2:]


def test_a_short_held_out_document_within_a_long_one_is_found():
    title = words(0, 5)
    assert (
        text_data.without_near_duplicates([document(title), document(words(1, 99))], [document(title)], 0.5)[0].size
        > 30
    )


def test_near_duplicates_are_counted_and_the_standard_library_stands_among_other_files(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_reformer.training.corpus.standard_library_files", lambda: [tmp_path / "library.py"])
    (tmp_path / "library.py").write_text(" ".join(words(9, 300)))
    (tmp_path / "held.txt").write_text(" ".join(words(0, 300)))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "near.txt").write_text(" ".join(words(0, 300)[:250] + words(1, 50)))
    (tmp_path / "texts" / "new.txt").write_text(" ".join(words(2, 300)))
    data = TextData(
        files=[str(tmp_path / "texts"), "standard-library"], evaluation_files=[str(tmp_path / "held.txt")], context=32,
        near_duplicates=0.3,
    )  # fmt: skip
    corpus = read_corpus(data, seed=0)
    text = bytes((corpus.training[0 : len(corpus.training)] - 2).astype(np.uint8)).decode()
    assert text.split() == words(9, 300) + words(2, 300)
    assert corpus.counts["training_documents_left_out_as_near_duplicates_of_held-out_ones"] == 1
    assert "standard library and files of the user's own" in corpus.description
