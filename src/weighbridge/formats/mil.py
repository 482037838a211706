"""Core ML's programs: operations with named inputs, whose constants stand in the program or in a file of blobs.

An operation names its inputs (`weight`, `gamma`, `variance`), so that what a constant is shows in the name under which
an operation takes it. Operations are read from the last to the first: what becomes of a result is known before what
becomes of its inputs.

Source: coremltools 9.0 `mlmodel/format/MIL.proto`, `MILBlob/Blob/StorageFormat.hpp`, and its operator sets to iOS 18.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from weighbridge.formats.mil_values import BITS, STRING, TYPES, Blob, blob_of, immediate
from weighbridge.formats.protobuf import BYTES, Field, Wire
from weighbridge.ledger import DTYPES, File, numel
from weighbridge.ledger.errors import Malformed, Unknown

PARAMETER, BUFFER, TABLE, OPERAND, STATE = "parameter", "buffer", "table", "operand", "state"
SCALES, ZEROS, CODEBOOK, MASK = (
    "quantization_scales",
    "quantization_zero_points",
    "quantization_codebook",
    "sparse_mask",
)
_RANK = {OPERAND: 0, STATE: 1, TABLE: 1, BUFFER: 2, PARAMETER: 4}
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
            elif what in ("initial_h", "initial_c"):
                take(name, Use(STATE))
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
        kind, inputs, arguments, outputs, blocks, attributes = "", [], [], [], [], []
        for part in self.wire.fields(whole.start, whole.end):
            if part.wire != BYTES:
                continue
            if part.number == 1:
                kind = self.wire.text(part)
            elif part.number == 2:
                name, argument = self.entry(part)
                arguments.append((name, argument))
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
        for name, argument in arguments:
            shape = dense if kind.startswith("constexpr_") and name in _CODED else ()
            inputs += [(name, value) for value in self.argument(argument, f"{own}.{name}", program, shape)]
        for block in blocks:
            self.block(block, program, depth + 1)
        if kind != "const":
            program.operations.append(_Operation(kind, inputs, outputs))

    def argument(self, whole: Field, name: str, program: Program, dense: tuple[int, ...]) -> list[str]:
        """The names of an input's values; a value that stands there itself is called `name`."""
        found = []
        for part in self.wire.fields(whole.start, whole.end):
            for each in self.wire.fields(part.start, part.end) if part.wire == BYTES else ():
                if each.number == 1 and each.wire == BYTES:
                    found.append(self.wire.text(each))
                elif each.number == 2 and each.wire == BYTES:
                    own = f"{name}.{len(found)}" if found else name
                    self.keep(own, each, program, dense)
                    found.append(own)
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
        inline: Field | None = None
        place: Field | None = None
        for part in wire.fields(whole.start, whole.end):
            if part.number == 2 and part.wire == BYTES:
                kind, shape = self.type_of(part)
            elif part.number == 3 and part.wire == BYTES:
                inline = part
            elif part.number == 5 and part.wire == BYTES:
                place = part
        if kind in (0, STRING):
            return  # settings by name, and lists of them
        self.count += 1
        if self.count > _MOST_CONSTANTS or name in program.constants:
            raise Malformed(f"{wire.name} holds {name!r} twice, or more constants than any program")
        if kind in BITS:
            element, size = DTYPES["U8"], -(-numel(shape) * BITS[kind] // 8)
            dense, shape = dense or shape, (size,)
        elif kind in TYPES:
            element = DTYPES[TYPES[kind]]
            size = -(-numel(shape) * element.block_bytes // element.block)
            if numel(shape) % element.block:
                dense, element, shape = shape, DTYPES["U8"], (size,)
        else:
            raise Unknown(f"{wire.name}: {name!r} is of Core ML type {kind}", fix="a newer Weighbridge may know it")
        if place is not None:
            location, offset = blob_of(wire, self.open, name, place, size)
        else:
            location, offset = None, immediate(wire, name, inline, numel(shape), size)
        program.constants[name] = Blob(name, element, shape, location, offset, size, dense)
