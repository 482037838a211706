"""What a constant of an ONNX graph is, from its use, its name and what the exporter states.

torch's newer exporter writes the kind of every parameter and buffer into the file, and of a folded constant from which
of them it was computed: that is believed first. Else the use decides (a weight of Conv is learned, the mean of
BatchNormalization is not), and at last the name: a program's own (`cls_token`) stands for a parameter or a known
buffer, an invented one (`onnx::Add_33`) for nothing.

Source: torch 2.13 `torch.onnx`, onnxscript 0.7 and onnxruntime 1.32 optimizers and quantizers, tf2onnx 1.16.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from weighbridge.formats.graph_notes import UNATTRIBUTED
from weighbridge.formats.onnx_graph import SIGNATURE, Graph
from weighbridge.formats.onnx_tensor import Constant
from weighbridge.formats.onnx_uses import BITS, BUFFER, FOREIGN, OPERAND, PARAMETER, TABLE, Use
from weighbridge.ledger import numel, role_of
from weighbridge.ledger.errors import Unknown

INDICES = "sparse_indices"
_STATED = re.compile(r"^\w+: (PARAMETER|BUFFER|CONSTANT_TENSOR) target='([^']*)'", re.MULTILINE)
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_SUFFIX = re.compile(r"(?:_(?:quantized|scale|zero_point|fp16|Q4|Q8|DQ_Q4))+$")
# Names that exporters and optimizers invent: torch's, onnxruntime's, onnxsim's, tf2onnx's.
_INVENTED = re.compile(
    r"onnx::.*|/.*|.*_output_\d+|(?:ortshared|_inlfunc|const_fold_opt|lifted_tensor|_tensor_constant|new_)[\w.:/]*"
    r"|.*__\d+(?::\d+)?|(?:\w+_)?Constant(?:OfShape)?(?:_\w+)?|[a-z_]*_\d+|\d+"
)
# Tensors that a program wrote down within its forward pass, as torch's older exporter names them: never parameters.
_LITERAL = re.compile(r"(?:/.*)?/Constant(?:_\d+)?_output_0")
_VARIABLE = re.compile(
    r"ReadVariableOp|/read\b|Variable|kernel|weights?\b|bias(?:es)?\b|gamma|beta\b|embeddings?\b|moving_"
)
_NUMBER = re.compile(r"\d+")
_COUNTED = re.compile(r"_\d+$")
COMPUTED, REPEATED = "computed", "repeated"
# What torch calls the steps of which some change how many values there are, as the optimizer lists them.
_COMPUTING = frozenset(
    ["linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "mv", "conv1d", "conv2d", "conv3d"]
)
_COMPUTING |= {"index", "index_select", "gather", "embedding", "take"}
_REPEATING = frozenset(["expand", "expand_as", "repeat", "repeat_interleave", "tile"])
# What programs call tables that are not learned. Where nothing says what a constant is, its name has to.
_TABLES = frozenset(["pe", "mean", "std", "mask", "attn_mask", "causal_mask", "freqs", "freqs_cis", "anchors"])
_TABLES |= {"image_mean", "image_std", "pixel_mean", "pixel_std"}
_NEUTRAL = frozenset({"unity"})  # a one that skl2onnx subtracts from


class Stored(NamedTuple):
    """A constant under its name in the ledger; `own` is its name in its graph."""

    name: str
    own: str
    constant: Constant
    use: Use | None
    sparse: bool  # the places of a sparse tensor's values
    stated: str | None  # its kind as the exporter states it
    sources: tuple[str, ...]  # the parameters that it was computed from
    how: str = ""  # how, where that changes the number of values: COMPUTED, REPEATED
    inner: bool = False  # of the body of an operator


class Stating:
    """What torch's exporter states of a graph's constants."""

    __slots__ = ("_kinds",)

    def __init__(self, graph: Graph) -> None:
        found = _STATED.findall(graph.metadata.get(SIGNATURE, ""))
        self._kinds = {target: PARAMETER if kind == "PARAMETER" else BUFFER for kind, target in found}

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def of(self, name: str, graph: Graph) -> tuple[str | None, tuple[str, ...], str]:
        """(kind, the parameters that it was computed from, how), of a constant or of what a quantizer made it from."""
        known = name in self._kinds or name in graph.kinds or name in graph.folded
        name = name if known else _bare(name)
        kind = self._kinds.get(name)
        if kind is None and name in graph.kinds:
            kind = (
                PARAMETER if graph.kinds[name] == "PARAMETER" else BUFFER if graph.kinds[name] != "USER_INPUT" else None
            )
        if kind is not None or not self._kinds or name not in graph.folded:
            return kind, (), ""
        sources = [one or other for one, other in _QUOTED.findall(graph.folded[name])]
        learned = tuple(dict.fromkeys(s for s in sources if self._kinds.get(s) == PARAMETER))
        steps = {_COUNTED.sub("", step) for step in (name, *sources) if step not in self._kinds}
        how = COMPUTED if steps & _COMPUTING else REPEATED if steps & _REPEATING else ""
        return PARAMETER if learned else BUFFER, learned, how if learned else ""


def settled(listed: list[Stored], file: str) -> list[Stored]:
    """The same, and what was computed from parameters that are stored, too, is a buffer.

    Raises:
        Unknown: what was computed from parameters that are not: how many values those had, nothing tells.
    """
    own = {one.own: _count(one) for one in listed}
    held = {*own} | {one.sources[0] for one in listed if len(one.sources) == 1 and not one.how}
    found = []
    for one in listed:
        lost = [source for source in one.sources if source not in held]
        if one.how == COMPUTED and lost:
            raise Unknown(
                f"{file}: {one.own!r} was computed from {lost[0]!r} when it was exported, which is not stored",
                fix="export with optimize=False, or weigh the model itself",
            )
        # Of one that is stored itself, as many values are a copy (`folded_copies`); others were made of it.
        made = bool(one.sources) and all(source in own and own[source] != _count(one) for source in one.sources)
        found.append(one._replace(stated=BUFFER, sources=(), how="") if made or (one.how and not lost) else one)
    return found


def _bare(name: str) -> str:
    """The name without what quantizers append. Of a long one the ends are looked at, which keeps forged names cheap."""
    short = name if len(name) <= 256 else f"{name[:128]}{name[-128:]}"
    return short[:-64] + _SUFFIX.sub("", short[-64:])


def invented(name: str, *, signed: bool = False) -> bool:
    """Whether no program gave a constant this name. `signed`: the exporter lists all names that programs gave."""
    bare = _bare(name)
    if signed and "." not in bare:
        return True
    if "/" in bare or ":" in bare:
        return _VARIABLE.search(bare) is None
    return _INVENTED.fullmatch(bare) is not None


def kind_of(one: Stored, file: str, *, signed: bool) -> str | None:
    """The kind to state, None where the name shall decide.

    Raises:
        Unknown: codes of an operator that is not known here.
    """
    constant, use = one.constant, one.use
    kind = use.kind if use is not None else OPERAND
    if one.sparse:
        return INDICES
    if kind not in (PARAMETER, BUFFER, TABLE, OPERAND, FOREIGN, BITS):
        return kind
    anonymous = invented(one.own, signed=signed)
    if constant.dtype is None or constant.dtype.kind == "bool":
        return BUFFER
    if constant.dtype.kind == "int":
        if one.stated == BUFFER:
            return BUFFER
        return _kind_of_codes(constant, use or Use(OPERAND), kind, anonymous and one.stated is None, file)
    if one.stated is not None:
        return one.stated
    if kind == BUFFER or (signed and one.inner):
        return BUFFER
    literal = _LITERAL.fullmatch(one.own) is not None
    if literal:
        return BUFFER
    if kind == PARAMETER:
        # Batch norms apart: a program's name of a weight may be that of a known buffer, such as a rotary table.
        return PARAMETER if anonymous or (use is not None and use.role == "norm") else None
    if (anonymous or constant.literal or one.own in _NEUTRAL) and numel(constant.shape) <= 1:
        return BUFFER
    if anonymous:
        return UNATTRIBUTED
    return BUFFER if one.own.rpartition(".")[2] in _TABLES else None


def _kind_of_codes(constant: Constant, use: Use, kind: str, anonymous: bool, file: str) -> str:
    narrow = constant.dtype is not None and constant.dtype.bits <= 8
    if kind == PARAMETER and (use.quantized or narrow):
        return PARAMETER
    if kind in (TABLE, OPERAND) and use.quantized:
        if not anonymous:
            return PARAMETER
        return BUFFER if numel(constant.shape) <= 1 else UNATTRIBUTED
    if (
        (kind in (FOREIGN, BITS) or (kind == TABLE and narrow))
        and len(constant.shape) > 1
        and constant.dtype
        and constant.dtype.bits <= 32
    ):
        what = f"goes into {use.node}" if kind == FOREIGN else "is unpacked by arithmetic"
        raise Unknown(
            f"{file}: {constant.name!r} of {constant.dtype} {what}: what it stands for cannot be told",
            fix="weigh the model that it was exported from",
        )
    return BUFFER


def role_to_state(one: Stored) -> str | None:
    """The role, where the name of the constant does not tell it."""
    if role_of(_NUMBER.sub("#", one.own), ()) != "other" and not invented(one.own):
        return None
    if one.sources:
        role = role_of(_NUMBER.sub("#", one.sources[0]), ())
        if role != "other":
            return role
    # A role is stated whatever it is: shapes, which would decide, are those that the exporter folded to.
    if one.use is None:
        return "other"
    path = [part for part in one.use.node.split("/") if part]
    if len(path) > 1:  # torch's older exporter names a node by its module
        role = role_of(_NUMBER.sub("#", f"{'.'.join(path[:-1])}.weight"), ())
        if role != "other":
            return role
    return one.use.role or "other"


def folded_copies(listed: list[Stored]) -> Mapping[str, str]:
    """{copy: original} of constants that were computed from one parameter alone, stored beside it in full."""
    originals = {one.own: one for one in listed}
    found = {}
    for one in listed:
        original = originals.get(one.sources[0]) if len(one.sources) == 1 else None
        if original is not None and original is not one and _count(one) == _count(original) > 1:
            found[one.name] = original.name
    return found


def _count(one: Stored) -> int:
    return numel(one.constant.shape)


def maybe_tied(listed: list[Stored]) -> list[tuple[Stored, Stored, bool]]:
    """(copy, embedding, whether transposed): anonymous matrices of the shape of an embedding, or of its transpose."""
    plain = [one for one in listed if one.constant.dtype is not None and len(one.constant.shape) == 2 and one.use]
    tables = [one for one in plain if one.use and one.use.kind == TABLE and not invented(one.own)][:8]
    heads = [one for one in plain if one.use and one.use.kind == PARAMETER and invented(one.own) and not one.sources]
    return [
        (head, table, head.constant.shape != table.constant.shape)
        for table in tables
        for head in heads
        if head.constant.dtype is table.constant.dtype
        and sorted(head.constant.shape) == sorted(table.constant.shape)
        and table.constant.shape[0] != table.constant.shape[1]
    ][:16]
