"""Reads the bindings of a `config.gin` without gin: nothing is imported, nothing evaluated, `include` is not followed.

    name = value                     a macro, used as %name
    scope/module.Class.name = value  a parameter of a configurable class; its module is ignored

    import module                    skipped; so is `from module import name`
    include 'file'                   remembered, not followed

Anything else is an error: a binding that is overlooked would be a wrong model. Values are Python literals, `@references` and
`%macros`, also inside lists, tuples and dictionaries. The operative configurations that Trax writes beside a checkpoint are
of this form.
"""

import re
from typing import NamedTuple

MAX_NESTING = 20
TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*|\\\n)
      | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
      | (?P<reference>@[\w./]+(?:\(\))?)
      | (?P<macro>%[\w./]+)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<mark>[\[\](){},:])""",
    re.VERBOSE,
)
BINDING = re.compile(r"(?P<name>[A-Za-z_][\w./]*)[ \t]*=(?!=)")
SKIPPED = re.compile(r"(?:import|from)[ \t][^\n]*|include[ \t]+(?P<quote>['\"])(?P<file>[^'\"\n]*)(?P=quote)")
BLANK = re.compile(r"(?:\s|\\\n)*")
REST_OF_LINE = re.compile(r"[ \t\r]*(?:\n|\Z)")
CONSTANTS = {"True": True, "False": False, "None": None}


class Reference(NamedTuple):
    """`@scope/module.Name`."""

    scope: str
    name: str


class Macro(NamedTuple):
    """`%name`."""

    name: str


class Bindings:
    """`get(configurable, parameter)` looks a value up, in a scope first where one is given; macros are filled in."""

    def __init__(self, values, includes=()):
        self._values, self.includes = values, includes

    def get(self, configurable, parameter, default=None, scope=""):
        for key in ((scope, configurable, parameter), ("", configurable, parameter)):
            if key in self._values:
                return self._fill(self._values[key], 0)
        return default

    def has(self, configurable):
        return any(key[1] == configurable for key in self._values)

    def _fill(self, value, depth):
        if depth > MAX_NESTING:
            raise ValueError("a macro of the gin configuration refers to itself.")
        if isinstance(value, Macro):
            if ("", "", value.name) not in self._values:
                raise ValueError(f"the gin configuration uses %{value.name}, but does not define it.")
            return self._fill(self._values["", "", value.name], depth + 1)
        if isinstance(value, list):
            return [self._fill(item, depth + 1) for item in value]
        return value


def parse_gin(text):
    """The bindings of a gin file; later ones win. Tuples come back as lists.

    Raises:
        ValueError: for a line that is no binding, and for a value that is no literal, reference or macro; it names them.
    """
    values, includes, text, position = {}, [], _without_comments(text), 0
    while (position := BLANK.match(text, position).end()) < len(text):
        if skipped := SKIPPED.match(text, position):
            includes += [skipped["file"]] if skipped["file"] else []
            position = skipped.end()
        elif binding := BINDING.match(text, position):
            key = _key(binding["name"])
            values[key], position = _value_at(text, binding)
        if not (skipped or binding) or not (line_end := REST_OF_LINE.match(text, position)):
            found = text[position : position + 60].split("\n")[0]
            line = text.count("\n", 0, position) + 1
            raise ValueError(f"line {line} of the gin configuration: {found!r} is not a binding.")
        position = line_end.end()
    return Bindings(values, tuple(includes))


def _key(name):
    """(scope, class, parameter)."""
    scope, _, name = name.rpartition("/")
    parts = name.split(".")
    return scope, parts[-2] if len(parts) > 1 else "", parts[-1]


def _value_at(text, binding):
    """The value of a binding and where it ends."""
    value = _Value(text, binding.end())
    try:
        return value.parse(), value.position
    except ValueError as error:
        raise ValueError(f"the gin binding `{binding['name']}`: {error}") from error


def _without_comments(text):
    """Comments blanked, so that a commented binding is none; a `#` inside quotes stays."""
    return re.sub(
        r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|\#[^\n]*""",
        lambda match: " " * len(match[0]) if match[0].startswith("#") else match[0],
        text,
    )


class _Value:
    """A recursive-descent parser of one value."""

    def __init__(self, text, position):
        self.text, self.position = text, position

    def parse(self, depth=0):
        kind, token = self._next()
        if depth > MAX_NESTING:
            raise ValueError(f"nested more than {MAX_NESTING} deep")
        if kind == "number":
            return float(token) if re.search(r"[.eE]", token) else int(token)
        if kind == "text":
            return self._joined(token)
        if kind == "reference":
            scope, _, name = token[1:].removesuffix("()").rpartition("/")
            return Reference(scope, name.split(".")[-1])
        if kind == "macro":
            return Macro(token[1:])
        if kind == "name" and token in CONSTANTS:
            return CONSTANTS[token]
        if token in ("[", "("):
            return self._items("]" if token == "[" else ")", depth)
        if token == "{":
            return self._pairs(depth)
        if kind == "end" and not token:
            raise ValueError("the value ends too early")
        raise ValueError(f"{token!r} is not a literal, an @reference or a %macro")

    def _joined(self, token):
        """Adjacent strings are one."""
        text = token[1:-1]
        while self._peek()[0] == "text":
            text += self._next()[1][1:-1]
        return text

    def _items(self, end, depth):
        items, commas = [], 0
        while self._peek()[1] != end:
            items.append(self.parse(depth + 1))
            if self._peek()[1] == ",":
                self._next()
                commas += 1
            elif self._peek()[1] != end:
                raise ValueError(f"a comma or {end!r} is missing")
        self._next()
        return items[0] if end == ")" and commas == 0 and items else items

    def _pairs(self, depth):
        pairs = {}
        while self._peek()[1] != "}":
            key = self.parse(depth + 1)
            if not isinstance(key, str | int) or self._next()[1] != ":":
                raise ValueError("a dictionary is malformed")
            pairs[key] = self.parse(depth + 1)
            if self._peek()[1] == ",":
                self._next()
            elif self._peek()[1] != "}":
                raise ValueError("a comma or '}' is missing")
        self._next()
        return pairs

    def _peek(self):
        position = self.position
        token = self._next()
        self.position = position
        return token

    def _next(self):
        while match := TOKEN.match(self.text, self.position):
            self.position = match.end()
            if match.lastgroup != "space":
                return match.lastgroup, match[0]
        found = self.text[self.position : self.position + 20].split("\n")[0]
        return "end", found
