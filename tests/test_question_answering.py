"""`pipeline("extractive-question-answering")`: answers in texts of any length, against all pairs of tokens looked at one by one."""

import json

import pytest
import torch
from helpers import build, tiny_config
from transformers import BertConfig, BertForQuestionAnswering, pipeline

from hf_reformer import (
    ReformerByteTokenizer,
    ReformerForQuestionAnswering,
    ReformerForTokenClassification,
    ReformerQuestionAnsweringPipeline,
)
from hf_reformer.training.row_formats import QuestionRows
from hf_reformer.training.rows import RowSet
from hf_reformer.training.settings import QuestionData

QUESTION, TEXT = "Which?", "Zaïre, 日本 and so on. Then, by and by, it rained; nobody had thought of that. " * 6
LONGEST = 221


def asking(padding_side="right"):
    settings = {"is_decoder": False, "vocab_size": 261, "pad_token_id": 0, "hash_seed": 0}
    model = build(tiny_config(["strict_local", "strict_lsh", "full"], **settings), ReformerForQuestionAnswering)
    tokenizer = ReformerByteTokenizer(model_max_length=LONGEST, padding_side=padding_side)
    return pipeline("extractive-question-answering", model=model, tokenizer=tokenizer, device="cpu")


def all_answers(ask, text, size, overlap, longest):
    """{(start, end) in characters: score}, of windows that begin `size - overlap` bytes apart; the last is a whole one."""
    ids = ask.tokenizer.encode_bytes(text.encode())
    question = [*ask.tokenizer.encode_bytes(QUESTION.encode()), ask.tokenizer.eos_token_id]
    begins = [begin for begin in range(0, len(ids), size - overlap) if begin == 0 or begin + overlap < len(ids)]
    spans, starts, ends = [], [], []
    for begin in begins:
        begin = min(begin, max(0, len(ids) - size))
        with torch.no_grad():
            output = ask.model(torch.tensor([question + ids[begin : begin + size]]))
        start, end = (logits[0, len(question) :] for logits in (output.start_logits, output.end_logits))
        starts, ends = [*starts, start], [*ends, end]
        spans += [(begin + i, begin + j, float(start[i] + end[j]))
                  for i in range(len(start)) for j in range(i, min(len(start), i + longest))]  # fmt: skip
    total = float(torch.cat(starts).logsumexp(0) + torch.cat(ends).logsumexp(0))
    characters = [i for i, letter in enumerate(text) for _ in letter.encode()]
    best = {}
    for first, last, score in spans:
        key = (characters[first], characters[last] + 1)
        best[key] = max(best.get(key, 0), float(torch.tensor(score - total, dtype=torch.float64).exp()))
    return len(begins), best


@pytest.mark.parametrize(
    ("size", "overlap", "longest"), [(214, 26, 1000), (100, 40, 1000), (100, 0, 9), (60, 59, 1), (214, 26, 30)]
)
def test_the_likeliest_answer_of_all_windows(size, overlap, longest):
    ask = asking()
    windows, wanted = all_answers(ask, TEXT, size, overlap, longest)
    assert windows > 2
    more = {} if longest == 1000 else {"max_answer_len": longest}
    if (
        size != 214
    ):  # what it takes by itself, with an overlap of an eighth: the model's 221 positions less the question
        more |= {"max_seq_len": size + len(QUESTION) + 1, "doc_stride": overlap}
    found = ask(question=QUESTION, context=TEXT, **more)
    assert found["score"] == pytest.approx(max(wanted.values()), rel=1e-9)
    assert wanted[found["start"], found["end"]] == pytest.approx(found["score"], rel=1e-9)
    assert found["answer"] == TEXT[found["start"] : found["end"]]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_windows_at_a_time_and_several_texts_change_nothing(padding_side):
    ask, short = asking(padding_side), "A short text, 日本."
    one_by_one = [ask(question=QUESTION, context=text) for text in (TEXT, short, TEXT[5:])]
    rows = [{"question": QUESTION, "context": text} for text in (TEXT, short, TEXT[5:])]
    for found in (
        ask(rows),
        ask(rows, batch_size=2),
        ask(question=[QUESTION] * 3, context=[row["context"] for row in rows]),
        list(ask(row for row in rows)),
    ):
        assert [{**answer, "score": None} for answer in found] == [{**answer, "score": None} for answer in one_by_one]
        assert [a["score"] for a in found] == pytest.approx([a["score"] for a in one_by_one], rel=1e-9)


