"""The benchmarks measure what they say: operations are counted right, and results become tables."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import main
from benchmarks.cases import CASES, OURS, STOCK, Case
from benchmarks.memory import peak_of_a_step, table
from benchmarks.models import build, floor_seconds, forward_flops
from benchmarks.profile import shares
from benchmarks.report import markdown


@pytest.mark.parametrize("rounds", [1, 4])
def test_operations_of_the_floor_are_those_of_a_forward(rounds):
    """All but those of hashing, which the floor leaves out."""
    run = replace(OURS, length=1024, rounds=rounds, mode="forward")
    model = build(run).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 1024, dtype=torch.int64))
    assert forward_flops(run) <= counter.get_total_flops() <= 1.1 * forward_flops(run)


def test_a_training_step_costs_four_forwards():
    train, forward = (floor_seconds(replace(OURS, mode=mode), 1e9) for mode in ("train", "forward"))
    assert train == 4 * forward


def test_names_of_cases_and_labels_of_their_runs_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert len({run.label for run in case.runs}) == len(case.runs), case.name


def test_a_case_runs_and_its_table_holds_ratios(tmp_path, monkeypatch, capsys):
    small = {"length": 256, "rounds": 1, "layers": 2, "mode": "forward"}
    case = Case("small", "a small forward", (replace(STOCK, **small), replace(OURS, **small)), "none")
    monkeypatch.setattr("benchmarks.__main__.CASES", (case,))
    main(["--cases", "small", "--repetitions", "1", "--output", str(tmp_path)])
    table = (tmp_path / "results.md").read_text()
    assert table in capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|") for line in table.splitlines() if line.startswith("| ")}
    assert float(rows["transformers"][4]) == 1
    assert float(rows["lsh"][2]) > 0
    assert "--cases small --repetitions 1" in table


def test_generation_becomes_tables():
    common = {"model": "ours", "num_hashes": 4}
    rows = [
        {"case": "decoding", "context": context, "ms_per_token": ms, "cache_bytes_per_token": 2048.0, **common}
        for context, ms in ((4096, 7.25), (512, 6.5))
    ]
    rows.append({"case": "prefill", "context": 16384, "seconds": 0.75, **common})
    table = markdown({"machine": "", "gflops": 1, "command": "", "cases": [], "generation": rows})
    assert "| ours | 6.50 | 7.25 | 2,048 |" in table
    assert "| ours | 0.75 |" in table


def peak_bytes(**changes):
    run = replace(OURS, length=1024, rounds=1, **changes)
    return sum(storage.size for storage in peak_of_a_step(run))


def test_memory_beyond_parameters_and_gradients_hardly_grows_with_depth():
    """12 layers beside 2; an ordinary stack keeps the activations of each."""
    assert peak_bytes(layers=12) <= 1.1 * peak_bytes(layers=2)
    assert peak_bytes(layers=12, reversible=False) > 3 * peak_bytes(layers=2, reversible=False)


def test_the_table_of_memory_counts_every_storage_once():
    peak = peak_of_a_step(replace(OURS, length=512, rounds=1, layers=2))
    rows = [line.split("|") for line in table(peak).splitlines()[2:]]
    assert rows[-1][1].strip() == "all" and int(rows[-1][4]) == len(peak)
    assert len({storage.reference.cdata for storage in peak}) == len(peak)
    assert any("(1, 512, 256)" in row[2] for row in rows)


def test_the_kinds_of_a_profile_hold_most_of_a_step():
    found = shares(replace(OURS, length=1024, rounds=1, layers=2))
    assert all(seconds >= 0 for seconds in found.values())
    assert found["matrix products"] > 0.2 * sum(found.values())
