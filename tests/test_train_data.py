"""Examples and figures of recipes: windows, masking, order, metrics; against counting by hand and plain formulas."""

import math
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from hf_reformer import ReformerByteTokenizer, ReformerImageProcessor
from hf_reformer.model.losses import IGNORED
from hf_reformer.training import examples, images, metrics, text_tasks
from hf_reformer.training.corpus import Stream, joined
from hf_reformer.training.data_order import DataOrder, _digest
from hf_reformer.training.recipes import load_recipe, recipe_names
from hf_reformer.training.settings import ImageData, RecallData, TextData
from hf_reformer.training.task import Plan
from hf_reformer.training.tasks import build_task
from hf_reformer.training.text_tasks import (
    MaskedWindows,
    PackedWindows,
    RandomMaskedWindows,
    RandomWindows,
    StreamedWindows,
    WholeText,
)


def settings(**changes):
    return TextData(**{"context": 7, "tokenizer": "byte", **changes})


def stream(*ids):
    return Stream([np.array(ids, np.int32)])


def ids_of(example):
    return example["input_ids"].tolist()


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [2, 7, 8, 13, 14, 97])
def test_packed_windows_predict_each_token_exactly_once(tokens):
    text = stream(*range(100, 100 + tokens))
    windows = PackedWindows(text, text, 7, 0, None)
    found = [ids_of(windows.evaluation(i)) for i in range(len(windows.kept))]
    assert [token for window in found for token in window[1:]] == list(range(101, 100 + tokens))
    assert min(map(len, found)) > 1


@pytest.mark.parametrize("tokens", [1, 7, 8, 14, 97])
def test_masked_windows_hold_each_token_exactly_once(tokens):
    text = stream(*range(5, 5 + tokens))
    windows = MaskedWindows(text, text, 7, 0, None, 0.15, build_masked())
    found = [windows.prompt(i).tolist() for i in range(len(windows.kept))]
    assert [token for window in found for token in window] == list(range(5, 5 + tokens))
    assert min(map(len, found)) > 0


def build_masked():
    tokenizer = ReformerByteTokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    return tokenizer


def test_the_windows_that_are_kept_are_spread_over_the_held_out_text():
    assert examples.spread(100, 4) == [0, 25, 50, 75]
    assert examples.spread(3, 4) == examples.spread(3, None) == [0, 1, 2]


