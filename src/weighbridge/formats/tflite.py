"""TFLite (LiteRT): a FlatBuffer of graphs whose constant tensors lie among its buffers.

A converter folds and renames what a model had: what is learned shows in the operators that take it (`tflite_graph`),
and else in a name that still speaks of a variable. Scales and zero points are settings of the tensors, and no tensors.

Source: TensorFlow 2.21 `schema.fbs`; its converter.
"""

import re
from collections.abc import Iterator

from weighbridge.formats.flatbuffers import Flat, Table
from weighbridge.formats.graph_notes import UNATTRIBUTED, graph_notes
from weighbridge.formats.header import Header
from weighbridge.formats.tflite_graph import (
    BUFFER,
    CUSTOM,
    IDENTIFIER,
    OPERAND,
    PARAMETER,
    TABLE,
    Stored,
    Subgraph,
    Use,
    mark_uses,
    subgraphs,
)
from weighbridge.ledger import DTYPES, DType, File, Row, Stated, numel, role_of
from weighbridge.ledger.errors import Malformed, Truncated, Unknown

_TYPES = {
    0: "F32", 1: "F16", 2: "I32", 3: "U8", 4: "I64", 6: "BOOL", 7: "I16", 8: "C64", 9: "I8", 10: "F64", 11: "C128",
    12: "U64", 15: "U32", 16: "U16", 17: "I4", 18: "BF16", 19: "I2", 20: "U4",
}  # fmt: skip
_TEXT = 5
_MOST_BUFFERS = 120_000
_LARGEST_ZEROS = 64 << 10
_VARIABLE = re.compile(
    r"ReadVariableOp|VarHandle|kernel|weights?\b|bias(?:es)?\b|gamma|beta\b|embedding_lookup|/embeddings?\b"
)
_NUMBER = re.compile(r"\d+")


def read(file: File, *, index: int = 0) -> Header:
    """The constant tensors of a TFLite file.

    Parameters are weights and biases by their use, quantized or not; shapes, axes and other integers are buffers.

    Raises:
        Malformed: not such a file, or one that no converter writes.
        Truncated: it ends before its tensors do.
        Unknown: integer matrices of a custom operator, types that are not known.
    """
    flat = Flat(file)
    if file.size < 16 or flat.raw(4, 4) != IDENTIFIER:
        raise Malformed(f"{file.name} is not a TFLite file", fix="files of version 3 are read")
    root = flat.root()
    graphs = subgraphs(root, file.name)
    for number in range(len(graphs)):
        mark_uses(graphs, number, file.name)
    places = _places(root, flat, {tensor.buffer for graph in graphs for tensor in graph.tensors})
    rows: list[Row] = []
    kinds, roles, aliases, elements = {}, {}, {}, {}
    first: dict[int, tuple[str, Stored]] = {}
    texts = sparse = 0
    for name, tensor, use in _constants(graphs, places):
        offset, size = places[tensor.buffer]
        if tensor.kind == _TEXT:
            texts += 1
            continue
        element, shape = _layout(name, tensor, size, file.name)
        rows.append(Row(name, element, shape, index, offset, element.nbytes(numel(shape))))
        kinds[name] = _kind(tensor, use, file, places[tensor.buffer])
        if kinds[name] == PARAMETER:
            roles[name] = _role(tensor.name, use, tensor.shape)
        sparse += tensor.sparse
        if not tensor.sparse and numel(shape) != numel(tensor.shape):
            elements[name] = numel(tensor.shape)
        original, as_listed = first.setdefault(tensor.buffer, (name, tensor))
        if original != name:
            if (as_listed.kind, numel(as_listed.shape)) != (tensor.kind, numel(tensor.shape)):
                raise Malformed(f"{file.name}: {name!r} and {original!r} are one buffer of two kinds")
            aliases[name] = original
            # One buffer in two graphs: learned where it is learned once.
            if PARAMETER in (kinds[name], kinds[original]) and kinds[original] != PARAMETER:
                kinds[original], roles[original] = PARAMETER, roles[name]
            kinds[name] = PARAMETER if kinds[original] == PARAMETER else "tied_copies"
    if not rows:
        raise Malformed(f"{file.name} stores no tensor", fix="convert the model again")
    return Header(
        rows=rows,
        metadata={"description": root.text(3, longest=1000), "version": root.number(0, "I")},
        aliases=aliases,
        stated=Stated(kinds=kinds, roles=roles, elements=elements),
        notes=list(graph_notes(rows, kinds, texts=texts, sparse=sparse)),
    )


