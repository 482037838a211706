"""Pytrees of arrays: JAX and Flax parameters, optax and training states, or plain nested dictionaries of NumPy arrays.

Nothing is imported: where jax is loaded it flattens the tree, so that every registered class is known; else
dictionaries, lists and tuples are.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weighbridge.formats.dtype_names import dtype_named
from weighbridge.formats.header import Header
from weighbridge.ledger import DType, Row, Stated, numel, role_of
from weighbridge.ledger.errors import Refused, Unknown
from weighbridge.ledger.families import pattern_of

_MOST = 200_000
_DEEPEST = 64
# Flax's collections and nnx's variable types that are no parameters.
_COLLECTIONS = frozenset({"batch_stats", "cache", "intermediates", "rngs", "spectral_norm_stats", "losses", "metrics"})
_STATES = frozenset({"opt_state", "optimizer_state", "optimizer", "optimizer_state_dict", "optimizer_states", "step"})


def header_of(tree: Any) -> Header | None:
    """The arrays of a pytree; None where it holds none.

    Parameters are floating-point leaves, outside of collections such as `batch_stats` and of optimizer state.

    Raises:
        Refused: deeper or larger than any model.
        Unknown: a dtype that is not known.
    """
    rows: list[Row] = []
    kinds: dict[str, str] = {}
    roles: dict[str, str] = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    for path, leaf, variable in _leaves(tree):
        name = ".".join(path) or "array"
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            continue
        if len(rows) >= _MOST:
            raise Refused(f"a tree of more than {_MOST:,} arrays")
        if id(leaf) in seen:
            aliases[name] = seen[id(leaf)]
            continue
        seen[id(leaf)] = name
        dtype, shape = _dtype(name, leaf), tuple(int(n) for n in leaf.shape)
        rows.append(Row(name, dtype, shape, 0, len(rows), dtype.nbytes(numel(shape))))
        kinds[name] = "buffer" if variable == "buffer" else kind_of_leaf(path, dtype)
        role = role_of_leaf(name, shape)
        if role is not None:
            roles[name] = role
    return Header(rows=rows, aliases=aliases, stated=Stated(kinds=kinds, roles=roles)) if rows else None


def kind_of_leaf(path: Sequence[str], dtype: DType) -> str:
    """What an array at a path of keys is: parameter, buffer, or the optimizer's."""
    if not _COLLECTIONS.isdisjoint(path):
        return "buffer"
    if not _STATES.isdisjoint(path):
        return "optimizer_state"
    return "parameter" if dtype.kind in ("float", "complex") else "buffer"


def role_of_leaf(name: str, shape: tuple[int, ...]) -> str | None:
    """Flax's leaves where the path says no more: `kernel` of a Dense or Conv, `embedding` of an Embed."""
    if role_of(pattern_of(name), shape) not in ("other", "conv"):
        return None
    leaf = name.rpartition(".")[2]
    if leaf == "embedding":
        return "embedding"
    if leaf == "scale" or "norm" in name.lower():
        return "norm"
    if leaf in ("kernel", "bias"):
        return "conv" if len(shape) >= 3 or "conv" in name.lower() else "ffn"
    return None


def _leaves(tree: Any) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """(path, array, "buffer" where the variable that holds it is one)."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(tree, nnx.Module):
        tree = nnx.state(tree)
    if nnx is not None and isinstance(tree, nnx.State):
        for path, variable in nnx.to_flat_state(tree):
            kind = getattr(variable, "type", type(variable))
            # What is no Param is state: statistics, caches, random numbers, variables of the owner's own.
            yield tuple(map(str, path)), _value(variable), "" if issubclass(kind, nnx.Param) else "buffer"
        return
    jax = sys.modules.get("jax")
    if jax is not None:
        flat, _ = jax.tree_util.tree_flatten_with_path(tree)
        for path, leaf in flat:
            yield tuple(_step(key) for key in path), leaf, ""
        return
    yield from ((path, leaf, "") for path, leaf in _plain(tree, (), 0))


def _value(variable: Any) -> Any:
    """The array in an nnx variable, whose own accessors changed their names over time."""
    for name in ("raw_value", "value"):
        if hasattr(variable, name):
            return getattr(variable, name)
    return variable


def _step(key: Any) -> str:
    for name in ("key", "idx", "name"):
        if hasattr(key, name):
            return str(getattr(key, name))
    return str(key)


def _plain(tree: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    if depth > _DEEPEST:
        raise Refused("a tree deeper than any model")
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _plain(value, (*path, str(key)), depth + 1)
    elif isinstance(tree, (list, tuple)):
        names = getattr(tree, "_fields", range(len(tree)))
        for key, value in zip(names, tree, strict=True):
            yield from _plain(value, (*path, str(key)), depth + 1)
    else:
        yield path, tree


def _dtype(name: str, leaf: Any) -> DType:
    stated = str(getattr(leaf.dtype, "name", leaf.dtype)).removeprefix("torch.")
    if stated.startswith("key<"):  # JAX's random keys, of some words each that their shape does not show
        stated = "uint32"
    known = dtype_named(stated)
    if known is None:
        raise Unknown(f"{name} is of dtype {stated}", fix="a newer Weighbridge may know it")
    return known
