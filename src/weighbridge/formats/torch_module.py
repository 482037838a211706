"""PyTorch modules and state dicts in memory. Imports nothing: whoever has a module has imported torch."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from weighbridge.formats.dtype_names import dtype_named
from weighbridge.formats.header import Header
from weighbridge.ledger import DType, Row, Stated, numel, role_of
from weighbridge.ledger.errors import Unknown
from weighbridge.ledger.families import containers_of, pattern_of
from weighbridge.ledger.packing import CODES, serves

# What a layer is for, where its name says nothing: torch's own classes. Linear layers are `ffn` as everywhere else.
_ROLES = (
    ("embedding", ("Embedding", "EmbeddingBag")),
    ("attention", ("MultiheadAttention",)),
    ("norm", ("LayerNorm", "RMSNorm", "GroupNorm", "LocalResponseNorm", "_NormBase")),
    ("ssm", ("RNNBase", "RNNCellBase")),
    ("conv", ("_ConvNd",)),
    ("ffn", ("Linear", "Bilinear", "PReLU")),
)
_QUANTIZED = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}
# Matrices of these are codes of quantized weights, unless their names say that they are tables.
_SHORT = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})
_TABLES = ("mask", "index", "idx", "ids", "position", "perm")
_UNWRAPPED = "show it before it is wrapped, or its full state dict"


def header_of(module: Any) -> Header:
    """Parameters, buffers, what is frozen and what is tied, of an `nn.Module`.

    Raises:
        Unknown: lazy parameters that have no shape yet, or a dtype that is not known.
    """
    rows: list[Row] = []
    kinds: dict[str, str] = {}
    roles: dict[str, str] = {}
    elements: dict[str, int] = {}
    frozen: set[str] = set()
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    unsaved = 0
    alive = []  # a scripted module makes its tensors anew when asked: kept, none takes the identity of another
    prompts = "prompt_encoder." if hasattr(module, "peft_config") else None  # of PEFT: what it learns in words' stead
    for prefix, owner in module.named_modules():
        _refuse_shards(owner, prefix)
        packing = _Packing(owner, prefix)
        role = _role(owner)
        for leaf, kind, tensor in _own(owner):
            name = _joined(prefix, leaf)
            if prompts is not None and name.startswith(prompts):
                roles[name] = "adapter"
            alive.append(tensor)
            if id(tensor) in seen:
                aliases[name] = seen[id(tensor)]
            else:
                seen[id(tensor)] = name
                row, logical = _row(name, tensor, len(rows))
                rows.append(row)
                if logical is not None:
                    elements[name] = logical
                if kind == "buffer" and leaf in getattr(owner, "_non_persistent_buffers_set", ()):
                    unsaved += numel(row.shape)
                # What is packed is judged as in a file, by what lies beside it.
                if logical is not None or not packing.has(leaf):
                    kinds[name] = kind
                if kind == "parameter" and not tensor.requires_grad:
                    frozen.add(name)
                if role is not None and role_of(pattern_of(name), row.shape) in ("other", "conv"):
                    roles[name] = role
                for state, part in _quantization_state(tensor):
                    rows.append(_row(f"{name}.{state}", part, len(rows))[0])
                    kinds[rows[-1].name] = _kind_of_state(state)
        for leaf, tensor in _prepacked(owner, prefix):
            name = _joined(prefix, leaf)
            rows.append(_row(name, tensor, len(rows))[0])
            kinds[name], elements[name] = "parameter", numel(rows[-1].shape)
            frozen.add(name)
            roles |= {name: role} if role is not None else {}
    notes = [f"{unsaved:,} elements of buffers are not saved with it (persistent=False)"] if unsaved else []
    return Header(
        # A tied tensor is listed under its first name alone.
        rows=rows,
        aliases=aliases,
        # What is tied, the module shows: no name suggests more.
        stated=Stated(kinds=kinds, roles=roles, elements=elements, frozen=frozenset(frozen), apart=lambda _: True),
        notes=notes,
    )


class _Packing:
    """Which tensors of a module hold codes of quantized weights, or serve these.

    Raises:
        Unknown: whole numbers that may be codes of a kind that is not known.
    """

    def __init__(self, owner: Any, prefix: str) -> None:
        held = [(leaf, kind, tensor) for leaf, kind, tensor in _own(owner)]
        types = {leaf: _dtype(_joined(prefix, leaf), tensor) for leaf, _, tensor in held if not _leaves(tensor)}
        self._siblings = frozenset(pattern_of(leaf) for leaf, _, _ in held)
        self._coded = frozenset(
            leaf
            for leaf, kind, tensor in held
            if leaf in types and _holds_codes(types[leaf], tensor, learned=kind == "parameter")
        )
        holds = bool(owner._modules)  # a layer whose weights are packed holds no others
        weighs = bool(self._coded) and any(
            kind == "parameter" and leaf in types and leaf not in self._coded and len(tensor.shape) > 1
            for leaf, kind, tensor in held
        )
        for leaf, kind, tensor in held:
            known = leaf not in self._coded or types[leaf].kind == "float" or _is_known(leaf) or self._serves(leaf)
            told = getattr(tensor, "quant_state", None) is not None or getattr(tensor, "SCB", None) is not None
            table = kind == "buffer" and (weighs or holds or any(word in leaf for word in _TABLES) or _is_mask(tensor))
            if not (known or told or table):
                raise Unknown(
                    f"{_joined(prefix, leaf)} holds whole numbers ({types[leaf]}): codes of quantized weights, maybe",
                    fix="show the model before it is quantized",
                )
            if leaf in self._coded and table and not known:
                self._coded -= {leaf}

    def has(self, leaf: str) -> bool:
        """Whether that tensor is judged as in a file."""
        return bool(self._coded) and (leaf in self._coded or leaf == "bias" or self._serves(leaf))

    def _serves(self, leaf: str) -> bool:
        return serves(pattern_of(leaf), self._siblings, self._coded) is not None


def _holds_codes(dtype: DType, tensor: Any, *, learned: bool) -> bool:
    if dtype.kind == "float":
        return dtype.bits <= 8
    return dtype.kind == "int" and (learned or dtype.name in _SHORT) and len(tensor.shape) > 1


def _is_known(leaf: str) -> bool:
    return leaf in CODES or leaf.endswith("_blocks")


def _joined(prefix: str, leaf: str) -> str:
    return f"{prefix}.{leaf}" if prefix else leaf


def _is_mask(tensor: Any) -> bool:
    shape = tuple(tensor.shape)
    return len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]


def _refuse_shards(owner: Any, prefix: str) -> None:
    """PyTorch's older FSDP leaves each process a piece of all parameters in one vector."""
    if any(base.__name__ == "FullyShardedDataParallel" for base in type(owner).__mro__):
        handle = getattr(owner, "_handle", None)
        if (
            handle is not None
            and getattr(handle, "uses_sharded_strategy", True)
            and getattr(owner, "world_size", 2) > 1
        ):
            raise Unknown(f"{prefix or 'this module'} is spread over processes by FSDP", fix=_UNWRAPPED)