def test_each_epoch_reads_every_window_once_in_another_order():
    text = stream(*range(2, 60))
    windows = PackedWindows(text, text, 7, 3, None)
    count = len(windows.kept)
    epochs = [[ids_of(windows.training(i))[0] for i in range(e * count, (e + 1) * count)] for e in range(3)]
    assert all(sorted(epoch) == list(range(2, 59, 6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def kinds_of_windows():
    text, other = stream(*range(2, 60)), stream(*range(60, 90))
    plan = Plan(steps=10, per_step=4, seed=3)
    return {
        "packed": PackedWindows(text, other, 7, 3, None),
        "random": RandomWindows(text, other, 7, 3, None, [[0.5, 3], [1.0, 7]], plan),
        "masked": MaskedWindows(text, other, 7, 3, None, 0.5, build_masked()),
        "whole": WholeText(text, other, 61, 3, 0),
    }


@pytest.mark.parametrize("kind", ["packed", "random", "masked", "whole"])
def test_an_example_depends_on_seed_and_index_alone(kind):
    windows, again = kinds_of_windows()[kind], pickle.loads(pickle.dumps(kinds_of_windows()[kind]))
    forward = [ids_of(windows.training(i)) for i in range(40)]
    assert [ids_of(again.training(i)) for i in reversed(range(40))] == forward[::-1]
    held_out = [ids_of(windows.evaluation(i)) for i in range(len(windows.kept))]
    assert held_out == [ids_of(again.evaluation(i)) for i in range(len(windows.kept))]


@pytest.mark.parametrize("name", recipe_names())
def test_processes_that_are_spawned_get_the_same_examples(name):
    task = build_task(load_recipe(name, smoke=True), Plan(steps=2, per_step=3, seed=0))
    training, evaluation, collate = pickle.loads(pickle.dumps((task.training, task.evaluation, task.collate)))
    for copy, original in ((training, task.training), (evaluation, task.evaluation)):
        batch, expected = (
            part([rows[0], rows[1 % len(rows)]]) for part, rows in ((collate, copy), (task.collate, original))
        )
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_a_spawned_process_loads_the_data():
    task = build_task(load_recipe("masked-lm", smoke=True), Plan(steps=2, per_step=3, seed=0))
    loader = torch.utils.data.DataLoader(
        task.training, batch_size=3, num_workers=1, multiprocessing_context="spawn", collate_fn=task.collate
    )
    batches = list(loader)
    assert len(batches) == 2
    assert torch.equal(batches[1]["labels"], task.collate([task.training[i] for i in (3, 4, 5)])["labels"])


def test_the_window_plan_gives_lengths_by_the_share_of_steps_and_positions_anywhere():
    text = stream(*range(2, 200))
    plan = [[0.5, 3], [0.8, 5], [1.0, 16]]
    windows = RandomWindows(text, text, 16, 0, None, plan, Plan(steps=10, per_step=4, seed=0))
    made = [windows.training(i) for i in range(40)]
    assert [len(x["input_ids"]) for x in made] == [3] * 20 + [5] * 12 + [16] * 8
    firsts = {int(x["position_ids"][0]) for x in made[:20]}
    assert len(firsts) > 5
    assert max(int(x["position_ids"][-1]) for x in made) <= 15


def test_random_masked_windows_follow_the_plan_and_are_masked_anew():
    text = stream(*range(2, 250))
    windows = RandomMaskedWindows(
        text, text, 64, 0, None, [[0.5, 16], [1.0, 64]], Plan(steps=10, per_step=4, seed=0), 0.25, build_masked()
    )
    made = [windows.training(i) for i in range(40)]
    assert [len(x["input_ids"]) for x in made] == [16] * 20 + [64] * 20
    assert len({int(x["position_ids"][0]) for x in made[:20]}) > 10
    chosen = torch.cat([x["labels"] for x in made]) != IGNORED
    assert 0.2 < chosen.float().mean() < 0.3
    for example in made:
        ids, labels = example["input_ids"], example["labels"]
        rest = torch.where(labels == IGNORED, ids, labels)
        assert torch.equal(rest, torch.arange(int(rest[0]), int(rest[0]) + len(ids)))  # one piece of the text
    assert sum(bool((x["input_ids"] == windows.mask).any()) for x in made) > 30
    assert torch.equal(windows.evaluation(2)["input_ids"], windows.evaluation(2)["input_ids"])
    assert [len(windows.prompt(i)) for i in range(len(windows.kept))] == [64, 64, 64, 56]  # these share nothing


def test_a_masked_language_model_refuses_the_whole_text_as_a_window():
    recipe = load_recipe("masked-lm", ["data.windows=whole"], smoke=True)
    with pytest.raises(ValueError, match="data.windows is 'whole', but must be packed or random"):
        build_task(recipe, Plan(steps=2, per_step=1, seed=0))


def test_a_whole_text_moves_within_its_padding():
    text = stream(*range(2, 12))
    windows = WholeText(text, text, 16, 0, 0)
    made = [windows.training(index) for index in range(30)]
    assert {int(x["attention_mask"].argmax()) for x in made} == set(range(7))
    for x in made:
        assert x["input_ids"][x["attention_mask"] == 1].tolist() == text[:].tolist()
        assert x["labels"].tolist() == torch.where(x["attention_mask"] == 1, x["input_ids"], -100).tolist()
        assert x["position_ids"].tolist() == list(range(16))


def test_a_text_shorter_than_a_window_is_said():
    recipe = load_recipe("text", ["data.generated=100", "data.context=256"], smoke=True)
    task = build_task(recipe, Plan(steps=2, per_step=2, seed=0))
    assert task.notes == ["100 training tokens, fewer than a window has"]


def test_masking_follows_bert_and_always_masks_something():
    ids, others = np.full(200_000, 5), np.arange(50, 60)
    made = examples.masked_example(ids, examples.generator(0), share=0.15, mask=99, others=others)
    chosen = made["labels"] != -100
    assert chosen.float().mean() == pytest.approx(0.15, abs=0.01)
    inside = made["input_ids"][chosen]
    assert (inside == 99).float().mean() == pytest.approx(0.8, abs=0.01)
    assert ((inside >= 50) & (inside < 60)).float().mean() == pytest.approx(0.1, abs=0.01)
    assert (made["input_ids"][~chosen] == 5).all()
    assert (made["labels"][chosen] == 5).all()
    single = examples.masked_example(np.array([5]), examples.generator(0), share=1e-9, mask=99, others=others)
    assert single["labels"].tolist() == [5]


def test_no_special_token_but_the_mask_is_put_into_a_masked_text():
    text = stream(*[70] * 30_000)
    windows = MaskedWindows(text, text, 30_000, 0, None, 0.9, build_masked())
    put = set(ids_of(windows.training(0))) - {70, 258}
    assert put == {*range(2, 258)} - {70}


def test_duplication_repeats_the_word_and_counts_only_the_repetition():
    made = examples.duplication_example(32, 7, examples.generator(1))
    ids, labels = made["input_ids"], made["labels"]
    assert ids[:16].tolist() == ids[16:].tolist()
    assert ids[0] == 0
    assert set(ids[1:16].tolist()) <= set(range(1, 8))
    assert labels.tolist() == [-100] * 17 + ids[17:].tolist()


def test_duplication_is_evaluated_on_other_sequences_than_it_trains_on():
    task = build_task(load_recipe("duplication", smoke=True), Plan(steps=8, per_step=8, seed=0))
    trained = {tuple(ids_of(task.training[i])) for i in range(64)}
    assert not trained & {tuple(ids_of(task.evaluation[i])) for i in range(64)}


@pytest.mark.parametrize("dense", [True, False])
def test_recall_asks_for_the_value_of_each_key_where_the_model_predicts_what_comes_next(dense):
    data = RecallData(length=50, pairs=3, symbols=12, fillers=5)
    for seed in range(20):
        made = examples.recall_example(50, data, dense, examples.generator(seed))
        ids, labels = made["input_ids"].tolist(), made["labels"].tolist()
        pairs = dict(zip(ids[0:6:2], ids[1:6:2], strict=True))
        assert len(pairs) == 3 and all(1 <= key <= 6 < value <= 12 for key, value in pairs.items())
        asked = {place: label for place, label in enumerate(labels) if label != -100}
        assert all(label == pairs[ids[place - 1]] for place, label in asked.items())
        questions = [place for place in range(6, 49) if ids[place] <= 6]
        assert [place - 1 for place in asked] == questions
        assert len(questions) == 43 if dense else all(13 <= ids[p] <= 17 for p in set(range(6, 49)) - set(questions))
        assert dense or sorted(ids[p] for p in [*questions, *[49] * (ids[49] <= 6)]) == sorted(pairs)


def test_the_length_of_recall_changes_from_step_to_step_and_not_within_one():
    changes = ["data.training_lengths=[16, 24, 32]", "data.repeated=0.25", "data.length=64"]
    task = build_task(load_recipe("recall", changes, smoke=True), Plan(steps=8, per_step=3, seed=0))
    assert [len(task.training[i]["input_ids"]) for i in range(24)] == [
        length for length in (16, 16, 32, 16, 24, 32, 16, 24) for _ in range(3)
    ]
    fillers = [int((task.training[3 * step]["input_ids"] > 8).sum()) for step in range(8)]
    assert fillers[:2] == [0, 0] and all(fillers[2:])
    assert {len(task.evaluation[i]["input_ids"]) for i in range(32)} == {64}
    assert task.training[7]["input_ids"].tolist() != task.training[6]["input_ids"].tolist()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"symbols": 15}, "data.symbols is 15, but must be even and at least 16"),
        ({"symbols": 14}, "data.symbols is 14, but must be even and at least 16"),
        ({"length": 23}, "data.length has 23, but must be at least 24"),
        ({"training_lengths": [64, 23]}, "data.training_lengths has 23, but must be at least 24"),
        ({"training_lengths": [64, 2048]}, "data.training_lengths has 2048, but .* at most data.length 1024"),
    ],
)
def test_recall_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RecallData(**changes)


