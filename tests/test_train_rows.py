"""Rows of labelled text: reading, labels, examples, what is cut, predictions; figures that do not depend on the batch."""

import datetime
import json
import os

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, List, Value

from hf_reformer import ReformerByteTokenizer
from hf_reformer.training import metrics
from hf_reformer.training.build import build_model, config_for
from hf_reformer.training.recipes import load_recipe
from hf_reformer.training.row_formats import BEYOND, ClassificationRows, PairRows, QuestionRows, TagRows
from hf_reformer.training.rows import Labels, labels_of, read_rows
from hf_reformer.training.settings import ClassificationData, PairData, QuestionData, TagData
from hf_reformer.training.task import Plan
from hf_reformer.training.tasks import build_task

KINDS = {
    ClassificationData: ClassificationRows, QuestionData: QuestionRows, TagData: TagRows, PairData: PairRows,
}  # fmt: skip


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def local(tmp_path, kind, training, evaluation, **changes):
    paths = lines(tmp_path / "a.jsonl", training), lines(tmp_path / "b.jsonl", evaluation)
    return kind(files=paths[0], evaluation_files=paths[1], **changes)


def form_of(tmp_path, kind, training, evaluation, **changes):
    data = local(tmp_path, kind, training, evaluation, **changes)
    rows = read_rows(data, seed=0)
    return KINDS[kind](data, rows, list(rows.evaluation), ReformerByteTokenizer())


def table(labels, feature):
    features = Features({"text": Value("string"), "label": feature})
    return datasets.Dataset.from_dict({"text": ["it"] * len(labels), "label": labels}, features=features)


# --- labels ---------------------------------------------------------------------------------------------------------


def test_a_class_label_column_holds_indices_whatever_its_names_look_like():
    rows = table([0, 1, 2], ClassLabel(names=["1", "2", "3"]))
    labels = labels_of(ClassificationData(), rows, rows)
    assert [labels.index(value) for value in rows["label"]] == [0, 1, 2]
    assert labels.names == ["1", "2", "3"]
    with pytest.raises(ValueError, match="label 3, but allowed are indices from 0 to 2"):
        labels.index(3)


def test_integers_and_texts_are_values_and_others_than_those_to_train_on_are_errors(tmp_path):
    training = [{"text": "it", "label": label} for label in (10, 2, 3)]
    data = local(tmp_path, ClassificationData, training, training)
    labels = read_rows(data, 0).labels
    assert labels.names == ["2", "3", "10"]
    assert [labels.index(value) for value in (2, 3, 10)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"label 0, but allowed are those to train on, 2, 3, 10 \(row 0\)"):
        read_rows(local(tmp_path, ClassificationData, training, [{"text": "it", "label": 0}]), 0)


def test_class_labels_in_another_order_to_evaluate_on_are_refused():
    parts = [table([0, 1], ClassLabel(names=names)) for names in (["no", "yes"], ["yes", "no"])]
    with pytest.raises(ValueError, match=r"\['no', 'yes'\] to train on, but \['yes', 'no'\] to evaluate on"):
        labels_of(ClassificationData(), *parts)


