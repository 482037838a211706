"""Tensors that a file stores out of order (a transposed view in a PyTorch file), gathered row by row."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from weighbridge.ledger import Row
from weighbridge.ledger.errors import Malformed, MissingExtra, Truncated

if TYPE_CHECKING:
    import numpy

_TILE = 16 << 20
_SMALL = 1 << 16  # reading that much costs no more than reading less
_SPARSE = 8  # reading eight times what is needed still beats asking for each run of it

Read = Callable[[int, int], bytes]  # (offset, length)


def row_major(row: Row, strides: Sequence[int], read: Read, *, size: int) -> "Iterator[numpy.ndarray[Any, Any]]":
    """The tensor's bytes in row-major order, in arrays of at most 16 MiB.

    `strides` are in elements; `read` reads a file of `size` bytes.

    Raises:
        Malformed: strides that do not fit the shape.
        Truncated: strides that lead beyond the file's end.
        MissingExtra: numpy is not installed.
    """
    width = _width(row, strides, size)
    if not row.nbytes:
        return
    try:
        import numpy
    except ImportError:
        raise MissingExtra("numpy", extra="tensors", purpose="weigh sign") from None
    element = numpy.dtype(f"u{width}") if width in (1, 2, 4, 8) else numpy.dtype(f"V{width}")
    shape, steps = row.shape or (1,), tuple(stride * width for stride in strides) or (width,)
    for offset, part in _tiles(row.offset, shape, steps, width):
        tile = numpy.empty(part, element)
        _fill(tile, offset, steps[-len(part) :], read)
        yield tile.reshape(-1).view("u1")


def _width(row: Row, strides: Sequence[int], size: int) -> int:
    """Bytes of an element, after everything has been checked."""
    count = prod(row.shape)
    if len(strides) != len(row.shape) or any(stride < 0 for stride in strides) or row.dtype.block != 1:
        raise Malformed(f"{row.name!r} of {row.dtype} {list(row.shape)} cannot have the strides {list(strides)}")
    if row.nbytes != count * row.dtype.block_bytes:
        raise Malformed(f"{row.name!r} of {row.dtype} {list(row.shape)} cannot take {row.nbytes:,} bytes")
    last = sum((length - 1) * stride for length, stride in zip(row.shape, strides, strict=True))
    if count and row.offset + (last + 1) * row.dtype.block_bytes > size:
        raise Truncated(f"the strides of {row.name!r} lead beyond the end of its file")
    return row.dtype.block_bytes


def _tiles(
    offset: int, shape: tuple[int, ...], steps: tuple[int, ...], width: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(offset, shape) of consecutive parts; a part may lack leading dimensions."""
    inner = prod(shape[1:]) * width
    if inner > _TILE:
        for at in range(shape[0]):
            yield from _tiles(offset + at * steps[0], shape[1:], steps[1:], width)
    else:
        most = _TILE // inner
        for at in range(0, shape[0], most):
            yield offset + at * steps[0], (min(most, shape[0] - at), *shape[1:])


def _fill(out: "numpy.ndarray[Any, Any]", offset: int, steps: tuple[int, ...], read: Read) -> None:
    """Reads the span that holds all elements, or splits along the widest step until spans are small or dense."""
    import numpy

    last = [(length - 1) * step for length, step in zip(out.shape, steps, strict=True)]
    span, dense = sum(last) + out.itemsize, out.nbytes * _SPARSE
    if span <= _SMALL or (span <= _TILE and span <= dense):
        out[...] = numpy.ndarray(out.shape, out.dtype, buffer=read(offset, span), strides=steps)
        return
    axis = last.index(max(last))
    rest = span - last[axis]
    most = max(1, (_TILE - rest) // steps[axis]) if span <= dense else 1
    for at in range(0, out.shape[axis], most):
        _fill(out[(slice(None),) * axis + (slice(at, at + most),)], offset + at * steps[axis], steps, read)