def test_rows_of_different_lengths_are_padded_with_a_mask():
    rows = [examples.language_example(np.array([5, 6, 7])), examples.language_example(np.array([8, 9]))]
    batch = examples.collate(rows, pad=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 3]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, 9, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert "attention_mask" not in examples.collate(rows[:1])


# --- streaming ------------------------------------------------------------------------------------------------------

TEXTS = ["first", "a second one", "", "third\n", "and the fourth of them"] * 3


def streamed(texts=TEXTS, **changes):
    rows = datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset()
    return StreamedWindows(rows, settings(streaming=True, dataset="x", **changes), ReformerByteTokenizer())


@pytest.mark.parametrize("separate", [True, False])
def test_streamed_documents_are_packed_like_a_stream_and_repeated(separate):
    tokenizer = ReformerByteTokenizer()
    documents = [np.frombuffer(text.encode(), np.uint8) for text in TEXTS if text]
    if not separate:
        documents = [np.append(d, np.uint8(10)) if d[-1] != 10 else d for d in documents]
    text, _ = joined(
        tokenizer, documents, tokenizer.eos_token_id if separate else None, text_tasks.Counter(), "training"
    )
    windows = PackedWindows(text, text, 7, 0, None)
    expected = [ids_of(windows.evaluation(i)) for i in range(len(windows.kept))]
    endless = iter(streamed(separate_documents=separate))
    assert [ids_of(next(endless)) for _ in range(2 * len(expected))] == expected + expected