def test_fractions_are_a_regression_and_lists_are_several_labels(tmp_path):
    number = form_of(tmp_path, ClassificationData, [{"text": "it", "label": 0.5}], [{"text": "it", "label": 2.0}])
    assert number.encode(number.kept[0])["labels"] == 2.0
    assert number.model_fields["problem_type"] == "regression"
    assert number.model_fields["id2label"] == {0: "LABEL_0"}
    rows = [{"text": "it", "label": ["b", "a"]}, {"text": "it", "label": []}, {"text": "it", "label": ["c"]}]
    several = form_of(tmp_path, ClassificationData, rows, rows)
    assert [several.encode(row)["labels"] for row in several.kept] == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert several.model_fields["problem_type"] == "multi_label_classification"
    with pytest.raises(ValueError, match="must name each label that holds once"):
        form_of(tmp_path, ClassificationData, [{"text": "it", "label": [0, 0, 1]}], rows)


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_rows_come_from_files_of_each_kind(ending, tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["no it is", "yes"], "label": ["no", "yes"], "more": [1, 2]})
    path = str(tmp_path / f"rows.{ending}")
    {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[ending](path)
    read = read_rows(ClassificationData(files=path, evaluation_files=[path]), seed=0)
    assert (list(read.training), read.labels.names) == (
        [{"text": "no it is", "label": "no"}, {"text": "yes", "label": "yes"}],
        ["no", "yes"],
    )
    assert read.counts == {"rows_to_evaluate_on_that_are_rows_to_train_on_too": 2}


def test_the_fingerprint_follows_the_columns_used_and_no_time_or_place(tmp_path):
    made = {"text": ["a", "b"], "label": ["x", "y"], "day": [datetime.datetime(2020, 1, i) for i in (1, 2)],
            "raw": [b"\0\xff", b"1"]}  # fmt: skip
    prints = set()
    for folder, changes in (
        ("one", {}),
        ("two", {}),
        ("three", {"day": made["day"][::-1]}),
        ("four", {"text": ["a", "c"]}),
    ):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "rows.parquet"
        datasets.Dataset.from_dict({**made, **changes}).to_parquet(path)
        os.utime(path, (1, len(prints)))
        prints.add(read_rows(ClassificationData(files=str(path), evaluation_files=str(path)), 0).fingerprint)
    assert len(prints) == 2


GOOD = {"text": "it", "label": "x"}
BAD_ROWS = {
    "empty": ("", "cannot be read"),
    "no json": ("{", "cannot be read"),
    "what ends the process in pyarrow": ('null[t\u0000kans: ["a-1', "cannot be read"),
    "a row that is no object": (json.dumps(GOOD) + "\n[1]\n", "cannot be read"),
    "column": (json.dumps({"text": "it"}), "column 'label' is missing; the rows to evaluate on have text"),
    "null label": (
        "\n".join(map(json.dumps, (GOOD, {"text": "it", "label": None}))),
        "row 1 has nothing in column 'label'",
    ),
    "null text": (json.dumps({"text": None, "label": "x"}), "row 0 has nothing in column 'text'"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
@pytest.mark.parametrize("side", ["files", "evaluation_files"])
def test_rows_that_cannot_be_used_are_one_clear_error(kind, side, tmp_path):
    text, part = BAD_ROWS[kind]
    (tmp_path / "bad.jsonl").write_text(text)
    paths = {"files": lines(tmp_path / "a.jsonl", [GOOD]), "evaluation_files": lines(tmp_path / "b.jsonl", [GOOD])}
    paths[side] = str(tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match=part if side == "evaluation_files" else part.replace("evaluate", "train")):
        read_rows(ClassificationData(**paths), 0)


@pytest.mark.parametrize(
    ("kind", "row", "part"),
    [(TagData, {"tokens": ["a", "b"], "ner_tags": ["O"]}, r"2 words with 1 tags.*\(row 0\)"),
     (QuestionData, {"question": "q", "context": "c", "answers": ["c"]}, "must hold {text: "),
     (QuestionData, {"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": []}}, "of equal lengths")],
)  # fmt: skip
def test_rows_of_another_shape_are_refused(kind, row, part, tmp_path):
    with pytest.raises(ValueError, match=part):
        read_rows(local(tmp_path, kind, [row], [row]), 0)


def test_a_revision_is_for_a_dataset_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: asked.append(k["revision"]) or table(["x"], Value("string"))
    )
    read_rows(ClassificationData(dataset="some/name", revision="abc"), 0)
    assert asked == ["abc", "abc"]
    with pytest.raises(ValueError, match="data.revision is 'abc', but must be null without a data.dataset"):
        read_rows(ClassificationData(generated=3, revision="abc"), 0)


# --- examples -------------------------------------------------------------------------------------------------------


def question(answer="près du pont", context="Là-bas, près du pont.", **more):
    return {"question": "Où?", "context": context, "answers": {"text": [answer], "answer_start": [8]}, **more}


def test_answers_are_found_in_tokens_and_lost_where_they_are_cut_off(tmp_path):
    form = form_of(tmp_path, QuestionData, [question()], [question()], context=64)
    made = form.encode(question())
    answer = made["input_ids"][made["start_positions"] : made["end_positions"] + 1]
    assert ReformerByteTokenizer().decode_bytes(answer).decode() == "près du pont"
    with pytest.raises(ValueError, match="1 rows to train on, but none whose answer lies within data.context, 20"):
        form_of(tmp_path, QuestionData, [question()], [question()], context=20)


def test_questions_whose_answer_is_cut_off_or_missing_are_counted_and_not_trained_on(tmp_path):
    late = {"question": "Où?", "context": "x" * 80 + " là", "answers": {"text": ["là"], "answer_start": [81]}}
    none = {"question": "Où?", "context": "x", "answers": {"text": [], "answer_start": []}}
    wrong = question(answer="pres du pont")
    rows = [question(), late, none, wrong]
    form = form_of(tmp_path, QuestionData, rows, rows[:2], context=64)
    assert list(form.usable) == [0, 3]
    assert form.counts == {
        "rows_to_evaluate_on_that_are_rows_to_train_on_too": 2,
        "questions_to_train_on_whose_answer_is_cut_off": 1,
        "questions_to_train_on_without_an_answer": 1,
        "questions_to_train_on_whose_answer_is_not_where_answer_start_says": 1,
        "questions_to_evaluate_on_whose_answer_is_cut_off": 1,
    }
    assert form.encode(form.kept[1])["end_positions"] == BEYOND


def test_squads_figures_take_the_best_of_all_answers_and_count_those_cut_off(tmp_path):
    answers = {"text": ["The lamp", "red lamp"], "answer_start": [8, 12]}
    late = {"question": "Q", "context": "x" * 80 + " là", "answers": {"text": ["là"], "answer_start": [81]}}
    rows = [{"question": "Q", "context": "Look at the red lamp.", "answers": answers}, late]
    form = form_of(tmp_path, QuestionData, rows, rows, context=64)
    before = form.parts(rows[0])[1]
    begin, finish = before + 12, before + 19
    logits = [torch.zeros(2, 64).index_fill(1, torch.tensor([place]), 9.0) for place in (begin, finish)]
    batch = form.collate([form.encode(row) for row in form.kept])
    logits = [scores[:, : batch["input_ids"].shape[1]] for scores in logits]
    found = form.statistics(logits, [batch[name] for name in form.label_names]).numpy()
    assert form.predictions(found)[0] == {"prediction": "red lamp", "answers": ["The lamp", "red lamp"]}
    figures = form.summary(found)
    assert figures["squad_exact_match"] == 0.5  # the second answer of the first row; the second row's is cut off
    assert figures["exact_match"] == 0  # of the first answer alone


def test_tags_stand_on_the_first_token_of_their_words(tmp_path):
    row = {"tokens": ["Ann", "in", "Rome"], "ner_tags": ["B-PER", "O", "B-LOC"]}
    form = form_of(tmp_path, TagData, [row], [row])
    made = form.encode(row)
    assert ReformerByteTokenizer().decode_bytes(made["input_ids"]).decode() == "Ann in Rome"
    assert made["labels"] == [1, -100, -100, 2, -100, -100, 0, -100, -100, -100, -100]


def test_texts_and_tags_beyond_the_context_are_counted(tmp_path):
    rows = [{"text": "x" * size, "label": "y"} for size in (10, 11, 30)]
    form = form_of(tmp_path, ClassificationData, rows, rows[:2], context=10)
    assert form.counts["texts_to_train_on_that_were_cut_to_the_context"] == 2
    assert form.counts["texts_to_evaluate_on_that_were_cut_to_the_context"] == 1
    rows = [{"tokens": ["abc", "de", "fgh", "i"], "ner_tags": ["O"] * 4}]
    form = form_of(tmp_path, TagData, rows, rows, context=7)
    labels = form.encode(rows[0])["labels"]
    assert (
        form.counts["tags_to_train_on_that_lie_beyond_the_context"] == 4 - sum(label != -100 for label in labels) == 1
    )


def test_special_tokens_in_a_row_are_its_characters(tmp_path):
    rows = [{"text": "a</s>b<pad>", "label": "x"}]
    form = form_of(tmp_path, ClassificationData, rows, rows)
    assert form.encode(rows[0])["input_ids"] == [byte + 2 for byte in b"a</s>b<pad>"]


def test_batches_are_padded_to_a_multiple(tmp_path):
    rows = [{"text": "x" * size, "label": "y"} for size in (3, 5)]
    form = form_of(tmp_path, ClassificationData, rows, rows, pad_to_multiple_of=8)
    batch = form.collate([form.encode(row) for row in rows])
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]
    row = {"tokens": ["ab"], "ner_tags": ["O"]}
    form = form_of(tmp_path, TagData, [row], [row], pad_to_multiple_of=8)
    assert form.collate([form.encode(row)])["labels"].tolist() == [[0, *[-100] * 7]]
    with pytest.raises(ValueError, match="data.pad_to_multiple_of is 0"):
        form_of(tmp_path, TagData, [row], [row], pad_to_multiple_of=0)


