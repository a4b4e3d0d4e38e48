"""The benchmarks measure what they say: operations are counted right, and results become tables."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import benchmarks
from benchmarks import gpu, gpu_counts, house, long_documents, over_time, python_names, turns
from benchmarks.__main__ import main, read_results
from benchmarks.cases import CASES, GPT2, LUCIDRAINS, OURS, STOCK, Case
from benchmarks.memory import peak_of_a_step, table
from benchmarks.models import build, floor_seconds, forward_flops
from benchmarks.profile import shares
from benchmarks.report import markdown
from benchmarks.worker import memory


class Products(TorchDispatchMode):
    """Counts the operations of matrix products, by PyTorch's own formulas, in forward and backward."""

    def __init__(self):
        super().__init__()
        self.flops = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops[func._overloadpacket] += flop_registry[func._overloadpacket](
                *args, **(kwargs or {}), out_val=out
            )
        return out


def products_of(run, model=None):
    """Operations of one step by kind of product."""
    model = (build(run) if model is None else model).train(run.mode == "train")
    input_ids = torch.zeros(1, run.length, dtype=torch.int64)
    with Products() as products, torch.set_grad_enabled(run.mode == "train"):
        output = model(input_ids, labels=input_ids)
        if run.mode == "train":
            output.loss.backward()
    return products.flops


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize(
    "run", [OURS, replace(OURS, reversible=False), STOCK], ids=["reversible", "reversible=False", "transformers"]
)
def test_the_floor_has_the_products_of_a_step(run, rounds, mode):
    """All but those of hashing and of recomputing scores, which the floor leaves out."""
    run = replace(run, length=512, rounds=rounds, mode=mode)
    assert floor_seconds(run, 1) == pytest.approx(products_of(run).total(), rel=0.1)


@pytest.mark.parametrize(("mode", "forwards"), [("forward", 1), ("train", 3)])
def test_the_floor_of_gpt2_has_its_own_products_and_half_of_those_between_queries_and_keys(mode, forwards):
    run = replace(GPT2, length=512, mode=mode)
    model = build(run)
    model.set_attn_implementation("eager")
    flops = products_of(run, model)
    assert flops[torch.ops.aten.bmm] == forwards * 4 * 512 * 512 * 256 * 6  # both products, 6 layers of width 256
    assert floor_seconds(run, 1) == flops.total() - flops[torch.ops.aten.bmm] // 2


def test_a_peer_whose_products_are_not_counted_has_no_floor():
    assert floor_seconds(LUCIDRAINS, 1) is None


def test_names_of_cases_and_labels_of_their_runs_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert len({run.label for run in case.runs}) == len(case.runs), case.name


SMALL = {"length": 256, "rounds": 1, "layers": 2, "mode": "forward"}


def measured(seconds, growth=0.25):
    return {"seconds": seconds, "peak_gib": 1.5, "growth_gib": growth, "model_gib": 0.01}


