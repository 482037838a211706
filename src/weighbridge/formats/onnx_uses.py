"""What an ONNX graph does with each constant that it stores: what is learned shows in the operators that take it.

The graph is walked from its end, so that what an operator does with its result is known before what becomes of its
inputs is asked. A constant reaches its operator through transpositions, casts and the like; through functions, which
are walked at each call; and into the bodies of If, Loop and Scan.

Source: the schemas of onnx 1.23 and onnxruntime 1.32; `data/onnx_operators.json` holds them by input.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from weighbridge.formats.onnx_graph import Constant, Graph, Model, Node
from weighbridge.formats.onnx_packing import elements_of
from weighbridge.ledger import numel
from weighbridge.ledger.errors import Malformed, Unknown

PARAMETER, BUFFER = "parameter", "buffer"
TABLE, OPERAND, FOREIGN, BITS = "table", "operand", "foreign", "bits"
_SCALED = "scaled"  # no constant: a norm whose scale and bias follow apart
SCALES, ZEROS = "quantization_scales", "quantization_zero_points"
_MEANING = {
    "W": PARAMETER, "w": PARAMETER, "G": TABLE, "C": OPERAND, "B": BUFFER, "S": SCALES, "Z": ZEROS,
    "I": "quantization_index", "A": "activation_scales", "K": "kv_cache_scales", ".": OPERAND,
}  # fmt: skip
# Which of several uses says what the constant is: learned wherever it is learned once.
_RANK = {OPERAND: 0, _SCALED: 1, FOREIGN: 1, BITS: 2, TABLE: 3, BUFFER: 4, PARAMETER: 6}
# A result made of constants alone by one of these is the constant in another form.
_FORMS = frozenset(
    {"Cast", "CastLike", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split"}
)
_FORMS |= {"Squeeze", "Tile", "Transpose", "Unsqueeze", "DepthToSpace", "SpaceToDepth"}
_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub", "Pow"})
_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "MatMulInteger", "MatMulNBits", "MatMulBnb4", "Conv", "ConvInteger"})
_PRODUCTS |= {"QLinearMatMul", "QLinearConv", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
_SAME_SHAPE = frozenset({"Cast", "Identity", "DequantizeLinear", "QuantizeLinear"})
_NORMS = frozenset({"InstanceNormalization", "LayerNormalization", "GroupNormalization", "BatchNormalization"})
_BITWISE = frozenset({"BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Mod"})
_RECURRENT = frozenset({"RNN", "LSTM", "GRU"})
_COMPILED = frozenset({"EPContext", "Snpe", "TRTKernel"})
_MOST_STEPS = 160_000
_MOST_CALLS_DEEP = 12


class Use(NamedTuple):
    """What a constant is by its use. `quantized`: the operator takes codes; `elements`: how many they stand for;
    `halves`: the biases of inputs and of states, one after the other, of which a program may have one alone.
    """

    kind: str
    role: str | None = None
    node: str = ""
    quantized: bool = False
    elements: int | None = None
    halves: bool = False


class Value:
    """A name's value within a graph."""

    __slots__ = ("codes", "constant", "fixed", "shape", "trait", "use")

    def __init__(self, *, constant: Constant | None = None, fixed: bool = False, codes: bool = False) -> None:
        self.constant = constant
        self.fixed = fixed  # made of constants alone
        self.codes = codes  # of them, a matrix of small integers
        self.shape = constant.shape if constant is not None else None
        self.trait: str | None = None  # what it comes from: a product with weights, or a norm without its affine part
        self.use: Use | None = None

    def takes(self, use: Use | None) -> None:
        """Notes a use, when it says more than those before."""
        if use is not None and (self.use is None or _RANK.get(use.kind, 5) > _RANK.get(self.use.kind, 5)):
            self.use = use


class _Scope:
    __slots__ = ("names", "parent")

    def __init__(self, parent: "_Scope | None" = None) -> None:
        self.names: dict[str, Value] = {}
        self.parent = parent

    def find(self, name: str) -> Value:
        scope: _Scope | None = self
        while scope is not None:
            found = scope.names.get(name)
            if found is not None:
                return found
            scope = scope.parent
        made = self.names[name] = Value()
        return made


@lru_cache(maxsize=1)
def _operators() -> dict[str, tuple[str, str | None]]:
    table = json.loads((Path(__file__).parent / "data" / "onnx_operators.json").read_text("utf-8"))["operators"]
    return {name: (row.partition(" ")[0], row.partition(" ")[2] or None) for name, row in table.items()}


