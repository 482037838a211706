"""Keras models in memory. Imports nothing: whoever has a model has imported Keras."""

from typing import Any

from weighbridge.formats import keras_quantized
from weighbridge.formats.dtype_names import dtype_named
from weighbridge.formats.header import Header
from weighbridge.formats.keras_config import snake
from weighbridge.formats.keras_file import CLASSES
from weighbridge.ledger import Row, Stated, numel
from weighbridge.ledger.errors import Unknown


def header_of(model: Any) -> Header:
    """The variables of a Keras 3 model or layer: what its layers learn, and the state that they keep.

    A layer whose `trainable` is False has frozen parameters; moving statistics and seeds are buffers.

    Raises:
        Unknown: not built yet, quantized in a way or of a type that is not known.
    """
    found = _Found()
    roles: dict[int, str] = {}
    for layer in model._flatten_layers():
        title = snake(type(layer).__name__)
        role = CLASSES.get(title, (None,))[0]
        if role == "attention":
            roles |= {id(part): role for part in layer._flatten_layers()}
        role = roles.get(id(layer), role)
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            found.quantized(layer, title, mode, role)
            continue
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
        stated=Stated(kinds=found.kinds, roles=found.roles, elements=found.elements, frozen=frozenset(found.frozen)),
    )


class _Found:
    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.kinds: dict[str, str] = {}
        self.roles: dict[str, str] = {}
        self.elements: dict[str, int] = {}
        self.frozen: set[str] = set()

    def quantized(self, layer: Any, title: str, mode: str, role: str | None) -> None:
        """Takes the variables of a quantized layer: its codes count as the values that they stand for."""
        own = {variable.name: variable for variable in layer._trainable_variables + layer._non_trainable_variables}
        if set(keras_quantized.variables(title, mode, len(own)) or ()) != set(own):
            raise Unknown(f"{layer.path} is quantized to {mode} in a way that is not known")
        shapes = {name: tuple(map(int, variable.shape)) for name, variable in own.items()}
        for name, variable in own.items():
            extra = keras_quantized.extra_of(name)
            elements = keras_quantized.elements(mode, shapes[name], shapes) if name in keras_quantized.CODES else None
            if name in keras_quantized.CODES and elements is None:
                raise Unknown(f"how many values the codes of {variable.path} stand for cannot be told")
            self.add(variable, extra or "parameter", None if extra else role, elements=elements)

    def add(self, variable: Any, kind: str, role: str | None, *, elements: int | None = None) -> None:
        """Takes a variable, once however many layers share it."""
        if id(variable) in self.rows:
            if role is not None:  # one that wraps the layer may have come first
                self.roles.setdefault(self.rows[id(variable)].name, role)
            return
        dtype = dtype_named(str(variable.dtype))
        if dtype is None:
            raise Unknown(f"{variable.path} is of type {variable.dtype}, which is not known")
        name = variable.path
        if name in self.kinds:
            name = f"{name}#{len(self.rows)}"
        shape = tuple(int(size) for size in variable.shape)
        self.rows[id(variable)] = Row(name, dtype, shape, 0, 0, dtype.nbytes(numel(shape)))
        self.kinds[name] = kind
        if role is not None:
            self.roles[name] = role
        if elements is not None:
            self.elements[name] = elements
        if kind == "parameter" and not variable.trainable:
            self.frozen.add(name)
