"""scikit-learn estimators saved by skops: a zip of schema.json and NumPy arrays. The schema is read, nothing is built.

Source: skops 0.16 `skops.io`: nodes of `__class__`, `__module__`, `__loader__` and `content`; arrays in members of
their own; an object that occurs twice is written whole at its first place and as a CachedNode after that.
"""

import json
from collections.abc import Mapping
from typing import Any

from weighbridge.formats import estimator, npy
from weighbridge.formats.archive import Archive
from weighbridge.formats.header import Header
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import NOWHERE, DType, File
from weighbridge.ledger.errors import Malformed, Refused, Unknown

_LARGEST_SCHEMA = 64 << 20
_DEEPEST = 80
_MOST_NODES = 2_000_000
_HEAD = 16 + (4 << 10)


class _Array:
    """An array of the file: dtype and shape."""

    __slots__ = ("dtype", "shape")

    def __init__(self, dtype: DType | None, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = _Named(dtype), shape


class _Named:
    """A dtype by NumPy's name."""

    __slots__ = ("name",)

    def __init__(self, dtype: DType | None) -> None:
        words = {"F": "float", "I": "int", "U": "uint", "C": "complex"}
        self.name = (
            "record"
            if dtype is None
            else dtype.name.lower()
            if dtype.name == "BOOL"
            else (words.get(dtype.name[0], "?") + dtype.name[1:])
        )


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
    if not isinstance(found, estimator.Saved):
        raise Unknown(f"{file.name} holds no estimator", fix="save the fitted estimator itself")
    header = estimator.header_of(found)
    rows = [row._replace(file=index, offset=NOWHERE) for row in header.rows]
    notes = [*header.notes, "arrays are listed as the estimator uses them: a tree's nodes lie together in the file"]
    return Header(rows=rows, stated=header.stated, notes=notes)


class _Reader:
    def __init__(self, archive: Archive, name: str) -> None:
        self.archive, self.name = archive, name
        self.seen: dict[object, Any] = {}
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
        if loader in ("ListNode", "TupleNode", "SetNode", "NdArrayNode"):
            inner = content.get("content") if isinstance(content, Mapping) else content
            if not isinstance(inner, list):
                raise Malformed(f"{self.name}: its schema holds a list that is none")
            values = [self.value(part, depth + 1) for part in inner]
            return tuple(values) if loader == "TupleNode" else values
        if loader == "DictNode":
            return self._attributes(node, depth)
        attributes = self._attributes(content, depth) if isinstance(content, Mapping) else {}
        return estimator.Saved(str(node.get("__module__")), str(node.get("__class__")), attributes)

    def _attributes(self, node: Mapping[str, Any], depth: int) -> dict[str, Any]:
        content = node.get("content", node)
        if not isinstance(content, Mapping):
            return {}
        return {
            str(name): self.value(part, depth + 1)
            for name, part in content.items()
            if isinstance(part, Mapping) and "__loader__" in part
        }

    def _array(self, node: Mapping[str, Any]) -> _Array:
        member = node.get("file")
        if not isinstance(member, str) or member not in self.archive:
            raise Malformed(f"{self.name} lacks the array {str(member)[:60]!r}", fix="download it again")
        array = npy.parse(self.archive.start(member, _HEAD), f"{self.name}: {member}")
        count = 1
        for size in array.shape:
            count *= size
        if self.archive.size(member) != array.start + count * array.width:
            raise Malformed(f"{self.name}: {member} is not of the size that its header says", fix="download it again")
        return _Array(array.dtype, array.shape)