@pytest.fixture
def small(monkeypatch):
    """Two cases of small runs, measured without a process: 2 s for transformers, 0.5 s for ours."""
    runs = replace(STOCK, **SMALL), replace(OURS, **SMALL), replace(LUCIDRAINS, **SMALL)
    monkeypatch.setattr("benchmarks.__main__.CASES", tuple(Case(name, f"case {name}", runs) for name in "ab"))
    monkeypatch.setattr("benchmarks.__main__.OPTIONAL", ("reformer_pytorch",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("benchmarks.__main__.sgemm_gflops", lambda: 1.0)
    monkeypatch.setattr(
        "benchmarks.__main__.in_fresh_process", lambda run: measured(2.0 if run.peer == "transformers" else 0.5)
    )


def rows_of(table):
    return {line.split("|")[1].strip(): line.split("|") for line in table.splitlines() if line.startswith("| ")}


def test_a_case_runs_in_processes_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.__main__.CASES", (Case("small", "a small forward", (replace(OURS, **SMALL),)),))
    main(["--cases", "small", "--repetitions", "1", "--output", str(tmp_path)])
    table = (tmp_path / "results.md").read_text()
    assert table.strip() == capsys.readouterr().out.strip()
    assert float(rows_of(table)["lsh"][2]) > 0
    assert "--cases small --repetitions 1" in table


@pytest.mark.usefixtures("small")
def test_a_table_holds_ratios_to_the_first_run_and_to_the_floor_of_each(tmp_path):
    main(["--cases", "a", "--output", str(tmp_path)])
    ours = rows_of((tmp_path / "results.md").read_text())["lsh"]
    assert [float(cell) for cell in ours[2:7]] == [0.5, 0.25, 4, 0.25, 1.5]
    assert float(ours[7]) == pytest.approx(0.5 / (forward_flops(replace(OURS, **SMALL)) / 1e9), abs=0.005)


@pytest.mark.usefixtures("small")
def test_a_peer_that_is_not_installed_leaves_a_note(tmp_path):
    main(["--cases", "a", "--output", str(tmp_path)])
    assert "\n\nreformer-pytorch: not installed, left out.\n" in (tmp_path / "results.md").read_text()


@pytest.mark.usefixtures("small")
def test_cases_that_are_not_measured_again_stay(tmp_path, monkeypatch):
    main(["--output", str(tmp_path), "--cases", "a", "b"])
    monkeypatch.setattr("benchmarks.__main__.in_fresh_process", lambda run: measured(3.0))
    main(["--output", str(tmp_path), "--cases", "a"])
    records = json.loads((tmp_path / "results.json").read_text())
    found = {c["name"]: c["runs"][1]["measurements"][0]["seconds"] for record in records for c in record["cases"]}
    assert found == {"a": 3.0, "b": 0.5}
    assert [[c["name"] for c in record["cases"]] for record in records] == [["b"], ["a"]]
    table = (tmp_path / "results.md").read_text()
    assert table.count("**case a**") == table.count("**case b**") == 1


@pytest.mark.usefixtures("small")
def test_generation_that_is_not_measured_again_stays(tmp_path, monkeypatch):
    rows = [{"case": "prefill", "context": 16384, "seconds": 0.75, "model": "ours", "num_hashes": 4}]
    monkeypatch.setattr("benchmarks.__main__.run_generation", lambda repetitions: rows)
    main(["--output", str(tmp_path), "--cases", "generation"])
    main(["--output", str(tmp_path), "--cases", "a"])
    assert [record.get("generation") for record in read_results(tmp_path)] == [rows, None]
    main(["--output", str(tmp_path), "--cases", "generation"])
    assert [record.get("generation") for record in read_results(tmp_path)] == [None, rows]


def test_the_committed_tables_are_those_of_the_committed_results():
    folder = Path(benchmarks.__file__).parent / "results"
    assert (folder / "results.md").read_text() == markdown(read_results(folder))


def test_memory_is_that_of_the_process_alone():
    """Not of the one that started it, whose peak Linux' `ru_maxrss` would tell."""
    ballast = b"x" * 2**30
    code = "from benchmarks.worker import memory; print(*memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    resident, peak = map(float, done.stdout.split())
    assert 0.01 < resident <= peak < 0.9
    assert len(ballast) == 2**30


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd14", 2**10)])
def test_units_of_systems_without_proc(tmp_path, monkeypatch, platform, unit):
    """macOS counts bytes, the others KiB."""
    monkeypatch.setattr("benchmarks.worker.STATUS", tmp_path / "absent")
    monkeypatch.setattr("sys.platform", platform)
    usage = SimpleNamespace(ru_maxrss=3 * 2**30 // unit)
    monkeypatch.setattr("resource.getrusage", lambda who: usage)
    assert memory() == (3.0, 3.0)


def test_generation_becomes_tables():
    common = {"model": "ours", "num_hashes": 4}
    rows = [
        {"case": "decoding", "context": context, "ms_per_token": ms, "cache_bytes_per_token": 2048.0, **common}
        for context, ms in ((4096, 7.25), (512, 6.5))
    ]
    rows.append({"case": "prefill", "context": 16384, "seconds": 0.75, **common})
    table = markdown([{"machine": "", "gflops": 1, "command": "", "cases": [], "generation": rows}])
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
    assert any(row[1].strip().startswith("`reversible.") for row in rows)


def test_the_kinds_of_a_profile_hold_most_of_a_step():
    found = shares(replace(OURS, length=1024, rounds=1, layers=2))
    assert all(seconds >= 0 for seconds in found.values())
    assert found["matrix products"] > 0.2 * sum(found.values())


def test_the_table_of_the_house_has_lines_and_longest_functions_before_and_now():
    function = 'def long(x):\n    """Text\n\n    of lines."""\n    x += 1\n    return x\n'
    now = {"a/one.py": function + "\n\ndef short():\n    return 1\n", "a/two.py": "X = 1\n"}
    lines = house.table(now, {"a/one.py": "class A:\n    def old(self):\n        pass\n"}).splitlines()
    assert lines[2] == "| `a/one.py` | 3 | 1 `old` | 10 | 2 `long` |"
    assert lines[3] == "| `a/two.py` |  |  | 1 |  |"
    assert lines[5] == "| **all** | **3** in 1 modules, median 3 | **1** | **11** in 2 modules, median 10 | **2** |"


def test_the_house_counts_what_is_committed_as_what_is_there():
    """One folder is a link into another place, which must not count twice."""
    now, then = house.modules_now(["src", "conversion"]), house.modules_at("HEAD", ["src", "conversion"])
    assert sum(path.endswith("gin.py") for path in now) == sum(path.endswith("gin.py") for path in then) == 1


def test_a_step_on_a_gpu_reads_no_number_back_and_the_fused_kernel_launches_less():
    """On tensors without numbers reading one raises."""
    eager, fused = (gpu_counts.counted(name, 2, ("strict_local", "strict_lsh"), 2048, 1) for name in ("eager", "sdpa"))
    assert fused.count["_flash_attention_forward"] == 2 * (1 + 4)  # a call for each round, in forward and backward
    assert fused.count["_flash_attention_backward"] == 1 + 4
    assert not eager.count["_flash_attention_forward"] and "bmm" in eager.count
    assert sum(fused.bytes.values()) < sum(eager.bytes.values())


def test_the_script_for_a_gpu_runs_at_small_size_without_one(capsys):
    gpu.main(["--smoke", "--runs", "strict, eager", "full"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["run"] for line in lines] == ["strict, eager", "full"] and all(line["seconds"] > 0 for line in lines)


def test_runs_take_turns_in_processes_that_stay(capfd):
    turns.main(
        [
            "--repetitions",
            "2",
            '{"length": 256}',
            f'{Path(turns.__file__).parent.parent}@{{"length": 256, "strict": true}}',
        ]
    )
    rows = [line.split("|")[1:-1] for line in capfd.readouterr().out.splitlines()[2:]]
    assert [row[0].strip().partition("{")[2] for row in rows] == ['"length": 256}`', '"length": 256, "strict": true}`']
    assert all(float(number) > 0 for row in rows for number in row[1:]) and float(rows[0][3]) == 1


@pytest.mark.parametrize("name", over_time.MODELS)
def test_a_model_is_measured_as_time_goes_by(name, tmp_path, monkeypatch):
    monkeypatch.setattr(over_time, "BYTES", 512)
    monkeypatch.setattr(over_time, "HELD_OUT", 512)
    monkeypatch.setattr(over_time, "PICTURE", tmp_path / "over-time.png")
    over_time.main([name, "--context", "256", "--minutes", "0.01", "--output", str(tmp_path)])
    result = json.loads((tmp_path / f"{name}-256-0.json").read_text())
    seconds, steps, bits = zip(*result["curve"], strict=True)
    assert seconds[0] == steps[0] == 0 and seconds[-1] >= 0.6 and list(steps) == sorted(steps) and steps[-1] >= 1
    assert 7 < bits[0] < 9.5 and all(b > 0 for b in bits)
    over_time.main(["page", "--output", str(tmp_path)])
    assert over_time.PICTURE.stat().st_size > 1000


def test_repeated_text_is_told_by_how_far_back_it_stands():
    row = torch.arange(300)
    row[250:270] = row[20:40]  # 230 bytes back
    row[275:290] = row[255:270]  # the same text again: 20 bytes back
    found = over_time.distances(row[None])[0]
    assert {int(place) + 1: int(found[place]) for place in found.nonzero()[:, 0]} == {
        **dict.fromkeys(range(258, 271), 230),  # the byte behind the copy too: what stands before it is repeated
        **dict.fromkeys(range(283, 291), 20),
    }
    needed = torch.where(found > 0, 1.0, 3.0)[None]
    assert over_time.by_distance(needed, row[None]) == [
        [0, 0, round(278 / 299, 4), 3.0], [1, 128, round(8 / 299, 4), 1.0], [129, 1024, round(13 / 299, 4), 1.0]
    ]  # fmt: skip


@pytest.mark.parametrize("task", long_documents.HEADS)
def test_needles_can_be_answered_from_the_document_and_from_nothing_else(task):
    generator, first = torch.Generator().manual_seed(0), 1 + long_documents.NAMES
    inputs, distances = long_documents.batch(task, 256, generator)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (16, 256)
    assert 0 < int((inputs["attention_mask"] == 0).sum(1).max()) <= 129
    for i, (row, mask) in enumerate(zip(inputs["input_ids"].tolist(), inputs["attention_mask"], strict=True)):
        row = row[: int(mask.sum())]
        facts = {name: (place, row[place + 1] - first) for place, name in enumerate(row[:-1])
                 if 1 <= name < first <= row[place + 1] < first + long_documents.VALUES}  # fmt: skip
        assert len(facts) == long_documents.FACTS
        if task == "tags":
            labels = inputs["labels"][i]
            asked = [place for place in range(len(row)) if labels[place] >= 0]
            assert len(asked) == long_documents.FACTS and all(int(labels[j]) == facts[row[j]][1] for j in asked)
            assert [int(distances[i, j]) for j in asked] == [abs(j - facts[row[j]][0]) for j in asked]
            assert not any(j in (place, place + 1) for j in asked for place, _ in facts.values())
        elif task == "class":
            place, value = facts[row[-1]]
            assert row[-2] == long_documents.MARK
            assert int(inputs["labels"][i]) == value and int(distances[i]) == len(row) - 1 - place
        else:
            place, _ = facts[row[1]]
            assert row[0] == long_documents.MARK
            assert int(inputs["start_positions"][i]) == int(inputs["end_positions"][i]) == place + 1
            assert int(distances[i]) == place - 1


def test_long_documents_are_measured_by_distance(tmp_path, monkeypatch):
    monkeypatch.setattr(long_documents, "EVALUATED", (64, 128))
    monkeypatch.setattr(long_documents, "TOKENS", 256)
    long_documents.main(["--steps", "60", "--output", str(tmp_path)])
    result = json.loads((tmp_path / "strict_lsh-4-60-0.json").read_text())
    assert list(result["tags"]["accuracy"]) == ["4 rounds", "8 rounds", "16 rounds"]
    for task in long_documents.HEADS:
        for found in result[task]["accuracy"]["4 rounds"].values():
            assert set(found) <= {"all", "16", "256"} and all(0 <= share <= 1 for share in found.values())
    assert [step for step, _ in result["tags"]["curve"]] == [50]


SOURCE = """
import os
from sys import path as here, argv

def f(x):
    x(g, os.sep)

class C(f.Base):
    pass

def g():
    os.x = f(C, argv, here)
    g(f)

f2 = g
"""


def test_names_of_a_file_are_tagged_from_the_second_time_on(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    (tmp_path / "b.py").write_text("def broken(")
    words, kinds = file = python_names.read(tmp_path / "a.py")
    assert kinds == {"os": 0, "here": 0, "argv": 0, "f": 1, "C": 2, "g": 1}
    assert python_names.read(tmp_path / "b.py") is None
    data = python_names.Rows([file])
    ids, tags, distances = data.row(file, torch.Generator().manual_seed(0))
    said = [(words[i][0], tag, words[i - distances[i]][0]) for i, tag in enumerate(tags) if tag >= 0]
    assert said == [(n, kinds[n], n) for n in ("os", "f", "os", "f", "C", "argv", "here", "g", "f", "g")]
    assert [words[i][0] for i, d in enumerate(distances) if d and words[i - d - 1][0] == "def"] == [
        "f",
        "f",
        "g",
        "f",
        "g",
    ]
    names = {text: number for (text, name), number in zip(words, ids, strict=True) if name}
    assert len(set(names.values())) == len(names) and min(names.values()) > max(data.signs.values())
    again = data.row(file, torch.Generator().manual_seed(1))[0]
    assert all((a == b) == (not name) for a, b, (_, name) in zip(ids, again, words, strict=True))
    inputs, far = data.batch([(ids, tags, distances), (ids[:5], tags[:5], distances[:5])])
    assert inputs["attention_mask"].sum(1).tolist() == [len(ids), 5] and far.shape == inputs["labels"].shape
    assert inputs["labels"][1, 5:].eq(-100).all()