def _trait(node: Node, taken: Sequence[Value | None]) -> str | None:
    """What a result comes from: "product" of weights, or "norm"; kept by what changes the form alone."""
    known = [value for value in taken if value is not None]
    if node.op in _PRODUCTS and any(value.fixed for value in known):
        return "product"
    if node.op in _NORMS:
        return "norm"
    if known and (node.op in _FORMS or node.op in _SAME_SHAPE) and node.op != "Concat":
        return known[0].trait
    if node.op in ("Mul", "QLinearMul"):
        return next((value.trait for value in known if value.trait), None)
    return None


def uses(model: Model, name: str) -> list[tuple[str, Graph, dict[str, Value]]]:
    """Every graph of the file with the values of its constants, each with its use: [(where, graph, values)].

    Raises:
        Malformed: functions that call themselves, or so often that no program does.
        Unknown: parts that were compiled for a device, packed weights that do not fit their operator.
    """
    walk = _Walk(model, name)
    walk.graph(model.graph, _Scope(), 0)
    for function in model.functions.values():  # constants of functions that nobody calls are stored all the same
        walk.values(function)
    return [(walk.where[key], graph, values) for key, (graph, values) in walk.found.items()]


class _Walk:
    def __init__(self, model: Model, name: str) -> None:
        self.model, self.name, self.steps = model, name, 0
        self.found: dict[int, tuple[Graph, dict[str, Value]]] = {}
        self.where: dict[int, str] = {id(model.graph): ""}
        self.where |= {id(graph): f"{key[1]}/" for key, graph in model.functions.items()}

    def values(self, graph: Graph) -> dict[str, Value]:
        """The constants of a graph: the same at each call of a function."""
        if id(graph) not in self.found:
            made = {}
            for name, constant in graph.constants.items():
                small = constant.dtype is not None and constant.dtype.kind == "int" and constant.dtype.bits <= 8
                made[name] = Value(constant=constant, fixed=True, codes=small and len(constant.shape) > 1)
            self.found[id(graph)] = graph, made
        return self.found[id(graph)][1]

    def graph(self, graph: Graph, scope: _Scope, depth: int, results: Sequence[Value] = ()) -> None:
        self.steps += len(graph.nodes) + len(graph.constants)
        if self.steps > _MOST_STEPS or depth > _MOST_CALLS_DEEP:
            raise Malformed(f"{self.name}: functions that call one another without end", fix="do not trust this file")
        scope.names |= self.values(graph)
        listed = []
        for node in graph.nodes:
            taken = [scope.find(name) if name else None for name in node.inputs]
            known = [value for value in taken if value is not None]
            fixed = bool(known) and not node.bodies and all(value.fixed for value in known)
            codes = fixed and any(value.codes for value in known)
            made = [Value(fixed=fixed, codes=codes) for _ in node.outputs]
            if made and not fixed:
                made[0].trait = _trait(node, taken)
                # Rows that are looked up in a table of codes are codes still.
                made[0].codes = node.op == "Gather" and taken[0] is not None and taken[0].codes
            elif made and taken[0] is not None and taken[0].shape is not None:
                vector = sum(size > 1 for size in taken[0].shape) == 1
                if node.op in _SAME_SHAPE or (vector and node.op in ("Reshape", "Unsqueeze", "Squeeze")):
                    made[0].shape = taken[0].shape  # a vector stays one
            scope.names |= zip(node.outputs, made, strict=True)
            listed.append((node, taken, made))
        for name, result in zip(graph.outputs, results, strict=False):
            scope.find(name).takes(result.use)
        dynamic = {id(made[1]) for node, _, made in listed if node.op == "DynamicQuantizeLinear" and len(made) > 1}
        for node, taken, made in reversed(listed):
            self.node(node, taken, made, scope, depth, dynamic)

    def node(
        self,
        node: Node,
        taken: list[Value | None],
        made: list[Value],
        scope: _Scope,
        depth: int,
        dynamic: set[int],
    ) -> None:
        function = self.model.functions.get((node.domain, node.op))
        if function is not None:
            inner = _Scope()
            inner.names |= {name: value for name, value in zip(function.inputs, taken, strict=False) if value}
            self.graph(function, inner, depth + 1, made)
            return
        for at, (attribute, body) in enumerate(node.bodies):
            self.body(node, f"{attribute or at}", body, taken, made, scope, depth)
        if node.op in _COMPILED:
            raise Unknown(f"{self.name} holds parts that were compiled for a device", fix="weigh the model before that")
        if node.op in ("DequantizeLinear", "QuantizeLinear"):
            self.quantization(node, taken, made)
            return
        result = made[0].use if made else None
        if result is not None and result.kind == _SCALED and node.op in _FORMS and taken and taken[0] is not None:
            taken[0].takes(result)
        known = _operators().get(f"{node.domain}:{node.op}") or _operators().get(node.op)
        if made and made[0].fixed and (node.op in _FORMS or node.op in _ARITHMETIC or node.op in _BITWISE):
            self.form(node, taken, result)
        elif known is not None:
            letters, role = known
            if result is not None and node.op == "InstanceNormalization" and result.kind == _SCALED:
                letters = ".BB"  # ones and zeros: a group norm that the exporter took apart
            if letters.startswith("C") and len(taken) > 3:
                self.affine(node, [taken[0], taken[3]])
            for at, (letter, value) in enumerate(zip(letters, taken, strict=False)):
                if value is not None:
                    coded = node.op.startswith(("QLinear", "QGemm", "QAttention", "QEmbed")) or "Integer" in node.op
                    elements = elements_of(node, at, value.constant, self.name) if letter == "w" else None
                    quantized = letter in "wC" or (coded and letter == "W")
                    quantized = quantized or (letter == "G" and result is not None and result.quantized)
                    halves = node.op in _RECURRENT and at == 3
                    value.takes(Use(_MEANING[letter], role, node.name, quantized, elements, halves))
        elif node.op == "Mul" and any(value is not None and id(value) in dynamic for value in taken):
            for value in taken:  # the scale of the activations times that of the weights
                if value is not None:
                    value.takes(Use(SCALES))
        elif node.op in ("Add", "Mul") and self.affine(node, taken):
            return
        else:
            foreign = node.domain not in ("", "ai.onnx.ml") and not node.bodies
            for value in taken:
                if value is not None:
                    value.takes(Use(FOREIGN if foreign else OPERAND, None, node.op if foreign else node.name))

    def form(self, node: Node, taken: list[Value | None], result: Use | None) -> None:
        """A constant in another form: what the result is, the constant is."""
        if node.op in _ARITHMETIC:
            coded = any(value is not None and value.codes for value in taken)
            for value in taken:
                if value is None:
                    continue
                if coded and not value.codes:
                    value.takes(Use(ZEROS if node.op in ("Add", "Sub") else SCALES))
                elif result is not None and (value.constant is None or numel(value.constant.shape) > 1):
                    value.takes(result._replace(quantized=result.quantized or coded))
            return
        many = len(taken) if node.op == "Concat" or node.op in _BITWISE else 1
        for value in taken[:many]:
            if value is not None and node.op in _BITWISE:
                value.takes(Use(BITS, None, node.op))
            elif value is not None and result is not None:
                value.takes(result)
        for value in taken[many:]:
            if value is not None:
                value.takes(Use(BUFFER))

    def affine(self, node: Node, taken: list[Value | None]) -> bool:
        """A scale after a norm, a bias after a norm or a product: whether it is one."""
        traits = {value.trait for value in taken if value is not None and not value.fixed}
        fixed = [value for value in taken if value is not None and value.fixed]
        if len(taken) != 2 or len(fixed) != 1 or not (traits & {"norm"} or (traits & {"product"} and "Add" in node.op)):
            return False
        shape = fixed[0].shape
        if shape is None or sum(size > 1 for size in shape) != 1:
            return False
        for value in taken:
            if value is not None and value.trait == "norm":
                value.takes(Use(_SCALED))
        fixed[0].takes(Use(PARAMETER, "norm" if "norm" in traits else None, node.name, node.op.startswith("Q")))
        return True

    def quantization(self, node: Node, taken: list[Value | None], made: list[Value]) -> None:
        codes = taken[0] if taken else None
        weight = codes is not None and (codes.fixed or codes.codes)
        result = made[0].use if made else None
        if codes is not None and (weight or (result is not None and result.kind == _SCALED)):
            codes.takes((result or Use(OPERAND))._replace(quantized=True))
        for value, kind in zip(taken[1:], (SCALES, ZEROS), strict=False):
            if value is not None:
                value.takes(Use(kind if weight else "activation_scales"))

    def body(
        self,
        node: Node,
        attribute: str,
        body: Graph,
        taken: list[Value | None],
        made: list[Value],
        scope: _Scope,
        depth: int,
    ) -> None:
        """The body of If, Loop or Scan: what it does with its inputs is done with the node's."""
        owner = node.name or (node.outputs or [node.op])[0]
        self.where.setdefault(id(body), f"{owner}.{attribute}/")
        inner = _Scope(scope)
        formal = [Value() for _ in body.inputs]
        inner.names |= zip(body.inputs, formal, strict=True)
        results = [Value(), *made] if node.op == "Loop" else made  # a loop's body says first whether to go on
        self.graph(body, inner, depth + 1, results)
        for value, outer in zip(formal, taken, strict=False):
            if outer is not None:
                outer.takes(value.use)
