"""What is built and what the Makefile does: wheel and sdist are complete, requirements are declared, nothing foreign is removed."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "google": "protobuf",
}  # of modules that are called otherwise than their package


def sources(folder):
    """All files of the package below `src` or in a wheel, links followed."""
    paths = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return {path.relative_to(folder).as_posix() for path in paths if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what is built from, so that nothing is built in the checkout."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("src", "conversion"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


def build(tree, kind, output):
    """The path of the `wheel` or `sdist` of a source tree, built by the packages that are installed here."""
    pytest.importorskip("setuptools")
    code = f"from setuptools import build_meta as b; print(b.build_{kind}({str(output)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return output / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    return build(tree, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name for name in sources(ROOT / "src") if ".egg-info/" not in name}
    parts = {name.split("/")[1] for name in names if "/" in name}
    assert parts >= {"py.typed", "model", "training", "cli", "conversion"}
    assert "hf_reformer/training/recipes/text.yaml" in names


def test_the_installed_wheel_works_alone(wheel, tmp_path):
    """Every module can be imported, recipes are found, and the command answers, from another folder than the checkout."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
import importlib, pkgutil, sys
import hf_reformer
from hf_reformer.cli import main
assert hf_reformer.__file__.startswith(sys.argv[1]), hf_reformer.__file__
for module in pkgutil.walk_packages(hf_reformer.__path__, "hf_reformer."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
main(["convert", "--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--max-length" in done.stdout


def test_the_sdist_gives_the_same_wheel(tree, wheel, tmp_path):
    with tarfile.open(build(tree, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (tmp_path / "again").mkdir()
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(build(source, "wheel", tmp_path / "again")) as second:
        contents = [
            {n: archive.read(n) for n in archive.namelist() if ".dist-info/" not in n} for archive in (first, second)
        ]
    assert contents[0] == contents[1]


def imports(node):
    """Foreign packages that a tree of code imports."""
    for item in ast.walk(node):
        if isinstance(item, ast.Import):
            yield from (name.name.split(".")[0] for name in item.names)
        elif isinstance(item, ast.ImportFrom) and item.level == 0:
            yield item.module.split(".")[0]


def test_every_package_that_is_imported_is_required():
    """At the top of a module: by `install_requires`; elsewhere one of the extras will do."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")

    def names(text):
        return {re.match(r"[\w-]+", line)[0].lower().replace("-", "_") for line in text.split()}

    required = names(config["options"]["install_requires"])
    extras = set().union(*(names(text) for text in config["options.extras_require"].values()))
    ours = {*sys.stdlib_module_names, "hf_reformer", "hf_reformer_cli", "conversion"}
    needed_whole = {
        "hf_reformer/cli/page.py": {"gradio"}
    }  # modules that are loaded once their extra is known to be there
    for path in sorted(p for p in sources(ROOT / "src") if p.endswith(".py")):
        tree = ast.parse((ROOT / "src" / path).read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for allowed, nodes in ((required | needed_whole.get(path, set()), top), (required | extras, [tree])):
            found = {NAMES.get(name, name).lower() for node in nodes for name in imports(node)} - ours
            assert found <= allowed, f"{path} imports {sorted(found - allowed)}"


# --- the Makefile ---------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path):
    """Runs `make` in a folder with an environment that is made already, whose programs print their arguments."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    bin_ = tmp_path / ".venv" / "bin"
    bin_.mkdir(parents=True)
    for name in ("python", "ruff", "hf-reformer", "pip"):
        (bin_ / name).write_text('#!/bin/sh\necho "threads $OMP_NUM_THREADS:"\nfor x in "$@"; do echo "<$x>"; done\n')
        (bin_ / name).chmod(0o755)
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("src", "tests"):
        (tmp_path / name).mkdir()
    for stamp in (".installed", ".docs-installed"):
        (tmp_path / ".venv" / stamp).touch()

    def run(*arguments, **environment):
        done = subprocess.run(
            ["make", *arguments], cwd=tmp_path, capture_output=True, text=True, env=os.environ | environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("name", ["keep me", "keep", "$(echo keep)", "'keep'"])
def test_clean_removes_nothing_that_a_user_named(make, tmp_path, name):
    for folder in ("keep", "me", "keep me", "quickstart-output"):
        (tmp_path / folder).mkdir()
    make("clean", DEMO_OUTPUT=name)
    assert {path.name for path in tmp_path.iterdir()} >= {"keep", "me", "keep me", ".venv", "src", "tests"}
    assert not (tmp_path / "quickstart-output").exists()


@pytest.mark.parametrize("name", ["two words", "a'b", 'a"b'])
def test_the_demo_takes_any_name_for_its_output(make, name):
    assert f"<--output>\n<{name}>\n" in make("demo", DEMO_OUTPUT=name)


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 2), (8, 8), (64, 8)])
def test_tests_run_on_the_cores_there_are_with_one_thread_each(make, cores, workers):
    printed = make("test", f"CORES={cores}")
    assert f"<-n>\n<{workers}>\n" in printed
    assert "threads 1:\n<-m>\n<pytest>" in printed


def test_the_documentation_is_built_strictly(make):
    assert "<-m>\n<mkdocs>\n<build>\n<--strict>" in make("docs")
