"""What each opcode of a pickle does to the machine that reads it; `TABLE` has them by their byte.

Sets become lists, because their members need not be hashable here. Out-of-band buffers and textual persistent ids do
not occur in files and count as invalid.

Source: CPython 3.11 `pickletools`, protocols 0 to 5.
"""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from weighbridge.formats.inert import SAFER, Global, Record
from weighbridge.ledger.errors import Refused

if TYPE_CHECKING:
    from weighbridge.formats.pickles import Machine

Opcode = Callable[["Machine"], object]
Number = Callable[["Machine"], int]

STOP = ord(".")

_LONGEST_INTEGER = 256  # bytes; the largest in real checkpoints are 128-bit random states
_LARGEST_MEMO_GAP = 1024
# Integers that are equal modulo 2^61 - 1 hash alike: as keys they would make a dictionary quadratic.
_LARGEST_KEY = (1 << 61) - 2
_KEY = Global("", "key")
_ABSENT = object()

_F8 = struct.Struct(">d")


def _number(form: str) -> Number:
    packed = struct.Struct(form)
    size = packed.size

    def number(machine: "Machine") -> int:
        (value,) = packed.unpack_from(machine.data, machine.pos)
        machine.pos += size
        return value

    return number


_ONE, _FOUR, _EIGHT = map(_number, ("<B", "<I", "<Q"))


def _line_number(machine: "Machine") -> int:
    return int(machine.line()[:20])


def _constant(value: object) -> Opcode:
    return lambda machine: machine.stack.append(value)


def _integer(length: Number) -> Opcode:
    def push(machine: "Machine") -> None:
        machine.meter.left -= 16
        machine.stack.append(length(machine))

    return push


def _integer_1(machine: "Machine") -> None:
    machine.stack.append(machine.data[machine.pos])
    machine.pos += 1


def _float(machine: "Machine") -> None:
    machine.stack.append(_F8.unpack_from(machine.data, machine.pos)[0])
    machine.pos += 8


def _line_float(machine: "Machine") -> None:
    machine.stack.append(float(machine.line()))


def _line_integer(machine: "Machine") -> None:
    line = machine.line()
    if len(line) > _LONGEST_INTEGER:
        raise machine.malformed("an integer too long")
    # Protocol 0 writes booleans as the integers 00 and 01.
    machine.stack.append(line == "01" if line in ("00", "01") else int(line.removesuffix("L")))


def _long(length: Number) -> Opcode:
    def push(machine: "Machine") -> None:
        size = length(machine)
        if size > _LONGEST_INTEGER:
            raise machine.malformed("an integer too long")
        machine.stack.append(int.from_bytes(machine.take(size, cost=32 + size), "little", signed=True))

    return push


def _string(length: Number) -> Opcode:
    def push(machine: "Machine") -> None:
        size = length(machine)
        # One letter beyond the Basic Multilingual Plane makes all of a string four bytes wide.
        raw = machine.take(size, cost=64 + (size if size < 64 else 4 * size))
        machine.stack.append(raw.decode("utf-8", "backslashreplace"))

    return push


def _bytes(length: Number) -> Opcode:
    def push(machine: "Machine") -> None:
        size = length(machine)
        machine.stack.append(machine.take(size, cost=40 + size))

    return push


def _line_string(machine: "Machine") -> None:
    line = machine.line()
    machine.meter.spend(64 + 4 * len(line))
    machine.stack.append(line[1:-1] if line[:1] in ("'", '"') and line[-1:] == line[:1] else line)


def _mark(machine: "Machine") -> None:
    machine.meter.left -= 64
    machine.marks.append(machine.stack)
    machine.stack = []


def _gathered(kind: type[tuple[object, ...]] | type[list[object]]) -> Opcode:
    def push(machine: "Machine") -> None:
        items = machine.since_mark()
        machine.meter.spend(56 + 8 * len(items))
        machine.stack.append(kind(items))

    return push


