"""Keras's quantized layers: codes, and beside them what turns these into values.

Source: keras 3.15, `variable_serialization_spec` and the packing of int4 in Dense, EinsumDense and Embedding.
"""

from collections.abc import Mapping
from math import prod

from weighbridge.ledger.packing import ACTIVATION, INDEX, SCALES, STATE, ZEROS

# mode -> variables in the order in which files number them
_MODES: Mapping[str, tuple[str, ...]] = {
    "int8": ("kernel", "bias", "kernel_scale"),
    "int4": ("kernel", "bias", "kernel_scale", "kernel_zero", "g_idx"),
    "float8": (
        *("kernel", "bias", "inputs_scale", "inputs_amax_history", "kernel_scale", "kernel_amax_history"),
        *("outputs_grad_scale", "outputs_grad_amax_history"),
    ),
}
_EXTRAS = (
    (("kernel_scale", "embeddings_scale"), SCALES),
    (("kernel_zero", "embeddings_zero"), ZEROS),
    (("g_idx",), INDEX),
    (("inputs_scale", "outputs_grad_scale"), ACTIVATION),
    (("inputs_amax_history", "kernel_amax_history", "outputs_grad_amax_history"), STATE),
)
_LAYERS = ("dense", "einsum_dense", "embedding")
CODES = ("kernel", "embeddings")


def variables(layer: str, mode: str, count: int) -> tuple[str, ...] | None:
    """The names of the `count` variables that a file numbers; None for a layer or mode that is not known."""
    if layer not in _LAYERS or mode not in _MODES:
        return None
    names = [name.replace("kernel", "embeddings") if layer == "embedding" else name for name in _MODES[mode]]
    without_bias = [name for name in names if name != "bias"]
    # Per channel, int4 has neither zero points nor an index.
    for some in (names, without_bias, names[:3], without_bias[:2]):
        if len(some) == count and (some is not names or layer != "embedding"):
            return tuple(some)
    return None


def extra_of(name: str) -> str | None:
    """What a variable of that name is beside the codes; None for a parameter."""
    return next((extra for names, extra in _EXTRAS if name in names), None)


def elements(mode: str, codes: tuple[int, ...], servants: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many values codes of that shape stand for: two lie in a byte of int4, row by row. `servants` are the shapes
    of the variables beside them. None where nothing tells how long a row is.
    """
    if mode != "int4":
        return prod(codes)
    scale, index = servants.get("kernel_scale"), servants.get("g_idx")
    columns = scale[-1] if scale else index[0] if index and "embeddings_scale" in servants else None
    return None if columns is None or codes[-1] != (columns + 1) // 2 else codes[0] * columns
