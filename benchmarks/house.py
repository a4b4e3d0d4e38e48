"""`python -m benchmarks.house [--base REF] [--folders ...]`: lines and longest function of every module, now and at a git ref."""

import argparse
import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("src/hf_reformer", "conversion", "benchmarks", "tests")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("--base", metavar="REF", help="a commit to stand beside the files of today")
    parser.add_argument("--folders", nargs="*", default=FOLDERS[:2], help="default: %(default)s")
    args = parser.parse_args(argv)
    print(table(modules_now(args.folders), modules_at(args.base, args.folders) if args.base else None))


def modules_now(folders):
    """{path: text} of every module below the folders; links are not followed, so nothing counts twice."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def modules_at(ref, folders):
    """The same at a git ref."""
    names = _git("ls-tree", "-r", "--name-only", ref, "--", *folders).splitlines()
    return {name: _git("show", f"{ref}:{name}") for name in names if name.endswith(".py")}


def _git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def measures(text):
    """(lines of the module, lines of its longest function's body without docstring, that function's name)."""
    functions = [
        (_body_lines(node), node.name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return len(text.splitlines()), *max(functions, default=(0, ""))


def _body_lines(function):
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def table(now, base=None):
    """Markdown: a row for every module, and sums for every folder."""
    sides = [now] if base is None else [base, now]
    heads = (
        ["lines", "longest function"]
        if base is None
        else ["lines before", "longest before", "lines now", "longest now"]
    )
    rows = [["module", *heads], ["---"] * (len(heads) + 1)]
    found = [{path: measures(text) for path, text in side.items()} for side in sides]
    folders = sorted({str(Path(path).parent) for side in found for path in side})
    for folder in folders:
        parts = [{p: m for p, m in side.items() if str(Path(p).parent) == folder} for side in found]
        for path in sorted(set().union(*parts)):
            rows.append([f"`{path}`", *(cell for side in parts for cell in _cells(side.get(path)))])
        rows.append([f"**{folder}/**", *(cell for side in parts for cell in _sums(side))])
    rows.append(["**all**", *(cell for side in found for cell in _sums(side))])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cells(measured):
    if measured is None:
        return "", ""
    lines, longest, name = measured
    return f"{lines:,}", f"{longest} `{name}`" if name else ""


def _sums(side):
    if not side:
        return "", ""
    lines = sorted(measured[0] for measured in side.values())
    longest = max(measured[1] for measured in side.values())
    return f"**{sum(lines):,}** in {len(lines)} modules, median {lines[len(lines) // 2]}", f"**{longest}**"


if __name__ == "__main__":
    main()