def test_rows_of_a_step_are_of_like_lengths_and_none_is_left_out_or_read_twice(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"source": "a" * int(n), "target": "b"} for n in rng.integers(1, 200, 800)]
    paths = lines(tmp_path / "a.jsonl", rows), lines(tmp_path / "b.jsonl", rows[:2])

    def lengths(grouped):
        changes = [f"data.files={paths[0]}", f"data.evaluation_files={paths[1]}", f"data.group_by_length={grouped}",
                   "data.context=256", "data.tokenizer=byte", "data.vocab_size=null"]  # fmt: skip
        task = build_task(load_recipe("help-en-de", changes), Plan(steps=100, per_step=8, seed=1))
        read = [len(task.training[i]["input_ids"]) for i in range(800)]
        assert [len(task.training[i]["input_ids"]) for i in (799, 0, 401)] == [read[799], read[0], read[401]]
        return np.array(read)

    grouped, plain = lengths("true"), lengths("false")
    for half in (slice(0, 400), slice(400, 800)):  # 50 steps each, in which order alone differs
        assert sorted(grouped[half]) == sorted(plain[half])
    assert sorted(grouped) == sorted(len(row["source"]) for row in rows)
    spans = [np.ptp(grouped[i : i + 8]) for i in range(0, 800, 8)]
    assert np.mean(spans) < 10 < 100 < np.mean([np.ptp(plain[i : i + 8]) for i in range(0, 800, 8)])
    firsts = grouped[:400].reshape(50, 8)[:, 0]
    assert (np.diff(firsts) > 0).any() and (np.diff(firsts) < 0).any()  # steps come in no order of lengths


