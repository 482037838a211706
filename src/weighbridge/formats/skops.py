"""scikit-learn estimators saved by skops: a zip of schema.json and NumPy arrays. The schema is read, nothing is built.

Source: skops 0.16 `skops.io`: nodes of `__class__`, `__module__`, `__loader__` and `content`; arrays in members of
their own; an object that occurs twice is written whole at its first place and as a CachedNode after that.
"""

import json
from collections.abc import Mapping
from typing import Any

from weighbridge.formats import estimator, npy
from weighbridge.formats.archive import Archive
from weighbridge.formats.estimator_rules import Saved
from weighbridge.formats.header import Header
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import NOWHERE, DType, File, numel
from weighbridge.ledger.errors import Malformed, Refused, Unknown

_LARGEST_SCHEMA = 64 << 20
_DEEPEST = 80
_MOST_NODES = 2_000_000
_HEAD = 16 + (4 << 10)
_LARGEST_SPARSE = 128 << 20


class _Array:
    """An array of the file: shape and dtype, by NumPy's name of it."""

    __slots__ = ("dtype", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape


class _Sparse(_Array):
    """A sparse array of the file; `data` are the values that it stores."""

    __slots__ = ("data", "format", "nnz")

    def __init__(self, data: _Array) -> None:
        super().__init__(data.dtype, data.shape)
        self.data, self.format, self.nnz = data, "csr", data.shape[0]


class _Bytes:
    """A member of the archive as a file."""

    __slots__ = ("_raw", "name", "size")

    def __init__(self, name: str, raw: bytes) -> None:
        self.name, self.size, self._raw = name, len(raw), raw

    def read(self, offset: int, length: int, /) -> bytes:
        return self._raw[offset : offset + length]


def _named(dtype: DType | None) -> str:
    if dtype is None:
        return "record"
    words = {"F": "float", "I": "int", "U": "uint", "C": "complex"}
    return "bool" if dtype.name == "BOOL" else words.get(dtype.name[0], "?") + dtype.name[1:]


def read(file: File, *, index: int = 0) -> Header:
    """What the estimator in a `.skops` file has learned, by the rules of `estimator`.

    Raises:
        Malformed: not such a file.
        Refused: nested deeper than any real one.
        Unknown: an estimator whose learned values cannot be told.
    """
    archive = Archive(file)
    if "schema.json" not in archive:
        raise Malformed(f"{file.name} has no schema.json", fix="it is no file of skops.io.dump")
    schema = parse_json(archive.read("schema.json", largest=_LARGEST_SCHEMA), "schema.json", most=_MOST_NODES)
    found = _Reader(archive, file.name).value(schema, 0)
    if not isinstance(found, Saved):
        raise Unknown(f"{file.name} holds no estimator", fix="save the fitted estimator itself")
    header = estimator.header_of(found)
    rows = [row._replace(file=index, offset=NOWHERE) for row in header.rows]
    notes = [*header.notes, "arrays are listed as the estimator uses them: a tree's nodes lie together in the file"]
    return Header(rows=rows, stated=header.stated, notes=notes)


class _Reader:
    def __init__(self, archive: Archive, name: str) -> None:
        self.archive, self.name = archive, name
        self.seen: dict[object, Any] = {}
        self.arrays: dict[str, _Array] = {}  # by member: an object's arrays may be one and the same
        self.nodes = 0

    def value(self, node: Any, depth: int) -> Any:
        """What a node stands for: a plain value, an array, a list, or an object with attributes."""
        self.nodes += 1
        if depth > _DEEPEST or self.nodes > _MOST_NODES:
            raise Refused(f"{self.name}: nested deeper than any real estimator")
        if not isinstance(node, Mapping) or not isinstance(node.get("__loader__"), str):
            raise Malformed(f"{self.name}: its schema holds a node without a loader")
        loader, key = node["__loader__"], node.get("__id__")
        if loader == "CachedNode":
            return self.seen.get(key)
        found = self._made(loader, node, depth)
        if isinstance(key, int):
            self.seen[key] = found
        return found

    def _made(self, loader: str, node: Mapping[str, Any], depth: int) -> Any:
        content = node.get("content")
        if loader == "JsonNode":
            try:
                return json.loads(content) if isinstance(content, str) else None
            except (ValueError, RecursionError):
                raise Malformed(f"{self.name}: its schema holds a value that is no JSON") from None
        if loader == "NdArrayNode" and node.get("type") == "numpy":
            return self._array(node)
        if loader == "SparseMatrixNode":
            return self._sparse(node)
        if loader in ("ListNode", "TupleNode", "SetNode", "NdArrayNode"):
            inner = content.get("content") if isinstance(content, Mapping) else content
            if not isinstance(inner, list):
                raise Malformed(f"{self.name}: its schema holds a list that is none")
            values = [self.value(part, depth + 1) for part in inner]
            if loader == "NdArrayNode":
                return self._flat(values, node.get("shape"), depth)
            return tuple(values) if loader == "TupleNode" else values
        if loader == "DictNode":
            return self._attributes(node, depth)
        attributes: dict[str, Any] = {}
        if isinstance(content, Mapping) and content.get("__loader__") in ("TupleNode", "ListNode"):
            attributes = {"state": self.value(content, depth + 1)}
        elif isinstance(content, Mapping):
            attributes = self._attributes(content, depth)
        return Saved(str(node.get("__module__")), str(node.get("__class__")), attributes)

    def _attributes(self, node: Mapping[str, Any], depth: int) -> dict[str, Any]:
        content = node.get("content", node)
        if not isinstance(content, Mapping):
            return {}
        return {
            str(name): self.value(part, depth + 1)
            for name, part in content.items()
            if isinstance(part, Mapping) and "__loader__" in part
        }

    def _flat(self, values: list[Any], shape: Any, depth: int) -> list[Any]:
        """The elements of an array of objects, which is saved as lists in lists."""
        sizes = self.value(shape, depth + 1) if isinstance(shape, Mapping) else ()
        for _ in range(len(sizes) - 1 if isinstance(sizes, tuple) else 0):
            if not all(isinstance(part, list) for part in values):
                raise Malformed(f"{self.name}: its schema holds an array that is not of its shape")
            values = [element for part in values for element in part]
        return values

    def _array(self, node: Mapping[str, Any]) -> _Array:
        member = self._member(node)
        if member not in self.arrays:
            self.arrays[member] = self._checked(self.archive, member, f"{self.name}: {member}")
        return self.arrays[member]

    def _sparse(self, node: Mapping[str, Any]) -> _Array:
        """Source: `scipy.sparse.save_npz`, which writes the stored values as the member `data`."""
        member = self._member(node)
        inner = Archive(_Bytes(f"{self.name}: {member}", self.archive.read(member, largest=_LARGEST_SPARSE)))
        if "data.npy" not in inner:
            raise Malformed(f"{self.name}: {member} holds no sparse array", fix="download it again")
        return _Sparse(self._checked(inner, "data.npy", f"{self.name}: {member}"))

    def _member(self, node: Mapping[str, Any]) -> str:
        member = node.get("file")
        if not isinstance(member, str) or member not in self.archive:
            raise Malformed(f"{self.name} lacks the array {str(member)[:60]!r}", fix="download it again")
        return member

    def _checked(self, archive: Archive, member: str, name: str) -> _Array:
        """An array whose member is as large as its header says. One of texts or dates is none that could be counted."""
        try:
            array = npy.parse(archive.start(member, _HEAD), name)
        except Unknown:
            return _Array("unread", (0,))
        if archive.size(member) != array.start + numel(array.shape) * array.width:
            raise Malformed(f"{name} is not of the size that its header says", fix="download it again")
        return _Array(_named(array.dtype), array.shape)