def _places(root: Table, flat: Flat, wanted: set[int]) -> dict[int, tuple[int, int]]:
    """{buffer: (offset, bytes)} of those that hold something.

    Raises:
        Malformed: buffers that overlap, or a tensor of one that is not there.
    """
    tables = root.tables(4, most=_MOST_BUFFERS)
    found: dict[int, tuple[int, int]] = {}
    for number in sorted(wanted):
        if number >= len(tables):
            raise Malformed(f"{flat.name}: a tensor in buffer {number:,} of {len(tables):,}", fix="download it again")
        table = root.at(tables[number])
        far = table.number(1, "Q")
        # In files beyond 2 GB values follow the FlatBuffer.
        place = (far, table.number(2, "Q")) if far > 1 else table.vector(0)
        if place is None or place[1] == 0 or number == 0:
            continue
        if place[0] + place[1] > flat.size:
            end = place[0] + place[1]
            raise Truncated(f"{flat.name} ends at {flat.size:,} bytes, {end:,} are needed", fix="download it again")
        found[number] = place
    end = 0
    for offset, size in sorted(found.values()):
        if offset < end:
            raise Malformed(f"{flat.name}: buffers overlap at {offset:,}", fix="convert the model again")
        end = offset + size
    return found


def _constants(graphs: list[Subgraph], places: dict[int, tuple[int, int]]) -> Iterator[tuple[str, Stored, Use | None]]:
    names: set[str] = set()
    for number, graph in enumerate(graphs):
        for at, tensor in enumerate(graph.tensors):
            if tensor.buffer not in places:
                continue
            name, again = tensor.name or f"tensor_{at}", 0
            while name in names:
                again += 1
                name = f"{graph.name or number}/{tensor.name}" if again == 1 else f"{number}/{at}/{tensor.name}"
                if again > 2:
                    name = f"{name}@{again}"
            names.add(name)
            yield name, tensor, graph.uses.get(at)


def _layout(name: str, tensor: Stored, size: int, file: str) -> tuple[DType, tuple[int, ...]]:
    if tensor.kind not in _TYPES:
        raise Unknown(f"{file}: {name!r} is of TFLite type {tensor.kind}", fix="a newer Weighbridge may know it")
    element, count = DTYPES[_TYPES[tensor.kind]], numel(tensor.shape)
    if tensor.sparse:
        stored, rest = divmod(size * element.block, element.block_bytes)
        if rest or stored > count:
            raise Malformed(f"{file}: {name!r} is sparse and holds more than its shape", fix="convert the model again")
        return element, (stored,)
    if size != -(-count * element.block_bytes // element.block):
        raise Malformed(f"{file}: {name!r} of {list(tensor.shape)} has {size:,} bytes", fix="convert the model again")
    if count % element.block:
        return DTYPES["U8"], (size,)
    return element, tensor.shape


def _kind(tensor: Stored, use: Use | None, file: File, place: tuple[int, int]) -> str:
    kind = use.kind if use is not None else OPERAND
    element, named = DTYPES[_TYPES[tensor.kind]], _VARIABLE.search(tensor.name) is not None
    if kind in (PARAMETER, BUFFER):
        return kind
    if element.kind in ("int", "bool") and not tensor.quantized:
        if kind == CUSTOM and len(tensor.shape) > 1 and element.bits <= 32:
            raise Unknown(
                f"{file.name}: {tensor.name!r} of {element} goes into {use.by if use else ''!r}, a custom operator",
                fix="weigh the model that it was converted from",
            )
        return BUFFER
    if (kind == TABLE and "mbedding" in tensor.name) or (named and numel(tensor.shape) > 1):
        return PARAMETER
    if numel(tensor.shape) <= 1:
        return BUFFER
    # States of a loop start from zeros, and lists are made of them: nobody learned those.
    if place[1] <= _LARGEST_ZEROS and not any(file.read(place[0], place[1])):
        return BUFFER
    return UNATTRIBUTED


def _role(name: str, use: Use | None, shape: tuple[int, ...]) -> str:
    if use is not None and use.role is not None:
        return use.role
    parts = _NUMBER.sub("#", name.partition(";")[0]).split("/")
    if any("normalization" in part for part in parts):
        return "norm"
    if any("attention" in part for part in parts):
        return "attention"
    role = role_of(".".join([*parts[:-1], "weight"]), ()) if len(parts) > 1 else "other"
    return "other" if role == "conv" and len(shape) < 3 else role
