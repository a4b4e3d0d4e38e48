"""The tool that puts faults into the code: it finds them, leaves alone what has no behaviour, and tells what became of each."""

import ast
import subprocess

import pytest

from benchmarks import mutants
from benchmarks.mutations import mutations

MODULE = '''"""A docstring 1."""
LIMIT: int = 3


def larger(values, least=2.5):
    """Another."""
    found = [x + 1 for x in values if x > least and x]
    found.sort(key="a".find)
    if not found:
        raise ValueError(f"{values} holds {1}")
    return -found[0]
'''


def test_every_kind_of_fault_is_found():
    found = {(m.line, m.what) for m in mutations(MODULE)}
    assert found == {
        (2, "3 -> 4"), (5, "2.5 -> 5.0"), (7, "Add -> Sub"), (7, "1 -> 2"), (7, "Gt -> GtE"), (7, "And -> Or"),
        (7, "condition negated"), (8, "left out: Expr"), (8, "'a' -> 'a?'"), (9, "condition negated"),
        (10, "left out: Raise"), (11, "USub -> UAdd"), (11, "0 -> 1"), (11, "returns None"),
    }  # fmt: skip


def test_each_fault_changes_the_code_in_its_own_way():
    codes = [m.code for m in mutations(MODULE)]
    assert len({*codes, ast.unparse(ast.parse(MODULE))}) == len(codes) + 1
    for mutation in mutations(MODULE):
        changed = mutation.code.splitlines()
        assert sum(a != b for a, b in zip(ast.unparse(ast.parse(MODULE)).splitlines(), changed, strict=True)) == 1


def test_the_table_counts_faults_by_what_became_of_them():
    fault = {"module": "m", "path": "m.py", "line": 7, "what": "1 -> 2", "source": "x = 1"}
    outcomes = ["killed", "killed", "timeout", "survived", "equivalent"]
    lines = mutants.report([fault | {"outcome": outcome} for outcome in outcomes]).splitlines()
    assert lines[2] == "| m | 5 | 3 | 1 | 1 | 1 | 75 % |"
    assert lines[-1] == "- m.py:7: 1 -> 2: `x = 1`"


@pytest.mark.slow
def test_faults_are_killed_survive_or_run_out_of_time(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "benchmarks").symlink_to(mutants.ROOT / "benchmarks")
    (tmp_path / "src" / "small.py").write_text(
        "def ends(n):\n    while n > 0:\n        n -= 1\n    unused = 5\n    return 7\n"
    )
    (tmp_path / "tests" / "test_small.py").write_text(
        "import small\n\n\ndef test_7():\n    assert small.ends(3) == 7\n"
    )
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "MODULES", {"small": ("src/small.py", "small")})
    done = mutants.run_all(mutants.faults_of("small"), jobs=2, limit=20, path=None)
    assert {(f["line"], f["what"]): f["outcome"] for f in done} == {
        (2, "Gt -> GtE"): "survived", (2, "0 -> 1"): "survived", (3, "Sub -> Add"): "timeout",
        (3, "1 -> 2"): "survived", (3, "left out: AugAssign"): "timeout", (4, "5 -> 6"): "survived",
        (5, "7 -> 8"): "killed",
    }  # fmt: skip