def test_several_answers_come_likeliest_first():
    ask = asking()
    _, wanted = all_answers(ask, TEXT, 214, 26, 30)
    found = ask(question=QUESTION, context=TEXT, max_answer_len=30, top_k=5)
    scores = [answer["score"] for answer in found]
    assert len(found) == 5 and scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(max(wanted.values()))
    for answer in found:
        assert 0 < answer["score"] <= wanted[answer["start"], answer["end"]] * (1 + 1e-9)
    assert len({(answer["start"], answer["end"]) for answer in found}) == 5
    assert len(ask(question=QUESTION, context="ab", top_k=5)) == 2  # an end at each of two tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"question": "", "context": "a"}, "`question` is '', but must be a text"),
     ({"question": "a"}, "`context` is None, but must be a text"), ({}, "must be given, or a mapping of both"),
     ({"inputs": [{"question": "a"}]}, "`context` is None"), ({"inputs": {"question": "a", "context": 3}}, "`context` is 3"),
     ({"inputs": {"question": "a", "context": "b"}, "question": "a"}, "not both ways"),
     ({"question": ["a", "b"], "context": ["c"]}, "lists of as many"),
     ({"question": "a", "context": "b", "doc_stride": -1}, "`doc_stride` is -1"),
     ({"question": "a", "context": "b", "doc_stride": 219}, "room for 219 of the text: they must be more than `doc_stride`, 219"),
     ({"question": "a", "context": "b", "top_k": True}, "`top_k` is True"),
     ({"question": "a", "context": "b", "max_answer_len": 0}, "`max_answer_len` is 0"),
     ({"question": "a", "context": "b", "max_seq_len": 222}, "`max_seq_len` is 222, but must be at most 221"),
     ({"question": "a" * 230, "context": "b"}, "`question` has 230 tokens, which leaves room for 0")],
)  # fmt: skip
def test_what_is_no_question_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        asking()(**arguments)


def test_what_is_asked_is_put_together_as_in_training():
    """With a separator of the tokenizer's own, which stands behind the question then, and not its end token."""
    ask = asking()
    ask.tokenizer.add_special_tokens({"sep_token": "<sep>"})
    data = QuestionData(context=LONGEST)
    row = {"question": QUESTION, "context": TEXT[:150], "answers": {"text": [TEXT[:5]], "answer_start": [0]}}
    trained = QuestionRows(data, RowSet([row], [row], None, "", "", "", {}), [row], ask.tokenizer).encode(row)[
        "input_ids"
    ]
    (asked,) = ask.preprocess(row)
    assert asked["input_ids"][0].tolist() == trained
    assert trained[len(QUESTION)] == ask.tokenizer.sep_token_id != ask.tokenizer.eos_token_id


def test_another_model_is_refused():
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 261,
    }
    with pytest.raises(ValueError, match="`model` is a bert, but must be a Reformer"):
        ReformerQuestionAnsweringPipeline(
            BertForQuestionAnswering(BertConfig(**sizes)),
            tokenizer=ReformerByteTokenizer(),
            task="extractive-question-answering",
        )


def test_tags_of_a_text_longer_than_the_model_by_the_stride_of_transformers():
    settings = {
        "is_decoder": False,
        "vocab_size": 261,
        "pad_token_id": 0,
        "hash_seed": 0,
        "id2label": {0: "O", 1: "A", 2: "B"},
    }
    model = build(tiny_config(["strict_local"], **settings), ReformerForTokenClassification, dtype=torch.float32)
    tagger = pipeline(
        "token-classification", model=model, tokenizer=ReformerByteTokenizer(model_max_length=LONGEST), device="cpu",
        stride=60, aggregation_strategy="simple",
    )  # fmt: skip
    found = tagger(TEXT)
    assert found[-1]["end"] > len(TEXT) - 30 and json.dumps(found, default=float)
    alone = tagger(TEXT[:100])
    assert [tag["word"] for tag in alone][:5] == [tag["word"] for tag in found][:5]