@pytest.mark.parametrize("read", [1, 5, 13, 40])
def test_a_stream_goes_on_from_its_state(read):
    whole = iter(streamed(separate_documents=True))
    expected = [ids_of(next(whole)) for _ in range(70)]
    first = streamed(separate_documents=True)
    start = iter(first)
    for _ in range(read):
        next(start)
    second = streamed(separate_documents=True)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    rest = iter(second)
    assert [ids_of(next(rest)) for _ in range(70 - read)] == expected[read:]


def stream_recipe(folder, *changes):
    fixed = ["data.generated=null", f"data.dataset={folder}", "data.streaming=true", "data.windows=packed"]
    return load_recipe("text", [*fixed, "data.window_plan=null", "evaluation.examples=null", *changes], smoke=True)


def splits(folder, **texts):
    for name, rows in texts.items():
        datasets.Dataset.from_dict({"text": rows}).to_json(folder / f"{name}.jsonl")
    return folder


def test_a_stream_is_measured_on_all_of_its_evaluation_split(tmp_path):
    folder = splits(tmp_path, train=["some text"] * 9, test=[f"line {i} " * 40 for i in range(40)])
    task = build_task(stream_recipe(folder), Plan(steps=2, per_step=2, seed=0))
    predicted = sum(len(task.evaluation[i]["input_ids"]) - 1 for i in range(len(task.evaluation)))
    assert (
        predicted == sum(len(f"line {i} " * 40) + 1 for i in range(40)) - 2
    )  # line ends between, the first not predicted
    few = build_task(stream_recipe(folder, "evaluation.examples=3"), Plan(steps=2, per_step=2, seed=0))
    assert len(few.evaluation) == 3


