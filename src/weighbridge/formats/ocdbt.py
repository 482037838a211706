"""OCDBT, TensorStore's key-value database in a folder: a manifest that names the root of a B+tree of keys, whose nodes
and larger values lie in data files.

Source: TensorStore's `kvstore/ocdbt` storage format, version 0, as of tensorstore 0.1.86.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from weighbridge.formats.zstd import decompressed
from weighbridge.ledger import File
from weighbridge.ledger.errors import Malformed, Truncated

MANIFEST = "manifest.ocdbt"
_MANIFEST_MAGIC, _NODE_MAGIC = b"\x0c\xdb\x3a\x2a", b"\x0c\xdb\x20\xde"
_CHECKSUM = 4
_SINGLE = 0
_LARGEST_NODE = 128 << 20  # decoded: Orbax allows 100 MB
_LARGEST_VALUE = 1 << 20
_MOST_NODES = 20_000
_MOST_KEYS = 4_000_000
_LONGEST_KEY = 65_535

Open = Callable[[str], File]


class _Place(NamedTuple):
    """Bytes of a data file. Files that a node names lie below `base`, the part of the path that its own files share."""

    base: str
    name: str
    offset: int
    length: int


def entries(open: Open, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(key, value) of every wanted key in the latest version, in order. `open` opens files of the folder by name.

    Raises:
        Malformed, Truncated: no such database, or a broken one.
        Refused: it is compressed, and nothing that decompresses is installed.
    """
    root, height = _root(open(MANIFEST))
    if root is not None:
        yield from _Tree(open, wanted).node(root, height, "")


def _root(file: File) -> tuple[_Place | None, int]:
    """(place, height) of the latest version's root."""
    body = _body(file.read(0, file.size), file.name, _MANIFEST_MAGIC)
    body.take(16)  # its identifier
    if body.number() != _SINGLE:
        raise Malformed(f"{file.name} keeps its versions in files of their own, which are not read")
    body.numbers(2)  # limits for who writes
    body.take(1)
    if body.number():
        body.take(4)  # the level of compression
    places = body.files("")
    versions = body.number()
    if not versions:
        return None, 0
    body.numbers(versions)
    heights = body.take(versions)
    number, offset, length = (body.numbers(versions)[-1] for _ in range(3))
    return _place(places, number, offset, length, file.name), heights[-1]


