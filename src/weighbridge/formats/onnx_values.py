"""Values of ONNX constants, where these alone tell how many of them were learned."""

from weighbridge.ledger import NOWHERE, File, Row, numel
from weighbridge.ledger.errors import Unknown

_LARGEST = 64 << 20  # bytes that are read


def unrepeated(row: Row, file: File) -> int:
    """How many values a constant has that its exporter repeated along some dimensions, as by the batch of the example:
    slices along such a dimension are all alike.

    Raises:
        Unknown: too large to read, or alike along the last dimension, too, along which nobody repeats.
    """
    data, size = _data(row, file), row.dtype.nbytes(1)
    count = numel(row.shape)
    for axis, length in enumerate(row.shape):
        step = numel(row.shape[axis + 1 :]) * size
        whole = step * length
        alike = length > 1 and all(
            data[start : start + step] * length == data[start : start + whole] for start in range(0, len(data), whole)
        )
        if alike and axis == len(row.shape) - 1:
            raise Unknown(
                f"{file.name}: how many values of {row.name!r} were learned cannot be told: its exporter repeated them",
                fix="export with optimize=False, or weigh the model itself",
            )
        count //= length if alike else 1
    return count


def without_empty_halves(row: Row, file: File) -> int:
    """How many biases a recurrent layer has, [directions, 2 x width]: one half of them where the other is zero."""
    data = _data(row, file)
    directions = row.shape[0] if len(row.shape) == 2 else 1
    half = len(data) // directions // 2 if directions else 0
    halves = [data[start : start + half] for start in range(0, half * directions * 2, half)] if half else []
    empty = [all(not any(part) for part in halves[at::2]) for at in (0, 1)]
    return numel(row.shape) // 2 if empty in ([True, False], [False, True]) else numel(row.shape)


def _data(row: Row, file: File) -> bytes:
    if row.nbytes > _LARGEST or row.offset == NOWHERE:
        raise Unknown(
            f"{file.name}: {row.name!r} of {row.nbytes:,} bytes cannot be looked into",
            fix="export with optimize=False, or weigh the model itself",
        )
    return file.read(row.offset, row.nbytes)
