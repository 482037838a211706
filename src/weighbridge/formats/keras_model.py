"""Keras models in memory. Imports nothing: whoever has a model has imported Keras."""

from typing import Any

from weighbridge.formats.dtype_names import dtype_named
from weighbridge.formats.header import Header
from weighbridge.formats.keras_file import CLASSES, snake
from weighbridge.ledger import Row, Stated, numel
from weighbridge.ledger.errors import Unknown


def header_of(model: Any) -> Header:
    """The variables of a Keras 3 model or layer: what its layers learn, and the state that they keep.

    A layer whose `trainable` is False has frozen parameters; moving statistics and seeds are buffers.

    Raises:
        Unknown: not built yet, quantized, or of a type that is not known.
    """
    found = _Found()
    roles: dict[int, str] = {}
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) is not None:
            raise Unknown(f"{layer.path} is a quantized layer", fix="show the model before it is quantized")
        role = CLASSES.get(snake(type(layer).__name__), (None,))[0]
        if role == "attention":
            roles |= {id(part): role for part in layer._flatten_layers()}
        role = roles.get(id(layer), role)
        for variable in layer._trainable_variables:
            found.add(variable, "parameter", role)
        for variable in layer._non_trainable_variables:
            found.add(variable, "buffer", None)
        for generator in getattr(layer, "_seed_generators", ()):
            found.add(generator.state, "buffer", None)
    if not found.rows:
        raise Unknown(f"{type(model).__name__} has no variables yet", fix="build it, or call it on a batch, first")
    return Header(
        rows=list(found.rows.values()),
        stated=Stated(kinds=found.kinds, roles=found.roles, frozen=frozenset(found.frozen)),
    )


class _Found:
    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.kinds: dict[str, str] = {}
        self.roles: dict[str, str] = {}
        self.frozen: set[str] = set()

    def add(self, variable: Any, kind: str, role: str | None) -> None:
        """Takes a variable, once however many layers share it."""
        if id(variable) in self.rows:
            return
        dtype = dtype_named(str(variable.dtype))
        if dtype is None or dtype.name in ("I8", "U8"):
            raise Unknown(f"{variable.path} is of type {variable.dtype}: a quantized layer is not counted")
        name = variable.path
        if name in self.kinds:
            name = f"{name}#{len(self.rows)}"
        shape = tuple(int(size) for size in variable.shape)
        self.rows[id(variable)] = Row(name, dtype, shape, 0, 0, dtype.nbytes(numel(shape)))
        self.kinds[name] = kind
        if role is not None:
            self.roles[name] = role
        if kind == "parameter" and not variable.trainable:
            self.frozen.add(name)
