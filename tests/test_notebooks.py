"""The notebooks run as they are committed, and come to the numbers that their first cell promises."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from hf_reformer.training.cards import without_folders

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def printed(notebook):
    return "".join(o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream")


def executed(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return notebook


def numbers(text, pattern):
    return [float(number) for number in re.search(pattern, text).groups()]


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_illustrated_lsh",
        "02_reversible_layers",
        "04_does_lsh_help",
        "07_images",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_committed_with_their_outputs_and_begin_with_what_to_expect(path):
    notebook = nbformat.read(path, as_version=4)
    assert "**The number to" in notebook.cells[0].source.replace("\n", " ")
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count == i + 1 for i, cell in enumerate(codes))
    assert sum("image/png" in o.get("data", {}) for cell in codes for o in cell.outputs) >= 1
    texts = [cell.source for cell in notebook.cells]
    texts += [
        o.get("text", "") + "".join(o.get("data", {}).get("text/plain", "")) for cell in codes for o in cell.outputs
    ]
    assert all(without_folders(text) == text and "Traceback" not in text for text in texts)
    assert all(o.output_type != "error" for cell in codes for o in cell.outputs)


def test_hashing_puts_pairs_together_as_often_as_is_said():
    once, four = numbers(printed(executed(NOTEBOOKS[0])), r"one round (0\.\d+), four rounds (0\.\d+)")
    expected = numbers(NOTEBOOKS[0].read_text(), r"probability (0\.\d+) ± 0\.02.*?with (0\.\d+) ± 0\.02")
    assert [once, four] == pytest.approx(expected, abs=0.02)


def test_reversible_layers_keep_the_same_at_any_depth_and_refuse_what_cannot_be_repeated():
    text = printed(executed(NOTEBOOKS[1]))
    reversible, ordinary = numbers(
        text, r"growth from 2 to 16 layers: \{'reversible': ([\d.]+), 'ordinary': ([\d.]+)\}"
    )
    assert reversible < 1.05 and 5 < ordinary < 7
    assert numbers(text, r"relative difference: (\S+)")[0] < 1e-12
    assert "encoder.layers[1] did not give what it gave in forward" in text


def test_hashing_finds_the_answers_as_often_as_is_said():
    path = FOLDER / "04_does_lsh_help.ipynb"
    text = printed(executed(path))
    said = numbers(nbformat.read(path, as_version=4).cells[0].source, r"gives ([\d.]+) ± 2 %.*?and ([\d.]+) ± 2 %")
    assert numbers(text, r"4 rounds ([\d.]+) %, 16 rounds ([\d.]+) %") == pytest.approx(said, abs=2)
    _, answer, places = re.search(r"stands at (\d+), its answer \d+ at (\d+); .* places \[(.*)\]", text).groups()
    assert answer in places.split(", ")


def test_images_cost_what_the_first_cell_says_and_are_completed():
    path = FOLDER / "07_images.ipynb"
    text = printed(executed(path))
    model, png = numbers(text, r"model ([\d.]+) bits per dimension, PNG ([\d.]+)")
    said = numbers(nbformat.read(path, as_version=4).cells[0].source, r"([\d.]+) ± 0\.1 bits .*? of it ([\d.]+);")
    assert [model, png] == [pytest.approx(said[0], abs=0.1), pytest.approx(said[1], abs=0.02)]
    assert "12 completions, upper half kept in all of them: True" in text
    before, after, png = numbers(text, r"dimension ([\d.]+) before, ([\d.]+) after 90 steps, PNG ([\d.]+)")
    assert after < 1.5 < png < before + 1
