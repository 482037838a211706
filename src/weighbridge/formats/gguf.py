"""GGUF: the format of llama.cpp, versions 2 and 3, either byte order.

Source: the GGUF specification in ggml's docs and the checks of its own loader, `gguf_init_from_file`: tensors lie one
after the other, each padded to the alignment, so a type whose block size we had wrong would show at the next tensor.
"""

import struct
from typing import NamedTuple

from weighbridge.formats.header import Header
from weighbridge.ledger import GGML_TYPES, File, Row, numel
from weighbridge.ledger.errors import Malformed, Truncated, Unknown

MAGIC = b"GGUF"
_WINDOW = 1 << 20
_MOST_TENSORS = 200_000
_MOST_KEYS = 100_000
_MOST_STRINGS = 4_000_000  # in all arrays together: the largest vocabularies have 262,144 tokens and twice the merges
_LONGEST_KEPT_STRING = 1 << 20
_LONGEST_KEPT_ARRAY = 1024  # per-layer settings are kept, vocabularies are only measured
_MOST_KEPT = 16 << 20  # bytes of all kept values together: chat templates take 10 kB, settings less
_LONGEST_NAME = 1024
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class Skipped(NamedTuple):
    """A metadata value too long to keep: what it is and how long."""

    what: str
    length: int