def test_the_fingerprint_of_a_stream_follows_its_contents(tmp_path):
    prints = set()
    for i, (a, b) in enumerate([("one", "two"), ("other", "two"), ("one", "other")]):
        (tmp_path / f"{i}").mkdir()
        folder = splits(tmp_path / f"{i}", train=[a * 9], test=[b * 9])
        recipe = stream_recipe(folder)
        object.__setattr__(recipe.data, "dataset", str(folder))
        prints.add(build_task(recipe, Plan(steps=2, per_step=2, seed=0)).fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["data.text_column=words"], "data.text_column is 'words', but must be one of text"),
        (["training.dataloader_num_workers=2"], "training.dataloader_num_workers is 2, but must be 0 or 1"),
        (["data.evaluation_split=empty"], "no text in column 'text' to evaluate on"),
    ],
)
def test_what_a_stream_cannot_do_is_said_at_the_start(changes, part, tmp_path):
    folder = splits(tmp_path, train=["some text"] * 9, test=["other text"], validation=["", ""])
    changes = [change.replace("empty", "validation") for change in changes]
    with pytest.raises(ValueError, match=part):
        build_task(stream_recipe(folder, *changes), Plan(steps=2, per_step=2, seed=0))


def test_one_process_that_loads_a_stream_keeps_its_order():
    data = streamed()
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=1, collate_fn=examples.collate)
    wanted = iter(streamed())
    for batch, _ in zip(loader, range(4), strict=False):
        assert batch["input_ids"].tolist() == examples.collate([next(wanted), next(wanted)])["input_ids"].tolist()


# --- the order of data ----------------------------------------------------------------------------------------------


def test_seeding_puts_all_global_generators_back():
    import random

    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    wanted = draw()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    with DataOrder(5, workers=False).seeded("contents"):
        inside = draw()
    assert draw() == wanted
    with DataOrder(5, workers=False).seeded("contents"):
        assert draw() == inside


def test_each_epoch_of_a_sampler_has_an_order_of_its_own():
    order = DataOrder(5, workers=False)
    sampler = order.sampler(torch.utils.data.RandomSampler(range(50)))
    epochs = []
    for epoch in range(3):
        order.epoch.fill_(epoch)
        epochs.append(list(sampler))
        assert list(sampler) == epochs[-1]
    assert len(set(map(tuple, epochs))) == 3


def test_sets_of_equal_contents_have_one_digest_in_any_process():
    import os
    import subprocess
    import sys

    code = ("from types import SimpleNamespace as N; from hf_reformer.training.data_order import _digest; "
            "print(_digest([{'a': {'x', 'y', 'zz'}}, N(of=frozenset('uvw')), {'k': [({'p', 'q', 'r'},)]}]).hex())")  # fmt: skip
    found = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
                       text=True, check=True).stdout for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1
    assert _digest({"a", "b"}) != _digest({"a", "c"})
    assert _digest([1, {2}]) != _digest([1, [2]])


# --- images ---------------------------------------------------------------------------------------------------------


def saved(folder, *pictures):
    folder.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return str(folder)


def pictures(count, channels=3, size=4):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def listed(found):
    return [found[i].tolist() for i in range(len(found))]


@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_official_image_files_and_folders_give_the_same_sequences(ending, tmp_path):
    made = pictures(3)
    planes = made.reshape(3, 16, 3).transpose(0, 2, 1).reshape(3, 48)
    path = tmp_path / f"batch.{ending}"
    np.savez(path, data=planes) if ending == "npz" else np.save(path, planes)
    data = ImageData(files=str(path), evaluation_files=saved(tmp_path / "folder", *made), size=4)
    training, evaluation, _ = images.read_images(data, seed=0)
    assert listed(training) == listed(evaluation) == made.reshape(3, 48).tolist()
    assert training.fingerprint() == evaluation.fingerprint()
    with pytest.raises(ValueError, match="data.size is 5"):
        images.local_images(str(tmp_path / "folder"), ImageData(size=5))


