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
    for prefix, owner in module.named_modules():
        packed = not _CODES.isdisjoint([*owner._buffers, *owner._parameters])
        role = _role(owner)
        for leaf, kind, tensor in _own(owner):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if id(tensor) in seen:
                aliases[name] = seen[id(tensor)]
            else:
                seen[id(tensor)] = name
                row, logical = _row(name, tensor, len(rows))
                rows.append(row)
                if logical is not None:
                    elements[name] = logical
                if kind == "buffer" and leaf in owner._non_persistent_buffers_set:
                    unsaved += numel(row.shape)
                if not packed and (kind == "buffer" or logical is not None or row.dtype.kind in ("float", "complex")):
                    kinds[name] = kind
                if kind == "parameter" and not tensor.requires_grad:
                    frozen.add(name)
                if role is not None and role_of(pattern_of(name), row.shape) in ("other", "conv"):
                    roles[name] = role
                for state, part in _quantization_state(tensor):
                    rows.append(_row(f"{name}.{state}", part, len(rows))[0])
                    kinds[rows[-1].name] = "quantization_scales" if "absmax" in state else "quantization_state"
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
        Unknown: a dtype that is not known.
    """
    torch = sys.modules["torch"]
    rows: list[Row] = []
    aliases: dict[str, str] = {}
    seen: dict[object, str] = {}
    left_out = 0
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            left_out += 1
            continue
        name = str(name)
        row, _ = _row(name, tensor, len(rows))
        rows.append(row)
        place = _place(tensor)
        if place in seen:
            aliases[name] = seen[place]
        else:
            seen[place] = name
    notes = [f"{left_out} entries are no tensors and are not counted"] if left_out else []
    return Header(rows=rows, aliases=aliases, notes=notes)


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
    # DeepSpeed's ZeRO-3 leaves an empty tensor and keeps the shape aside.
    shape = tuple(int(n) for n in getattr(tensor, "ds_shape", tensor.shape))
    dtype = _dtype(name, tensor)
    state = getattr(tensor, "quant_state", None)
    logical = numel(tuple(state.shape)) if getattr(state, "shape", None) is not None else None
    return Row(name, dtype, shape, 0, at, dtype.nbytes(numel(shape))), logical


def _dtype(name: str, tensor: Any) -> DType:
    stated = str(tensor.dtype).removeprefix("torch.")
    found = dtype_named(stated)
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


def _quantization_state(tensor: Any) -> Iterator[tuple[str, Any]]:
    """The tensors that bitsandbytes hangs on a packed weight, as its checkpoints name them."""
    state = getattr(tensor, "quant_state", None)
    if state is None:
        scales = getattr(tensor, "SCB", None)
        if scales is not None:
            yield "absmax", scales
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
