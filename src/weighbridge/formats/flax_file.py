"""Flax's MessagePack checkpoints (`flax_model.msgpack`): names, types and shapes, with every array's values skipped.

Source: MessagePack specification; `flax.serialization` 0.12: an array is extension type 1, which holds [shape, type,
bytes]; one larger than 1 GB is a map of chunks.
"""

from math import prod
from struct import error as StructError
from struct import unpack

from weighbridge.formats.dtype_names import dtype_named
from weighbridge.formats.header import Header
from weighbridge.formats.pytree import judged_together, kind_of_leaf, role_of_leaf
from weighbridge.ledger import NOWHERE, DType, File, Row, Stated, numel
from weighbridge.ledger.errors import Malformed, Truncated, Unknown

_ARRAY, _SCALAR = 1, 3
_CHUNKED, _TRUE = "__msgpack_chunked_array__", 0xC3
_MOST_ARRAYS = 200_000
_MOST_VALUES = 2_000_000
_DEEPEST = 64
_LONGEST_NAME = 4096
_MOST_DIMENSIONS = 32
_WINDOW = 1 << 16


def read(file: File, *, index: int = 0) -> Header:
    """The arrays of a nested map of them.

    Raises:
        Malformed: not such a file.
        Truncated: it ends before its arrays do.
        Unknown: a type that is not known.
    """
    walk = _Walk(file, index)
    try:
        if not walk.value((), 0, top=True):
            raise Malformed(f"{file.name} holds no map of arrays", fix="is it what flax.serialization wrote?")
    except (StructError, IndexError, UnicodeDecodeError):
        raise Malformed(f"{file.name} is broken MessagePack", fix="download it again") from None
    if walk.at != file.size:
        raise Malformed(f"{file.name} has {file.size - walk.at:,} bytes after its end")
    if not walk.rows:
        raise Malformed(f"{file.name} holds no array")
    return Header(rows=walk.rows, stated=Stated(kinds=judged_together(walk.kinds), roles=walk.roles), format="flax")