def header_of_state(state: Mapping[str, Any]) -> Header:
    """The tensors of a state dict, judged as those of a checkpoint are. Two names of one storage are tied.

    Raises:
        Unknown: a dtype that is not known, or packed weights of torch.ao.
    """
    torch = sys.modules["torch"]
    rows: list[Row] = []
    kinds: dict[str, str] = {}
    elements: dict[str, int] = {}
    aliases: dict[str, str] = {}
    seen: dict[object, str] = {}
    frozen: set[str] = set()
    alive = []  # a mapping may make its tensors when asked
    left_out = 0
    for name, tensor in state.items():
        alive.append(tensor)
        if not isinstance(tensor, torch.Tensor):
            if isinstance(tensor, (tuple, torch.ScriptObject)):
                raise Unknown(f"{name} holds weights in the form of their kernels", fix="show the module itself")
            left_out += 1
            continue
        name = str(name)
        row, logical = _row(name, tensor, len(rows))
        rows.append(row)
        if getattr(tensor, "is_quantized", False):
            kinds[name], elements[name] = "parameter", numel(row.shape)
        if _leaves(tensor):  # of torchao: bitsandbytes' states are entries of their own
            kinds[name], elements[name] = "parameter", logical or 0
            frozen.add(name)
            for leaf, part in _quantization_state(tensor):
                rows.append(_row(f"{name}.{leaf}", part, len(rows))[0])
                kinds[rows[-1].name] = _kind_of_state(leaf)
        place = _place(tensor)
        if place in seen:
            aliases[name] = seen[place]
        else:
            seen[place] = name
    _refuse_foreign_codes(row for row in rows if row.name not in kinds)
    notes = [f"{left_out} entries are no tensors and are not counted"] if left_out else []
    # Where values lie tells what is tied; names need not.
    stated = Stated(kinds=kinds, elements=elements, frozen=frozen, apart=lambda _: True)
    return Header(rows=rows, aliases=aliases, stated=stated, notes=notes)


