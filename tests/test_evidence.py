"""The program behind docs/does-lsh-help.md: its rows, its parameters shared between kinds, its files and its page."""

import json

import pytest
import torch

from benchmarks import distance, evidence, evidence_page
from benchmarks.evidence import Setting

TINY = {"length": 16, "pairs": 2, "symbols": 8, "steps": 3, "batch": 64, "width": 16, "heads": 2, "chunk": 4}


def test_duplication_asks_for_the_second_half():
    ids, labels = evidence.duplication(Setting("duplication", "none", **TINY), 5, torch.Generator().manual_seed(0))
    assert (
        torch.equal(ids[:, :8], ids[:, 8:]) and torch.all(ids[:, 0] == 0) and ids[:, 1:8].min() >= 1 and ids.max() <= 8
    )
    assert torch.all(labels[:, :9] == -100) and torch.equal(labels[:, 9:], ids[:, 9:])
    shifted = evidence.shifted("duplication", labels)
    assert torch.equal(shifted[:, 8:15], ids[:, 9:]) and torch.all(shifted[:, 15] == -100)


def test_recall_asks_for_the_value_of_a_key_that_was_given():
    setting = Setting("recall", "none", **TINY)
    ids, labels = evidence.recall(setting, 7, torch.Generator().manual_seed(0))
    for row, asked in zip(ids.tolist(), labels.tolist(), strict=True):
        pairs = {row[0]: row[1], row[2]: row[3]}
        assert len(pairs) == 2 and asked[:4] == [-100] * 4
        assert [pairs[key] for key in row[4:]] == asked[4:]
        assert all(1 <= key <= 4 < value <= 8 for key, value in pairs.items())


def test_another_kind_on_the_same_parameters_is_trained_with_them():
    torch.manual_seed(0)
    setting = Setting("recall", "strict_lsh", rounds=2, **TINY)
    model = evidence.ReformerForCausalLM(evidence.config_of(setting, "strict_lsh", 2))
    model.setting = setting
    other = evidence.with_the_parameters_of(model, "full_shared_qk", 1)
    assert {id(p) for p in other.parameters()} == {id(p) for p in model.parameters()}
    assert other.config.attn_layers[1] == "full_shared_qk"
    other(torch.randint(1, 8, (2, 16))).logits.sum().backward()
    assert all(p.grad is not None for p in model.reformer.encoder.parameters())


@pytest.mark.parametrize("task", evidence.TASKS)
def test_each_kind_leaves_a_file_is_not_run_again_and_stands_in_the_page(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evidence, "EVALUATED", 64)
    command = [task, "--output", str(tmp_path / "results"), *(f"--{k}={v}" for k, v in TINY.items())]
    evidence.main(command)
    files = sorted((tmp_path / "results").glob("*.json"))
    assert len(files) == len(evidence.KINDS) and len(capsys.readouterr().out.splitlines()) == len(files)
    result = json.loads((tmp_path / "results" / f"{task}-16-strict_lsh-4-3-0.json").read_text())
    assert list(result["accuracy"]) == [
        "as trained", "strict_lsh-1", "strict_lsh-2", "strict_lsh-4", "strict_lsh-8", "full",
        "attention of the last layer zeroed",
    ]  # fmt: skip
    assert result["accuracy"]["as trained"] == result["accuracy"]["strict_lsh-4"]
    evidence.main(command)
    assert not capsys.readouterr().out
    monkeypatch.setattr(evidence_page, "steps_to_learn", lambda results: "-")
    evidence_page.write(tmp_path / "results", tmp_path / "page.md", "# Answer")
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# Answer\n") and (tmp_path / f"does-lsh-help-{task}.png").stat().st_size > 1000
    assert sum(line.startswith("| ") and "|" in line[2:] for line in page.splitlines()) >= 1 + len(evidence.KINDS)
    assert f"{100 * result['accuracy']['full']:.1f}" in page


def test_runs_of_other_lengths_are_rows_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "EVALUATED", 64)
    for steps in (3, 4):
        sizes = [f"--{name}={value}" for name, value in {**TINY, "steps": steps}.items()]
        evidence.main(["recall", "--kinds", "none", "--output", str(tmp_path), *sizes])
    assert {key: len(runs) for key, runs in evidence_page.results(tmp_path)["recall"].items()} == {
        ("none", 1, 3): 1,
        ("none", 1, 4): 1,
    }


def test_zeroing_a_layer_gives_its_weights_back():
    setting = Setting("recall", "none", **TINY)
    model, _ = evidence.trained(setting)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    evidence.evaluations(model, setting)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


# --- recall over distance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [True, False])
def test_a_question_is_asked_where_its_key_stands(dense):
    ids, labels = distance.rows(64, torch.Generator().manual_seed(0), dense)
    assert ids.shape == labels.shape == (64, 64)
    for row, asked in zip(ids.tolist(), labels.tolist(), strict=True):
        pairs = dict(zip(row[0:16:2], row[1:16:2], strict=True))
        places = [place for place in range(64) if asked[place] != -100]
        assert len(pairs) == 8 and [asked[p] for p in places] == [pairs[row[p]] for p in places]
        assert places == list(range(16, 64)) if dense else sorted(row[p] for p in places) == sorted(pairs)
        assert dense or all(row[p] > 64 for p in set(range(16, 64)) - set(places))


def test_a_family_has_one_set_of_parameters_and_no_positions():
    family = distance.Family("strict_lsh")
    long = family.member(4, 1024)
    assert long.config.maximum_length == 1024 and long.config.num_hashes == 4
    assert {id(p) for p in long.parameters()} == {id(p) for p in family.parameters()}
    assert family.member(4, 1024) is long


def test_the_distances_stand_in_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distance, "LENGTHS", (32, 64))
    monkeypatch.setattr(distance, "EVALUATED", (32, 128))
    for kind in ("strict_lsh", "none"):
        distance.main(["--kind", kind, "--steps", "4", "--rounds", "2", "--output", str(tmp_path / "distance")])
    results = sorted((tmp_path / "distance").glob("*.json"))
    assert [path.stem for path in results] == ["none-2-4-0", "strict_lsh-2-4-0"]
    accuracy = json.loads(results[1].read_text())["accuracy"]
    assert list(accuracy) == ["as trained", *(f"{r} rounds" for r in (1, 2, 4, 8, 16)), "full_shared_qk"]
    assert accuracy["as trained"] == accuracy["2 rounds"]
    evidence_page.write(tmp_path / "evidence", tmp_path / "page.md", "# Answer")
    page = (tmp_path / "page.md").read_text()
    assert (
        "| none (a second local layer) | as trained | 1 |" in page
        and "| `strict_lsh`, 2 rounds | 16 rounds | 1 |" in page
    )
    assert (tmp_path / "does-lsh-help-distance.png").stat().st_size > 1000
