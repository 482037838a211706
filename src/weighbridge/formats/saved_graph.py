"""What TensorFlow's graphs of objects say of variables: their names, and whether they are trained.

A SavedModel describes its objects twice: among the variables, with names and the keys of the index; and in the graph's
file, with what is trained. Both number the objects alike.

Source: TensorFlow 2.21 `saved_object_graph.proto`, `trackable_object_graph.proto`, `meta_graph.proto` and
`variable.proto`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from weighbridge.formats.protobuf import BYTES, Field, Wire
from weighbridge.ledger import File
from weighbridge.ledger.errors import Malformed

_LARGEST_OBJECTS = 32 << 20


@dataclass(slots=True)
class Said:
    """What the graph's file says of the variables: by number of the object, or by name in files of TensorFlow 1."""

    variables: dict[int, tuple[str, bool]] = field(default_factory=dict)
    listed: set[int] | None = None  # what a Keras model itself lists as trained: not what a layer of it freezes
    layered: bool = False  # a Keras model
    trained: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    objects: bool = False
    collections: bool = False


def names_of(file: File, offset: int, nbytes: int) -> dict[str, tuple[int, str]]:
    """{key: (number of the object, the variable's name)}, from the graph of objects that lies among the variables."""
    if nbytes > _LARGEST_OBJECTS:
        raise Malformed(f"{file.name}: a graph of objects of {nbytes:,} bytes")
    wire, end, found, number = Wire(file), offset + nbytes, {}, -1
    # A text is its length, a checksum of that, and itself.
    start = offset
    while start < end and file.read(start, 1)[0] > 127:
        start += 1
    for node in wire.fields(min(start + 5, end), end):
        if node.number != 1 or node.wire != BYTES:
            continue
        number += 1
        for part in wire.fields(node.start, node.end):
            if part.number == 2 and part.wire == BYTES:
                texts = {each.number: wire.text(each) for each in wire.fields(part.start, part.end) if each.number < 4}
                if 3 in texts:
                    found[texts[3]] = number, texts.get(2, "") or texts[3]
    return found


def said_by(file: File) -> Said:
    """What a SavedModel's own file says of the variables.

    Raises:
        Malformed: not such a file.
        Truncated: it ends before it should.
    """
    wire, said, graphs = Wire(file), Said(), 0
    for part in wire.fields(0, file.size):
        if part.number != 2 or part.wire != BYTES:
            continue
        graphs += 1
        if graphs > 1:
            break  # others use the same variables
        for each in wire.fields(part.start, part.end):
            if each.number == 7 and each.wire == BYTES:
                said.objects = True
                _objects(wire, each, said)
            elif each.number == 4 and each.wire == BYTES:
                _collection(wire, each, said)
    if not graphs:
        raise Malformed(f"{file.name} is no SavedModel", fix="download it again")
    return said


def _objects(wire: Wire, graph: Field, said: Said) -> None:
    listing = None
    for number, node in enumerate(_nodes(wire, graph)):
        if number == 0:
            children = dict(_children(wire, node))
            listing = children.get("trainable_variables")
            said.layered = "_operations" in children
        for part in wire.fields(node.start, node.end):
            if part.number == 7 and part.wire == BYTES:
                name, trained = "", False
                for each in wire.fields(part.start, part.end):
                    if each.number == 3:
                        trained = bool(each.value)
                    elif each.number == 6 and each.wire == BYTES:
                        name = wire.text(each)
                said.variables[number] = name, trained
    if listing is not None:
        node = next((node for number, node in enumerate(_nodes(wire, graph)) if number == listing), None)
        said.listed = {n for _, n in _children(wire, node)} if node is not None else None


def _nodes(wire: Wire, graph: Field) -> Iterator[Field]:
    return (node for node in wire.fields(graph.start, graph.end) if node.number == 1 and node.wire == BYTES)


def _children(wire: Wire, node: Field) -> Iterator[tuple[str, int]]:
    """(name, number) of the objects that an object holds."""
    for part in wire.fields(node.start, node.end):
        if part.number == 1 and part.wire == BYTES:
            name, number = "", 0
            for each in wire.fields(part.start, part.end):
                if each.number == 1 and each.wire != BYTES:
                    number = each.value
                elif each.number == 2 and each.wire == BYTES:
                    name = wire.text(each)
            yield name, number


def _collection(wire: Wire, part: Field, said: Said) -> None:
    key, values = "", []
    for each in wire.fields(part.start, part.end):
        if each.number == 1 and each.wire == BYTES:
            key = wire.text(each)
        elif each.number == 2 and each.wire == BYTES and key in ("trainable_variables", "variables"):
            values = [one for one in wire.fields(each.start, each.end) if one.number == 2 and one.wire == BYTES]
    said.collections = said.collections or key == "trainable_variables"
    for listing in values:
        for one in wire.fields(listing.start, listing.end):
            for each in wire.fields(one.start, one.end) if one.wire == BYTES else ():
                if each.number == 1 and each.wire == BYTES:
                    name = wire.text(each).partition(":")[0]
                    (said.trained if key == "trainable_variables" else said.others).add(name)
