"""A tensor of an ONNX file: its type, its shape and where its values lie, which are never read.

Source: onnx 1.23 `onnx.proto`, `TensorProto`, and docs/ExternalData.md.
"""

from collections.abc import Mapping
from typing import NamedTuple

from weighbridge.formats.protobuf import BYTES, VARINT, Field, Wire
from weighbridge.ledger import DTYPES, DType, numel
from weighbridge.ledger.errors import Malformed, Refused, Truncated, Unknown

MOST_DIMENSIONS = 64
STRING = 8
_TYPES: dict[int, DType] = {
    number: DTYPES[name]
    for number, name in {
        1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
        13: "U64", 14: "C64", 15: "C128", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2",
        20: "F8_E5M2FNUZ", 21: "U4", 22: "I4", 23: "F4", 24: "F8_E8M0", 25: "U2", 26: "I2", 27: "F6_E2M3",
        28: "F6_E3M2",
    }.items()
}  # fmt: skip
# Field of TensorProto -> bytes of a stored number; 0 for varints, of which each takes one to ten.
_DATA = {4: 4, 5: 0, 7: 0, 10: 8, 11: 0}


class Constant(NamedTuple):
    """A stored tensor. `location` names the file beside this one that holds it, None where it is in this one.

    `dtype` is None for text. `offset` is 0 where its values do not lie in a row as a program would use them. A
    `literal` is written where it is used, in a node.
    """

    name: str
    dtype: DType | None
    shape: tuple[int, ...]
    location: str | None
    offset: int
    nbytes: int
    literal: bool = False


def pair(wire: Wire, part: Field, longest: int) -> tuple[str, str]:
    """A key and its value, which is left empty when it is longer than `longest`."""
    key = value = ""
    for each in wire.fields(part.start, part.end):
        if each.number == 1:
            key = wire.text(each)
        elif each.number == 2 and each.end - each.start <= longest:
            value = wire.read(each, largest=longest).decode("utf-8", "backslashreplace")
    return key, value


def tensor(wire: Wire, whole: Field) -> Constant:
    """The tensor in a TensorProto, its values left where they are.

    Raises:
        Malformed: a shape that its values do not have.
        Truncated: it has no values.
        Refused: values in pieces, or outside the folder.
        Unknown: a type that this version does not know.
    """
    name, kind, external, length = "", 0, False, None
    shape: list[int] = []
    place: dict[str, str] = {}
    chunks: list[tuple[int, int, int]] = []  # (field, offset, bytes)
    for part in wire.fields(whole.start, whole.end):
        number = part.number
        if number == 1:
            shape += wire.numbers(part, most=MOST_DIMENSIONS)
        elif number == 2:
            kind = part.value
        elif number == 3:
            raise Refused(f"{wire.name} stores a tensor in segments", fix="save it with raw data")
        elif number in _DATA or number == 9:
            chunks.append((number, part.start, 1 if part.wire == VARINT else part.end - part.start))
            length = (length or 0) + part.end - part.start
        elif number == 8:
            name = wire.text(part)
        elif number == 13 and part.wire == BYTES:
            key, value = pair(wire, part, 4096)
            place[key] = value
        elif number == 14:
            external = part.value == 1
    if len(shape) > MOST_DIMENSIONS or any(n < 0 for n in shape) or numel(tuple(shape)) >= 1 << 60:
        raise Malformed(f"{wire.name}: {name!r} has a shape of {str(shape)[:80]}")
    if kind == STRING:
        return Constant(name, None, tuple(shape), None, 0, 0)
    if kind not in _TYPES:
        raise Unknown(f"{wire.name}: {name!r} is of ONNX type {kind}", fix="a newer Weighbridge may know it")
    element, count = _TYPES[kind], numel(tuple(shape))
    nbytes = -(-count * element.block_bytes // element.block)
    constant = Constant(name, element, tuple(shape), None, 0, nbytes)
    if external:
        return _outside(wire.name, constant, place)
    return constant._replace(offset=_check(wire.name, constant, chunks, length))


def _check(file: str, constant: Constant, chunks: list[tuple[int, int, int]], length: int | None) -> int:
    """Where the values start, when their number is what the shape says; 0 where they are not in a row."""
    if not chunks:
        if constant.nbytes:
            raise Truncated(
                f"{file}: {constant.name!r} has a shape and no values", fix="save the model with its weights"
            )
        return 0
    (number, offset, _), each = chunks[0], _DATA.get(chunks[0][0], 1)
    size = sum(size for _, _, size in chunks)
    fits = len({number for number, _, _ in chunks}) == 1
    if number == 9:
        fits = fits and len(chunks) == 1 and length == constant.nbytes
    elif each:
        fits = fits and length == constant.nbytes
    else:  # varints: of four-bit types two to a number
        block = constant.dtype.block if constant.dtype and constant.dtype.block in (2, 4) else 1
        entries = -(-numel(constant.shape) // (block if number == 5 else 1))
        if constant.dtype in (DTYPES["F6_E2M3"], DTYPES["F6_E3M2"]):
            entries = numel(constant.shape)
        fits = fits and entries <= size <= 10 * entries
    if not fits:
        raise Malformed(f"{file}: {constant.name!r} does not hold the values of its shape", fix="save it again")
    return offset if each and len(chunks) == 1 else 0


def _outside(file: str, constant: Constant, place: Mapping[str, str]) -> Constant:
    location = place.get("location", "")
    parts = location.replace("\\", "/").split("/")
    if not location or location.startswith(("/", "\\", "*")) or ":" in parts[0] or ".." in parts:
        raise Refused(
            f"{file} keeps {constant.name!r} in {location!r}, outside its folder",
            fix="save the model with its data beside it",
        )
    numbers = [place.get("offset", "0"), place.get("length", str(constant.nbytes))]
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers):
        raise Malformed(f"{file}: {constant.name!r} lies at {str(numbers)[:80]}")
    offset, length = int(numbers[0]), int(numbers[1])
    if length != constant.nbytes:
        raise Malformed(
            f"{file}: {constant.name!r} takes {constant.nbytes:,} bytes and has {length:,}",
            fix="save it again",
        )
    normal = "/".join(part for part in parts if part not in ("", "."))
    return constant._replace(location=normal, offset=offset)
