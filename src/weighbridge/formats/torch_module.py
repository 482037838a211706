"""PyTorch modules and state dicts in memory. Imports nothing: whoever has a module has imported torch."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from weighbridge.formats.dtype_names import dtype_named
from weighbridge.formats.header import Header
from weighbridge.ledger import DType, Row, Stated, numel, role_of
from weighbridge.ledger.errors import Unknown
from weighbridge.ledger.families import pattern_of

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
# Beside these a buffer is part of a packed weight, and judged as in a file.
_CODES = frozenset({"qweight", "weight_packed", "W_q", "qzeros", "blocks"})


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
        packed = not _CODES.isdisjoint([*owner._buffers.keys(), *owner._parameters.keys()])
        role = _role(owner)
        for leaf, kind, tensor in _own(owner):
            name = f"{prefix}.{leaf}" if prefix else leaf
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
                # bitsandbytes' int8 codes are told by the scales beside them, as in a file.
                if not packed and getattr(tensor, "SCB", None) is None:
                    kinds[name] = kind
                if kind == "parameter" and not tensor.requires_grad:
                    frozen.add(name)
                if role is not None and role_of(pattern_of(name), row.shape) in ("other", "conv"):
                    roles[name] = role
                for state, part in _quantization_state(tensor):
                    rows.append(_row(f"{name}.{state}", part, len(rows))[0])
                    kinds[rows[-1].name] = _kind_of_state(state)
        for leaf, tensor in _prepacked(owner, prefix):
            name = f"{prefix}.{leaf}" if prefix else leaf
            rows.append(_row(name, tensor, len(rows))[0])
            kinds[name], elements[name] = "parameter", numel(rows[-1].shape)
            frozen.add(name)
            roles |= {name: role} if role is not None else {}
    notes = [f"{unsaved:,} elements of buffers are not saved with it (persistent=False)"] if unsaved else []
    return Header(
        # A tied tensor is listed under its first name alone.
        rows=rows,
        aliases=aliases,
        stated=Stated(kinds=kinds, roles=roles, elements=elements, frozen=frozenset(frozen)),
        notes=notes,
    )


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
    left_out = 0
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            if isinstance(tensor, (tuple, torch.ScriptObject)):
                raise Unknown(f"{name} holds weights in the form of their kernels", fix="show the module itself")
            left_out += 1
            continue
        name = str(name)
        row, logical = _row(name, tensor, len(rows))
        rows.append(row)
        if _leaves(tensor):  # of torchao: bitsandbytes' states are entries of their own
            kinds[name], elements[name] = "parameter", logical or 0
            for leaf, part in _quantization_state(tensor):
                rows.append(_row(f"{name}.{leaf}", part, len(rows))[0])
                kinds[rows[-1].name] = _kind_of_state(leaf)
        place = _place(tensor)
        if place in seen:
            aliases[name] = seen[place]
        else:
            seen[place] = name
    notes = [f"{left_out} entries are no tensors and are not counted"] if left_out else []
    return Header(rows=rows, aliases=aliases, stated=Stated(kinds=kinds, elements=elements), notes=notes)


def header_of_program(program: Any) -> Header:
    """The parameters and buffers of a `torch.export.ExportedProgram`, which says of each what it is."""
    header = header_of_state(program.state_dict)
    buffers = set(program.graph_signature.buffers)
    kinds = {row.name: "buffer" if row.name in buffers else "parameter" for row in header.rows}
    frozen = frozenset(name for name, tensor in program.state_dict.items() if not tensor.requires_grad)
    return Header(rows=header.rows, aliases=header.aliases, stated=Stated(kinds=kinds, frozen=frozen))


def _prepacked(module: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors of torch.ao's quantized layers, which keep them in the form of their kernels."""
    where = type(module).__module__
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
    except Exception:  # a wrapper without a storage of its own
        pointer = 0
    if not pointer:
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
            waiting += [(f"{path}.{name}" if path else name, getattr(one, name)) for name in names]
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
