"""The guides: their examples run and print what they say, their commands exist, and no relative link leads nowhere."""

import contextlib
import doctest
import io
import itertools
import re
import shlex
from pathlib import Path
from urllib.parse import urldefrag

import pytest
import torch

from hf_reformer.cli import build_parser

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\s*$", re.M | re.S)
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
MARKDOWN = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not {"site", "build", "dist"} & set(path.relative_to(ROOT).parts)
    and not any(part.startswith(".") or part.endswith("-output") for part in path.relative_to(ROOT).parts)
]
ELSEWHERE = {
    "docs/guides/fine-tuning.md"
}  # its first blocks are run, and what they learn is looked at, in test_readme_examples
NEEDS = {"docs/guides/embeddings.md": "sentence_transformers", "docs/guides/evaluation-tools.md": "trl"}


def blocks(path):
    """(language, text) of each fenced block."""
    return FENCE.findall(path.read_text(encoding="utf-8"))


def examples(path):
    """(code, what it prints or None) of each Python block; what it prints is the next block, if that is `text`."""
    for (kind, code), (following, text) in itertools.pairwise([*blocks(path), ("", "")]):
        if kind == "python":
            yield code, text if following == "text" else None


def same_output(expected, printed):
    """Equal but for blanks; `...` stands for anything, and lines that Trainer writes of its own are left out."""
    printed = "".join(line for line in printed.splitlines(True) if not line.startswith(("{'loss'", "{'train_runtime'")))
    return doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


def run_page(path, folder, monkeypatch, skip=0):
    """Executes the Python blocks of a page from top to bottom as one program, and compares what they print."""
    monkeypatch.chdir(folder)
    names = {"__name__": "__main__"}
    for code, expected in list(examples(path))[skip:]:
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(code, str(path), "exec"), names)
        assert expected is None or same_output(expected, stream.getvalue()), f"{code}\nprinted\n{stream.getvalue()}"
    return names


@pytest.mark.parametrize(
    "page", [name for name, path in PAGES.items() if any(examples(path)) and name not in ELSEWHERE]
)
def test_the_examples_of_a_page_run_from_top_to_bottom_and_print_what_it_says(page, tmp_path, monkeypatch):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    names = run_page(PAGES[page], tmp_path, monkeypatch)
    if page == "docs/guides/long-documents.md":
        assert names["right"] >= 9  # of 12, by chance 6
    if page == "docs/guides/other-sequences.md":
        assert names["error"] < 0.7 * names["of_the_mean"]


def test_the_example_of_the_readme_prints_the_same_with_two_threads(tmp_path, monkeypatch):
    """Sums in another order: an example that has barely learned prints something else."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run_page(PAGES["README.md"], tmp_path, monkeypatch)
    finally:
        torch.set_num_threads(threads)


def test_lora_and_embeddings_of_the_page_on_fine_tuning(tmp_path, monkeypatch):
    path = PAGES["docs/guides/fine-tuning.md"]
    setup, *_ = [code for code, _ in examples(path)]
    line = next(line for line in setup.splitlines() if line.startswith("tokenizer = "))
    copy = tmp_path / "page.md"
    later = path.read_text(encoding="utf-8").split("## LoRA")[1]
    copy.write_text(f"```python\nfrom hf_reformer import ReformerByteTokenizer\n{line}\n```\n{later}", encoding="utf-8")
    run_page(copy, tmp_path, monkeypatch)


def commands(path):
    for kind, text in blocks(path):
        if kind == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "hf-reformer":
                    yield words[1:]


@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if any(commands(path))])
def test_the_commands_of_a_page_exist_with_these_options(page):
    for words in commands(PAGES[page]):
        assert build_parser().parse_args(words).run


def anchors(path):
    """Names that the headings of a page have on GitHub and in the site."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_relative_link_leads_to_a_file_and_to_a_heading(path):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, anchor = urldefrag(link)
        if re.match(r"[a-z]+:", link):
            continue
        target = path if not name else path.parent / name
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), f"{link}: no such heading"
