"""`python docs/architecture.py`: draws `architecture.svg`, the calls between `input_ids` and a block of attention, and those of
a gradient on its way back, each with file and line; prints the same as a list. `--check` fails where the picture is not today's.

Nothing of it is written by hand: a small model takes one training step, and whenever PyTorch runs one of a few operations,
the functions of the package that are running then are noted. What a box says of its function is the docstring's first line.
"""

import argparse
import ast
import functools
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hf_reformer

PACKAGE = Path(hf_reformer.__file__).resolve().parent
PICTURE = Path(__file__).with_name("architecture.svg")
LOOKUP, BLOCK, LOSS = "aten.embedding", "aten.exp2_", "aten._log_softmax"
CONFIG = {
    "attn_layers": ["local", "lsh"], "hidden_size": 16, "num_attention_heads": 2, "attention_head_size": 8,
    "feed_forward_size": 32, "vocab_size": 32, "axial_pos_embds_dim": [8, 8], "axial_pos_shape": [4, 8],
    "max_position_embeddings": 32, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 4,
    "is_decoder": True, "use_cache": False,
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """A function that is running: its file below the package, its name, where it begins, and the line it has come to."""

    file: str
    name: str
    first: int
    line: int


@dataclass
class Node:
    """A function in the tree of calls. called: the line of its caller; operation: what PyTorch runs in it, if it is a leaf."""

    frame: Frame
    called: int | None = None
    operation: str = ""
    children: list["Node"] = field(default_factory=list)


class Calls(TorchDispatchMode):
    """Notes `(operation, running functions of the package, outermost first)` for every operation in `names`."""

    def __init__(self, *names):
        super().__init__()
        self.names, self.seen = names, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func._overloadpacket) in self.names:
            self.seen.append((str(func._overloadpacket), running()))
        return func(*args, **(kwargs or {}))


def running():
    frames, frame = [], sys._getframe(2)
    while frame is not None:
        path, code = Path(frame.f_code.co_filename).resolve(), frame.f_code
        if path.is_relative_to(PACKAGE) and not code.co_name.startswith("<"):
            name = code.co_qualname.replace(".<locals>", "")
            frames.append(Frame(path.relative_to(PACKAGE).as_posix(), name, code.co_firstlineno, frame.f_lineno))
        frame = frame.f_back
    return frames[::-1]


def training_step():
    """What `Calls` sees in forward and in backward."""
    torch.manual_seed(0)
    model = hf_reformer.ReformerModelWithLMHead(hf_reformer.ReformerConfig(**CONFIG)).train()
    input_ids = torch.randint(CONFIG["vocab_size"], (1, 32))
    with Calls(LOOKUP, BLOCK, LOSS) as forward:
        loss = model(input_ids, labels=input_ids).loss
    with Calls(BLOCK) as backward:
        loss.backward()
    return forward.seen, backward.seen


def way_in(seen):
    """The first look-up, the last block of attention (its layer hashes), and the loss, as one tree."""
    first = {}
    for operation, frames in reversed(seen):
        if operation != BLOCK:
            first[operation] = frames
    block = next((frames for operation, frames in reversed(seen) if operation == BLOCK), None)
    return tree([(LOOKUP, first.get(LOOKUP)), (BLOCK, block), (LOSS, first.get(LOSS))])


def way_back(seen):
    """Once each: the ways on which backward comes to a block, told apart by the line that they leave its outermost function by."""
    ways = {}
    for operation, frames in seen:
        ways.setdefault((frames[0].name, frames[0].line) if frames else None, (operation, frames))
    return tree(ways.values())


def tree(stacks):
    """The outermost functions, each with what it calls, in the order of time."""
    top = Node(Frame("", "", 0, 0))
    for operation, frames in stacks:
        if not frames:
            raise RuntimeError(f"{operation} was not run by a function of the package: correct the operations above")
        node = top
        for frame, caller in zip(frames, [None, *frames], strict=False):
            last = node.children[-1] if node.children else None
            if last is None or (last.frame.file, last.frame.name) != (frame.file, frame.name):
                node.children.append(Node(frame, caller and caller.line))
            node = node.children[-1]
        node.operation = operation
    return top.children