class _Walk:
    def __init__(self, file: File, index: int) -> None:
        self._file, self._index = file, index
        self._start, self._window = 0, b""
        self._values = 0
        self.at = 0
        self.rows: list[Row] = []
        self.kinds: dict[str, str] = {}
        self.roles: dict[str, str] = {}

    def take(self, length: int) -> bytes:
        """The next bytes, of which few are read at a time: between two arrays the file is skipped."""
        end = self.at + length
        if end > self._file.size:
            raise Truncated(f"{self._file.name} ends at {self._file.size:,} bytes", fix="download it again")
        if not self._start <= self.at <= end <= self._start + len(self._window):
            size = min(max(length, _WINDOW), self._file.size - self.at)
            self._start, self._window = self.at, self._file.read(self.at, size)
        found = self._window[self.at - self._start : end - self._start]
        self.at = end
        return found

    def skip(self, length: int) -> None:
        self.at += length
        if self.at > self._file.size:
            raise Truncated(f"{self._file.name} ends at {self._file.size:,} bytes", fix="download it again")

    def number(self, code: str, length: int) -> int:
        return unpack(f">{code}", self.take(length))[0]

    def value(self, path: tuple[str, ...], depth: int, *, top: bool = False) -> bool:
        """Reads one value; whether it was a map."""
        self._values += 1
        if self._values > _MOST_VALUES or depth > _DEEPEST:
            raise Malformed(f"{self._file.name} holds more values than any real one")
        mark = self.take(1)[0]
        if 0x80 <= mark <= 0x8F or mark in (0xDE, 0xDF):
            count = mark & 15 if mark <= 0x8F else self.number(*(("H", 2) if mark == 0xDE else ("I", 4)))
            for at in range(count):
                name = self.name()
                if name == _CHUNKED and at == 0:
                    self.chunked(path, depth)
                    break
                self.value((*path, name), depth + 1)
            return True
        if top:
            return False
        if 0x90 <= mark <= 0x9F or mark in (0xDC, 0xDD):
            count = mark & 15 if mark <= 0x9F else self.number(*(("H", 2) if mark == 0xDC else ("I", 4)))
            for at in range(count):
                self.value((*path, str(at)), depth + 1)
        elif 0xC7 <= mark <= 0xC9 or 0xD4 <= mark <= 0xD8:
            length = 1 << (mark - 0xD4) if mark >= 0xD4 else self.number(*_LENGTHS[mark - 0xC7])
            self.extension(path, self.number("b", 1), length)
        elif 0xA0 <= mark <= 0xBF:
            self.skip(mark & 31)
        elif mark in (0xD9, 0xDA, 0xDB):
            self.skip(self.number(*_LENGTHS[mark - 0xD9]))
        elif mark in (0xC4, 0xC5, 0xC6):
            self.skip(self.number(*_LENGTHS[mark - 0xC4]))
        elif mark in _FIXED:
            self.skip(_FIXED[mark])
        elif 0x80 <= mark < 0xE0:
            raise Malformed(f"{self._file.name} is broken MessagePack", fix="download it again")
        return False

    def name(self) -> str:
        """A key."""
        mark = self.take(1)[0]
        if 0xA0 <= mark <= 0xBF:
            length = mark & 31
        elif mark in (0xD9, 0xDA, 0xDB):
            length = self.number(*_LENGTHS[mark - 0xD9])
        else:
            raise Malformed(f"{self._file.name} has a key that is no text")
        if length > _LONGEST_NAME:
            raise Malformed(f"{self._file.name} has a key of {length:,} bytes")
        return self.take(length).decode()

    def chunked(self, path: tuple[str, ...], depth: int) -> None:
        """An array of more than 1 GB, as a map: a mark, its shape, its values as several arrays of one dimension."""
        name = ".".join(path)
        shape = []
        if self.take(1)[0] != _TRUE or self.name() != "shape":
            raise Malformed(f"{self._file.name}: {name} is cut in chunks, but not as Flax does")
        for at in range(self.take(1)[0] & 15):
            if self.name() != str(at):
                raise Malformed(f"{self._file.name}: {name} has no shape")
            shape.append(self.size())
        first = len(self.rows)
        if self.name() != "chunks" or not self.value((*path, "chunks"), depth + 1):
            raise Malformed(f"{self._file.name}: {name} is cut in chunks, but not as Flax does")
        chunks, self.rows = self.rows[first:], self.rows[:first]
        for chunk in chunks:
            del self.kinds[chunk.name]
            self.roles.pop(chunk.name, None)
        if len({chunk.dtype for chunk in chunks}) != 1 or sum(numel(chunk.shape) for chunk in chunks) != prod(shape):
            raise Malformed(f"{self._file.name}: the chunks of {name} do not make a shape of {shape}")
        # What is told of them stands between the chunks: the values lie nowhere in one piece.
        self.add(path, chunks[0].dtype, tuple(shape), NOWHERE)

    def extension(self, path: tuple[str, ...], kind: int, length: int) -> None:
        end = self.at + length
        if end > self._file.size:
            raise Truncated(f"{self._file.name} ends before {'/'.join(path)} does", fix="download it again")
        if kind in (_ARRAY, _SCALAR):
            self.array(path, end)
        self.at = end

    def array(self, path: tuple[str, ...], end: int) -> None:
        name = ".".join(path)
        if self.take(1)[0] != 0x93:
            raise Malformed(f"{self._file.name}: {name} is no array as Flax writes it")
        mark = self.take(1)[0]
        rank = mark & 15
        if not 0x90 <= mark <= 0x9F or rank > _MOST_DIMENSIONS:
            raise Malformed(f"{self._file.name}: {name} has no shape")
        shape = tuple(self.size() for _ in range(rank))
        said = self.name()
        dtype = dtype_named(said)
        if dtype is None:
            raise Unknown(f"{self._file.name}: {name} is of type {said[:40]!r}")
        mark = self.take(1)[0]
        if mark not in (0xC4, 0xC5, 0xC6):
            raise Malformed(f"{self._file.name}: {name} has no values")
        length = self.number(*_LENGTHS[mark - 0xC4])
        if length != dtype.nbytes(numel(shape)) or self.at + length != end:
            raise Malformed(f"{self._file.name}: {name} has {length:,} bytes for a shape of {list(shape)}")
        self.add(path, dtype, shape, self.at)

    def add(self, path: tuple[str, ...], dtype: DType, shape: tuple[int, ...], offset: int) -> None:
        """Takes an array into the ledger."""
        name = ".".join(path)
        if name in self.kinds:
            raise Malformed(f"{self._file.name} holds {name} twice")
        self.rows.append(Row(name, dtype, shape, self._index, offset, dtype.nbytes(numel(shape))))
        self.kinds[name] = kind_of_leaf(path, dtype)
        role = role_of_leaf(name, shape)
        if role is not None:
            self.roles[name] = role
        if len(self.rows) > _MOST_ARRAYS:
            raise Malformed(f"{self._file.name} holds more than {_MOST_ARRAYS:,} arrays")

    def size(self) -> int:
        mark = self.take(1)[0]
        if mark <= 0x7F:
            return mark
        if 0xCC <= mark <= 0xCF:
            return self.number("BHIQ"[mark - 0xCC], 1 << (mark - 0xCC))
        raise Malformed(f"{self._file.name}: a size that is no whole number")


_LENGTHS = (("B", 1), ("H", 2), ("I", 4))
# What is neither text, array nor map, and how long it is: nil, booleans, numbers.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8} | {0xCC + n: 1 << n for n in range(4)}
_FIXED |= {0xD0 + n: 1 << n for n in range(4)}
