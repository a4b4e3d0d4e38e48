"""Small faults that can be put into a module: comparisons, operators, constants, conditions, statements left out.

Left alone is what no behaviour depends on: docstrings, annotations, and the texts of errors.
"""

import ast
from typing import NamedTuple

SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd,
}  # fmt: skip
DROPPED = (ast.Expr, ast.Raise, ast.Assert, ast.AugAssign, ast.Delete)  # statements that a function can do without


class Mutation(NamedTuple):
    """line: where; source: the text of that line, which names the place when lines move; what: the fault; code: all of it."""

    line: int
    source: str
    what: str
    code: str


def mutations(text):
    """Every `Mutation` of a module's text, one fault each, in the order of its lines."""
    lines, found = text.splitlines(), []
    for index, node in enumerate(_places(ast.parse(text))):
        for number, (what, _) in enumerate(_faults(node)):
            tree = ast.parse(text)
            place = _places(tree)[index]
            _, put = _faults(place)[number]
            line = _line(place, what)
            put()
            found.append(Mutation(line, lines[line - 1].strip(), what.partition("@")[0], ast.unparse(tree)))
    return sorted(found, key=lambda mutation: mutation.line)


def _places(tree):
    """All nodes that may be changed, in a fixed order."""
    ignored = {id(part) for node in ast.walk(tree) for root in _without_behaviour(node) for part in ast.walk(root)}
    return [node for node in ast.walk(tree) if id(node) not in ignored]


def _without_behaviour(node):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
        yield node.body[0]
    for name in ("annotation", "returns"):
        if getattr(node, name, None) is not None:
            yield getattr(node, name)
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        yield from ast.iter_child_nodes(node)
    if isinstance(node, ast.Assign) and any(isinstance(x, ast.Name) and x.id == "__all__" for x in node.targets):
        yield node


def _line(node, what):
    return int(what.partition("@")[2] or node.lineno)


def _faults(node):
    """[(what, function that puts it into the tree)]; a `what` may end in `@LINE` where the node has none of its own."""
    faults = []

    def fault(what, put, *arguments):
        faults.append((what, lambda: put(*arguments)))

    if isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.AugAssign) and type(node.op) in SWAPS:
        new = SWAPS[type(node.op)]
        fault(f"{type(node.op).__name__} -> {new.__name__}", setattr, node, "op", new())
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            fault(f"{type(op).__name__} -> {SWAPS[type(op)].__name__}", node.ops.__setitem__, i, SWAPS[type(op)]())
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not _is_single(node.test):
        fault(f"condition negated@{node.test.lineno}", setattr, node, "test", ast.UnaryOp(ast.Not(), node.test))
    for i, test in enumerate(node.ifs if isinstance(node, ast.comprehension) else ()):
        if _is_single(test):
            continue
        fault(f"condition negated@{test.lineno}", node.ifs.__setitem__, i, ast.UnaryOp(ast.Not(), test))
    if isinstance(node, ast.Return) and not isinstance(node.value, ast.Constant | None):
        fault("returns None", setattr, node, "value", ast.Constant(None))
    if isinstance(node, ast.Constant) and (new := _other(node.value)) is not None:
        fault(f"{node.value!r} -> {new!r}", setattr, node, "value", new)
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        for i, statement in enumerate(block if isinstance(block, list) else ()):
            if isinstance(statement, DROPPED) and not _is_text(statement):
                what = f"left out: {type(statement).__name__}@{statement.lineno}"
                fault(what, block.__setitem__, i, ast.Pass())
    return faults


def _is_single(test):
    """Whether a condition is negated by what is done to comparisons anyway."""
    return isinstance(test, ast.Compare) and len(test.ops) == 1


def _is_text(statement):
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _other(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return 2 * value if value else 1.0
    return value + "?" if isinstance(value, str) else None
