"""TFLite files as records, and what their operators do with the tensors that are stored.

Source: TensorFlow 2.21 `compiler/mlir/lite/schema/schema.fbs` (version 3c) and the reference kernels' inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from weighbridge.formats.flatbuffers import Table
from weighbridge.ledger.errors import Malformed

IDENTIFIER = b"TFL3"
PARAMETER, BUFFER, TABLE, OPERAND, CUSTOM = "parameter", "buffer", "table", "operand", "custom"
_RANK = {OPERAND: 0, CUSTOM: 1, TABLE: 2, BUFFER: 3, PARAMETER: 4}
_MOST_TENSORS = 60_000
_MOST_OPERATORS = 60_000
_MOST_SUBGRAPHS = 2_000
_LSTM = "." + "W" * 17 + "BBWWWW"
# Operator -> its inputs, one letter each (W learned, G a table that is looked up, B not learned), and the role.
_OPERATORS: dict[int, tuple[str, str | None]] = {
    3: (".WW", "conv"),  # CONV_2D
    4: (".WW", "conv"),  # DEPTHWISE_CONV_2D
    7: (".W", "embedding"),  # EMBEDDING_LOOKUP
    9: (".WW", None),  # FULLY_CONNECTED
    16: (_LSTM, None),  # LSTM
    24: (".WWWB", None),  # RNN
    27: (".WWWB", None),  # SVDF
    33: ("...W.", "embedding"),  # EMBEDDING_LOOKUP_SPARSE
    35: (".WWWB", None),  # UNIDIRECTIONAL_SEQUENCE_RNN
    36: ("GB", "embedding"),  # GATHER
    44: (_LSTM, None),  # UNIDIRECTIONAL_SEQUENCE_LSTM
    46: (".WWWBWWWB.WW", None),  # BIDIRECTIONAL_SEQUENCE_RNN
    52: ("." + "W" * 34 + "BBBB." + "W" * 8, None),  # BIDIRECTIONAL_SEQUENCE_LSTM
    54: (".W", None),  # PRELU
    67: ("BW.W", "conv"),  # TRANSPOSE_CONV
    126: ("WW", None),  # BATCH_MATMUL
    132: (".WW", "conv"),  # CONV_3D
    141: ("BW.W", "conv"),  # CONV_3D_TRANSPOSE
    171: (".W", "conv"),  # STABLEHLO_CONVOLUTION
    197: ("WW", None),  # STABLEHLO_DOT_GENERAL
}
_PRODUCTS = frozenset({3, 4, 9, 67, 126, 132, 141})
_CONCATENATION, _SPLIT, _CUSTOM = 2, 49, 32
# DEQUANTIZE RESHAPE TRANSPOSE SQUEEZE STRIDED_SLICE CAST SLICE TILE EXPAND_DIMS SPLIT_V QUANTIZE DENSIFY BROADCAST_TO
_FORMS = frozenset({6, 22, 39, 43, 45, 53, 65, 69, 70, 102, 114, 124, 130})
_ADD, _MUL, _SUB, _RSQRT = 0, 18, 41, 76
_IF, _WHILE, _COMPOSITE = 118, 119, 206


class Operator(NamedTuple):
    """One operation: tensors by number, -1 for none; `bodies` are the subgraphs that it runs."""

    code: int
    name: str  # of a custom one
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bodies: tuple[int, ...]


class Stored(NamedTuple):
    """A tensor as listed; `buffer` is 0 for one that is computed."""

    name: str
    kind: int
    shape: tuple[int, ...]
    buffer: int
    quantized: bool
    sparse: bool


class Use(NamedTuple):
    """What a tensor is by its use."""

    kind: str
    role: str | None = None
    by: str = ""


@dataclass(slots=True)
class Subgraph:
    """A graph of the file. `uses` are filled in by `mark_uses`."""

    name: str
    tensors: list[Stored]
    inputs: tuple[int, ...]
    operators: list[Operator]
    uses: dict[int, Use] = field(default_factory=dict)
    done: bool = False


def subgraphs(root: Table, name: str) -> list[Subgraph]:
    """Every graph of the model.

    Raises:
        Malformed: a file that no converter writes.
    """
    codes = []
    for start in root.tables(1, most=2_000):
        code = root.at(start)
        codes.append((max(code.number(0, "b"), code.number(3, "i")), code.text(1, longest=200)))
    found, tensors, operators = [], 0, 0
    for start in root.tables(2, most=_MOST_SUBGRAPHS):
        graph = root.at(start)
        listed = [_tensor(root.at(at), name) for at in graph.tables(0, most=_MOST_TENSORS - tensors)]
        ran = [
            _operator(root.at(at), codes, len(listed), name) for at in graph.tables(3, most=_MOST_OPERATORS - operators)
        ]
        tensors, operators = tensors + len(listed), operators + len(ran)
        found.append(Subgraph(graph.text(4, longest=500), listed, graph.numbers(1, "i", most=10_000), ran))
    return found


def _tensor(table: Table, name: str) -> Stored:
    shape = table.numbers(0, "i", most=64)
    called = table.text(3)
    if any(size < 0 for size in shape) and table.number(2, "I"):
        raise Malformed(f"{name}: {called!r} has a shape of {list(shape)}", fix="convert the model again")
    quantization = table.table(4)
    scales = quantization.vector(2) if quantization is not None else None
    quantized = scales is not None and scales[1] > 0
    return Stored(called, table.number(1, "B"), shape, table.number(2, "I"), quantized, table.place(6) is not None)


def _operator(table: Table, codes: Sequence[tuple[int, str]], tensors: int, name: str) -> Operator:
    index = table.number(0, "I")
    inputs, outputs = table.numbers(1, "i", most=10_000), table.numbers(2, "i", most=10_000)
    if index >= len(codes) or any(not -1 <= at < tensors for at in (*inputs, *outputs)):
        raise Malformed(f"{name}: an operator of tensors that are not there", fix="download it again")
    code, custom = codes[index]
    bodies: tuple[int, ...] = ()
    options = table.table(12 if code == _COMPOSITE else 4) if code in (_IF, _WHILE, _COMPOSITE) else None
    if options is not None:
        fields = (1,) if code == _COMPOSITE else (0, 1)
        bodies = tuple(options.number(field, "i") for field in fields)
    return Operator(code, custom, inputs, outputs, bodies)


def mark_uses(graphs: list[Subgraph], number: int, name: str, depth: int = 0) -> None:
    """Fills in the uses of a graph's tensors, and of those that it runs.

    Raises:
        Malformed: graphs that run each other in a circle.
    """
    if not 0 <= number < len(graphs) or depth > 16:
        raise Malformed(f"{name}: graphs that run each other without end", fix="do not trust this file")
    graph = graphs[number]
    if graph.done:
        return
    graph.done = True
    traits: dict[int, str] = {}
    for operator in graph.operators:
        trait = _trait(operator, traits)
        if trait and operator.outputs:
            traits[operator.outputs[0]] = trait
    for operator in reversed(graph.operators):
        for body in operator.bodies:
            mark_uses(graphs, body, name, depth + 1)
            outer = operator.inputs[1:] if operator.code == _IF else operator.inputs
            for at, inner in zip(outer, graphs[body].inputs, strict=False):
                _take(graph, at, graphs[body].uses.get(inner))
        _apply(graph, operator, traits)


def _take(graph: Subgraph, at: int, use: Use | None) -> None:
    before = graph.uses.get(at)
    if use is not None and at >= 0 and (before is None or _RANK[use.kind] > _RANK[before.kind]):
        graph.uses[at] = use


def _trait(operator: Operator, traits: dict[int, str]) -> str | None:
    """What a result comes from: "product" of weights, or "norm", which divides by a root."""
    if operator.code in _PRODUCTS:
        return "product"
    if operator.code == _RSQRT:
        return "norm"
    known = [traits[at] for at in operator.inputs if at in traits]
    if operator.code in _FORMS or operator.code == _MUL or (operator.code in (_ADD, _SUB) and len(known) == 2):
        return "norm" if "norm" in known else next(iter(known), None)
    return None


def _apply(graph: Subgraph, operator: Operator, traits: dict[int, str]) -> None:
    result = graph.uses.get(operator.outputs[0]) if operator.outputs else None
    code, inputs = operator.code, operator.inputs
    if code in _OPERATORS:
        letters, role = _OPERATORS[code]
        meaning = {"W": PARAMETER, "G": TABLE, "B": BUFFER, ".": OPERAND}
        for letter, at in zip(letters, inputs, strict=False):
            _take(graph, at, Use(meaning[letter], role))
    elif code in _FORMS or code in (_CONCATENATION, _SPLIT):
        data = inputs if code == _CONCATENATION else inputs[1:2] if code == _SPLIT else inputs[:1]
        for at in inputs:
            # Only tensors that are stored are asked for: that of one that is computed changes nothing.
            _take(graph, at, result if at in data and result is not None else Use(OPERAND))
    elif code in (_ADD, _MUL, _SUB) and len(inputs) == 2 and min(inputs) >= 0:
        for at, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
            trait = traits.get(other)
            vector = sum(size > 1 for size in graph.tensors[at].shape) == 1
            affine = vector and (trait == "norm" or (trait == "product" and code == _ADD))
            _take(graph, at, Use(PARAMETER, trait if trait == "norm" else None) if affine else Use(OPERAND))
    else:
        for at in inputs:
            _take(graph, at, Use(CUSTOM, None, operator.name) if code == _CUSTOM else Use(OPERAND))
