"""HDF5 files as h5py writes them by default: where each dataset is, its type and shape, and text attributes.

Source: HDF5 File Format Specification 3.0. Superblocks 0 and 1, object headers 1, groups of symbol tables: what the
library makes unless it is asked for its latest format, which is refused by name. Values are never read.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from struct import error as StructError
from struct import unpack_from

from weighbridge.ledger import DTYPES, DType, numel
from weighbridge.ledger.errors import Malformed, Truncated, Unknown

MAGIC = b"\x89HDF\r\n\x1a\n"
Read = Callable[[int, int], bytes]  # (offset, bytes)
_NOWHERE = (1 << 64) - 1
_LARGEST_BLOCK = 1 << 20
_LARGEST_TEXT = 16 << 20
_LARGEST_IN_ALL = 64 << 20
_MOST_OBJECTS = 200_000
_MOST_MESSAGES = 4_000
_DEEPEST = 64
_MOST_DIMENSIONS = 32
_DATASPACE, _DATATYPE, _LAYOUT, _ATTRIBUTE, _CONTINUATION, _SYMBOLS = 0x01, 0x03, 0x08, 0x0C, 0x10, 0x11
_CONTIGUOUS = 1
_INTEGER, _FLOAT, _STRING, _ENUM, _VARIABLE = 0, 1, 3, 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """`offset` is where its values lie in one piece; None where they lie in chunks or nowhere yet."""

    dtype: DType
    shape: tuple[int, ...]
    offset: int | None


@dataclass(slots=True)
class Contents:
    """Datasets and text attributes by the path of their group, in the order of names."""

    datasets: dict[str, Dataset] = field(default_factory=dict)
    texts: dict[tuple[str, str], str] = field(default_factory=dict)


def contents(read: Read, size: int, name: str) -> Contents:
    """What the file holds. `read` gives bytes of it, `size` is its length, `name` is for messages.

    Raises:
        Malformed: not such a file, or a broken one.
        Truncated: it ends before its data do.
        Unknown: a newer layout of the format, or a type that is not known.
    """
    walk = _Walk(read, size, name)
    try:
        walk.group("", walk.root(), 0)
    except (StructError, IndexError):
        raise Malformed(f"{name} is a broken HDF5 file", fix="download it again") from None
    return walk.found


class _Walk:
    def __init__(self, read: Read, size: int, name: str) -> None:
        self._read, self._size, self._name = read, size, name
        self._left = _LARGEST_IN_ALL
        self._seen: set[int] = set()
        self.found = Contents()

    def root(self) -> int:
        start = self.piece(0, 96)
        if start[:8] != MAGIC:
            raise Malformed(f"{self._name} is no HDF5 file")
        version = start[8]
        if version > 1:
            raise Unknown(
                f"{self._name} is in HDF5's newer layout (superblock {version})",
                fix="write it with h5py's default libver",
            )
        shift = 4 * version
        base, _, end = unpack_from("<QQQ", start, 24 + shift)
        if start[13] != 8 or start[14] != 8 or base != 0:
            raise Unknown(f"{self._name}: an HDF5 file of other offsets than 8 bytes from its beginning")
        if end > self._size:
            raise Truncated(f"{self._name} ends at {self._size:,} bytes of {end:,}", fix="download it again")
        return unpack_from("<Q", start, 64 + shift)[0]

    def piece(self, offset: int, length: int) -> bytes:
        self._left -= length
        if self._left < 0:
            raise Malformed(f"{self._name}: more than {_LARGEST_IN_ALL >> 20} MB of headers")
        if offset >= self._size:
            raise Malformed(f"{self._name} points beyond its end", fix="download it again")
        return self._read(offset, min(length, self._size - offset))

    def signed(self, offset: int, length: int, signature: bytes) -> bytes:
        found = self.piece(offset, length)
        if found[:4] != signature:
            raise Malformed(f"{self._name}: no {signature.decode()} block at {offset:,}", fix="download it again")
        return found

    def messages(self, address: int) -> list[tuple[int, bytes]]:
        """(type, body) of an object's header messages."""
        prefix = self.piece(address, 16)
        if prefix[0] != 1:
            raise Unknown(f"{self._name} is in HDF5's newer layout", fix="write it with h5py's default libver")
        blocks = [(address + 16, unpack_from("<I", prefix, 8)[0])]
        found: list[tuple[int, bytes]] = []
        for offset, length in blocks:
            if length > _LARGEST_BLOCK:
                raise Malformed(f"{self._name}: an object header of {length:,} bytes")
            block, at = self.piece(offset, length), 0
            while at + 8 <= len(block):
                kind, size, flags = unpack_from("<HHB", block, at)
                body = block[at + 8 : at + 8 + size]
                at += 8 + size
                if kind == _CONTINUATION:
                    blocks.append(unpack_from("<QQ", body, 0))
                elif kind in (_DATATYPE, _DATASPACE) and flags & 2:
                    raise Unknown(f"{self._name} shares a type among datasets")
                elif kind:
                    found.append((kind, body))
                if len(found) > _MOST_MESSAGES or len(blocks) > _MOST_MESSAGES:
                    raise Malformed(f"{self._name}: an object with more than {_MOST_MESSAGES:,} messages")
        return found

    def group(self, path: str, address: int, depth: int) -> None:
        """Reads an object: a group with all in it, or a dataset."""
        if depth > _DEEPEST:
            raise Malformed(f"{self._name}: groups nested more than {_DEEPEST} deep")
        if address in self._seen:
            raise Unknown(f"{self._name}: {path} is a link to what stands elsewhere")
        self._seen.add(address)
        if len(self._seen) > _MOST_OBJECTS:
            raise Malformed(f"{self._name}: more than {_MOST_OBJECTS:,} objects")
        messages = self.messages(address)
        for kind, body in messages:
            if kind == _ATTRIBUTE:
                self.attribute(path, body)
        parts = dict(messages)
        if _SYMBOLS in parts:
            tree, heap = unpack_from("<QQ", parts[_SYMBOLS], 0)
            for name, at in self.members(tree, heap):
                self.group(f"{path}/{name}" if path else name, at, depth + 1)
        elif _DATATYPE in parts and _DATASPACE in parts:
            self.found.datasets[path] = self.dataset(path, parts)
        else:
            raise Unknown(f"{self._name}: {path or 'its root'} is in HDF5's newer layout")

    def members(self, tree: int, heap: int) -> list[tuple[str, int]]:
        """(name, address) of a group's members."""
        size, _, at = unpack_from("<QQQ", self.signed(heap, 32, b"HEAP"), 8)
        if size > _LARGEST_BLOCK * 8:
            raise Malformed(f"{self._name}: a group whose names take {size:,} bytes")
        names = self.piece(at, size)
        found: list[tuple[str, int]] = []
        waiting, seen = [tree], set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                raise Malformed(f"{self._name}: a tree that contains itself")
            seen.add(node)
            head = self.piece(node, 24)
            if head[:4] == b"TREE":
                count = unpack_from("<H", head, 6)[0]
                body = self.piece(node + 24, 16 * count + 8)
                waiting += [unpack_from("<Q", body, 16 * i + 8)[0] for i in range(count)][::-1]
                continue
            if head[:4] != b"SNOD":
                raise Malformed(f"{self._name}: a group's tree is broken", fix="download it again")
            count = unpack_from("<H", head, 6)[0]
            body = self.piece(node + 8, 40 * count)
            for i in range(count):
                where, address, cached = unpack_from("<QQI", body, 40 * i)
                name = names[where : names.find(b"\0", where)].decode("utf-8", "replace")
                if cached == 2 or not name:
                    raise Unknown(f"{self._name}: {name or 'a member'} is a link to what stands elsewhere")
                found.append((name, address))
        return found

    def dataset(self, path: str, parts: dict[int, bytes]) -> Dataset:
        shape = _shape(parts[_DATASPACE], self._name)
        dtype = _dtype(parts[_DATATYPE])
        # Keras stores bfloat16 as bytes, and says so in an attribute.
        dtype = DTYPES["BF16"] if self.found.texts.get((path, "dtype")) == "bfloat16" else dtype
        if dtype is None:
            raise Unknown(f"{self._name}: {path} is of a type that is not known")
        offset = None
        layout = parts.get(_LAYOUT, b"")
        if len(layout) >= 18 and layout[0] in (3, 4) and layout[1] == _CONTIGUOUS:
            address, stored = unpack_from("<QQ", layout, 2)
            nbytes = dtype.nbytes(numel(shape))
            if address != _NOWHERE:
                if address + nbytes > self._size:
                    raise Truncated(f"{self._name} ends before {path} does", fix="download it again")
                if stored < nbytes:
                    raise Malformed(f"{self._name}: {path} has {stored:,} bytes for {nbytes:,}")
                offset = address
        return Dataset(dtype=dtype, shape=shape, offset=offset)

    def attribute(self, path: str, body: bytes) -> None:
        """Keeps an attribute that is one text."""
        version = body[0]
        sizes = unpack_from("<HHH", body, 2)
        at = 9 if version == 3 else 8
        pieces = []
        for size in sizes:
            pieces.append(body[at : at + size])
            at += -(-size // 8) * 8 if version == 1 else size
        name, kind, space = pieces
        if not kind or not space or _shape(space, self._name) != ():
            return
        data = body[at:]
        if kind[0] & 15 == _STRING:
            text = data[: unpack_from("<I", kind, 4)[0]]
        elif kind[0] & 15 == _VARIABLE and kind[1] & 15 == 1:
            length, heap, index = unpack_from("<IQI", data, 0)
            text = self.heaped(heap, index)[:length] if length else b""
        else:
            return
        key = name.rstrip(b"\0").decode("utf-8", "replace")
        self.found.texts[path, key] = text.rstrip(b"\0").decode("utf-8", "replace")

    def heaped(self, address: int, index: int) -> bytes:
        """An object of the global heap."""
        size = unpack_from("<Q", self.signed(address, 16, b"GCOL"), 8)[0]
        if size > _LARGEST_TEXT:
            raise Malformed(f"{self._name}: a text of {size:,} bytes")
        at = address + 16
        while at + 16 <= address + size:
            found, _, length = unpack_from("<HHxxxxQ", self.piece(at, 16), 0)
            if length > size:
                break
            if found == index:
                return self.piece(at + 16, length)
            if not found:
                break
            at += 16 + -(-length // 8) * 8
        raise Malformed(f"{self._name}: a text that is not where it should be", fix="download it again")


def _shape(body: bytes, name: str) -> tuple[int, ...]:
    version, rank = body[0], body[1]
    if rank > _MOST_DIMENSIONS:
        raise Malformed(f"{name}: an array of {rank} dimensions")
    shape = unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4)
    if any(size >= 1 << 48 for size in shape) or numel(shape) >= 1 << 56:
        raise Malformed(f"{name}: a shape of {list(shape)}")
    return shape


def _dtype(body: bytes) -> DType | None:
    kind, size = body[0] & 15, unpack_from("<I", body, 4)[0]
    if kind == _INTEGER:
        found = f"{'I' if body[1] & 8 else 'U'}{8 * size}"
    elif kind == _FLOAT:
        found = f"F{8 * size}"
    elif kind == _ENUM and size == 1:
        found = "BOOL"
    else:
        return None
    return DTYPES.get(found)