def _short_tuple(count: int) -> Opcode:
    def push(machine: "Machine") -> None:
        stack = machine.stack
        if len(stack) < count:
            raise IndexError
        machine.meter.left -= 56 + 8 * count
        stack[-count:] = [tuple(stack[-count:])]

    return push


def _empty(kind: type[dict[object, object]] | type[list[object]]) -> Opcode:
    def push(machine: "Machine") -> None:
        machine.meter.left -= 64
        machine.stack.append(kind())

    return push


def _dict(machine: "Machine") -> None:
    items = machine.since_mark()
    made: dict[object, object] = {}
    _store(machine, made, items)
    machine.stack.append(made)


def _append(machine: "Machine") -> None:
    item = machine.stack.pop()
    _extend(machine, [item])


def _appends(machine: "Machine") -> None:
    _extend(machine, machine.since_mark())


def _extend(machine: "Machine", items: list[object]) -> None:
    target = machine.stack[-1]
    if type(target) is Record:
        if target.items is None:
            machine.meter.left -= 56
            target.items = []
        target = target.items
    if type(target) is not list:
        raise machine.malformed("items appended to what is no list")
    machine.meter.spend(16 * len(items))
    target.extend(items)


def _set_item(machine: "Machine") -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _store(machine, machine.stack[-1], [key, value])


def _set_items(machine: "Machine") -> None:
    items = machine.since_mark()
    _store(machine, machine.stack[-1], items)


def _store(machine: "Machine", target: object, items: list[object]) -> None:
    if type(target) is Record:
        if target.items is None:
            machine.meter.left -= 64
            target.items = {}
        target = target.items
    if type(target) is not dict or len(items) % 2:
        raise machine.malformed("keys and values set on what is no dictionary")
    # The first entry makes a table of 232 bytes; one that grows holds 100 an entry, and the old beside the new.
    machine.meter.spend(88 * len(items) + (0 if target else 168))
    for place in range(0, len(items), 2):
        key = items[place]
        if type(key) is not str:
            key = _key(machine, key)
        target[key] = items[place + 1]


def _key(machine: "Machine", key: object) -> object:
    """A key that hashes in constant time and never like a million others; anything else is known by its identity."""
    if type(key) is int and -_LARGEST_KEY <= key <= _LARGEST_KEY:
        return key
    if key is None or type(key) in (bool, float, bytes):
        return key
    machine.meter.left -= 160
    return Record(_KEY, (key,))


def _pop(machine: "Machine") -> None:
    # As in CPython: on an empty frame it takes back the mark.
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _pop_mark(machine: "Machine") -> None:
    machine.since_mark()


def _duplicate(machine: "Machine") -> None:
    machine.stack.append(machine.stack[-1])


def _put(index: Number) -> Opcode:
    def put(machine: "Machine") -> None:
        place, memo = index(machine), machine.memo
        if place == len(memo):
            memo.append(machine.stack[-1])
            return
        if not 0 <= place <= len(memo) + _LARGEST_MEMO_GAP:
            raise machine.malformed("a memo index out of order")
        if place > len(memo):
            machine.meter.spend(16 * (place + 1 - len(memo)))
            memo.extend([_ABSENT] * (place + 1 - len(memo)))
        memo[place] = machine.stack[-1]

    return put


def _memoize(machine: "Machine") -> None:
    machine.memo.append(machine.stack[-1])


def _get(index: Number) -> Opcode:
    def get(machine: "Machine") -> None:
        place = index(machine)
        value = machine.memo[place] if 0 <= place < len(machine.memo) else _ABSENT
        if value is _ABSENT:
            raise machine.malformed("a memo index never filled")
        machine.stack.append(value)

    return get


def _global(machine: "Machine") -> None:
    machine.stack.append(machine.named(machine.line(), machine.line()))


def _stack_global(machine: "Machine") -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise machine.malformed("a name that is no name")
    machine.stack.append(machine.named(module, name))


