"""Data of recipes: packing, masking, tokenizers, rows, metrics; against counting by hand and plain formulas."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_reformer import ReformerByteTokenizer
from hf_reformer.training import corpus, examples, images, metrics, rows, task, text_tasks, vocabulary
from hf_reformer.training.settings import ClassificationData, ImageData, QuestionData, TagData, TextData


def settings(**changes):
    return TextData(**{"context": 7, "tokenizer": "byte", **changes})


@pytest.mark.parametrize("tokens", [2, 7, 8, 13, 14, 97])
def test_packed_windows_predict_each_token_exactly_once(tokens):
    stream = np.arange(100, 100 + tokens)
    count = examples.number_of_windows(tokens, 7, 1)
    windows = [examples.packed_window(stream, i, 7, 1) for i in range(count)]
    assert np.concatenate([window[1:] for window in windows]).tolist() == stream[1:].tolist()
    assert min(map(len, windows)) > 1


@pytest.mark.parametrize("tokens", [1, 7, 8, 14, 97])
def test_packed_windows_without_overlap_hold_each_token_exactly_once(tokens):
    stream = np.arange(tokens)
    windows = [examples.packed_window(stream, i, 7, 0) for i in range(examples.number_of_windows(tokens, 7, 0))]
    assert np.concatenate(windows).tolist() == stream.tolist()
    assert min(map(len, windows)) > 0


def test_each_epoch_reads_every_window_once_in_another_order():
    stream = np.arange(2, 60, dtype=np.uint16)
    make = text_tasks.causal_maker(stream, settings(), task.Plan(steps=100, per_step=1, seed=3))
    count = examples.number_of_windows(len(stream), 7, 1)
    epochs = [[int(make(i)["input_ids"][0]) for i in range(e * count, (e + 1) * count)] for e in range(3)]
    assert all(sorted(epoch) == list(range(2, 59, 6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_an_example_depends_on_seed_and_index_alone():
    stream = np.arange(2, 60, dtype=np.uint16)
    plan = task.Plan(steps=10, per_step=4, seed=3)
    for data in (settings(), settings(windows="random", window_plan=[[0.5, 3], [1.0, 7]])):
        forward = [text_tasks.causal_maker(stream, data, plan)(i)["input_ids"].tolist() for i in range(40)]
        make = text_tasks.causal_maker(stream, data, plan)
        assert [make(i)["input_ids"].tolist() for i in reversed(range(40))] == forward[::-1]


def test_the_window_plan_gives_lengths_by_the_share_of_steps_and_positions_anywhere():
    data = settings(context=16, windows="random", window_plan=[[0.5, 3], [0.8, 5], [1.0, 16]])
    make = text_tasks.causal_maker(np.arange(2, 200, dtype=np.uint16), data, task.Plan(steps=10, per_step=4, seed=0))
    made = [make(i) for i in range(40)]
    assert [len(x["input_ids"]) for x in made] == [3] * 20 + [5] * 12 + [16] * 8
    firsts = {int(x["position_ids"][0]) for x in made[:20]}
    assert len(firsts) > 5
    assert max(int(x["position_ids"][-1]) for x in made) <= 15


def test_a_whole_text_moves_within_its_padding():
    stream = np.arange(2, 12, dtype=np.uint16)
    made = [text_tasks.whole(stream, 16, 0, 0, index) for index in range(30)]
    assert {int(x["attention_mask"].argmax()) for x in made} == set(range(7))
    for x in made:
        assert x["input_ids"][x["attention_mask"] == 1].tolist() == stream.tolist()
        assert x["labels"].tolist() == torch.where(x["attention_mask"] == 1, x["input_ids"], -100).tolist()
        assert x["position_ids"].tolist() == list(range(16))


def test_streamed_documents_are_packed_like_a_stream_and_repeated(tmp_path):
    texts = ["first", "a second one", "", "third"]
    rows_ = datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset()
    data = settings(separate_documents=True, streaming=True, dataset="x")
    tokenizer = ReformerByteTokenizer()
    stream = corpus.joined(tokenizer, [text.encode() for text in texts], tokenizer.eos_token_id)
    count = examples.number_of_windows(len(stream), 7, 1)
    expected = [examples.packed_window(stream, i, 7, 1).tolist() for i in range(count)]
    assert [window.tolist() for window in text_tasks.packed_stream(rows_, data, tokenizer)] == expected
    endless = text_tasks.endless(rows_, data, tokenizer)
    assert [next(endless)["input_ids"].tolist() for _ in range(2 * count)] == expected + expected


def test_masking_follows_bert_and_always_masks_something():
    ids = np.full(200_000, 5)
    made = examples.masked_example(ids, examples.generator(0), share=0.15, mask=99, first=50, size=60)
    chosen = made["labels"] != -100
    assert chosen.float().mean() == pytest.approx(0.15, abs=0.01)
    inside = made["input_ids"][chosen]
    assert (inside == 99).float().mean() == pytest.approx(0.8, abs=0.01)
    assert ((inside >= 50) & (inside < 60)).float().mean() == pytest.approx(0.1, abs=0.01)
    assert (made["input_ids"][~chosen] == 5).all()
    assert (made["labels"][chosen] == 5).all()
    single = examples.masked_example(np.array([5]), examples.generator(0), share=1e-9, mask=99, first=50, size=60)
    assert single["labels"].tolist() == [5]


def test_duplication_repeats_the_word_and_counts_only_the_repetition():
    made = examples.duplication_example(32, 7, examples.generator(1))
    ids, labels = made["input_ids"], made["labels"]
    assert ids[:16].tolist() == ids[16:].tolist()
    assert ids[0] == 0
    assert set(ids[1:16].tolist()) <= set(range(1, 8))
    assert labels.tolist() == [-100] * 17 + ids[17:].tolist()


def test_rows_of_different_lengths_are_padded_with_a_mask():
    batch = examples.collate(
        [examples.language_example(np.array([5, 6, 7])), examples.language_example(np.array([8, 9]))], pad=3
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 3]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, 9, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert "attention_mask" not in examples.collate([examples.language_example(np.array([5, 6]))])


TEXT = "Anna sees the red lamp in Paris.\nBoris sells  two boats, žluťoučký!\n" * 40


@pytest.mark.parametrize(("kind", "size"), [("byte", None), ("bpe", 90), ("byte-bpe", 300)])
def test_tokens_give_the_text_back_and_stand_for_all_its_bytes(kind, size, tmp_path):
    tokenizer = vocabulary.build_tokenizer(settings(tokenizer=kind, vocab_size=size), [TEXT.encode()])
    assert len(tokenizer) <= (size or 258)
    tokenizer.save_pretrained(tmp_path)
    for used in (tokenizer, vocabulary.load_tokenizer(str(tmp_path), 7)):
        ids = vocabulary.encoded(used, TEXT.encode())
        assert used.decode(ids.tolist()) == TEXT
        assert vocabulary.bytes_of_tokens(used, len(used))[ids].sum() == len(TEXT.encode())


def test_a_vocabulary_too_small_for_the_characters_says_how_many_there_are():
    with pytest.raises(ValueError, match=r"data.vocab_size is 10, but must be at least \d+"):
        vocabulary.build_tokenizer(settings(tokenizer="bpe", vocab_size=10), [TEXT.encode()])


def test_ranges_of_bytes_split_a_file(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(100)))
    data = settings(files=str(tmp_path / "file"), training_range=[0, 60], evaluation_range=[80, 100])
    read = corpus.read_corpus(data, seed=0)
    assert read.training.tolist() == list(range(2, 62))
    assert read.held_out.tolist() == list(range(82, 102))
    with pytest.raises(ValueError, match="data.evaluation_range is"):
        corpus.read_corpus(settings(files=str(tmp_path / "file"), training_range=[0, 9], evaluation_range=[80, 101]), 0)


def test_answers_are_found_in_tokens_and_lost_where_they_are_cut_off():
    row = {
        "question": "Où?",
        "context": "Là-bas, près du pont.",
        "answers": {"text": ["près du pont"], "answer_start": [8]},
    }
    tokenizer = ReformerByteTokenizer()
    made = rows.questioned(row, QuestionData(context=64), tokenizer)
    answer = made["input_ids"][made["start_positions"] : made["end_positions"] + 1]
    assert tokenizer.decode_bytes(answer).decode() == "près du pont"
    cut = rows.questioned(row, QuestionData(context=20), tokenizer)
    assert len(cut["input_ids"]) == 20
    assert cut["start_positions"] == cut["end_positions"] == rows.BEYOND
    assert rows.answerable([row, row], QuestionData(context=64)) == [0, 1]
    with pytest.raises(ValueError, match="none whose answer lies within data.context, 20"):
        rows.answerable([row], QuestionData(context=20))


def test_tags_stand_on_the_first_token_of_their_words():
    made = rows.tagged(
        {"tokens": ["Ann", "in", "Rome"], "ner_tags": [1, 0, 2]}, TagData(), ReformerByteTokenizer(), ["O", "P", "L"]
    )
    assert ReformerByteTokenizer().decode_bytes(made["input_ids"]).decode() == "Ann in Rome"
    assert made["labels"].tolist() == [1, -100, -100, 0, -100, -100, 2, -100, -100, -100, -100]


def test_rows_come_from_local_files_with_names_of_labels(tmp_path):
    for name, labels in (("a", ["no", "yes", "no"]), ("b", ["yes"])):
        lines = [json.dumps({"text": f"{label} it is", "label": label}) for label in labels]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = ClassificationData(files=str(tmp_path / "a.jsonl"), evaluation_files=[str(tmp_path / "b.jsonl")])
    training, evaluation, names, _ = rows.read_rows(data, seed=0)
    assert (len(training), len(evaluation), names) == (3, 1, ["no", "yes"])
    assert rows.classified(evaluation[0], data, ReformerByteTokenizer(), names)["labels"] == 1


def test_official_image_files_and_folders_give_the_same_sequences(tmp_path):
    from PIL import Image

    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "batch.npz", data=pictures.reshape(3, 16, 3).transpose(0, 2, 1).reshape(3, 48))
    (tmp_path / "folder").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "folder" / f"{i}.png")
    data = ImageData(files=str(tmp_path / "batch.npz"), evaluation_files=str(tmp_path / "folder"), size=4)
    training, evaluation, _ = images.read_images(data, seed=0)
    assert training.tolist() == evaluation.tolist() == pictures.reshape(3, 48).tolist()
    with pytest.raises(ValueError, match="data.size is 5"):
        images.local_images(str(tmp_path / "folder"), ImageData(size=5))


def test_token_metrics_weigh_tokens_not_batches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 11, 7, generator=generator)
    labels = torch.randint(7, (3, 11), generator=generator)
    labels[0, 2:] = -100
    sizes = torch.tensor([1, 2, 3, 1, 1, 4, 1])
    parts = [metrics.token_statistics(logits[rows_], labels[rows_], sizes, causal=True) for rows_ in ([0], [1, 2])]
    found = metrics.language_summary("token")(torch.cat(parts).sum(0).numpy())
    flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    kept = wanted != -100
    loss = F.cross_entropy(flat[kept], wanted[kept]).item()
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["bits_per_token"] == pytest.approx(loss / math.log(2), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(
        loss * int(kept.sum()) / math.log(2) / int(sizes[wanted[kept]].sum()), rel=1e-6
    )
    assert found["accuracy"] == pytest.approx((flat[kept].argmax(-1) == wanted[kept]).double().mean().item())


def test_macro_f1_is_the_mean_of_the_labels_f1():
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    guesses = torch.tensor([0, 1, 1, 1, 0, 2])
    sums = metrics.class_statistics(F.one_hot(guesses, 4).float(), labels, classes=4).sum(0).numpy()
    found = metrics.label_summary(sums)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_f1"] == pytest.approx((0.5 + 2 / 3 + 1) / 3)  # class 3 does not occur


def test_span_metrics_count_exact_and_overlapping_answers_and_leave_out_those_cut_off():
    def scores(*positions):
        return 10 * F.one_hot(torch.tensor(positions), 8).float()

    first, last = torch.tensor([2, 2, 0]), torch.tensor([4, 5, rows.BEYOND])
    first[2] = rows.BEYOND
    found = metrics.span_statistics((scores(2, 3, 1), scores(4, 4, 6)), (first, last))
    summary = metrics.span_summary(found.sum(0).numpy())
    assert summary["exact_match"] == pytest.approx(1 / 2)
    assert summary["span_f1"] == pytest.approx((1 + 2 * 2 / 6) / 2)
