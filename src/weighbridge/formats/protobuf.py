"""Protocol buffers on the wire: a message is a row of fields, each a number, a wire type and a value.

Only what a reader of large files needs: fields are stepped over without reading what they hold, and everything is
bounded by a budget of fields.

Source: the encoding page of protobuf.dev, read 2026-11.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from weighbridge.ledger import File
from weighbridge.ledger.errors import Malformed, Truncated

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_LENGTHS, _FIXED = frozenset({VARINT, BYTES}), frozenset({FIXED32, FIXED64})
_WINDOW = 64 << 10
_MOST_FIELDS = 800_000  # some 1.5 µs each; real graphs of 10,000 nodes have a third
_MOST_KEPT = 32 << 20
_LONGEST_VARINT = 10


class Field(NamedTuple):
    """A field: its value where that is a varint, else where its bytes lie in the file."""

    number: int
    wire: int
    value: int  # of a varint
    start: int
    end: int


class Wire:
    """Reads the messages of a file by windows; what is stepped over is never read."""

    __slots__ = ("_base", "_buffer", "_file", "_kept", "_left", "name", "size")

    def __init__(self, file: File, *, most: int = _MOST_FIELDS) -> None:
        self._file, self.name, self.size = file, file.name, file.size
        self._buffer, self._base = b"", 0
        self._left, self._kept = most, 0

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message between two offsets.

        Raises:
            Malformed: no message, or one of more fields than any real file.
            Truncated: a field reaches beyond the end of the file.
        """
        at = start
        self._left -= 3  # what a message takes beside its fields
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise Malformed(f"{self.name} has more fields than any real model")
            place = at - self._base
            if place < 0 or place + 2 * _LONGEST_VARINT > len(self._buffer):
                self._fill(at)
                place = at - self._base
            buffer = self._buffer
            try:
                key = buffer[place]
                place += 1
                if key > 127:
                    key, place = _varint(buffer, place - 1)
                wire = key & 7
                if wire in _LENGTHS:
                    value = buffer[place]
                    place += 1
                    if value > 127:
                        value, place = _varint(buffer, place - 1)
                    at = self._base + place
                    if wire == BYTES:
                        field = Field(key >> 3, wire, 0, at, at + value)
                        at += value
                    else:
                        field = Field(key >> 3, wire, value, at, at)
                elif wire in _FIXED:
                    at = self._base + place
                    field = Field(key >> 3, wire, 0, at, at + (4 if wire == FIXED32 else 8))
                    at = field.end
                else:
                    raise Malformed(f"{self.name}: a field of wire type {wire} at {at:,}", fix="download it again")
            except IndexError:
                raise Truncated(f"{self.name} ends within a field at {at:,}", fix="download it again") from None
            except OverflowError:
                raise Malformed(f"{self.name}: an endless number at {at:,}", fix="download it again") from None
            if at > end or key < 8:
                if at > self.size:
                    raise Truncated(
                        f"{self.name} ends at {self.size:,} bytes, {at:,} are needed", fix="download it again"
                    )
                raise Malformed(
                    f"{self.name}: a field at {field.start:,} overruns its message", fix="download it again"
                )
            yield field

    def read(self, field: Field, *, largest: int) -> bytes:
        """The bytes of a field.

        Raises:
            Malformed: more than `largest`, or more in all than is ever wanted.
        """
        length = field.end - field.start
        self._kept += length
        if length > largest or self._kept > _MOST_KEPT:
            raise Malformed(f"{self.name}: {length:,} bytes of names where a model has few")
        place = field.start - self._base
        if place < 0 or place + length > len(self._buffer):
            self._fill(field.start, length)
            place = field.start - self._base
        data = self._buffer[place : place + length]
        if len(data) != length:
            raise Truncated(
                f"{self.name} ends at {self.size:,} bytes, {field.end:,} are needed", fix="download it again"
            )
        return data

    def text(self, field: Field, *, longest: int = 1000) -> str:
        """A string; bytes that are no UTF-8 are shown, so that two names that differ stay two."""
        return self.read(field, largest=longest).decode("utf-8", "backslashreplace")

    def numbers(self, field: Field, *, most: int) -> list[int]:
        """A repeated integer: the one that stands in the field, or all that are packed in it. Signed, of 64 bits.

        Raises:
            Malformed: more than `most`, or not whole.
        """
        if field.wire == VARINT:
            return [signed(field.value)]
        if field.wire != BYTES or field.end - field.start > most * _LONGEST_VARINT:
            raise Malformed(f"{self.name}: numbers at {field.start:,} that are none", fix="download it again")
        raw, at, found = self.read(field, largest=most * _LONGEST_VARINT), 0, []
        try:
            while at < len(raw):
                value, at = _varint(raw, at)
                found.append(signed(value))
        except (IndexError, OverflowError):
            raise Malformed(f"{self.name}: numbers at {field.start:,} that are none", fix="download it again") from None
        if len(found) > most:
            raise Malformed(f"{self.name}: {len(found):,} numbers where a model has at most {most:,}")
        return found

    def real(self, field: Field) -> float:
        """A 32-bit float."""
        return struct.unpack("<f", self.read(field, largest=4))[0] if field.wire == FIXED32 else float("nan")

    def _fill(self, at: int, length: int = 0) -> None:
        self._buffer = self._file.read(at, max(_WINDOW, length)) if at < self.size else b""
        self._base = at


def signed(value: int) -> int:
    """A varint as the 64-bit integer that it stands for."""
    return value - (1 << 64) if value >> 63 else value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """(value, where the next field starts)."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift >= 7 * _LONGEST_VARINT:
            raise OverflowError
