"""The siege at a short budget: the same cases every time. SIEGE_CASES=1000 makes it long; `make siege` runs it whole."""

import json
import os
import random
import time
from pathlib import Path

import pytest
import siege
import siege_page
from siege_entries import ENTRIES
from siege_readers import READERS

CASES = int(os.environ.get("SIEGE_CASES", "0"))
SECONDS = 10 if not CASES else 3600
FEW = {
    "configurations": 20,
    "generation": 6,
    "command line": 8,
    "page": 8,
    "rows (.jsonl)": 5,
    "rows (.csv)": 4,
    "rows (.parquet)": 4,
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_gives_a_right_result_or_one_error(name):
    tally = siege.besiege_entry(ENTRIES[name], CASES or FEW.get(name, 12), 0, SECONDS)
    assert tally.summary()["findings"] == []
    assert tally.summary()["cases"] > 1


@pytest.mark.parametrize("name", READERS)
def test_a_reader_gives_a_right_result_or_one_error(name):
    tally = siege.besiege_reader(READERS[name], CASES or FEW.get(name, 20), 0, SECONDS)
    assert tally.summary()["findings"] == []
    assert tally.counts[siege.RIGHT] > 0, "not even the sound files are read"


def test_what_the_siege_lets_pass_and_what_not():
    def refuse():
        raise ValueError("`a` is 3, but must be 4")

    assert siege.judge(lambda: None) == siege.RIGHT
    assert siege.judge(refuse) == siege.REFUSED
    assert siege.judge(lambda: Path("/no/such/file").read_bytes()) == siege.REFUSED
    for wrong in (lambda: int("x"), lambda: [][0], lambda: None + 1):
        with pytest.raises(siege.Finding):
            siege.judge(wrong)


def test_the_siege_notices_a_hang(monkeypatch):
    monkeypatch.setattr(siege, "SECONDS", 1)

    def hang():
        while True:
            time.sleep(0.01)

    with pytest.raises(siege.Finding, match="more than 1 s"):
        siege.judge(hang)


def test_the_siege_notices_a_process_that_dies(monkeypatch):
    dying = lambda draw: (lambda: os.kill(os.getpid(), 9), lambda: "")
    monkeypatch.setattr(siege, "targets", lambda: ({"dying": dying}, {}))
    found = siege.besiege("entry:dying", 3, 5, 0)["findings"]
    assert [finding["finding"] for finding in found] == ["the process ended with -9"]


def test_damage_changes_a_file_in_many_ways():
    made = {siege.damaged(b"some bytes of a file", random.Random(seed)) for seed in range(50)}
    assert len(made) > 45


def test_the_page_is_that_of_the_results():
    assert siege_page.PAGE.read_text() == siege_page.page_of(json.loads(siege_page.RESULTS.read_text()))
    assert all((Path(__file__).parent / f"{entry[3]}.py").is_file() for entry in siege_page.MENDED)
