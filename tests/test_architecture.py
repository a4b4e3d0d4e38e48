"""`docs/architecture.py`: the picture of the calls in a training step is that of the code."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "docs" / "architecture.py"


@pytest.fixture(scope="module")
def architecture():
    spec = importlib.util.spec_from_file_location("architecture", PATH)
    module = sys.modules["architecture"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ways(architecture):
    forward, backward = architecture.training_step()
    return architecture.way_in(forward), architecture.way_back(backward)


def nodes_of(architecture, way):
    return [node for _, node in architecture.rows(way)]


def test_the_way_in_leads_from_the_model_to_the_embedding_a_block_of_attention_and_the_loss(architecture, ways):
    nodes = nodes_of(architecture, ways[0])
    assert "ReformerModelWithLMHead.forward" in [node.frame.name for node in nodes[:2]]  # behind the cache's way back
    assert [node.operation for node in nodes if node.operation] == [
        "aten.embedding",
        "aten.exp2_",
        "aten._log_softmax",
    ]


def test_the_way_back_begins_in_a_backward_and_ends_in_blocks_of_attention(architecture, ways):
    assert all(node.frame.name.endswith(".backward") for node in ways[1])
    leaves = [node for node in nodes_of(architecture, ways[1]) if not node.children]
    assert {node.operation for node in leaves} == {"aten.exp2_"}


def test_every_hop_is_a_function_that_begins_in_its_line_and_is_called_in_the_line_that_is_said(architecture, ways):
    for way in ways:
        for node in nodes_of(architecture, way):
            tree = ast.parse((architecture.PACKAGE / node.frame.file).read_text())
            functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
            name = node.frame.name.rpartition(".")[2]
            (own,) = [
                f
                for f in functions
                if f.name == name and f.lineno - len(f.decorator_list) <= node.frame.first <= f.lineno
            ]
            for child in node.children:
                assert own.lineno <= child.called <= own.end_lineno


def test_the_committed_picture_is_that_of_the_code_as_it_is(architecture):
    """`python docs/architecture.py` draws it anew."""
    assert architecture.main(["--check"]) == 0


def test_a_picture_of_other_code_is_found_out(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr(architecture, "PICTURE", tmp_path / "picture.svg")
    assert architecture.main(["--check"]) == 1
    architecture.main([])
    assert architecture.main(["--check"]) == 0
    old = (tmp_path / "picture.svg").read_text()
    (tmp_path / "picture.svg").write_text(old.replace("layer.py:", "layer.py:9"))
    assert architecture.main(["--check"]) == 1
