"""`python -m benchmarks.dna`: records are read as they stand, and what bases cost is counted right."""

import json
import math
import random
import re

import numpy as np
import pytest
import torch

from benchmarks import dna
from benchmarks.dna_models import (
    Counts,
    blend_bits,
    flank_chances,
    known_runs,
    markov,
    markov_bits,
    masked_window,
    score,
    xz_bits,
)
from benchmarks.dna_records import other_strand, records
from hf_reformer import ReformerByteTokenizer, ReformerForCausalLM
from hf_reformer.training.corpus import Stream
from hf_reformer.training.run import train_recipe
from hf_reformer.training.text_tasks import MaskedWindows

FASTA = ">one.1 a record, complete length=9\nACGTn\nACG\n\nT\n>two.1\r\nttaa\r\n>three.2 \nRY\n"
GENBANK = """LOCUS       ABC                       72 bp    DNA     circular PLN 15-APR-2009
DEFINITION  A record with the word ORIGIN in it.
ACCESSION   ABC
VERSION     ABC.1  GI:12
FEATURES             Location/Qualifiers
     gene            1..12
ORIGIN      
        1 atgggcgaac gacgggaatt gaacccgcga tggtgaattc acaatccact gccttaatcc
       61 acttggctac at
//
LOCUS       DEF                        4 bp    DNA
ORIGIN
        1 acgt
//
"""  # noqa: W291


def written(folder, text, name="file"):
    path = folder / name
    path.write_bytes(text.encode())
    return path


def bases(seed, count, letters="ACGT"):
    return "".join(random.Random(seed).choices(letters, k=count))


def test_records_of_fasta(tmp_path):
    expected = {"one.1": b"ACGTNACGT", "two.1": b"TTAA", "three.2": b"RY"}
    assert records(written(tmp_path, FASTA)) == expected


def test_records_of_genbank(tmp_path):
    found = records(written(tmp_path, GENBANK))
    assert list(found) == ["ABC.1", "DEF"]
    assert found["ABC.1"] == b"ATGGGCGAACGACGGGAATTGAACCCGCGATGGTGAATTCACAATCCACTGCCTTAATCCACTTGGCTACAT"
    assert found["DEF"] == b"ACGT"


@pytest.mark.parametrize(
    ("text", "part"),
    [("@read\nACGT\n+\n!!!!\n", "begins with '@read'; allowed are FASTA ('>') and GenBank ('LOCUS')"), ("", "begins with ''"),
     (">a\nACGU\n", "record 'a' of .* has the letter 'U'; allowed are ACGT"), (">a\n>b\nA\n", "record 'a' of .* has no bases"),
     (">a\nAC1GT\n", "letter '1'"), ("LOCUS A\nORIGIN\n 1 acgt\n", "no line //"), (">a\nA\u00e9\n", "the letter '\\?'"),
     (">a\nA\n>a\nC\n", "two records 'a'"), (">../a\nA\n", "record '../a' of .* makes no file name"), (">\nA\n", "record ''")],
)  # fmt: skip
def test_other_files_are_refused(text, part, tmp_path):
    with pytest.raises(ValueError) as error:
        records(written(tmp_path, text))
    assert part in str(error.value) or re.search(part, str(error.value))
    assert "\n" not in str(error.value)


def test_the_other_strand():
    assert other_strand(b"AACGTTTRN") == b"NYAAACGTT"
    letters = b"ACGTRYSWKMBDHVN"
    assert other_strand(other_strand(letters)) == letters


def prepare(folder, *options, text=None):
    path = written(folder, text or f">a one\n{bases(1, 300)}\n>b\n{bases(2, 200)}\n")
    dna.main(["prepare", str(path), "--output", str(folder / "dna"), "--held-out", "100", *options])
    return {path.relative_to(folder / "dna").as_posix(): path.read_text() for path in folder.glob("dna/*/*")}


def test_prepare_holds_out_the_end_and_trains_on_both_strands_of_the_rest(tmp_path, capsys):
    found, a = prepare(tmp_path, "--records", "a"), bases(1, 300)
    assert found == {
        "training/a.txt": a[:200],
        "training/a.other-strand.txt": other_strand(a[:200].encode()).decode(),
        "held-out/a.txt": a[200:],
    }
    assert capsys.readouterr().out == "a: 200 bases to train on, and their other strand; 100 held out\n"