def test_a_pair_is_its_source_and_its_target_with_an_end(tmp_path):
    rows = [{"source": "abc", "target": "de"}, {"source": "a" * 9, "target": "b" * 9}]
    form = form_of(tmp_path, PairData, rows, rows, context=6, target_context=5)
    ids = lambda text: [ord(letter) + 2 for letter in text]
    assert form.encode(rows[0]) == {"input_ids": ids("abc"), "labels": [*ids("de"), 1]}
    assert form.encode(rows[1]) == {"input_ids": ids("aaaaaa"), "labels": ids("bbbbb")}
    assert form.counts == {
        "rows_to_evaluate_on_that_are_rows_to_train_on_too": 2,
        "source_texts_to_train_on_that_were_cut": 1, "target_texts_to_train_on_that_were_cut": 1,
        "source_texts_to_evaluate_on_that_were_cut": 1, "target_texts_to_evaluate_on_that_were_cut": 1,
    }  # fmt: skip
    batch = form.collate([form.encode(row) for row in rows])
    assert batch["labels"].tolist() == [[*ids("de"), 1, -100, -100], ids("bbbbb")]
    assert batch["decoder_input_ids"].tolist() == [[0, *ids("de"), 1, 0], [0, *ids("bbbb")]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]


def test_pairs_in_a_column_of_a_column(tmp_path):
    rows = [{"translation": {"en": "a", "de": "b"}}, {"translation": {"en": "c", "de": None}}]
    columns = {"source_column": "translation.en", "target_column": "translation.de"}
    form = form_of(tmp_path, PairData, rows[:1], rows[:1], **columns)
    assert form.encode(form.kept[0])["labels"] == [ord("b") + 2, 1]
    with pytest.raises(ValueError, match="row 1 has nothing in column 'translation.de'"):
        form_of(tmp_path, PairData, rows, rows, **columns)
    with pytest.raises(ValueError, match="source and target must be texts"):
        form_of(tmp_path, PairData, [{"source": 1, "target": "b"}], [{"source": 2, "target": "b"}])


# --- figures and predictions ----------------------------------------------------------------------------------------


def measured(task, model, size):
    """Rows of statistics as `Trainer` makes them, in batches of `size`."""
    rows = []
    for start in range(0, len(task.evaluation), size):
        batch = task.collate([task.evaluation[i] for i in range(start, min(start + size, len(task.evaluation)))])
        with torch.no_grad():
            output = model(**batch)
        if task.label_names:
            logits, labels = (output.start_logits, output.end_logits), [batch[name] for name in task.label_names]
        else:
            logits, labels = output.logits, batch["labels"]
        rows.append(task.statistics(logits, labels))
    return torch.cat(rows).numpy()


