"""Reads pickles of arrays without unpickling: an interpreter of the opcodes that such pickles need.

Python's own `pickle` calls whatever a file names. This one never imports and never calls anything by name: the few names
that checkpoints contain (`pickled_names`) stand for functions of this package, which only check and store; every other
name is refused. Bounded: opcodes are counted, memory is never claimed by a number in the file, and containers are neither
hashed nor printed: one that holds another twice, thirty levels deep, is a few hundred bytes that take forever.
"""

import io
import pickletools

from .pickled_names import CALLABLE, NAMES, Array, Dtype, Inert, Name, OrderedDict

MAX_OPCODES = 1_000_000  # a checkpoint of 1,000 arrays has about 30,000
PERSISTENT = "persistent objects"  # a key of `names`: a function that checks one and gives what stands for it


def read_pickle(data, names=NAMES):
    """The object in the pickle `data` (bytes, or a binary stream, which is then left behind the pickle).

    Args:
        names: {(module, name): what it stands for}; what is not in it is refused.

    Raises:
        ValueError: for anything that is not a sound pickle of plain containers, numbers, text and arrays.
    """
    machine = Machine(names)
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES:,} opcodes")
            machine.step(opcode.name, argument)
        return machine.result()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UnicodeError) as error:
        raise ValueError(f"the pickle is damaged ({type(error).__name__}: {str(error)[:80]})") from error


_MARK = Name()
_PUSHED = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "STRING", "BINSTRING",
    "SHORT_BINSTRING",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Machine:
    """The stack, the memo and one method for each kind of opcode."""

    def __init__(self, names):
        self.names, self.stack, self.memo = names, [], {}

    def step(self, name, argument):
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif (action := getattr(self, f"do_{name.lower()}", None)) is not None:
            action(argument)
        else:
            raise ValueError(f"the opcode {name}, which no checkpoint needs")

    def result(self):
        if len(self.stack) != 1:
            raise ValueError("the pickle is damaged: it leaves more or less than one object")
        return self.stack[0]

    def to_mark(self):
        """What was pushed since the last mark; takes both off the stack."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise ValueError("the pickle is damaged: a mark is missing")

    def take(self, count):
        if len(self.stack) < count or any(item is _MARK for item in self.stack[-count:]):
            raise ValueError("the pickle is damaged: the stack is too short")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def do_proto(self, argument):
        pass

    do_frame = do_stop = do_proto

    def do_mark(self, argument):
        self.stack.append(_MARK)

    def do_empty_list(self, argument):
        self.stack.append([])

    def do_empty_dict(self, argument):
        self.stack.append({})

    def do_list(self, argument):
        self.stack.append(self.to_mark())

    def do_tuple(self, argument):
        self.stack.append(tuple(self.to_mark()))

    def do_tuple1(self, argument):
        self.stack.append(tuple(self.take(1)))

    def do_tuple2(self, argument):
        self.stack.append(tuple(self.take(2)))

    def do_tuple3(self, argument):
        self.stack.append(tuple(self.take(3)))

    def do_dict(self, argument):
        self.stack.append(_fill({}, self.to_mark()))

    def do_append(self, argument):
        self._extend(self.take(1))

    def do_appends(self, argument):
        self._extend(self.to_mark())

    def _extend(self, items):
        if not isinstance(self.stack[-1], list):
            raise ValueError("the pickle appends to something that is not a list")
        self.stack[-1].extend(items)

    def do_setitem(self, argument):
        pair = self.take(2)
        _fill(self.stack[-1], pair)

    def do_setitems(self, argument):
        items = self.to_mark()
        _fill(self.stack[-1], items)

    def do_pop(self, argument):
        self.stack.pop()

    def do_pop_mark(self, argument):
        self.to_mark()

    def do_memoize(self, argument):
        self.memo[len(self.memo)] = self.stack[-1]

    def do_put(self, argument):
        self.memo[argument] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_get(self, argument):
        self.stack.append(self.memo[argument])

    do_binget = do_long_binget = do_get

    def do_global(self, argument):
        self._push_name(*argument.split(" ", 1))

    def do_stack_global(self, argument):
        self._push_name(*self.take(2))

    def _push_name(self, module, name):
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the pickle names something by an object that is not text")
        if (module, name) not in self.names:
            raise ValueError(f"the pickle names {module[:80]}.{name[:80]}, which no checkpoint needs")
        self.stack.append(self.names[module, name])

    def do_reduce(self, argument):
        function, arguments = self.take(2)
        known = any(function is allowed for allowed in CALLABLE)
        if not known or not isinstance(arguments, tuple):
            raise ValueError("the pickle calls something that is not to be called")
        self.stack.append(function(*arguments))

    def do_newobj(self, argument):
        kind, _ = self.take(2)
        if kind is not Inert:
            raise ValueError("the pickle makes an object of a class that is not to be made")
        self.stack.append(Inert())

    def do_build(self, argument):
        state = self.take(1)[0]
        if not isinstance(self.stack[-1], Array | Dtype | Inert | OrderedDict):
            raise ValueError("the pickle changes an object that has no state")
        self.stack[-1].set_state(state)

    def do_binpersid(self, argument):
        if PERSISTENT not in self.names:
            raise ValueError("the opcode BINPERSID, which no Trax checkpoint needs")
        self.stack.append(self.names[PERSISTENT](self.take(1)[0]))


def _fill(dictionary, items):
    if not isinstance(dictionary, dict) or len(items) % 2:
        raise ValueError("the pickle is damaged: a dictionary is malformed")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | bytes | None):
            raise ValueError("a dictionary has a key that is neither text nor a number")
        dictionary[key] = value
    return dictionary