class _Tree:
    def __init__(self, open: Open, wanted: Callable[[str], bool]) -> None:
        self._open, self._wanted = open, wanted
        self._files: dict[str, File] = {}
        self._nodes = self._keys = 0

    def node(self, place: _Place, height: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        """The entries of a node, and of those below it."""
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise Malformed(f"more than {_MOST_NODES:,} nodes, more than any checkpoint has")
        body = _body(self._read(place, _LARGEST_NODE), place.name, _NODE_MAGIC)
        if body.take(1)[0] != height:
            raise Malformed(f"{place.name} has a node of another height than its parent says")
        files = body.files(place.base)
        count = body.number()
        self._keys += count
        if self._keys > _MOST_KEYS:
            raise Malformed(f"more than {_MOST_KEYS:,} keys, more than any checkpoint has")
        if height:
            yield from self._inner(body, files, count, height, prefix, place.name)
        else:
            yield from self._leaf(body, files, count, prefix, place.name)

    def _inner(
        self, body: "_Body", files: list[tuple[str, str]], count: int, height: int, prefix: str, name: str
    ) -> Iterator[tuple[str, bytes]]:
        shared, own = body.shared(count), body.numbers(count)
        common = body.numbers(count)
        keys = body.keys(shared, own)
        where = zip(body.numbers(count), body.numbers(count), body.numbers(count), strict=True)
        for key, length, (file, offset, size) in zip(keys, common, where, strict=True):
            child = _place(files, file, offset, size, name)
            yield from self.node(child, height - 1, prefix + _text(key[:length], name))

    def _leaf(
        self, body: "_Body", files: list[tuple[str, str]], count: int, prefix: str, name: str
    ) -> Iterator[tuple[str, bytes]]:
        shared, own = body.shared(count), body.numbers(count)
        keys = body.keys(shared, own)
        lengths, apart = body.numbers(count), body.numbers(count)
        outside = sum(map(bool, apart))
        where = zip(body.numbers(outside), body.numbers(outside), strict=True)
        for key, length, is_outside in zip(keys, lengths, apart, strict=True):
            full = prefix + _text(key, name)
            if is_outside:
                file, offset = next(where)
                place = _place(files, file, offset, length, name)
                if self._wanted(full):
                    yield full, self._read(place, _LARGEST_VALUE)
            else:
                value = body.take(length)
                if self._wanted(full):
                    yield full, value

    def _read(self, place: _Place, most: int) -> bytes:
        if place.length > most:
            raise Malformed(f"{place.name} holds a node or value of {place.length:,} bytes")
        if place.name not in self._files:
            self._files[place.name] = self._open(place.name)
        raw = self._files[place.name].read(place.offset, place.length)
        if len(raw) < place.length:
            raise Truncated(f"{place.name} ends at {self._files[place.name].size:,} bytes", fix="download it again")
        return raw


class _Body:
    """A cursor over decoded bytes."""

    __slots__ = ("_at", "_name", "_raw")

    def __init__(self, raw: bytes, name: str) -> None:
        self._raw, self._name, self._at = raw, name, 0

    def take(self, length: int) -> bytes:
        found = self._raw[self._at : self._at + length]
        if len(found) < length:
            raise Malformed(f"{self._name} is broken", fix="download it again")
        self._at += length
        return found

    def number(self) -> int:
        """A variable-length integer."""
        found = shift = 0
        while True:
            byte = self.take(1)[0]
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found
            if shift > 63:
                raise Malformed(f"{self._name} is broken", fix="download it again")

    def numbers(self, count: int) -> list[int]:
        if count > len(self._raw) - self._at:
            raise Malformed(f"{self._name} is broken", fix="download it again")
        return [self.number() for _ in range(count)]

    def shared(self, count: int) -> list[int]:
        """How much each of so many keys has in common with the one before, which the first has not."""
        return [0, *self.numbers(count - 1)] if count else []

    def keys(self, shared: list[int], own: list[int]) -> list[bytes]:
        """Keys, of which each is stored without what it has in common with the one before."""
        found, last = [], b""
        for common, length in zip(shared, own, strict=True):
            if common > len(last) or common + length > _LONGEST_KEY:
                raise Malformed(f"{self._name} is broken", fix="download it again")
            last = last[:common] + self.take(length)
            found.append(last)
        return found

    def files(self, base: str) -> list[tuple[str, str]]:
        """(base path, whole path) of the data files that the rest refers to, below the `base` path."""
        count = self.number()
        shared, own = self.shared(count), self.numbers(count)
        bases = self.numbers(count)
        paths = [_text(path, self._name) for path in self.keys(shared, own)]
        for path in paths:
            if path.startswith("/") or "\\" in path or "\0" in path or ".." in path.split("/"):
                raise Malformed(f"{self._name} points out of its folder, to {path[:60]!r}", fix="do not trust it")
        return [(base + path[:length], base + path) for path, length in zip(paths, bases, strict=True)]


def _body(raw: bytes, name: str, magic: bytes) -> _Body:
    """What follows the header of a manifest or node."""
    head = _Body(raw, name)
    if head.take(4) != magic:
        raise Malformed(f"{name} is no part of a database as TensorStore writes it", fix="download it again")
    if int.from_bytes(head.take(8), "little") != len(raw):
        raise Truncated(f"{name} is not whole", fix="download it again")
    version, compression = head.numbers(2)
    if version != 0 or compression > 1:
        raise Malformed(f"{name} is of version {version}, compression {compression}: a newer one than is known")
    rest = raw[4 + 8 + 2 : -_CHECKSUM]
    return _Body(decompressed(rest, name, most=_LARGEST_NODE) if compression else rest, name)


def _place(files: list[tuple[str, str]], file: int, offset: int, length: int, name: str) -> _Place:
    if file >= len(files):
        raise Malformed(f"{name} is broken", fix="download it again")
    return _Place(*files[file], offset, length)


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Malformed(f"{name} has a key that is no text") from None
