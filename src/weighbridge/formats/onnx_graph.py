"""ONNX files as records: graphs, nodes, and the constants that they store, without the constants' values.

Source: onnx 1.23 `onnx.proto` (IR version 14) and its `docs/IR.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from weighbridge.formats.onnx_tensor import MOST_DIMENSIONS, Constant, pair, tensor
from weighbridge.formats.protobuf import BYTES, FIXED32, VARINT, Field, Wire
from weighbridge.ledger import DTYPES, File, numel
from weighbridge.ledger.errors import Malformed, Unknown

_DEEPEST = 12
_MOST_CONSTANTS = 150_000
_LONGEST_PROVENANCE = 256 << 10
_LONGEST_SIGNATURE = 8 << 20

_PROVENANCE = "pkg.onnxscript.optimizer.folded_from"
_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
_CLASSICAL = "ai.onnx.ml"
_LINEAR = frozenset({"LinearClassifier", "LinearRegressor"})
_LEARN_NOTHING = frozenset({"ArrayFeatureExtractor", "Binarizer", "CastMap", "CategoryMapper", "DictVectorizer"})
_LEARN_NOTHING |= {"FeatureVectorizer", "LabelEncoder", "Normalizer", "OneHotEncoder", "ZipMap"}
SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"


class Node(NamedTuple):
    """One operation."""

    op: str
    domain: str
    name: str
    inputs: list[str]
    outputs: list[str]
    numbers: Mapping[str, int]  # its integer attributes
    bodies: list[tuple[str, "Graph"]]


@dataclass(slots=True)
class Graph:
    """A graph or a function's body. Sparse constants are (values, indices, dense shape)."""

    name: str = ""
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    sparse: list[tuple[Constant, Constant, tuple[int, ...]]] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)  # what the exporter says of a constant
    folded: dict[str, str] = field(default_factory=dict)  # which constants an optimizer computed it from
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Model:
    """What the file holds beside its graph."""

    graph: Graph = field(default_factory=Graph)
    functions: dict[tuple[str, str], Graph] = field(default_factory=dict)
    metadata: dict[str, object] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)
    trains: bool = False


def parse(file: File) -> Model:
    """The whole file but for the values of its tensors.

    Raises:
        Malformed: no ONNX file, or one that no program writes.
        Truncated: it ends before it should.
    """
    return _Parser(file).model()