def varied(name, tmp_path):
    """Rows of lengths far apart, and a model with weights of real scale."""
    generator = np.random.default_rng(0)
    words = [["lamp", "boat", "coat"][i] for i in generator.integers(3, size=60)]
    if name == "question-answering":
        rows = [{"question": "Q?", "context": " ".join(words[:n]) + " red", "answers": {"text": ["red"], "answer_start":
                [len(" ".join(words[:n])) + 1]}} for n in (1, 3, 7, 20, 2)]  # fmt: skip
    elif name == "token-classification":
        rows = [
            {"tokens": words[:n], "ner_tags": ["B-X" if w == "boat" else "O" for w in words[:n]]} for n in (1, 3, 7, 20)
        ]
    elif name == "summarization":
        rows = [{"source": " ".join(words[:n]), "target": " ".join(words[n : 2 * n])} for n in (1, 3, 5, 4)]
    else:
        rows = [{"text": " ".join(words[:n]), "label": words[0] if n % 2 else words[1]} for n in (1, 3, 8, 20)]
    path = lines(tmp_path / "rows.jsonl", rows)
    changes = [f"data.files={path}", f"data.evaluation_files={path}", "data.generated=null"]
    recipe = load_recipe(name, [*changes, "model.initializer_range=0.3", "model.initialisation=null"], smoke=True)
    task = build_task(recipe, Plan(steps=2, per_step=2, seed=0))
    return task, build_model(recipe, config_for(recipe, task), seed=0).eval()


@pytest.mark.parametrize("name", ["question-answering", "token-classification", "classification", "summarization"])
def test_figures_do_not_depend_on_the_size_of_the_batch(name, tmp_path):
    task, model = varied(name, tmp_path)
    alone, together = measured(task, model, 1), measured(task, model, 5)
    figures = task.summary(together)
    assert task.summary(alone) == pytest.approx(figures, abs=1e-4)
    for left, right in zip(*map(task.predictions, (alone, together)), strict=True):
        assert {**left, "loss": 0} == {**right, "loss": 0}
        assert left.get("loss", 0) == pytest.approx(right.get("loss", 0), rel=1e-5)
    assert len(task.predictions(alone)) == len(task.evaluation)


@pytest.mark.parametrize("name", ["question-answering", "token-classification", "classification", "summarization"])
def test_the_loss_measured_is_the_models_own(name, tmp_path):
    task, model = varied(name, tmp_path)
    batch = task.collate([task.evaluation[i] for i in range(len(task.evaluation))])
    with torch.no_grad():
        loss = model(**batch).loss.item()
    assert task.summary(measured(task, model, 5))["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_match_is_exact_where_greedy_generation_writes_the_target(tmp_path):
    task, model = varied("summarization", tmp_path)
    with torch.no_grad():  # a target that the model itself writes, and one that differs in its last token
        source = torch.tensor(task.evaluation[1]["input_ids"])[None]
        written = model.generate(source, attention_mask=torch.ones_like(source), max_new_tokens=7, eos_token_id=None)[
            :, 1:
        ]
        other = written.clone()
        other[0, -1] = written[0, -1] % 200 + 1
        rows = torch.cat([task.statistics(model(source, labels=labels).logits, labels) for labels in (written, other)])
    assert task.summary(rows[:1].numpy())["exact_match"] == 1
    assert task.summary(rows.numpy())["exact_match"] == 0.5
    assert task.summary(rows.numpy())["accuracy"] == 13 / 14


def test_predictions_name_labels(tmp_path):
    rows = [{"text": "it", "label": label} for label in (["a"], ["b", "a"])]
    form = form_of(tmp_path, ClassificationData, rows, rows)
    found = form.statistics(torch.tensor([[2.0, -1.0], [-1.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])).numpy()
    assert form.predictions(found) == [
        {"prediction": ["a"], "label": ["a"]},
        {"prediction": ["b"], "label": ["a", "b"]},
    ]
    assert Labels(["x"]).encoded("x") == 0
    assert metrics.label_figures(np.array([0, 1]), np.array([0, 1]))["accuracy"] == 1


def test_rows_to_evaluate_on_without_any_tag_are_refused(tmp_path):
    row, empty = {"tokens": ["a"], "ner_tags": ["O"]}, {"tokens": [], "ner_tags": []}
    with pytest.raises(ValueError, match="no tag to evaluate on"):
        form_of(tmp_path, TagData, [row], [empty])


def test_lists_of_fractions_are_no_labels():
    rows = table([[0.5]], List(Value("float64")))
    with pytest.raises(ValueError, match="must hold lists of labels"):
        labels_of(ClassificationData(), rows, rows)
