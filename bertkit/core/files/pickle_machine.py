"""Pickles read without Python's own machine: a pickle is a program, and this one can only build plain data.

Numbers, text and containers become themselves. A name is looked up in a table that the caller gives and is never imported.
What a name may make is decided by that table; all other classes give a `Stub`, which holds what the pickle says about it.
Time and memory are bounded: by the number of instructions, by what is copied, and by the shape of the result.
"""

from __future__ import annotations

import io
import pickletools
import reprlib
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from bertkit.core.errors import CheckpointError
from bertkit.core.files.byte_source import ByteSource, ByteStream, Part
from bertkit.core.tensors import LazyTensor

LARGEST_PROGRAM = 256 * 2**20
MOST_INSTRUCTIONS = 4_000_000
MOST_COPIED = 2 * LARGEST_PROGRAM
MOST_UNFOLDED = 10_000_000
DEEPEST = 100
LARGEST_NUMBER = 2**8192
MOST_UNUSUAL_KEYS = 20_000
"""Keys other than text, of which a hostile pickle could choose those that collide; that costs time with the square."""

FREE_KEYS = (str, bytes, bool, type(None))
COUNTED_KEYS = (int, float, tuple, frozenset)
POINTER = 64
"""What an item of a container counts as, in bytes, when it is copied."""


class Inert:
    """A name of a pickle that stands for itself and cannot be called or changed: a dtype, a device, a storage type."""

    __slots__ = ("dtype", "name")
    name: str
    dtype: str | None

    def __init__(self, name: str, dtype: str | None = None) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "dtype", dtype)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self!r} cannot be changed")

    def __repr__(self) -> str:
        return self.name


class Foreign(Inert):
    """A class or function of another program: calling it gives a `Stub`."""

    __slots__ = ()


class Maker(Inert):
    """A name that may be called; what it makes is decided here.

    Args:
        name: the name.
        make: what makes it.
        keys: which of its arguments will be hashed.
    """

    __slots__ = ("keys", "make")
    make: Callable[..., Any]
    keys: Callable[..., Iterable[Any]] | None

    def __init__(self, name: str, make: Callable[..., Any], keys: Callable[..., Iterable[Any]] | None = None) -> None:
        super().__init__(name)
        object.__setattr__(self, "make", make)
        object.__setattr__(self, "keys", keys)


class Stub:
    """An object of another program's class: what the pickle says about it, and nothing that it would do.

    Args:
        name: the class or function, such as "megatron.model.enums.AttnMaskType".
        args: what it was called with.

    Attributes:
        attributes: the attributes by name; also to be read as attributes of the stub itself.
        items: what was put into it, if it is a list or a dictionary (then pairs).
        state: what it was told to restore itself from.

    Example:
        >>> Stub("megatron.model.enums.AttnMaskType", (1,))
        <megatron.model.enums.AttnMaskType>
    """

    __slots__ = ("args", "attributes", "items", "name", "state")

    def __init__(self, name: str, args: tuple = ()) -> None:
        self.name, self.args = name, args
        self.attributes: dict[str, Any] = {}
        self.items: list[Any] = []
        self.state: Any = None

    def __getattr__(self, name: str) -> Any:
        # Not the special names: numpy and others ask every object for some, and would believe the pickle.
        if name.startswith("__") or name in Stub.__slots__ or name not in self.attributes:
            raise AttributeError(f"{self!r} has no attribute {name!r}")
        return self.attributes[name]

    def __repr__(self) -> str:
        return f"<{self.name[:200]}>"


