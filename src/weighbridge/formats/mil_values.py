"""Values of Core ML's programs: where those of a constant lie, in the program or in a file of blobs.

Source: coremltools 9.0 `mlmodel/format/MIL.proto` and `MILBlob/Blob/StorageFormat.hpp`.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

from weighbridge.formats.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, Wire
from weighbridge.ledger import DType, File, read_exactly
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Truncated

STRING = 2
TYPES = {
    1: "BOOL", 10: "F16", 11: "F32", 12: "F64", 13: "BF16", 21: "I8", 22: "I16", 23: "I32", 24: "I64", 25: "I4",
    31: "U8", 32: "U16", 33: "U32", 34: "U64", 35: "U4", 36: "U2", 40: "F8_E4M3", 41: "F8_E5M2",
}  # fmt: skip
BITS = {37: 1, 38: 6, 39: 3}  # widths that no dtype has: codes of a palette, counted by bytes
_SENTINEL = 0xDEADBEEF


class Blob(NamedTuple):
    """A constant: `location` names the file that holds it, None for the program's own."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    location: str | None
    offset: int
    nbytes: int
    dense: tuple[int, ...]  # the shape of what it stands for


def blob_of(wire: Wire, open_blobs: Callable[[str], File], name: str, place: Field, size: int) -> tuple[str, int]:
    """Where a constant's values lie in a file of blobs, as the record there says."""
    location, record = "", 0
    for part in wire.fields(place.start, place.end):
        if part.number == 1 and part.wire == BYTES:
            location = wire.text(part)
        elif part.number == 2:
            record = part.value
    location = location.removeprefix("@model_path/")
    if not location or location.startswith("/") or ".." in location.split("/"):
        raise Refused(f"{wire.name} keeps {name!r} in {location!r}, outside its folder")
    file = open_blobs(location)
    sentinel, _, length, offset = struct.unpack("<IIQQ", read_exactly(file, record, 24))
    if sentinel != _SENTINEL or length != size:
        raise Malformed(f"{file.name}: the record of {name!r} is not that of {size:,} bytes", fix="download it again")
    if offset + length > file.size:
        raise Truncated(
            f"{file.name} ends at {file.size:,} bytes, {offset + length:,} are needed", fix="download it again"
        )
    return location, offset


def immediate(wire: Wire, name: str, whole: Field | None, count: int, size: int) -> int:
    """Where values that stand in the program start; 0 where they do not lie in a row."""
    for tensor in wire.fields(whole.start, whole.end) if whole is not None else ():
        for kind in wire.fields(tensor.start, tensor.end) if tensor.number == 1 and tensor.wire == BYTES else ():
            if kind.wire != BYTES:
                continue
            parts = list(_bounded(wire, kind, count))
            width = {1: 4, 6: 8, 7: 1}.get(kind.number, 0)
            length = sum(part.end - part.start if part.wire != VARINT else 1 for part in parts)
            packed = len(parts) == 1 and parts[0].wire not in (FIXED32, FIXED64)
            if width and length == size:
                return parts[0].start if packed and parts else 0
            if not width and count <= length <= 10 * count:
                return 0
    if size:
        raise Malformed(f"{wire.name}: {name!r} does not hold the values of its shape", fix="save it again")
    return 0


def _bounded(wire: Wire, whole: Field, count: int) -> list[Field]:
    found = []
    for part in wire.fields(whole.start, whole.end):
        if part.number == 1:
            found.append(part)
        if len(found) > count + 1:
            raise Malformed(f"{wire.name}: more values than a shape has")
    return found


def missing(name: str, model: str) -> NotFound:
    """The refusal of a model whose file of blobs is not there."""
    return NotFound(f"{model} keeps its weights in {name}, which is not there", fix="copy the whole .mlpackage folder")
