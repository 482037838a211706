"""FlatBuffers: tables of fields that are read where they lie.

A table starts with the distance to its vtable, which lists where in the table each field lies; vectors, strings and
tables are reached by offsets. Files may share parts, so that a budget of reads bounds a reader, not the file's size.

Source: the internals page of flatbuffers.dev, read 2026-11.
"""

import struct

from weighbridge.ledger import File
from weighbridge.ledger.errors import Malformed, Truncated

_PAGE = 32 << 10
_MOST_PAGES = 128
_MOST_READS = 1_000_000  # some 1.5 µs each


class Flat:
    """A file read at any place, by pages that are kept for a while."""

    __slots__ = ("_file", "_left", "_pages", "name", "size")

    def __init__(self, file: File) -> None:
        self._file, self.name, self.size = file, file.name, file.size
        self._pages: dict[int, bytes] = {}
        self._left = _MOST_READS

    def raw(self, offset: int, length: int) -> bytes:
        """`length` bytes, of which there are few.

        Raises:
            Truncated: the file ends before.
            Malformed: more reads than any real file takes.
        """
        self._left -= 1
        if self._left < 0:
            raise Malformed(f"{self.name} has more parts than any real model")
        if offset < 0 or offset + length > self.size:
            raise Truncated(
                f"{self.name} ends at {self.size:,} bytes, {offset + length:,} are needed", fix="download it again"
            )
        number, place = divmod(offset, _PAGE)
        page = self._pages.get(number)
        if page is None:
            if len(self._pages) >= _MOST_PAGES:
                del self._pages[next(iter(self._pages))]
            page = self._pages[number] = self._file.read(number * _PAGE, _PAGE)
        data = page[place : place + length]
        if len(data) < length:
            data = self._file.read(offset, length)
            if len(data) < length:
                raise Truncated(f"{self.name} ends within its tables", fix="download it again")
        return data

    def charge(self, reads: int) -> None:
        """Takes from the budget what stays in memory."""
        self._left -= reads

    def number(self, offset: int, form: str) -> int:
        """An integer, as `struct` writes it."""
        return struct.unpack(f"<{form}", self.raw(offset, struct.calcsize(f"<{form}")))[0]

    def root(self) -> "Table":
        """The table that the file starts with."""
        return Table(self, self.number(0, "I"))


class Table:
    """A table: fields by number, absent ones with their default."""

    __slots__ = ("_fields", "_flat", "_start")

    def __init__(self, flat: Flat, start: int) -> None:
        self._flat, self._start = flat, start
        vtable = start - flat.number(start, "i")
        size = flat.number(vtable, "H")
        if size < 4 or size % 2 or size > 512:
            raise Malformed(f"{flat.name}: a table at {start:,} that is none", fix="download it again")
        self._fields = struct.unpack(f"<{size // 2}H", flat.raw(vtable, size))

    def place(self, field: int) -> int | None:
        """Where a field lies; None when it is absent."""
        at = self._fields[field + 2] if field + 2 < len(self._fields) else 0
        return self._start + at if at else None

    def number(self, field: int, form: str, default: int = 0) -> int:
        """An integer field."""
        at = self.place(field)
        return default if at is None else self._flat.number(at, form)

    def table(self, field: int) -> "Table | None":
        """A table field."""
        at = self.place(field)
        return None if at is None else Table(self._flat, at + self._flat.number(at, "I"))

    def vector(self, field: int) -> tuple[int, int] | None:
        """(offset of the first element, number of elements) of a vector or string; None when it is absent."""
        at = self.place(field)
        if at is None:
            return None
        start = at + self._flat.number(at, "I")
        return start + 4, self._flat.number(start, "I")

    def numbers(self, field: int, form: str, *, most: int) -> tuple[int, ...]:
        """A vector of integers.

        Raises:
            Malformed: more than `most`.
        """
        found = self.vector(field)
        if found is None:
            return ()
        start, count = found
        if count > most:
            raise Malformed(f"{self._flat.name}: {count:,} numbers where a model has at most {most:,}")
        return struct.unpack(f"<{count}{form}", self._flat.raw(start, count * struct.calcsize(f"<{form}")))

    def text(self, field: int, *, longest: int = 1024) -> str:
        """A string, cut where it is longer than `longest`."""
        start, count = self.vector(field) or (0, 0)
        self._flat.charge(min(count, longest) // 64)
        return self._flat.raw(start, min(count, longest)).decode("utf-8", "backslashreplace") if count else ""

    def tables(self, field: int, *, most: int) -> list[int]:
        """Where the tables of a vector start.

        Raises:
            Malformed: more than `most`.
        """
        start, _ = self.vector(field) or (0, 0)
        offsets = self.numbers(field, "I", most=most)
        return [start + 4 * at + offset for at, offset in enumerate(offsets)]

    def at(self, start: int) -> "Table":
        """The table that starts there."""
        return Table(self._flat, start)