def test_arrays_of_images_stay_on_disk(tmp_path):
    np.save(tmp_path / "a.npy", pictures(3).reshape(3, 48))
    found = images.local_images(str(tmp_path / "a.npy"), ImageData(size=4))
    assert isinstance(found.parts[0][0], np.memmap)


def test_transparent_images_are_what_the_processor_makes_of_them(tmp_path):
    made = pictures(2, channels=4)
    made[0, :2, :, 3] = 0
    folder = saved(tmp_path / "folder", *made)
    found = images.local_images(folder, ImageData(size=4))
    processor = ReformerImageProcessor(do_resize=False)
    assert listed(found) == [processor(Image.open(f"{folder}/{i}.png"))["input_ids"][0].tolist() for i in range(2)]
    assert found[0][:24].tolist() == [255] * 24


def test_images_that_cannot_be_used_are_one_clear_error(tmp_path):
    deep = (pictures(1)[0, :, :, 0].astype(np.uint16)) * 257
    with pytest.raises(ValueError, match="I;16"):
        images.local_images(saved(tmp_path / "deep", deep), ImageData(size=4))
    folder = saved(tmp_path / "cut", pictures(1, size=64)[0])
    file = tmp_path / "cut" / "0.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="0.png"):
        images.local_images(folder, ImageData(size=64))
    np.savez(tmp_path / "cut.npz", data=pictures(3).reshape(3, 48))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:90])
    with pytest.raises(ValueError, match="cannot be read as an array"):
        images.local_images(str(tmp_path / "cut.npz"), ImageData(size=4))


def test_pictures_of_any_size_are_scaled_where_that_is_asked_for(tmp_path):
    made = pictures(2, size=4)
    wide = np.concatenate([np.zeros((2, 4, 1, 3), np.uint8), made, np.zeros((2, 4, 1, 3), np.uint8)], axis=2)
    folder = saved(tmp_path / "large", *(np.kron(picture, np.ones((3, 3, 1), np.uint8)) for picture in wide))
    found = images.local_images(folder, ImageData(size=4, resize=True))
    assert listed(found) == made.reshape(2, 48).tolist()  # the middle of the scaled picture
    with pytest.raises(ValueError, match="18 x 12 pixels is there; data.resize=true"):
        images.local_images(folder, ImageData(size=4))


def test_images_are_held_out_by_their_content_copies_together(tmp_path):
    made = np.repeat(pictures(60), 2, axis=0)  # each twice
    data = ImageData(files=saved(tmp_path / "all", *made), size=4, held_out=0.25)
    training, held_out, _ = images.read_images(data, seed=0)
    assert sorted(listed(training) + listed(held_out)) == sorted(made.reshape(120, 48).tolist())
    assert not {tuple(image) for image in listed(training)} & {tuple(image) for image in listed(held_out)}
    assert 10 < len(held_out) < 55
    more = ImageData(files=saved(tmp_path / "fewer", *made[:60]), size=4, held_out=0.25)
    fewer = images.read_images(more, seed=0)[1]
    assert {tuple(image) for image in listed(fewer)} < {tuple(image) for image in listed(held_out)}