def _refuse_foreign_codes(rows: Iterable[Row]) -> None:
    """Matrices of whole numbers that are neither tables by their names nor codes of a kind that is known."""
    modules: dict[str, dict[str, Row]] = {}
    for row in rows:
        module, _, leaf = row.name.rpartition(".")
        modules.setdefault(module, {})[leaf] = row
    # A layer whose weights are packed holds no others.
    for module in modules.keys() - containers_of(modules):
        held = modules[module]
        coded = frozenset(leaf for leaf, row in held.items() if row.dtype.name in _SHORT and len(row.shape) > 1)
        for leaf in coded:
            table = any(word in leaf for word in _TABLES) or _is_mask(held[leaf])
            if not (table or _is_known(leaf) or serves(leaf, frozenset(held), coded) is not None):
                raise Unknown(
                    f"{held[leaf].name} holds whole numbers ({held[leaf].dtype}): codes of quantized weights, maybe",
                    fix="show the module itself, or the model before it is quantized",
                )


def header_of_program(program: Any) -> Header:
    """The parameters and buffers of a `torch.export.ExportedProgram`, which says of each what it is."""
    header = header_of_state(program.state_dict)
    buffers = set(program.graph_signature.buffers)
    kinds = {row.name: "buffer" if row.name in buffers else "parameter" for row in header.rows}
    frozen = frozenset(name for name, tensor in program.state_dict.items() if not tensor.requires_grad)
    stated = replace(header.stated, kinds=kinds | dict(header.stated.kinds), frozen=frozen, apart=lambda _: True)
    return replace(header, stated=stated)


