"""Universal Binary JSON, as XGBoost writes it: nested values with a type byte each, arrays of one type in a run.

Source: the UBJSON draft 12 specification. Arrays of numbers are measured and stepped over: an array becomes its length.
"""

import struct
from typing import Any

from weighbridge.ledger.errors import Malformed, Refused

_NUMBERS = {b"i": "b", b"U": "B", b"I": ">h", b"u": ">H", b"l": ">i", b"m": ">I", b"L": ">q", b"d": ">f", b"D": ">d"}
_PLAIN = {b"Z": None, b"T": True, b"F": False, b"N": None}
_DEEPEST = 32
_MOST = 5_000_000


class Run:
    """An array of numbers that was stepped over."""

    __slots__ = ("length",)

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


def parse(raw: bytes, name: str) -> dict[str, Any]:
    """The object in a UBJSON text.

    Raises:
        Malformed: not such a text, or one that is cut short.
        Refused: deeper, or of more values, than any model.
    """
    reader = _Reader(raw, name)
    try:
        found = reader.value(reader.take(1), 0)
    except struct.error:
        raise Malformed(f"{name} is cut short", fix="download it again") from None
    if not isinstance(found, dict):
        raise Malformed(f"{name} holds no object")
    return found


class _Reader:
    def __init__(self, raw: bytes, name: str) -> None:
        self.raw, self.name, self.at, self.count = raw, name, 0, 0

    def take(self, length: int) -> bytes:
        if not 0 <= length <= len(self.raw) - self.at:
            raise Malformed(f"{self.name} is cut short, or no UBJSON", fix="download it again")
        self.at += length
        return self.raw[self.at - length : self.at]

    def number(self, kind: bytes) -> Any:
        form = _NUMBERS.get(kind)
        if form is None:
            raise Malformed(f"{self.name}: {kind!r} where a number is needed")
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def length(self) -> int:
        found = self.number(self.take(1))
        if not isinstance(found, int) or found < 0:
            raise Malformed(f"{self.name}: a length of {found}")
        return found

    def value(self, kind: bytes, depth: int) -> Any:
        self.count += 1
        if depth > _DEEPEST or self.count > _MOST:
            raise Refused(f"{self.name} holds more values than any model")
        if kind in _PLAIN:
            return _PLAIN[kind]
        if kind in _NUMBERS:
            return self.number(kind)
        if kind == b"S" or kind == b"H":
            return self.take(self.length()).decode("utf-8", "replace")
        if kind == b"C":
            return self.take(1).decode("latin-1")
        if kind == b"[":
            return self.array(depth)
        if kind == b"{":
            return self.object(depth)
        raise Malformed(f"{self.name}: a value of type {kind!r}")

    def head(self) -> tuple[bytes | None, int | None]:
        """(type, length) that a container announces."""
        kind = length = None
        if self.raw[self.at : self.at + 1] == b"$":
            self.at += 1
            kind = self.take(1)
        if self.raw[self.at : self.at + 1] == b"#":
            self.at += 1
            length = self.length()
        if kind is not None and length is None:
            raise Malformed(f"{self.name}: a typed container without a length")
        return kind, length

    def array(self, depth: int) -> Any:
        kind, length = self.head()
        if kind in _NUMBERS and length is not None:
            self.take(length * struct.calcsize(_NUMBERS[kind]))
            return Run(length)
        found = []
        while len(found) != length:
            inner = kind or self.take(1)
            if length is None and inner == b"]":
                break
            found.append(self.value(inner, depth + 1))
        return found

    def object(self, depth: int) -> dict[str, Any]:
        kind, length = self.head()
        found: dict[str, Any] = {}
        while len(found) != length:
            if length is None and self.raw[self.at : self.at + 1] == b"}":
                self.at += 1
                break
            key = self.take(self.length()).decode("utf-8", "replace")
            if key in found:
                raise Malformed(f"{self.name} lists {key!r} twice")
            found[key] = self.value(kind or self.take(1), depth + 1)
        return found