class Buildable:
    """An object that the pickle fills after it was made."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        raise NotImplementedError


OBJECT_KEYS = (Inert, Stub, LazyTensor)
"""What is a key as the object that it is, whatever it holds: optimizers keep their state by tensor."""


class Mark:
    """Where a group of values begins on the stack."""


MARK = Mark()


def short(value: Any) -> str:
    """A value of a hostile file in an error message: bounded, and in plain characters."""
    try:
        text = str(value) if isinstance(value, (int, float)) else reprlib.repr(value)
        return text.encode("ascii", "backslashreplace").decode()
    except Exception:  # whatever it is, the message matters more
        return f"a {type(value).__name__}"


class Machine:
    """Runs pickles of one file.

    Args:
        find: what stands for a name such as "torch.FloatStorage"; raises when it is refused.
        storage: what stands for a reference to something outside of the pickle; raises when there is no such thing.
    """

    def __init__(self, find: Callable[[str], Inert], storage: Callable[[Any], Any]) -> None:
        self._find, self._storage = find, storage

    def run(self, source: ByteSource, position: int = 0) -> tuple[Any, int]:
        """What the pickle at a place of a source describes, and the place behind it.

        Raises:
            CheckpointError: when the pickle is refused.
            Exception: any other, when it is damaged.
        """
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._depth: dict[int, int] = {}
        self._copied = self._unusual_keys = 0
        end = min(source.size, position + LARGEST_PROGRAM)
        # The type that genops expects has tell(), which would be called for every instruction.
        stream = io.BufferedReader(ByteStream(Part(source, position, end)), 2**16)
        for number, (opcode, argument, _) in enumerate(pickletools.genops(_Readable(stream, end - position))):  # type: ignore[arg-type]
            if number > MOST_INSTRUCTIONS:
                raise CheckpointError(f"its pickle has more than {MOST_INSTRUCTIONS} instructions")
            step = STEPS.get(opcode.name)
            if step is None:
                raise CheckpointError(f"its pickle uses the instruction {opcode.name}, which weights do not need")
            step(self, argument)
        value = self._pop()
        if self._stack:
            raise ValueError("values are left over")
        _check_tree(value)
        self._stack, self._memo, self._depth = [], {}, {}
        return value, position + stream.tell()

    # -- the stack ------------------------------------------------------------------------------------------------------
    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is MARK:
            raise ValueError("a value is missing")
        return value

    def _top(self) -> Any:
        value = self._stack[-1]
        if value is MARK:
            raise ValueError("a value is missing")
        return value

    def _group(self) -> list[Any]:
        stack = self._stack
        place = len(stack) - 1
        while stack[place] is not MARK:
            place -= 1
            if place < 0:
                raise ValueError("a group has no beginning")
        values = stack[place + 1 :]
        del stack[place:]
        return values

    # -- values ---------------------------------------------------------------------------------------------------------
    def constant(self, value: Any) -> None:
        if type(value) is int and not -LARGEST_NUMBER < value < LARGEST_NUMBER:
            raise CheckpointError("its pickle has a number of thousands of digits")
        self._stack.append(value)

    def text(self, value: str) -> None:
        """A string of Python 2, which may be bytes."""
        content = value.encode("latin-1")
        try:
            self._stack.append(content.decode("utf-8"))
        except UnicodeDecodeError:
            self._stack.append(content)

    def sealed(self, value: tuple | frozenset) -> None:
        """A tuple or a frozen set. Python hashes them without end or guard, so their depth is bounded."""
        inner = (self._depth.get(id(item), 1) for item in value if isinstance(item, (tuple, frozenset)))
        depth = 1 + max(inner, default=0)
        if depth > DEEPEST:
            raise CheckpointError(f"its pickle has tuples nested deeper than {DEEPEST}")
        self._depth[id(value)] = depth
        self._stack.append(value)

    def tuple_of(self, count: int) -> None:
        self.sealed(tuple([self._pop() for _ in range(count)][::-1]))

    def key(self, value: Any) -> Any:
        kind = type(value)
        if kind in COUNTED_KEYS:
            self._unusual_keys += 1
            if self._unusual_keys > MOST_UNUSUAL_KEYS:
                raise CheckpointError(f"its pickle has more than {MOST_UNUSUAL_KEYS} keys that are no text")
        elif kind not in FREE_KEYS and not isinstance(value, OBJECT_KEYS):
            raise CheckpointError(f"its pickle has a {kind.__name__} as a key")
        return value

    # -- containers -----------------------------------------------------------------------------------------------------
    def append(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(values)
        elif isinstance(target, Stub):
            target.items.extend(values)
        else:
            raise CheckpointError(f"its pickle appends to {short(target)}")

    def set_items(self, values: list[Any]) -> None:
        target = self._top()
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if type(target) is dict:
            for key, value in pairs:
                target[self.key(key)] = value
        elif isinstance(target, Stub):
            target.items.extend(pairs)
        else:
            raise CheckpointError(f"its pickle sets items of {short(target)}")

    def add_items(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not set:
            raise CheckpointError(f"its pickle adds to {short(target)}")
        target.update(map(self.key, values))

    def dictionary(self, values: list[Any]) -> None:
        self._stack.append({})
        self.set_items(values)

    # -- names and objects ----------------------------------------------------------------------------------------------
    def name(self, module: Any, name: Any) -> Inert:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name is no text")
        return self._find(f"{module}.{name}")

    def spend(self, *values: Any) -> None:
        """Count what is going to be copied: one large value could be copied again and again."""
        for value in values:
            if isinstance(value, (str, bytes, bytearray)):
                self._copied += len(value)
            elif isinstance(value, (list, tuple, dict, set, frozenset)):
                self._copied += len(value) * POINTER
        if self._copied > MOST_COPIED:
            raise CheckpointError("its pickle copies the same things again and again")

    def call(self, function: Any, arguments: Any) -> None:
        if type(arguments) is not tuple:
            raise ValueError("arguments are no tuple")
        self.spend(arguments, *arguments)
        if isinstance(function, Foreign):
            self._stack.append(Stub(function.name, arguments))
            return
        if not isinstance(function, Maker):
            raise CheckpointError(f"its pickle calls {short(function)}; nothing was executed")
        if function.keys is not None:
            for key in function.keys(*arguments):
                self.key(key)
        value = function.make(*arguments)
        if isinstance(value, (tuple, frozenset)):
            self.sealed(value)
        else:
            self._stack.append(value)

    def call_with_keywords(self, _: Any) -> None:
        keywords, arguments, function = self._pop(), self._pop(), self._pop()
        if type(keywords) is not dict or (keywords and not isinstance(function, Foreign)):
            raise CheckpointError(f"its pickle calls {short(function)} with keywords")
        self.call(function, (*arguments, keywords) if keywords else arguments)

    def build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        self.spend(state)
        if isinstance(target, Buildable):
            target.build(state)
        elif isinstance(target, SimpleNamespace):
            vars(target).update(_attributes(state))
        elif isinstance(target, Stub):
            target.state = state
            parts = state if type(state) is tuple and len(state) == 2 else (state,)
            for part in parts:
                if type(part) is dict:
                    self.spend(part)
                    target.attributes.update({name: value for name, value in part.items() if type(name) is str})
        elif type(target) is not dict:  # what torch hangs on an ordered dictionary (`_metadata`) is dropped
            raise CheckpointError(f"its pickle changes {short(target)}")

    def refer(self, identity: Any) -> None:
        self._stack.append(self._storage(identity))

    def mark(self, _: Any) -> None:
        self._stack.append(MARK)

    def instance(self, names: str) -> None:
        values = self._group()
        self.call(self.name(*names.split(" ", 1)), tuple(values))

    def instance_on_stack(self, _: Any) -> None:
        function, *values = self._group()
        self.call(function, tuple(values))

    def put(self, index: int) -> None:
        self._memo[index] = self._top()

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])


class _Readable:
    """The two methods of a file that are needed; no memory is set aside for more than there is."""

    __slots__ = ("_read", "_size", "readline")

    def __init__(self, stream: io.BufferedReader, size: int) -> None:
        self._read, self._size, self.readline = stream.read, size, stream.readline

    def read(self, size: int) -> bytes:
        if size > self._size:
            raise ValueError(f"{size} bytes are wanted, there are {self._size}")
        return self._read(size)


def _attributes(state: Any) -> dict[str, Any]:
    if type(state) is not dict or not all(type(name) is str for name in state):
        raise CheckpointError(f"its pickle has the attributes {short(state)}")
    return state


def _call(machine: Machine, _: Any) -> None:
    arguments, function = machine._pop(), machine._pop()
    machine.call(function, arguments)


def _stack_global(machine: Machine, _: Any) -> None:
    name, module = machine._pop(), machine._pop()
    machine._stack.append(machine.name(module, name))


def _pop(machine: Machine, _: Any) -> None:
    machine._stack.pop()


def _set_item(machine: Machine, _: Any) -> None:
    value, key = machine._pop(), machine._pop()
    machine.set_items([key, value])


def _nothing(machine: Machine, _: Any) -> None:
    pass


CONSTANTS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
)
STEPS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(CONSTANTS, Machine.constant),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), Machine.text),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.get(int(index))),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, index: machine.put(int(index))),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _call),
    "NEWOBJ_EX": Machine.call_with_keywords,
    "BUILD": Machine.build,
    "INST": Machine.instance,
    "OBJ": Machine.instance_on_stack,
    "GLOBAL": lambda machine, names: machine._stack.append(machine.name(*names.split(" ", 1))),
    "STACK_GLOBAL": _stack_global,
    "PERSID": Machine.refer,
    "BINPERSID": lambda machine, _: machine.refer(machine._pop()),
    "NONE": lambda machine, _: machine._stack.append(None),
    "NEWTRUE": lambda machine, _: machine._stack.append(True),
    "NEWFALSE": lambda machine, _: machine._stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "EMPTY_SET": lambda machine, _: machine._stack.append(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.sealed(()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": lambda machine, _: machine.sealed(tuple(machine._group())),
    "LIST": lambda machine, _: machine._stack.append(machine._group()),
    "DICT": lambda machine, _: machine.dictionary(machine._group()),
    "FROZENSET": lambda machine, _: machine.sealed(frozenset(map(machine.key, machine._group()))),
    "APPEND": lambda machine, _: machine.append([machine._pop()]),
    "APPENDS": lambda machine, _: machine.append(machine._group()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine._group()),
    "ADDITEMS": lambda machine, _: machine.add_items(machine._group()),
    "MARK": Machine.mark,
    "POP": _pop,
    "POP_MARK": lambda machine, _: machine._group().clear(),
    "DUP": lambda machine, _: machine._stack.append(machine._top()),
    "MEMOIZE": lambda machine, _: machine.put(len(machine._memo)),
}
"""What each instruction does. Those that are absent are refused: extensions by number, and buffers outside of the pickle."""


def _check_tree(root: Any) -> None:
    """Refuse what looks small and is endless to whoever walks through it: circles, and lists of lists of the same lists."""
    known: dict[int, tuple[int, int]] = {}

    def measure(value: Any, depth: int) -> tuple[int, int]:
        """How many values there are when none is shared, and how deep they go."""
        if isinstance(value, dict):
            inner = [*value, *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            inner = list(value)
        elif isinstance(value, SimpleNamespace):
            inner = list(vars(value).values())
        else:
            return 1, 0
        size, height = known.get(id(value), (0, 0))
        if depth + height > DEEPEST:
            raise CheckpointError(f"its pickle is nested deeper than {DEEPEST}, or in a circle")
        if not size:
            for item in inner:
                if isinstance(item, (dict, list, tuple, set, frozenset, SimpleNamespace)):
                    item_size, item_height = measure(item, depth + 1)
                    size, height = size + item_size, max(height, item_height + 1)
            size += len(inner) + 1
            if size > MOST_UNFOLDED:
                raise CheckpointError(f"its pickle unfolds to more than {MOST_UNFOLDED} values")
            known[id(value)] = size, height
        return size, height

    measure(root, 0)