def _reduce(machine: "Machine") -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.outcome(function, arguments))


def _instance(machine: "Machine") -> None:
    function = machine.named(machine.line(), machine.line())
    arguments = tuple(machine.since_mark())
    machine.stack.append(machine.outcome(function, arguments))


def _object(machine: "Machine") -> None:
    items = machine.since_mark()
    machine.stack.append(machine.outcome(items[0], tuple(items[1:])))


def _new(machine: "Machine") -> None:
    arguments, cls = machine.stack.pop(), machine.stack.pop()
    if type(cls) is not Global or type(arguments) is not tuple:
        raise machine.malformed("an instance of what is no class")
    machine.meter.left -= 128
    machine.stack.append(Record(cls, arguments))


def _new_with_keywords(machine: "Machine") -> None:
    machine.stack.pop()
    _new(machine)


def _build(machine: "Machine") -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if type(target) is Record:
        if target.state is not None:
            raise machine.malformed("an object given its state twice")
        target.state = state
    elif type(target) not in (dict, list):
        # A dictionary's own attributes (OrderedDict._metadata) say nothing of tensors; a tensor's state would.
        raise machine.malformed("state for what takes none")


def _persistent(machine: "Machine") -> None:
    machine.meter.spend(192)
    machine.stack.append(machine.persistent(machine.stack.pop()))


def _extension(machine: "Machine") -> None:
    raise Refused(
        f"{machine.meter.name}: the pickle calls by extension code, which no tensor file needs; nothing was executed",
        fix=SAFER,
    )


def _protocol(machine: "Machine") -> None:
    if _ONE(machine) > 5:
        raise machine.malformed("a protocol beyond 5")


def _invalid(machine: "Machine") -> None:
    raise machine.malformed(f"no opcode {machine.data[machine.pos - 1]:#04x}")


# Opcodes that do the same here stand together.
_OPCODES: dict[bytes, Opcode] = {
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b")": _constant(()),
    b"G": _float,
    b"F": _line_float,
    b"J": _integer(_number("<i")),
    b"K": _integer_1,
    b"M": _integer(_number("<H")),
    b"IL": _line_integer,
    b"\x8a": _long(_ONE),
    b"\x8b": _long(_FOUR),
    b"XT": _string(_FOUR),
    b"\x8cU": _string(_ONE),
    b"\x8d": _string(_EIGHT),
    b"SV": _line_string,
    b"B": _bytes(_FOUR),
    b"C": _bytes(_ONE),
    b"\x8e\x96": _bytes(_EIGHT),
    b"(": _mark,
    b"t": _gathered(tuple),
    b"\x85": _short_tuple(1),
    b"\x86": _short_tuple(2),
    b"\x87": _short_tuple(3),
    b"}": _empty(dict),
    b"]\x8f": _empty(list),
    b"l\x91": _gathered(list),
    b"d": _dict,
    b"a": _append,
    b"e\x90": _appends,
    b"s": _set_item,
    b"u": _set_items,
    b"0": _pop,
    b"1": _pop_mark,
    b"2": _duplicate,
    b"q": _put(_ONE),
    b"r": _put(_FOUR),
    b"p": _put(_line_number),
    b"\x94": _memoize,
    b"h": _get(_ONE),
    b"j": _get(_FOUR),
    b"g": _get(_line_number),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"i": _instance,
    b"o": _object,
    b"\x81": _new,
    b"\x92": _new_with_keywords,
    b"b": _build,
    b"Q": _persistent,
    b"\x80": _protocol,
    b"\x95": _EIGHT,  # a frame's length, which only buffering needs
    b"\x82\x83\x84": _extension,
}
_BY_CODE = {code: opcode for codes, opcode in _OPCODES.items() for code in codes}
TABLE: tuple[Opcode, ...] = tuple(_BY_CODE.get(code, _invalid) for code in range(256))
