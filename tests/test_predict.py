"""`hf-reformer predict`: what each head says of texts, against the model called by hand."""

import json

import pytest
import torch
from helpers import build, tiny_config
from transformers import pipeline

from hf_reformer import (
    ReformerByteTokenizer,
    ReformerForConditionalGeneration,
    ReformerForMaskedLM,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
    ReformerForTokenClassification,
    cli,
)

TEXTS = ["Zaïre, 日本", "and so on"]


@pytest.fixture
def saved(tmp_path):
    """Saves a tiny model with one head into a run's folder."""

    def save(cls, mask=None, **changes):
        settings = {"is_decoder": False, "vocab_size": 261, "pad_token_id": 0, "hash_seed": 0} | changes
        model = build(tiny_config(["strict_local", "strict_lsh"], **settings), cls, dtype=torch.float32)
        tokenizer = ReformerByteTokenizer(model_max_length=221, split_special_tokens=False)
        if mask is not None:
            tokenizer.add_special_tokens({"mask_token": mask})
        for part in (model, tokenizer):
            part.save_pretrained(tmp_path / "run" / "model")
        return model, tokenizer, str(tmp_path / "run")

    return save


def predictions(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(["predict", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_classes_of_texts_of_the_command_line_and_of_files(saved, tmp_path, capsys):
    model, tokenizer, run = saved(ReformerForSequenceClassification, id2label={0: "bad", 1: "good"})
    (tmp_path / "lines.txt").write_text(TEXTS[0] + "\n\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": TEXTS[1], "label": 3}) + "\n")
    found = predictions(capsys, run, "first", "--data", tmp_path / "lines.txt", tmp_path / "rows.jsonl")
    assert len(found) == 3
    for text, answer in zip(["first", *TEXTS], found, strict=True):
        shares = model(**tokenizer(text, return_tensors="pt")).logits[0].detach().softmax(0)
        assert answer["label"] == ["bad", "good"][int(shares.argmax())]
        assert answer["score"] == pytest.approx(float(shares.max()), abs=1e-5)


def test_tags_of_each_token(saved, capsys):
    model, tokenizer, run = saved(ReformerForTokenClassification, id2label={0: "O", 1: "PER", 2: "LOC"})
    answer = predictions(capsys, run, "and so on")[0]
    tags = model(**tokenizer("and so on", return_tensors="pt")).logits[0].argmax(-1).tolist()
    assert [tag["entity"] for tag in answer] == [("O", "PER", "LOC")[tag] for tag in tags if tag]


def test_the_words_behind_a_mask(saved, capsys):
    model, tokenizer, run = saved(ReformerForMaskedLM, mask="<mask>")
    answer = predictions(capsys, run, "an<mask>so on")[0]
    ids = tokenizer.encode_bytes(b"an") + [tokenizer.mask_token_id] + tokenizer.encode_bytes(b"so on")
    best = model(torch.tensor([ids])).logits[0, 2].topk(len(answer)).indices.tolist()
    assert [guess["token"] for guess in answer] == best


def test_the_likeliest_answer_that_does_not_end_before_it_begins(saved, capsys):
    model, tokenizer, run = saved(ReformerForQuestionAnswering)
    question, context = "Which?", "Zaïre, 日本 and so on"
    answer = predictions(capsys, run, context, "--question", question)[0]
    data = context.encode()
    ids = tokenizer.encode_bytes(question.encode()) + [tokenizer.eos_token_id] + tokenizer.encode_bytes(data)
    output = model(torch.tensor([ids]))
    starts, ends = (logits[0, -len(data) :].double() for logits in (output.start_logits, output.end_logits))
    pairs = [(float(starts[i] + ends[j]), i, j) for i in range(len(data)) for j in range(i, len(data))]
    _, first, last = max(pairs)
    characters = [index for index, letter in enumerate(context) for _ in letter.encode()]
    assert (answer["start"], answer["end"]) == (characters[first], characters[last] + 1)
    assert answer["answer"] == context[answer["start"] : answer["end"]]
    assert answer["score"] == pytest.approx(float(starts.softmax(0)[first] * ends.softmax(0)[last]), rel=1e-4)


def test_an_answer_in_a_text_longer_than_the_model(saved, capsys):
    model, tokenizer, run = saved(ReformerForQuestionAnswering)
    text = "Zaïre, 日本 and so on. " * 30
    asked = pipeline("extractive-question-answering", model=model, tokenizer=tokenizer, device="cpu")
    for stride in (20, 100):
        found = predictions(capsys, run, text, "--question", "Which?", "--stride", stride)
        assert found == [asked(question="Which?", context=text, doc_stride=stride)]


def test_a_stride_where_no_question_is_asked_is_refused(saved, capsys):
    *_, run = saved(ReformerForTokenClassification)
    capsys.readouterr()
    assert cli.main(["predict", run, "a", "--stride", "3"]) == 2
    assert "--stride is 3, but must be left out" in capsys.readouterr().err


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_of_an_encoder_decoder(beams, saved, capsys):
    sizes = {"is_encoder_decoder": True, "decoder_max_position_embeddings": 23}
    model, tokenizer, run = saved(ReformerForConditionalGeneration, **sizes)
    found = predictions(capsys, run, *TEXTS, "--beams", beams, "--batch-size", 2)
    for text, answer in zip(TEXTS, found, strict=True):
        ids = torch.tensor([list(text.encode())]) + 2
        written = model.generate(ids, max_length=24, num_beams=beams, do_sample=False)[0]
        assert answer == {"text": tokenizer.decode(written, skip_special_tokens=True)}
    assert cli.main(["predict", run, "a" * 222]) == 2
    assert "222 tokens, but the model has 221" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "there is no text"), (["--data", "{}/latin.txt"], "latin.txt is not UTF-8 text"),
     (["--data", "{}/deep.jsonl"], "row 1 is no JSON"), (["a", "--data", "{}/broken.jsonl"], "row 1 is no JSON"),
     (["a"], "the question None"), (["a", "--question", "b", "--batch-size", "0"], "--batch-size is 0"),
     (["", "--question", "b"], "row 1 has the text ''"),
     (["a", "--question", "b" * 300], "`question` has 300 tokens, which leaves room for 0"),
     (["a", "--question", "b", "--stride", "-1"], "`doc_stride` is -1")],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_line(arguments, message, saved, tmp_path, capsys):
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    *_, run = saved(ReformerForQuestionAnswering)
    capsys.readouterr()
    assert cli.main(["predict", run, *(part.replace("{}", str(tmp_path)) for part in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_model_without_a_head_is_refused(saved, capsys):
    *_, run = saved(None, is_decoder=True)
    capsys.readouterr()
    assert cli.main(["predict", run, "a"]) == 2
    assert "is a ReformerModelWithLMHead; allowed are" in capsys.readouterr().err
