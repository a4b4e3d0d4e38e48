"""The layout of the package: imports point down only, from the faces over the commands and the training to the model."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_reformer

PACKAGE = Path(hf_reformer.__file__).parent
FACES = {"__init__", "auto"}
# what the modules of each part may import of the other parts
ALLOWED = {
    "files": set(),
    "model": set(),
    "parallel": {"model"},
    "training": {"model", "files", "parallel", ""},
    "conversion": {"model", "files", ""},
    "cli": {"training", "model", "files", "conversion", ""},
}


def modules():
    """All files of the package; conversion/ is a link, which `rglob` does not follow by itself."""
    folders = (folder for folder in PACKAGE.iterdir() if folder.is_dir())
    return sorted([*PACKAGE.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))])


def part_of(path):
    """`model`, `training`, ..., or the module's own name for one that stands beside the folders."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports_of(path):
    """(line, part) of everything of this package that a module imports, at its top or inside a function; "": the faces."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.ImportFrom):
            if node.level < depth:
                continue  # a neighbour in the same folder
            names = [f"hf_reformer.{node.module or node.names[0].name}"]
        for name in names:
            head, *rest = name.split(".")
            if head in ("hf_reformer", "conversion"):
                part = rest[0] if rest else ""
                yield node.lineno, "" if part in FACES or part.startswith("__") else part


def test_imports_point_down_only():
    wrong = []
    for path in modules():
        part = part_of(path)
        if part not in FACES and path.stem != "__main__":
            wrong += [
                f"{path.relative_to(PACKAGE)}:{line} imports {other or 'hf_reformer'}"
                for line, other in imports_of(path)
                if other != part and other not in ALLOWED[part]
            ]
    assert wrong == []


def test_every_folder_has_its_rule():
    assert {part_of(path) for path in modules()} - FACES == set(ALLOWED)


@pytest.mark.parametrize("name", ["hf_reformer", "hf_reformer.conversion"])
def test_a_folder_of_the_same_name_in_the_current_folder_does_not_hide_the_package(tmp_path, name):
    """A clone is called hf_reformer, too: next to it Python would take the folder for a namespace package."""
    (tmp_path / "hf_reformer" / "src").mkdir(parents=True)
    code = f"import {name} as module; import hf_reformer; print(hf_reformer.ReformerConfig.__module__, module.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hf_reformer.model.configuration_reformer ")
