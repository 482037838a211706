"""Pytrees of arrays: JAX and Flax parameters, optax and training states, or plain nested dictionaries of NumPy arrays.

Nothing is imported: where jax is loaded it flattens the tree, so that every registered class is known; else
dictionaries, lists and tuples are.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_RUNNING = frozenset({"running_mean", "running_var", "num_batches_tracked"})  # of PyTorch, whoever holds them
_STATISTICS = ("mean", "var")
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
    alive = []  # a mapping may make its arrays when asked: kept, none takes the identity of another
    for path, leaf, variable in _leaves(tree):
        alive.append(leaf)
        name = ".".join(path) or "array"
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            continue
        if len(rows) >= _MOST:
            raise Refused(f"a tree of more than {_MOST:,} arrays")
        if id(leaf) in seen:
            aliases[name] = seen[id(leaf)]
            continue
        seen[id(leaf)] = name
        dtype, shape = _dtype(name, leaf), _shape(name, leaf)
        rows.append(Row(name, dtype, shape, 0, len(rows), dtype.nbytes(numel(shape))))
        kinds[name] = variable or kind_of_leaf(path, dtype)
        role = role_of_leaf(name, shape)
        if role is not None:
            roles[name] = role
    stated = Stated(kinds=judged_together(kinds), roles=roles)
    return Header(rows=rows, aliases=aliases, stated=stated) if rows else None


def judged_together(kinds: Mapping[str, str]) -> dict[str, str]:
    """The kinds of arrays, of which some are told by their neighbors alone: the mean and the variance that a batch norm
    keeps, where no collection says so, and the two moments of an optimizer, where nothing above them does.
    """
    modules = {name: _module(name) for name in kinds}
    places = {*modules.values()}
    above = _above(kinds)
    adam = [path for path, key in above if key == "mu" and (path, "nu") in above]
    moments = tuple(f"{path}{key}" for path in adam for key in ("mu.", "nu.", "count"))
    found = {}
    for name, kind in kinds.items():
        path, leaf = modules[name]
        if kind == "parameter" and leaf in _STATISTICS and _is_norm(path, places):
            kind = "buffer"
        found[name] = "optimizer_state" if moments and name.startswith(moments) else kind
    return found


def _is_norm(path: str, places: set[tuple[str, str]]) -> bool:
    """Whether a module has both statistics, and what a batch norm learns; below `params` all is learned."""
    affine = (path, "scale") in places or (path, "bias") in places
    return affine and "params" not in path.split(".") and all((path, leaf) in places for leaf in _STATISTICS)


def _module(name: str) -> tuple[str, str]:
    """(module, leaf); nnx has a `value` below each variable."""
    module, _, leaf = name.removesuffix(".value").rpartition(".")
    return module, leaf


def _above(kinds: Iterable[str]) -> set[tuple[str, str]]:
    """(path with its dot, key) of what is called like a moment; below `params` a module may be called anything."""
    found = set()
    for name in kinds:
        keys = name.split(".")[:-1]
        keys = keys[: keys.index("params")] if "params" in keys else keys
        found |= {("".join(f"{key}." for key in keys[:at]), key) for at, key in enumerate(keys) if key in ("mu", "nu")}
    return found


def kind_of_leaf(path: Sequence[str], dtype: DType) -> str:
    """What an array at a path of keys is: parameter, buffer, or the optimizer's."""
    # Below `params` a module may be called anything.
    outer = path[: path.index("params")] if "params" in path else path
    if not _COLLECTIONS.isdisjoint(outer) or (path and path[-1] in _RUNNING):
        return "buffer"
    if not _STATES.isdisjoint(outer):
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
        yield from _flattened(jax, tree)
        return
    yield from ((path, leaf, "") for path, leaf in _plain(tree, (), 0))


def _flattened(jax: Any, tree: Any) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """As JAX flattens it; what lies in the states of optax belongs to the optimizer."""
    tree_util = jax.tree_util
    if isinstance(tree, Mapping) and not isinstance(tree, dict):
        tree = dict(tree.items())  # an open `.npz`, say: no class that JAX knows
    try:
        flat, _ = tree_util.tree_flatten_with_path(tree, is_leaf=_is_optax)
        inner = [
            (path, node, tree_util.tree_flatten_with_path(node)[0] if _is_optax(node) else None) for path, node in flat
        ]
    except (ValueError, TypeError, SystemError, RecursionError) as error:  # keys that have no order, a tree without end
        said = " ".join(str(error).split())[:120]
        raise Refused(
            f"JAX cannot flatten this tree ({type(error).__name__}: {said})", fix="give a tree of arrays"
        ) from None
    for path, node, parts in inner:
        steps = tuple(_step(key) for key in path)
        if parts is None:
            yield steps, node, ""
        else:
            yield from ((steps + tuple(_step(key) for key in rest), leaf, "optimizer_state") for rest, leaf in parts)


def _is_optax(node: Any) -> bool:
    return type(node).__module__.partition(".")[0] == "optax" and hasattr(node, "_fields")


def _shape(name: str, leaf: Any) -> tuple[int, ...]:
    try:
        sizes: list[Any] = [*leaf.shape]
    except TypeError:
        sizes = [None]
    if not all(type(n) is int or (hasattr(n, "__index__") and not isinstance(n, bool)) for n in sizes):
        raise Unknown(f"{name} has a shape of {str(leaf.shape)[:60]}", fix="give arrays whose sizes are known")
    shape = tuple(int(n) for n in sizes)
    if not all(0 <= n < 1 << 62 for n in shape):
        raise Unknown(f"{name} has a shape of {str(shape)[:60]}", fix="give arrays whose sizes are known")
    return shape


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