def test_prepare_takes_all_records_of_all_files(tmp_path):
    assert len(prepare(tmp_path)) == 6


@pytest.mark.parametrize(
    ("options", "part"),
    [(["--records", "c"], "--records has 'c', which stands 0 times in the files; allowed are a, b"),
     (["--held-out", "101"], "record 'b' has 200 bases; allowed are at least 202"), (["--held-out", "0"], "--held-out is 0")],
)  # fmt: skip
def test_what_cannot_be_prepared_is_one_line(options, part, tmp_path):
    with pytest.raises(SystemExit) as error:
        prepare(tmp_path, *options)
    assert part in error.value.code
    assert error.value.code.startswith("python -m benchmarks.dna: ")
    assert not (tmp_path / "dna").exists()


def test_markov_bits_counted_by_hand():
    """AACA has A after A once, C after A once, A after C once; after AA once C, after AC once A."""
    first = Counts([b"AACA"], b"AC", 1)
    assert first.of(np.array([0, 1])).tolist() == [[1, 1], [1, 0]]
    # ACAA, its first base not predicted: C after A (1 + 1) / (2 + 2), A after C (1 + 1) / (1 + 2), A after A 2 / 4
    assert markov_bits(first, b"ACAA", 1) == pytest.approx((1 + math.log2(3 / 2) + 1) / 3)
    # order 2: the second base has too few before it, 1 bit of two letters; A after AC 1.25 / 1.5; after CA nothing is known
    assert markov_bits(Counts([b"AACA"], b"AC", 2), b"ACAA", 1 / 4) == pytest.approx((1 + math.log2(1.2) + 1) / 3)


def test_no_context_reaches_from_one_document_into_the_next():
    assert Counts([b"AA", b"CC"], b"AC", 1).of(np.array([0, 1])).tolist() == [[1, 0], [0, 1]]


def test_contexts_of_order_12_are_told_apart():
    text = bases(3, 2000).encode()
    counts = Counts([text], b"ACGT", 12)
    context, middle = counts.codes(counts.symbols(text))
    assert len(np.unique(context)) == len({text[i : i + 12] for i in range(len(text) - 12)})
    assert (counts.of(context).sum(1) >= 1).all()
    assert bytes(b"ACGT"[i] for i in middle) == text[12:]


def test_a_source_of_order_2_is_told_by_order_2():
    """In nine of ten cases A after two equal bases, C after two that differ: 0.469 bits; the base before alone says nothing."""
    chance, text = random.Random(0), ["A", "C"]
    for _ in range(20_000):
        text.append("AC"[(text[-1] != text[-2]) ^ (chance.random() < 0.1)])
    documents = ["".join(text[:15_000]).encode(), "".join(text[15_000:]).encode()]
    found = markov(documents[:1], {"x": documents[1]}, b"AC")
    assert found[1]["all"] == pytest.approx(1, abs=0.02)
    assert found[2]["all"] == pytest.approx(0.469, abs=0.04)
    assert found[3]["all"] == pytest.approx(found[2]["all"], abs=0.01)
    assert found[2]["all"] == found[2]["x"]


def test_blend_counted_by_hand():
    tables = [Counts([b"AACA"], b"AC", order) for order in (0, 1)]
    a, c = (3 + 0.5) / 5, (1 + 0.5) / 5  # order 0 over one half each, weight 1
    expected = [(1 + c) / 3, (1 + a) / 2, (1 + a) / 3]  # C after A, A after C, A after A
    assert blend_bits(tables, b"ACAA", 1) == pytest.approx(-sum(map(math.log2, expected)) / 3)


def test_xz_knows_what_it_has_read():
    text, new = bases(4, 20_000).encode(), bases(5, 20_000).encode()
    assert xz_bits(text, text[5_000:15_000]) < 0.1
    assert 2 < xz_bits(text, new) < 2.5


