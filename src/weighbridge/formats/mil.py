"""Core ML's programs: operations with named inputs, whose constants stand in the program or in a file of blobs.

An operation names its inputs (`weight`, `gamma`, `variance`), so that what a constant is shows in the name under which
an operation takes it. Operations are read from the last to the first: what becomes of a result is known before what
becomes of its inputs.

Source: coremltools 9.0 `mlmodel/format/MIL.proto`, `MILBlob/Blob/StorageFormat.hpp`, and its operator sets to iOS 18.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from weighbridge.formats.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, Wire
from weighbridge.ledger import DTYPES, DType, File, numel, read_exactly
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Truncated, Unknown

PARAMETER, BUFFER, TABLE, OPERAND = "parameter", "buffer", "table", "operand"
SCALES, ZEROS, CODEBOOK, MASK = (
    "quantization_scales",
    "quantization_zero_points",
    "quantization_codebook",
    "sparse_mask",
)
_RANK = {OPERAND: 0, TABLE: 1, BUFFER: 2, PARAMETER: 4}
_STRING = 2
_TYPES = {
    1: "BOOL", 10: "F16", 11: "F32", 12: "F64", 13: "BF16", 21: "I8", 22: "I16", 23: "I32", 24: "I64", 25: "I4",
    31: "U8", 32: "U16", 33: "U32", 34: "U64", 35: "U4", 36: "U2", 40: "F8_E4M3", 41: "F8_E5M2",
}  # fmt: skip
_BITS = {37: 1, 38: 6, 39: 3}  # widths that no dtype has: codes of a palette, counted by bytes
_LEARNED = frozenset({"weight", "bias", "gamma", "beta", "weight_ih", "weight_hh", "peephole", "weight_ih_back"})
_LEARNED |= {"weight_hh_back", "bias_back", "peephole_back", "input_bias", "recurrent_weight"}
_NOT_LEARNED = frozenset({("batch_norm", "mean"), ("batch_norm", "variance")})
_ROLES = {"conv": "conv", "conv_transpose": "conv", "gather": "embedding", "batch_norm": "norm", "layer_norm": "norm"}
_ROLES |= {"instance_norm": "norm"}
_FORMS = frozenset({"transpose", "reshape", "cast", "expand_dims", "squeeze", "identity", "slice_by_index", "concat"})
_FORMS |= {"tile", "stack", "split", "slice_by_size", "constexpr_cast", "dequantize", "quantize"}
# Operations that make a weight out of stored parts: which part holds its values, and what the others are.
_CODED = {"quantized_data", "data", "indices", "nonzero_data", "source_val", "input"}
_PARTS = {"scale": SCALES, "zero_point": ZEROS, "offset": ZEROS, "lut": CODEBOOK, "mask": MASK, "shape": BUFFER}
_PARTS |= {"axis": BUFFER, "vector_axis": BUFFER, "output_dtype": BUFFER}
_DEEPEST = 16
_MOST_CONSTANTS = 150_000
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


class Use(NamedTuple):
    """What a value is by its use."""

    kind: str
    role: str | None = None


class _Operation(NamedTuple):
    kind: str
    inputs: list[tuple[str, str]]  # (name of the input, name of the value)
    outputs: list[tuple[str, tuple[int, ...]]]


@dataclass(slots=True)
class Program:
    """The constants of a function, and their uses by name."""

    constants: dict[str, Blob] = field(default_factory=dict)
    operations: list[_Operation] = field(default_factory=list)
    uses: dict[str, Use] = field(default_factory=dict)


def functions(wire: Wire, whole: Field, open_blobs: Callable[[str], File]) -> list[tuple[str, Program]]:
    """Every function of a program, by name.

    Raises:
        Malformed: no program, or constants that are not what their blobs say.
    """
    found = []
    reader = _Reader(wire, open_blobs)
    for part in wire.fields(whole.start, whole.end):
        if part.number != 2 or part.wire != BYTES:
            continue
        name, body = reader.entry(part)
        program = Program()
        for each in wire.fields(body.start, body.end):
            if each.number == 3 and each.wire == BYTES:
                _, block = reader.entry(each)
                reader.block(block, program, 0)
                break  # others are the same for newer systems
        _mark(program)
        found.append((name, program))
    return found


def _mark(program: Program) -> None:
    def take(name: str, use: Use | None) -> None:
        before = program.uses.get(name)
        if use is not None and (before is None or _RANK.get(use.kind, 3) > _RANK.get(before.kind, 3)):
            program.uses[name] = use

    for kind, inputs, outputs in reversed(program.operations):
        result = next((program.uses[name] for name, _ in outputs if name in program.uses), None)
        for what, name in inputs:
            if kind.startswith("constexpr_") or kind in ("dequantize", "quantize"):
                take(name, result or Use(OPERAND) if what in _CODED else Use(_PARTS.get(what, OPERAND)))
            elif kind in _FORMS:
                take(name, result or Use(OPERAND) if what in ("x", "values", "data") else Use(OPERAND))
            elif (kind, what) in _NOT_LEARNED:
                take(name, Use(BUFFER))
            elif what in _LEARNED or (kind, what) == ("prelu", "alpha") or (kind == "matmul" and what in ("x", "y")):
                take(name, Use(PARAMETER, _ROLES.get(kind)))
            elif kind == "gather" and what == "x":
                take(name, Use(TABLE, "embedding"))
            else:
                take(name, Use(OPERAND))


class _Reader:
    def __init__(self, wire: Wire, open_blobs: Callable[[str], File]) -> None:
        self.wire, self.open, self.count = wire, open_blobs, 0

    def entry(self, part: Field) -> tuple[str, Field]:
        """The key and the value of a map's entry."""
        key, value = "", Field(2, BYTES, 0, part.end, part.end)
        for each in self.wire.fields(part.start, part.end):
            if each.number == 1 and each.wire == BYTES:
                key = self.wire.text(each)
            elif each.number == 2 and each.wire == BYTES:
                value = each
        return key, value

    def block(self, whole: Field, program: Program, depth: int) -> None:
        if depth > _DEEPEST:
            raise Malformed(f"{self.wire.name}: blocks within blocks, {depth} deep")
        for part in self.wire.fields(whole.start, whole.end):
            if part.number == 3 and part.wire == BYTES:
                self.operation(part, program, depth)

    def operation(self, whole: Field, program: Program, depth: int) -> None:
        kind, inputs, outputs, blocks, attributes = "", [], [], [], []
        for part in self.wire.fields(whole.start, whole.end):
            if part.wire != BYTES:
                continue
            if part.number == 1:
                kind = self.wire.text(part)
            elif part.number == 2:
                name, argument = self.entry(part)
                inputs += [(name, value) for value in self.argument(argument)]
            elif part.number == 3:
                outputs.append(self.output(part))
            elif part.number == 4:
                blocks.append(part)
            elif part.number == 5:
                attributes.append(self.entry(part))
        own = outputs[0][0] if outputs else kind
        dense = outputs[0][1] if outputs else ()
        for name, value in attributes:
            if kind == "const" and name == "val":
                self.keep(own, value, program, dense)
            elif kind.startswith("constexpr_") and name != "name":
                self.keep(f"{own}.{name}", value, program, dense)
                inputs.append((name, f"{own}.{name}"))
        for block in blocks:
            self.block(block, program, depth + 1)
        if kind != "const":
            program.operations.append(_Operation(kind, inputs, outputs))

    def argument(self, whole: Field) -> list[str]:
        found = []
        for part in self.wire.fields(whole.start, whole.end):
            if part.number == 1 and part.wire == BYTES:
                found += [self.wire.text(each) for each in self.wire.fields(part.start, part.end) if each.number == 1]
        return found

    def output(self, whole: Field) -> tuple[str, tuple[int, ...]]:
        name, shape = "", ()
        for part in self.wire.fields(whole.start, whole.end):
            if part.number == 1 and part.wire == BYTES:
                name = self.wire.text(part)
            elif part.number == 2 and part.wire == BYTES:
                shape = self.type_of(part)[1]
        return name, shape

    def type_of(self, whole: Field) -> tuple[int, tuple[int, ...]]:
        """(data type, shape) of a tensor's type; unknown sizes are 0."""
        kind, shape = 0, []
        for part in self.wire.fields(whole.start, whole.end):
            if part.number != 1 or part.wire != BYTES:
                continue
            for each in self.wire.fields(part.start, part.end):
                if each.number == 1:
                    kind = each.value
                elif each.number == 3 and each.wire == BYTES:
                    size = 0
                    for dim in self.wire.fields(each.start, each.end):
                        if dim.number == 1 and dim.wire == BYTES:
                            size = next((n.value for n in self.wire.fields(dim.start, dim.end) if n.number == 1), 0)
                    shape.append(size)
        if len(shape) > 64 or numel(tuple(shape)) >= 1 << 60:
            raise Malformed(f"{self.wire.name}: a shape of {str(shape)[:80]}")
        return kind, tuple(shape)

    def keep(self, name: str, whole: Field, program: Program, dense: tuple[int, ...]) -> None:
        wire, kind, shape = self.wire, 0, ()
        immediate: Field | None = None
        place: Field | None = None
        for part in wire.fields(whole.start, whole.end):
            if part.number == 2 and part.wire == BYTES:
                kind, shape = self.type_of(part)
            elif part.number == 3 and part.wire == BYTES:
                immediate = part
            elif part.number == 5 and part.wire == BYTES:
                place = part
        if kind in (0, _STRING):
            return  # settings by name, and lists of them
        self.count += 1
        if self.count > _MOST_CONSTANTS or name in program.constants:
            raise Malformed(f"{wire.name} holds {name!r} twice, or more constants than any program")
        if kind in _BITS:
            element, size = DTYPES["U8"], -(-numel(shape) * _BITS[kind] // 8)
            dense, shape = dense or shape, (size,)
        elif kind in _TYPES:
            element = DTYPES[_TYPES[kind]]
            size = -(-numel(shape) * element.block_bytes // element.block)
            if numel(shape) % element.block:
                dense, element, shape = shape, DTYPES["U8"], (size,)
        else:
            raise Unknown(f"{wire.name}: {name!r} is of Core ML type {kind}", fix="a newer Weighbridge may know it")
        if place is not None:
            location, offset = self.blob(name, place, size)
        else:
            location, offset = None, self.immediate(name, immediate, numel(shape), size)
        program.constants[name] = Blob(name, element, shape, location, offset, size, dense)

    def blob(self, name: str, place: Field, size: int) -> tuple[str, int]:
        """Where a constant's values lie in a file of blobs, as the record there says."""
        location, record = "", 0
        for part in self.wire.fields(place.start, place.end):
            if part.number == 1 and part.wire == BYTES:
                location = self.wire.text(part)
            elif part.number == 2:
                record = part.value
        location = location.removeprefix("@model_path/")
        if not location or location.startswith("/") or ".." in location.split("/"):
            raise Refused(f"{self.wire.name} keeps {name!r} in {location!r}, outside its folder")
        file = self.open(location)
        sentinel, _, length, offset = struct.unpack("<IIQQ", read_exactly(file, record, 24))
        if sentinel != _SENTINEL or length != size:
            raise Malformed(
                f"{file.name}: the record of {name!r} is not that of {size:,} bytes", fix="download it again"
            )
        if offset + length > file.size:
            raise Truncated(
                f"{file.name} ends at {file.size:,} bytes, {offset + length:,} are needed", fix="download it again"
            )
        return location, offset

    def immediate(self, name: str, whole: Field | None, count: int, size: int) -> int:
        """Where values that stand in the program start; 0 where they do not lie in a row."""
        for tensor in self.wire.fields(whole.start, whole.end) if whole is not None else ():
            for kind in (
                self.wire.fields(tensor.start, tensor.end) if tensor.number == 1 and tensor.wire == BYTES else ()
            ):
                if kind.wire != BYTES:
                    continue
                parts = list(_bounded(self.wire, kind, count))
                width = {1: 4, 6: 8, 7: 1}.get(kind.number, 0)
                length = sum(part.end - part.start if part.wire != VARINT else 1 for part in parts)
                packed = len(parts) == 1 and parts[0].wire not in (FIXED32, FIXED64)
                if width and length == size:
                    return parts[0].start if packed and parts else 0
                if not width and count <= length <= 10 * count:
                    return 0
        if size:
            raise Malformed(f"{self.wire.name}: {name!r} does not hold the values of its shape", fix="save it again")
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