def _prepacked(module: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors of torch.ao's quantized layers, which keep them in the form of their kernels."""
    where = type(module).__module__
    if where.startswith("torch.jit") and hasattr(module, "_packed_params"):
        raise Unknown(
            f"{path or 'this module'} holds weights in the form of their kernels", fix="show it before it is scripted"
        )
    if not where.startswith("torch.ao.nn") or ".quantized." not in where or type(module).__name__.endswith("Params"):
        return
    if hasattr(module, "get_weight") and hasattr(module, "get_bias"):
        yield from {**module.get_weight(), **module.get_bias()}.items()
    elif callable(getattr(module, "weight", None)):
        yield "weight", module.weight()
        bias = module.bias() if callable(getattr(module, "bias", None)) else None
        if bias is not None:
            yield "bias", bias
    elif hasattr(module, "_packed_params"):
        raise Unknown(f"{path} is a quantized {type(module).__name__}, whose weights cannot be told")


def _own(module: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, kind, tensor) of what a module itself holds."""
    for kind, held in (("parameter", module._parameters), ("buffer", module._buffers)):
        for leaf, tensor in held.items():
            if tensor is not None:
                yield leaf, kind, tensor


def _row(name: str, tensor: Any, at: int) -> tuple[Row, int | None]:
    """(the tensor as stored, its logical count where that is another)."""
    torch = sys.modules["torch"]
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        raise Unknown(f"{name} has no shape yet", fix="run one batch through the lazy module first")
    if getattr(tensor, "is_nested", False):
        raise Unknown(f"{name} is a nested tensor, which has no one shape", fix="give its parts")
    # DeepSpeed's ZeRO-3 leaves an empty tensor and keeps the shape aside.
    shape = tuple(int(n) for n in getattr(tensor, "ds_shape", tensor.shape))
    state = getattr(tensor, "quant_state", None)
    logical = numel(tuple(state.shape)) if getattr(state, "shape", None) is not None else None
    leaves = _leaves(tensor)
    if leaves:
        logical, tensor = numel(shape), leaves[_codes(leaves)]
        shape = tuple(int(n) for n in tensor.shape)
    dtype = _dtype(name, tensor)
    return Row(name, dtype, shape, 0, at, dtype.nbytes(numel(shape))), logical


def row_of(name: str, tensor: Any, at: int) -> Row:
    """A tensor as it is held.

    Raises:
        Unknown: a dtype that is not known, or no shape.
    """
    return _row(name, tensor, at)[0]


def _dtype(name: str, tensor: Any) -> DType:
    stated = str(tensor.dtype).removeprefix("torch.")
    found = dtype_named(_QUANTIZED.get(stated, stated))
    if found is None:
        raise Unknown(f"{name} is of dtype {stated}", fix="a newer Weighbridge may know it")
    return found


def _place(tensor: Any) -> object:
    """Where a tensor's values lie, the same for two tensors that are one."""
    try:
        pointer = tensor.untyped_storage().data_ptr()
        pointer = pointer or tensor.untyped_storage()._cdata  # on the meta device no values lie anywhere
    except Exception:  # a wrapper without a storage of its own
        return id(tensor)
    return pointer, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _leaves(tensor: Any) -> dict[str, Any]:
    """The plain tensors inside a tensor that stands for quantized values, as torchao's do; of others, none. A tensor
    spread over devices has one inside, too, which is like it.
    """
    found: dict[str, Any] = {}
    waiting = [("", tensor)]
    while waiting:
        path, one = waiting.pop()
        if hasattr(one, "__tensor_flatten__"):
            names, _ = one.__tensor_flatten__()
            held = [(name, getattr(one, name)) for name in names]  # a DTensor names its mesh of devices, too
            waiting += [(f"{path}.{name}" if path else name, part) for name, part in held if hasattr(part, "dtype")]
        elif path:
            found[path] = one
    return found if any(leaf.dtype != tensor.dtype for leaf in found.values()) else {}


def _codes(leaves: Mapping[str, Any]) -> str:
    """The one that holds the values: the largest, scales being fewer."""
    return max(leaves, key=lambda path: leaves[path].numel())


def _kind_of_state(name: str) -> str:
    if "map" in name:
        return "quantization_state"
    return "quantization_zero_points" if "zero" in name else "quantization_scales"


def _quantization_state(tensor: Any) -> Iterator[tuple[str, Any]]:
    """The tensors that torchao and bitsandbytes hang on a packed weight, by their own names."""
    if leaves := _leaves(tensor):
        codes = _codes(leaves)
        yield from ((path, leaf) for path, leaf in leaves.items() if path != codes)
        return
    state = getattr(tensor, "quant_state", None)
    if state is None:
        scales = getattr(tensor, "SCB", None)
        if scales is not None:
            yield "SCB", scales  # of int8: one code a byte, where absmax stands beside two
        return
    yield "absmax", state.absmax
    yield "quant_map", state.code
    nested = getattr(state, "state2", None)
    if nested is not None:
        yield "nested_absmax", nested.absmax
        yield "nested_quant_map", nested.code


def _role(module: Any) -> str | None:
    names = {base.__name__ for base in type(module).__mro__}
    return next((role for role, classes in _ROLES if not names.isdisjoint(classes)), None)