def test_files_whose_names_are_alike_are_all_trained_on_or_all_held_out(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    for i, picture in enumerate(pictures(60)):
        Image.fromarray(picture).save(folder / f"{i // 3}-tone{i % 3}.png")
    data = ImageData(files=str(folder), size=4, held_out=0.3, alike="-tone.")
    training, held_out, _ = images.read_images(data, seed=0)
    groups = [{part.names[i].split("-")[0] for i in part.chosen} for part in (training, held_out)]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 20 and len(held_out) == 3 * len(groups[1]) > 0
    with pytest.raises(ValueError, match="data.alike is '\\('.* regular expression"):
        ImageData(alike="(")
    with pytest.raises(ValueError, match="all alike, but two are needed"):
        images.read_images(ImageData(files=str(folder), size=4, alike=".*"), seed=0)
    np.save(tmp_path / "a.npy", pictures(3).reshape(3, 48))
    with pytest.raises(ValueError, match="must be null for arrays"):
        images.read_images(ImageData(files=str(tmp_path / "a.npy"), size=4, alike="-.*"), seed=0)


def test_the_processor_of_a_recipe_makes_its_tokens_and_knows_how_images_begin(tmp_path):
    made = pictures(9)
    made[:6, 0, 0, 0] = 200
    recipe = load_recipe("imagenet64", [f"data.files={saved(tmp_path / 'all', *made)}", "data.size=4"])
    task = build_task(recipe, Plan(steps=1, per_step=1, seed=0))
    training, _, _ = images.read_images(recipe.data, seed=0)
    rows = task.image_processor([Image.fromarray(image.reshape(4, 4, 3)) for image in listed_arrays(training)])[
        "input_ids"
    ]
    assert np.array_equal(np.stack(rows), np.stack(listed_arrays(training)))
    assert task.image_processor.first_values == np.bincount([row[0] for row in rows], minlength=256).tolist()


def listed_arrays(found):
    return [found[i] for i in range(len(found))]


def test_png_bits_per_dimension_are_those_of_files_written_one_by_one(tmp_path):
    made = pictures(3, size=8)
    for i, picture in enumerate(made):
        Image.fromarray(picture).save(tmp_path / f"{i}.png", optimize=True)
    expected = np.mean([8 * (tmp_path / f"{i}.png").stat().st_size / 192 for i in range(3)])
    assert images.png_bits_per_dimension([picture.reshape(-1) for picture in made], 8) == pytest.approx(expected)


# --- figures --------------------------------------------------------------------------------------------------------


def test_token_metrics_weigh_tokens_not_batches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 11, 7, generator=generator)
    labels = torch.randint(7, (3, 11), generator=generator)
    labels[0, 2:] = -100
    parts = [metrics.token_statistics(logits[rows_], labels[rows_], causal=True) for rows_ in ([0], [1, 2])]
    found = metrics.language_summary(torch.cat(parts).numpy(), "token", np.array([2, 17, 23]))
    flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    kept = wanted != -100
    loss = F.cross_entropy(flat[kept], wanted[kept]).item()
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["bits_per_token"] == pytest.approx(loss / math.log(2), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(loss * int(kept.sum()) / math.log(2) / 42, rel=1e-6)
    assert found["accuracy"] == pytest.approx((flat[kept].argmax(-1) == wanted[kept]).double().mean().item())


def test_bits_per_byte_of_a_recipe_are_over_the_bytes_of_its_predicted_text():
    recipe = load_recipe("crime-and-punishment", ["data.windows=packed", "data.context=64"], smoke=True)
    task = build_task(recipe, Plan(steps=2, per_step=2, seed=0))
    rows = np.ones((len(task.evaluation), 3))
    text = "".join(task.tokenizer.decode(ids_of(task.evaluation[i])[1:]) for i in range(len(task.evaluation)))
    assert task.summary(rows)["bits_per_byte"] == pytest.approx(len(rows) / math.log(2) / len(text.encode()))
    assert sum(row["bytes"] for row in task.predictions(rows)) == len(text.encode())


def test_macro_f1_is_the_mean_of_the_f1_of_labels_that_occur():
    labels, guesses = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 2])
    found = metrics.class_summary(metrics.class_statistics(F.one_hot(guesses, 4).float(), labels).numpy())
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_f1"] == pytest.approx((0.5 + 2 / 3 + 1) / 3)  # class 3 does not occur


def test_figures_of_several_labels_and_of_numbers():
    logits, labels = (
        torch.tensor([[3.0, -2.0, 1.0], [-1.0, 2.0, -3.0]]),
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    )
    found = metrics.multi_label_summary(metrics.multi_label_statistics(logits, labels).numpy())
    assert found["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(logits, labels).item(), rel=1e-6)
    assert found["accuracy"] == 0.5
    assert found["micro_f1"] == pytest.approx(4 / 5)
    assert found["macro_f1"] == pytest.approx((1 + 1 + 0) / 3)
    guesses, values = torch.tensor([[1.0], [2.5], [2.0]]), torch.tensor([1.0, 2.0, 4.0])
    found = metrics.number_summary(metrics.number_statistics(guesses, values).numpy())
    assert found["loss"] == pytest.approx(F.mse_loss(guesses[:, 0], values).item())
    assert found["mean_absolute_error"] == pytest.approx(2.5 / 3)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 2.5, 2], [1, 2, 4])[0, 1])


