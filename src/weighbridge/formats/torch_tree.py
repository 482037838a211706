"""Training states in memory: nested containers with PyTorch tensors in them, sorted out as a file of them would be."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weighbridge.formats import torch_module
from weighbridge.formats.header import Header
from weighbridge.formats.inert import Meter
from weighbridge.formats.torch_contents import Named, sort_out
from weighbridge.formats.torch_file import notes_on_rest
from weighbridge.formats.torch_names import StoredTensor
from weighbridge.ledger.errors import NotFound, Refused, Unknown

_BUDGET = 1 << 30  # bytes, as `Meter` counts; the objects themselves are there already
_DEEPEST, _MOST = 64, 4_000_000  # levels, and objects


def header_of(tree: Any) -> Header | None:
    """The model in a dictionary or list that a training script keeps, its optimizer's state as an extra; None where no
    PyTorch tensor lies below the first level.

    Raises:
        NotFound: an optimizer's state, and no model.
        Refused: nested deeper than any real one; a whole module in it, which says more of itself than its state does.
        Unknown: as `torch_module.header_of_state`.
    """
    if not isinstance(tree, (Mapping, list, tuple)):
        return None
    inert = _Inert()
    below = tree.values() if isinstance(tree, Mapping) else tree
    root = inert.of(tree, 0)
    optimizer = sys.modules["torch"].optim.Optimizer
    if not any(isinstance(value, (Mapping, list, tuple, optimizer)) for value in below) or not inert.tensors:
        return None
    contents = sort_out(root, Meter(type(tree).__name__, _BUDGET))
    if not contents.model:
        raise NotFound("this holds optimizer state, and no model", fix="give the model's state dict")
    header = torch_module.header_of_state(inert.named(contents.model))
    notes = [*header.notes, *notes_on_rest(contents)]
    # An optimizer may keep its moments in codes of eight bits: they are its own whatever they hold.
    apart = [
        torch_module.row_of(f"optimizer.{name}", tensor, len(header.rows) + at)
        for at, (name, tensor) in enumerate(inert.named(contents.optimizer).items())
    ]
    kinds = {**header.stated.kinds, **{row.name: "optimizer_state" for row in apart}}
    return replace(header, rows=[*header.rows, *apart], stated=replace(header.stated, kinds=kinds), notes=notes)


class _Inert:
    """Live containers as `torch_contents` takes them, and which tensor each stands for."""

    def __init__(self) -> None:
        self.tensors: dict[StoredTensor, Any] = {}
        self._left = _MOST

    def of(self, value: Any, depth: int) -> object:
        torch = sys.modules["torch"]
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise Refused("a tree deeper or larger than any model")
        if isinstance(value, torch.nn.Module):
            raise Refused(
                f"this holds a whole {type(value).__name__}", fix="show the module itself: it says what is trained"
            )
        if isinstance(value, torch.Tensor):
            stored = StoredTensor(dtype="", shape=() if value.is_nested else tuple(value.shape))
            self.tensors[stored] = value
            return stored
        if isinstance(value, torch.optim.Optimizer):
            value = value.state_dict()
        if isinstance(value, torch.ScriptObject):
            raise Unknown("this holds weights in the form of their kernels", fix="show the module itself")
        if isinstance(value, Mapping):
            for key, child in value.items():
                if str(key).endswith("_packed_params") and isinstance(child, tuple):
                    raise Unknown(f"{key} holds weights in the form of their kernels", fix="show the module itself")
            return {key: self.of(child, depth + 1) for key, child in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.of(child, depth + 1) for child in value]
        return value

    def named(self, found: list[Named]) -> dict[str, Any]:
        """{name: tensor}."""
        return {name: self.tensors[tensor] for name, tensor in found}