class _Cursor:
    """Reads forward through a file by windows; what is skipped is never read."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.order = "<"
        self.buffer = b""
        self.base = 0  # file offset of buffer[0]
        self.at = 0  # position in buffer
        self.kept = 0
        self._formats: dict[str, struct.Struct] = {}

    @property
    def offset(self) -> int:
        return self.base + self.at

    def need(self, length: int) -> None:
        """Makes `length` bytes at the cursor available."""
        if len(self.buffer) - self.at >= length:
            return
        offset = self.offset
        if offset + length > self.file.size:
            raise Truncated(f"{self.file.name} ends within its header", fix="download it again")
        self.buffer = self.file.read(offset, max(length, _WINDOW))
        self.base, self.at = offset, 0
        if len(self.buffer) < length:
            raise Truncated(f"{self.file.name} ends within its header", fix="download it again")

    def skip(self, length: int) -> None:
        if self.offset + length > self.file.size:
            raise Truncated(f"{self.file.name} ends within its header", fix="download it again")
        self.at += length
        if self.at > len(self.buffer):
            self.base, self.at, self.buffer = self.offset, 0, b""

    def scalar(self, code: str) -> int | float | bool:
        form = self._formats.get(code)
        if form is None:
            form = self._formats[code] = struct.Struct(self.order + code)
        self.need(form.size)
        (value,) = form.unpack_from(self.buffer, self.at)
        self.at += form.size
        return value

    def integer(self, code: str) -> int:
        return int(self.scalar(code))

    def keep(self, nbytes: int) -> None:
        """Counts bytes that will stay in memory."""
        self.kept += nbytes
        if self.kept > _MOST_KEPT:
            raise Malformed(f"{self.file.name} has more metadata than any real file")

    def text(self, longest: int) -> str | None:
        """A string; None when it is longer than `longest` and was skipped."""
        length = self.integer("Q")
        if length > longest:
            self.skip(length)
            return None
        self.keep(length)
        self.need(length)
        raw = self.buffer[self.at : self.at + length]
        self.at += length
        # Texts hold whatever bytes their authors had: shown, never an error, and two that differ stay two.
        return raw.decode("utf-8", "backslashreplace")


def read(file: File, *, index: int = 0) -> Header:
    """The header of a GGUF file; `index` is the file's place in its source.

    Raises:
        Malformed: not such a file, or one that breaks the format's rules.
        Truncated: it ends within its header, or before its tensors do.
        Unknown: a tensor type that this version does not know.

    """
    cursor = _Cursor(file)
    cursor.need(min(24, file.size))
    if cursor.buffer[:4] != MAGIC:
        raise Malformed(f"{file.name} is not a GGUF file")
    cursor.skip(4)
    cursor.need(4)
    if cursor.buffer[cursor.at : cursor.at + 2] == b"\0\0":
        cursor.order = ">"
    version = cursor.integer("I")
    if version not in (2, 3):
        raise Malformed(
            f"{file.name} is GGUF version {version}", fix="versions 2 and 3 are read; convert it with llama.cpp's tools"
        )
    tensors, keys = cursor.integer("Q"), cursor.integer("Q")
    if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
        raise Malformed(f"{file.name} claims {tensors:,} tensors and {keys:,} metadata keys, which no model has")
    metadata = _metadata(cursor, keys)
    return Header(rows=_rows(cursor, tensors, metadata, index), metadata=metadata)


def _metadata(cursor: _Cursor, keys: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    budget = [_MOST_STRINGS]
    for _ in range(keys):
        key = cursor.text(_LONGEST_NAME)
        if key is None or key in metadata:
            raise Malformed(f"{cursor.file.name}: a metadata key {'twice' if key else 'that is endless'}")
        metadata[key] = _value(cursor, cursor.integer("I"), budget, depth=0)
    return metadata


def _value(cursor: _Cursor, kind: int, budget: list[int], *, depth: int) -> object:
    if kind in _SCALARS:
        return cursor.scalar(_SCALARS[kind])
    if kind == _STRING:
        text = cursor.text(_LONGEST_KEPT_STRING)
        return Skipped("string", _LONGEST_KEPT_STRING) if text is None else text
    if kind != _ARRAY or depth > 2:
        raise Malformed(f"{cursor.file.name}: metadata of unknown type {kind}")
    kind, length = cursor.integer("I"), cursor.integer("Q")
    if kind in _SCALARS:
        width = struct.calcsize(f"<{_SCALARS[kind]}")
        if length > _LONGEST_KEPT_ARRAY:
            cursor.skip(length * width)
            return Skipped("array", length)
        cursor.keep(length * 40)  # a number takes 32 bytes and a place
        cursor.need(length * width)
        values = struct.unpack_from(f"{cursor.order}{length}{_SCALARS[kind]}", cursor.buffer, cursor.at)
        cursor.at += length * width
        return list(values)
    budget[0] -= length
    if budget[0] < 0 or length * 8 > cursor.file.size:
        raise Malformed(f"{cursor.file.name}: a metadata array of {length:,} entries")
    if kind == _STRING and length > _LONGEST_KEPT_ARRAY:
        _skip_strings(cursor, length)
        return Skipped("array", length)
    if length > _LONGEST_KEPT_ARRAY:
        raise Malformed(f"{cursor.file.name}: a metadata array of {length:,} arrays")
    return [_value(cursor, kind, budget, depth=depth + 1) for _ in range(length)]


def _skip_strings(cursor: _Cursor, count: int) -> None:
    """Steps over `count` strings: the hot loop of a header with a vocabulary, hence its plain form.

    Running out of the window costs one exception for each; asking first would double the time of every step.
    """
    unpack = struct.Struct(f"{cursor.order}Q").unpack_from
    while count:
        cursor.need(8)
        buffer, at, done = cursor.buffer, cursor.at, 0
        try:
            for done in range(count):  # noqa: B007 - how many were stepped over, when the window ends
                at += unpack(buffer, at)[0] + 8
        except (struct.error, OverflowError):
            count -= done
        else:
            count = 0
        cursor.skip(at - cursor.at)


def _rows(cursor: _Cursor, count: int, metadata: dict[str, object], index: int) -> list[Row]:
    file = cursor.file
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise Malformed(f"{file.name}: an alignment of {alignment!r}")
    found = []
    names = set()
    for _ in range(count):
        name = cursor.text(_LONGEST_NAME)
        cursor.kept = 0  # names are bounded by their number
        if name is None or name in names:
            raise Malformed(f"{file.name} lists {name!r} twice" if name else f"{file.name}: an endless tensor name")
        names.add(name)
        dimensions = cursor.integer("I")
        if dimensions > 8:
            raise Malformed(f"{file.name}: {name!r} has {dimensions} dimensions")
        # ggml lists the fastest dimension first; everyone else last.
        shape = tuple(cursor.integer("Q") for _ in range(dimensions))[::-1]
        found.append((name, shape, cursor.integer("I"), cursor.integer("Q")))
    start = -(-cursor.offset // alignment) * alignment
    rows = []
    at = 0
    for name, shape, kind, offset in found:
        if kind not in GGML_TYPES:
            raise Unknown(f"{file.name}: {name!r} is of ggml type {kind}", fix="a newer Weighbridge may know it")
        element = GGML_TYPES[kind]
        if numel(shape) >= 1 << 62 or (shape and shape[-1] % element.block):
            raise Malformed(f"{file.name}: {name!r} has a shape of {list(shape)}, in blocks of {element.block}")
        nbytes = element.nbytes(numel(shape))
        if offset != at:
            raise Malformed(f"{file.name}: {name!r} lies at {offset:,}, the tensors before it end at {at:,}")
        rows.append(Row(name, element, shape, index, start + offset, nbytes))
        at = -(-(offset + nbytes) // alignment) * alignment
    end = rows[-1].offset + rows[-1].nbytes if rows else 0
    if end > file.size:
        raise Truncated(f"{file.name} ends at {file.size:,} bytes, its header needs {end:,}", fix="download it again")
    return rows
