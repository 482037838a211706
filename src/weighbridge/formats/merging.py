"""What becomes of shapes where transformers puts stored tensors together for a class, or takes them apart.

An operation is its name and its dimensions, as data/renames.json has it: those of transformers' `core_model_loading`.
"""

from collections.abc import Sequence
from math import prod

Shape = tuple[int, ...]
Operation = tuple[str, tuple[int, ...]]


def made(operations: Sequence[Operation], pieces: Sequence[Sequence[Shape]], targets: Sequence[Shape]) -> list[Shape]:
    """The shapes that pieces become: those of each source in their order, and one for each target. Nothing where they
    do not fit each other.
    """
    state = [list(shapes) for shapes in pieces]
    for name, dims in operations:
        try:
            state = _applied(name, dims, state, targets)
        except (IndexError, ValueError):
            return []
    return [shapes[0] for shapes in state]


def pieces_of(
    operations: Sequence[Operation], targets: Sequence[Shape], sources: int
) -> list[tuple[Shape, int | None]] | None:
    """(shape of a piece, how many there are or None for one) of each source: what those operations make the targets of.
    None where the targets do not tell.
    """
    state, count = list(targets), None
    for name, dims in reversed(operations):
        try:
            if name == "stack":
                (count,) = {shape[dims[0]] for shape in state}
                state = [_without(shape, dims[0]) for shape in state]
            elif name == "concatenate":
                (whole,) = state
                if sources == 1 or whole[dims[0]] % sources:
                    return None  # pieces of a number that only the files know
                state = [_with(whole, dims[0], whole[dims[0]] // sources)] * sources
            elif name in ("chunk", "split"):
                state = [_joined(state, dims[0])]
            elif name == "share out":
                stacked, joined = dims
                count = sum(shape[stacked] for shape in state)
                (whole,) = {_without(_with(shape, joined, shape[joined] // sources), stacked) for shape in state}
                state = [whole] * sources
            elif name == "transpose":
                state = [_turned(shape, *dims) for shape in state]
        except (IndexError, ValueError):
            return None
    return [(shape, count) for shape in state]


def _applied(name: str, dims: tuple[int, ...], state: list[list[Shape]], targets: Sequence[Shape]) -> list[list[Shape]]:
    """One operation. ValueError or IndexError: the shapes do not admit it."""
    match name:
        case "stack":
            return [[_stacked(shapes, dims[0])] for shapes in state]
        case "concatenate":
            return [[_joined([shape for shapes in state for shape in shapes], dims[0])]]
        case "chunk":
            ((whole,),) = state
            size = -(-whole[dims[0]] // len(targets))  # torch.chunk makes the last ones smaller
            starts = range(0, whole[dims[0]], size)
            return [[_with(whole, dims[0], min(size, whole[dims[0]] - start))] for start in starts]
        case "split":
            ((whole,),) = state
            sizes = [target[dims[0]] for target in targets]
            if sum(sizes) != whole[dims[0]]:
                raise ValueError(name)
            return [[_with(whole, dims[0], size)] for size in sizes]
        case "transpose" | "transpose if needed":
            ((whole,),) = state
            return [[whole if name != "transpose" and whole == targets[0] else _turned(whole, *dims)]]
        case "share out":
            return [[shape] for shape in _shared_out(state, dims, len(targets))]
        case _:
            return state  # the same shape with its rows in another order


def _shared_out(state: list[list[Shape]], dims: tuple[int, ...], parts: int) -> list[Shape]:
    """Each source's pieces in equal parts, and one part of all sources together."""
    stacked, joined = dims
    found = []
    for part in range(parts):
        stacks = []
        for shapes in state:
            size = -(-len(shapes) // parts)
            stacks.append(_stacked(shapes[part * size : (part + 1) * size], stacked))
        found.append(_joined(stacks, joined))
    return found


def _stacked(shapes: Sequence[Shape], dim: int) -> Shape:
    (one,) = set(shapes)
    return (*one[:dim], len(shapes), *one[dim:])


def _joined(shapes: Sequence[Shape], dim: int) -> Shape:
    (rest,) = {_without(shape, dim) for shape in shapes}
    return (*rest[:dim], sum(shape[dim] for shape in shapes), *rest[dim:])


def _without(shape: Shape, dim: int) -> Shape:
    if dim >= len(shape):
        raise IndexError(dim)
    return (*shape[:dim], *shape[dim + 1 :])


def _with(shape: Shape, dim: int, size: int) -> Shape:
    if dim >= len(shape):
        raise IndexError(dim)
    return (*shape[:dim], size, *shape[dim + 1 :])


def _turned(shape: Shape, first: int, second: int) -> Shape:
    sizes = list(shape)
    sizes[first], sizes[second] = sizes[second], sizes[first]
    return tuple(sizes)


# Which axis a packing leaves as it is, by the leaf that holds the codes: AutoGPTQ packs (in / n, out), AutoAWQ
# (in, out / n), compressed-tensors, torchao, MLX and ModelOpt (out, in / n), gpt-oss (expert, out, in / 32, 16).
_PACKED_BY_ROWS = frozenset({"weight_packed", "weight", "_weight_qdata", "qdata", "_data"})


def holds(leaf: str, stored: Shape, elements: int, shape: Shape, method: str | None) -> bool:
    """Whether codes of that shape, which stand for so many elements, are a weight of `shape`. Where codes lie in one
    row (bitsandbytes, HQQ), their number is all that can be told.
    """
    if elements != prod(shape):
        return False
    if len(stored) < 2 or 1 in stored or len(shape) < 2:
        return True
    if leaf == "qweight":
        gptq, awq = stored[-1] in shape, stored[0] in shape
        return awq if method == "awq" else gptq if method == "gptq" else gptq or awq
    if leaf in _PACKED_BY_ROWS:
        return stored[:-1] == shape[:-1]
    if leaf.endswith("_blocks"):
        return stored[0] == shape[0] and stored[1] in shape[1:]
    return True