class _Parser:
    def __init__(self, file: File) -> None:
        self.wire = Wire(file)
        self.name = file.name
        self.constants = 0

    def model(self) -> Model:
        model, wire, graphs = Model(), self.wire, 0
        for part in wire.fields(0, wire.size):
            number = part.number
            if number == 7 and part.wire == BYTES:
                model.graph, graphs = self.graph(part, 0), graphs + 1
            elif number == 25 and part.wire == BYTES:
                key, body = self.function(part)
                if key in model.functions:
                    raise Malformed(
                        f"{self.name} has the function {key[1]!r} twice", fix="nobody can tell which is meant"
                    )
                model.functions[key] = body
            elif number == 20:
                model.trains = True
            elif number == 1 and part.wire == VARINT:
                model.metadata["ir_version"] = part.value
            elif number in (2, 3) and part.wire == BYTES:
                model.metadata[("producer", "producer_version")[number - 2]] = wire.text(part)
            elif number == 8 and part.wire == BYTES:
                domain, version = "", 0
                for each in wire.fields(part.start, part.end):
                    if each.number == 1:
                        domain = wire.text(each)
                    elif each.number == 2:
                        version = each.value
                model.opsets[domain or "ai.onnx"] = version
            elif number == 14 and part.wire == BYTES and len(model.metadata) < 200:
                key, value = pair(self.wire, part, 1 << 16)
                model.metadata.setdefault(key, value)
        if graphs != 1 or "ir_version" not in model.metadata:
            raise Malformed(f"{self.name} is not an ONNX model" if not graphs else f"{self.name} has several graphs")
        return model

    def graph(self, whole: Field, depth: int) -> Graph:
        if depth > _DEEPEST:
            raise Malformed(f"{self.name}: graphs within graphs, {depth} deep")
        found, wire = Graph(), self.wire
        for part in wire.fields(whole.start, whole.end):
            number = part.number
            if part.wire != BYTES:
                continue
            if number == 1:
                self.node(part, found, depth)
            elif number == 5:
                self.keep(tensor(self.wire, part), found)
            elif number == 15:
                self.sparse(part, found)
            elif number == 2:
                found.name = wire.text(part)
            elif number in (11, 12):
                name = next((wire.text(each) for each in wire.fields(part.start, part.end) if each.number == 1), "")
                (found.inputs if number == 11 else found.outputs).append(name)
            elif number == 13:
                self.provenance(part, found)
            elif number == 16:
                key, value = pair(self.wire, part, _LONGEST_SIGNATURE)
                if key == SIGNATURE:
                    found.metadata[key] = value
        return found

    def function(self, whole: Field) -> tuple[tuple[str, str], Graph]:
        found, wire, domain = Graph(), self.wire, ""
        for part in wire.fields(whole.start, whole.end):
            if part.wire != BYTES:
                continue
            if part.number == 1:
                found.name = wire.text(part)
            elif part.number == 10:
                domain = wire.text(part)
            elif part.number in (4, 5):
                (found.inputs if part.number == 4 else found.outputs).append(wire.text(part))
            elif part.number == 7:
                self.node(part, found, 0)
        return (domain, found.name), found

    def provenance(self, part: Field, found: Graph) -> None:
        name = ""
        for each in self.wire.fields(part.start, part.end):
            if each.number == 1:
                name = self.wire.text(each)
            elif each.number == 4:
                key, value = pair(self.wire, each, _LONGEST_PROVENANCE)
                if key == _PROVENANCE:
                    found.folded[name] = value
                elif key == _KIND:
                    found.kinds[name] = value

    def node(self, whole: Field, found: Graph, depth: int) -> None:
        wire = self.wire
        op = domain = name = ""
        inputs: list[str] = []
        outputs: list[str] = []
        numbers: dict[str, int] = {}
        bodies: list[tuple[str, Graph]] = []
        tensors: list[Constant] = []
        lists: list[Constant] = []
        for part in wire.fields(whole.start, whole.end):
            number = part.number
            if part.wire != BYTES:
                continue
            if number == 1:
                inputs.append(wire.text(part))
            elif number == 2:
                outputs.append(wire.text(part))
            elif number == 3:
                name = wire.text(part)
            elif number == 4:
                op = wire.text(part, longest=256)
            elif number == 7:
                domain = wire.text(part, longest=256)
            elif number == 5:
                self.attribute(part, found, depth, numbers, bodies, tensors, lists)
        owner = name or (outputs or [op])[0]
        if op == "Constant" and outputs:
            for constant in [*tensors, *(one for one in lists if numel(one.shape) > 1)]:
                self.keep(constant._replace(name=outputs[0], literal=True), found)
            return
        if domain == _CLASSICAL:
            if op not in _LINEAR and op not in _LEARN_NOTHING:
                raise Unknown(
                    f"{self.name}: {op} keeps what it learned as settings", fix="weigh the fitted model itself"
                )
            for one in lists if op in _LINEAR else ():
                if one.name in ("coefficients", "intercepts"):
                    self.keep(one._replace(name=f"{owner}.{one.name}"), found)
                    found.kinds[f"{owner}.{one.name}"] = "PARAMETER"
        elif op != "ConstantOfShape":
            for one in tensors:  # no values of the graph, so they have no name there
                self.keep(one._replace(name=f"{owner}.{one.name}"), found)
        found.nodes.append(Node(op, "" if domain == "ai.onnx" else domain, name, inputs, outputs, numbers, bodies))

    def attribute(
        self,
        whole: Field,
        found: Graph,
        depth: int,
        numbers: dict[str, int],
        bodies: list[tuple[str, Graph]],
        tensors: list[Constant],
        lists: list[Constant],
    ) -> None:
        wire, name, floats, pieces, first = self.wire, "", 0, 0, 0
        for part in wire.fields(whole.start, whole.end):
            number = part.number
            if number == 1:
                name = wire.text(part, longest=1024)
            elif number == 3 and part.wire == VARINT:
                numbers[name] = part.value
            elif number in (5, 10) and part.wire == BYTES:
                tensors.append(tensor(self.wire, part)._replace(name=name or "value"))
            elif number in (6, 11) and part.wire == BYTES:
                bodies.append((name, self.graph(part, depth + 1)))
            elif number == 7:
                floats += 1 if part.wire == FIXED32 else (part.end - part.start) // 4
                pieces, first = pieces + 1, part.start
            elif number in (22, 23):
                raise Unknown(f"{self.name}: a sparse tensor in a node", fix="save it as an initializer")
        if floats:
            offset = first if pieces == 1 else 0
            lists.append(Constant(name, DTYPES["F32"], (floats,), None, offset, 4 * floats))

    def keep(self, constant: Constant, found: Graph) -> None:
        self.constants += 1
        if self.constants > _MOST_CONSTANTS:
            raise Malformed(f"{self.name} has more than {_MOST_CONSTANTS:,} constants")
        if not constant.name:
            raise Malformed(f"{self.name} holds a tensor without a name")
        if constant.name in found.constants:
            raise Malformed(f"{self.name} holds {constant.name!r} twice", fix="nobody can tell which one is meant")
        found.constants[constant.name] = constant

    def sparse(self, whole: Field, found: Graph) -> None:
        parts: dict[int, Constant] = {}
        dense: list[int] = []
        for part in self.wire.fields(whole.start, whole.end):
            if part.number in (1, 2) and part.wire == BYTES:
                parts[part.number] = tensor(self.wire, part)
            elif part.number == 3:
                dense += self.wire.numbers(part, most=MOST_DIMENSIONS)
        if parts.keys() != {1, 2}:
            raise Malformed(f"{self.name}: a sparse tensor without values or indices")
        values, indices, count = parts[1], parts[2], numel(parts[1].shape)
        named = numel(indices.shape) in (count, count * len(dense)) and all(n >= 0 for n in dense)
        if values.dtype is None or indices.dtype is not DTYPES["I64"] or not named or count > numel(tuple(dense)):
            raise Malformed(f"{self.name}: {values.name!r} is a sparse tensor whose parts do not fit")
        self.keep(values, found)
        self.keep(indices._replace(name=f"{values.name}.indices"), found)
        found.sparse.append((values, found.constants[f"{values.name}.indices"], tuple(dense)))