def rows(nodes, depth=0):
    """(depth, node) of a tree, from top to bottom."""
    for node in nodes:
        yield depth, node
        yield from rows(node.children, depth + 1)


@functools.cache
def summaries(file):
    """{line of a function: first line of its docstring, else of its class's} in a module."""
    found = {}

    def visit(node, above):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                text = (ast.get_docstring(child) or above).partition("\n\n")[0].replace("\n", " ")
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                found[first] = text
                visit(child, text if isinstance(child, ast.ClassDef) else "")
            else:
                visit(child, above)

    visit(ast.parse((PACKAGE / file).read_text()), "")
    return found


def summary(node):
    text = summaries(node.frame.file).get(node.frame.first, "")
    if not text:
        print(f"{node.frame.file}:{node.frame.first}: {node.frame.name} has no docstring", file=sys.stderr)
    return text


def listed(nodes):
    """A Markdown list; each line: the function, where it begins, and the line that calls it."""
    lines = []
    for depth, node in rows(nodes):
        call = f", called in line {node.called}" if node.called else ""
        runs = f"; runs `{node.operation}` in line {node.frame.line}" if node.operation else ""
        lines.append(f"{'  ' * depth}- `{node.frame.name}` ({node.frame.file}:{node.frame.first}{call}){runs}")
    return "\n".join(lines)


ROW, INDENT, WIDTH, BOX = 50, 8, 740, 580  # pixels: from row to row, per level, of a column, of a box


def drawing(columns):
    """SVG of [(title, nodes)], side by side."""
    height = 60 + ROW * max(sum(1 for _ in rows(nodes)) for _, nodes in columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(columns)}" height="{height}" '
        f'viewBox="0 0 {WIDTH * len(columns)} {height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (title, nodes) in enumerate(columns):
        parts.append(f'<text x="{WIDTH * number + 20}" y="30" font-size="16" font-weight="bold">{escape(title)}</text>')
        parts += _column(nodes, WIDTH * number + 20)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _column(nodes, left):
    open_rows = {}  # the row of the last function at each depth, which is the caller of what follows one level deeper
    for row, (depth, node) in enumerate(rows(nodes)):
        x, y = left + INDENT * depth, 50 + ROW * row
        if depth:
            yield f'<path d="M{x - 6} {open_rows[depth - 1] + 38} V{y + 19} H{x}" fill="none" stroke="#888"/>'
        open_rows[depth] = y
        colour = "#ffe9c7" if node.operation else "#e8f0fb"
        call = f", called in line {node.called}" if node.called else ""
        runs = f", runs {node.operation}" if node.operation else ""
        text = summary(node)
        yield f'<rect x="{x}" y="{y}" width="{BOX}" height="38" rx="4" fill="{colour}" stroke="#7a8ca5"/>'
        yield (
            f'<text x="{x + 8}" y="{y + 15}"><tspan font-weight="bold">{escape(node.frame.name)}</tspan>'
            f'<tspan fill="#555"> {escape(f"{node.frame.file}:{node.frame.first}{call}{runs}")}</tspan></text>'
        )
        short = text if len(text) <= 100 else text[:99].rsplit(" ", 1)[0] + " ..."
        yield f'<text x="{x + 8}" y="{y + 31}" font-size="11" fill="#333">{escape(short)}</text>'


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the picture is not today's")
    args = parser.parse_args(argv)
    forward, backward = training_step()
    columns = [("input_ids to a block of attention, and to the loss", way_in(forward))]
    columns.append(("a gradient back to a block of attention", way_back(backward)))
    picture = drawing(columns)
    for title, nodes in columns:
        print(f"**{title}**\n\n{listed(nodes)}\n")
    if args.check:
        return int(not PICTURE.exists() or PICTURE.read_text() != picture)
    PICTURE.write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