def test_entity_figures_count_whole_entities():
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    labels = torch.tensor([[1, 2, -100, 0, 3], [0, 1, 2, 2, -100]])
    guesses = torch.tensor([[1, 2, 0, 0, 3], [0, 1, 2, 0, 0]])
    rows = metrics.tag_statistics(F.one_hot(guesses, 4).float(), labels, words=4).numpy()
    found = metrics.tag_summary(rows, names)
    assert found["accuracy"] == pytest.approx(7 / 8)
    assert found["entity_f1"] == pytest.approx(2 / 3)  # the second person is cut short
    assert metrics.tags_of(rows, names, "guesses") == [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-PER", "I-PER", "O"]]
    assert "entity_f1" not in metrics.tag_summary(rows, ["O", "P", "Q", "L"])


def test_span_metrics_count_exact_and_overlapping_answers_and_leave_out_those_cut_off():
    def scores(*positions):
        return 10 * F.one_hot(torch.tensor(positions), 8).float()

    first, last = torch.tensor([2, 2, 1 << 30]), torch.tensor([4, 5, 1 << 30])
    rows = metrics.span_statistics((scores(2, 3, 1), scores(4, 4, 6)), (first, last, torch.ones(3, 8)))
    summary = metrics.span_summary(rows.numpy())
    assert summary["exact_match"] == pytest.approx(1 / 2)
    assert summary["span_f1"] == pytest.approx((1 + 2 * 2 / 6) / 2)


def test_the_span_is_the_likeliest_of_all():
    start, end = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    rows = metrics.span_statistics((start, end), (torch.zeros(5).long(), torch.zeros(5).long(), torch.ones(5, 11)))
    for row, left, right in zip(metrics.Span(*rows.T).begin, start, end, strict=True):
        best = max(((left[i] + right[j]).item(), i) for i in range(11) for j in range(i, 11))
        assert int(row) == best[1]


def test_spans_are_measured_without_their_padding():
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 7, 11]
    alone = [(torch.randn(n, generator=generator), torch.randn(n, generator=generator)) for n in lengths]
    labels = [(1, 3), (0, 0), (4, 9)]
    rows = [metrics.span_statistics([part[None] for part in one], [*(torch.tensor([x]) for x in label), torch.ones(1, n)])
            for one, label, n in zip(alone, labels, lengths, strict=True)]  # fmt: skip
    padded = [torch.stack([F.pad(one[side], (0, 11 - len(one[side])), value=50.0) for one in alone]) for side in (0, 1)]
    mask = torch.stack([F.pad(torch.ones(n), (0, 11 - n)) for n in lengths])
    together = metrics.span_statistics(padded, (*map(torch.tensor, zip(*labels, strict=True)), mask))
    assert torch.allclose(torch.cat(rows), together, atol=1e-6)


def test_answers_are_compared_as_squad_does():
    found = metrics.answer_figures(["The  Red lamp!", "boat", ""], [["red lamp"], ["a ship", "the blue boat"], ["x"]])
    assert found == {"squad_exact_match": pytest.approx(1 / 3), "squad_f1": pytest.approx((1 + 2 / 3 + 0) / 3)}


def test_nothing_to_measure_is_an_error_not_nan():
    for summary in (metrics.copy_summary, metrics.class_summary, metrics.span_summary):
        columns = {"copy_summary": 3, "class_summary": 3, "span_summary": 6}[summary.__name__]
        with pytest.raises(ValueError, match="nothing to measure"):
            summary(np.zeros((0, columns)))