def test_runs_that_stand_in_the_training_text():
    text, new = bases(6, 500).encode(), bases(7, 100).encode()
    assert known_runs([new, text], text[100:200]).all()
    assert not known_runs([text], new).any()
    assert np.flatnonzero(known_runs([text], new[:40] + text[100:130] + new[40:]))[[0, -1]] == pytest.approx(
        [40, 46], abs=2
    )


def test_chances_of_masked_bases_back_off_where_a_neighbour_is_masked():
    """In ACACACGT C stands between two A twice, A between two C twice; without neighbours A 3, C 3, G 1, T 1."""
    counts = [Counts([b"ACACACGT"], b"ACGT", flank, flank) for flank in (0, 1)]
    visible = np.array([0, -1, 0, -1, -1, 1])  # A ? A ? ? C
    found = flank_chances(counts, visible, 1)
    assert found[1].tolist() == pytest.approx([1 / 6, 3 / 6, 1 / 6, 1 / 6])
    assert found[3].tolist() == pytest.approx([4 / 12, 4 / 12, 2 / 12, 2 / 12])
    assert found[5].tolist() == found[3].tolist()  # at the edge
    result = score(found[[1, 3]], np.array([1, 2]))
    assert result == {"bits": pytest.approx((1 + math.log2(6)) / 2), "accuracy": 0.5}


def test_a_masked_neighbour_is_not_taken_for_a_base():
    """G stands between A and T; of C and a masked base the number, 1 * 4 - 1, would be that of A and T."""
    counts = [Counts([b"AGTCC"], b"ACGT", flank, flank) for flank in (0, 1)]
    found = flank_chances(counts, np.array([1, -1, -1]), 1)  # C ? ?
    assert found[1].tolist() == pytest.approx([2 / 9, 3 / 9, 2 / 9, 2 / 9])


def test_masked_bases_are_those_of_the_recipes_evaluation():
    tokenizer = ReformerByteTokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    text = np.frombuffer(bases(8, 300).encode(), np.uint8)
    theirs = MaskedWindows(Stream([text]), Stream([text]), 300, 0, None, 0.15, tokenizer).evaluation(0)
    ours = masked_window(bytes(text), tokenizer)
    assert all(torch.equal(ours[key], theirs[key]) for key in ("input_ids", "labels"))


def test_compare_measures_models_on_the_same_bases(tmp_path):
    prepare(tmp_path)
    steps = ["training.max_steps=2", "training.eval_steps=2", "training.save_steps=2"]
    for name in ("dna", "dna-masked"):
        assert train_recipe(name, tmp_path / "runs" / name, steps, smoke=True, quiet=True) == 0
    output, models = (
        tmp_path / "dna.json",
        {name: str(tmp_path / "runs" / name / "model") for name in ("dna", "dna-masked")},
    )
    options = ["--causal", models["dna"], "--masked", models["dna-masked"], "--output", str(output)]
    dna.main(["compare", "--data", str(tmp_path / "dna"), *options])
    found = json.loads(output.read_text())
    model, tokenizer = ReformerForCausalLM.from_pretrained(models["dna"]).eval(), ReformerByteTokenizer()
    ids = torch.tensor([tokenizer.encode_bytes((tmp_path / "dna/held-out/a.txt").read_bytes())])
    bits = model(input_ids=ids, labels=ids).loss.item() / math.log(2)
    assert found["causal"]["a"] == pytest.approx(bits, rel=0.02)  # measured in half precision where there is such
    assert found["causal"]["all"] == pytest.approx((found["causal"]["a"] + found["causal"]["b"]) / 2)
    after = found["causal"]["after_24-mers"]["a"]
    loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, 23:-1], ids[0, 24:]).item()
    assert after == {"new": pytest.approx(loss / math.log(2), rel=1e-4)}
    assert set(found["markov"]) == {str(order) for order in range(1, 13)}
    assert (found["causal"]["steps"], found["masked"]["steps"]) == (2, 2)
    masked = found["masked"]
    assert 10 < masked["masked_bases"] < 45
    assert 0 <= masked["model"]["accuracy"] <= 1
    assert masked["0 to each side"]["bits"] == pytest.approx(2, abs=0.3)
