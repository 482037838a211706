"""NumPy's array files: `.npy` alone, `.npz` as a zip of them.

Source: NumPy Enhancement Proposal 1 and `numpy.lib.format` 2.4, format versions 1.0 to 3.0. Object arrays hold pickles,
which are never read.
"""

import ast
import re
from typing import NamedTuple

from weighbridge.formats.archive import Archive
from weighbridge.formats.header import Header
from weighbridge.ledger import DTYPES, NOWHERE, DType, File, Row, Stated, numel
from weighbridge.ledger.errors import Malformed, Refused, Truncated, Unknown

MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 64 << 10
_USUAL_HEADER = 1 << 10
_MOST_HEADERS = 32 << 20  # bytes, of all arrays of an archive
_MOST_DIMENSIONS = 64
_DESCR = re.compile(r"[<>|=]?([fiucb])(\d{1,3})")
_KINDS = {"f": "F", "i": "I", "u": "U", "c": "C"}
# ml_dtypes writes its types as raw bytes or under their own names.
_OTHER = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


class Array(NamedTuple):
    """What an array file says of its array: `fields` of a record array, with their types."""

    dtype: DType | None
    shape: tuple[int, ...]
    width: int  # bytes of an element
    start: int  # where its values begin
    fields: tuple[str, ...] = ()


def parse(raw: bytes, name: str) -> Array:
    """The header at the beginning of an array file.

    Raises:
        Malformed: not such a header.
        Refused: an array of Python objects, which are pickled.
        Unknown: a type that is not known.
    """
    if raw[:6] != MAGIC:
        raise Malformed(f"{name} is not a NumPy array file")
    wide = raw[6] >= 2
    start = 12 if wide else 10
    length = int.from_bytes(raw[8:start], "little")
    if length > _LONGEST_HEADER or len(raw) < start + length:
        raise Malformed(f"{name}: a header of {length:,} bytes", fix="download it again")
    try:
        said = ast.literal_eval(raw[start : start + length].decode("utf-8" if raw[6] >= 3 else "latin-1").strip())
        descr, shape = said["descr"], said["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, UnicodeDecodeError, RecursionError, MemoryError):
        raise Malformed(f"{name}: its header is not what NumPy writes") from None
    whole = isinstance(shape, tuple) and all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
    if not whole or len(shape) > _MOST_DIMENSIONS or numel(shape) >= 1 << 56:
        raise Malformed(f"{name}: a shape of {str(shape)[:80]}")
    if isinstance(descr, list):
        return _record(descr, shape, start + length, name)
    dtype = _dtype(descr, name)
    return Array(dtype, shape, dtype.nbytes(1), start + length)


def _dtype(descr: object, name: str) -> DType:
    if not isinstance(descr, str):
        raise Malformed(f"{name}: a type of {str(descr)[:60]!r}")
    if "O" in descr:
        raise Refused(f"{name} holds Python objects, which are pickled", fix="save it as plain numbers")
    match = _DESCR.fullmatch(descr)
    if match is None:
        known = _OTHER.get(descr)
        if known is None:
            raise Unknown(f"{name} is of type {descr[:40]!r}", fix="save it as plain numbers")
        return DTYPES[known]
    kind, width = match[1], int(match[2])
    found = "BOOL" if kind == "b" and width == 1 else f"{_KINDS.get(kind, '?')}{8 * width}"
    if found not in DTYPES:
        raise Unknown(f"{name} is of type {descr!r}", fix="save it as 64-bit numbers or smaller")
    return DTYPES[found]


def _record(descr: list[object], shape: tuple[int, ...], start: int, name: str) -> Array:
    """A record array: its width, and the names of its fields."""
    width, fields = 0, []
    for entry in descr:
        if not isinstance(entry, tuple) or len(entry) not in (2, 3) or not isinstance(entry[1], str):
            raise Unknown(f"{name} is a record array of records", fix="save its fields as arrays of their own")
        count = 1
        if len(entry) == 3:
            if not isinstance(entry[2], tuple) or not all(type(n) is int and 0 <= n < 1 << 20 for n in entry[2]):
                raise Malformed(f"{name}: a record of {str(entry)[:60]}")
            count = numel(entry[2])
        # Padding between fields is listed as bytes without a name.
        size = re.fullmatch(r"[<>|=]?[fiucbV](\d{1,6})", entry[1])
        if size is None:
            raise Unknown(f"{name} is a record array with a field of type {entry[1]!r}", fix="save plain numbers")
        width += int(size[1]) * count
        if entry[0]:
            fields.append(str(entry[0]))
    return Array(None, shape, width, start, tuple(fields))


def read(file: File, *, index: int = 0) -> Header:
    """The array in an `.npy` file.

    Raises:
        Malformed: not such a file.
        Truncated: it ends before its values do.
    """
    array = parse(file.read(0, 16 + _LONGEST_HEADER), file.name)
    row = _row("array", array, file.name, index, array.start)
    if array.start + row.nbytes > file.size:
        end = array.start + row.nbytes
        raise Truncated(f"{file.name} ends at {file.size:,} bytes, its header needs {end:,}", fix="download it again")
    return Header(rows=[row])


def read_npz(file: File, *, index: int = 0) -> Header:
    """The arrays in an `.npz` archive, packed or not: only their headers are unpacked.

    Integers are judged as in any checkpoint: they are buffers.

    Raises:
        Malformed: not such a file, or arrays of another size than the archive says.
        Refused: an array of Python objects.
    """
    archive = Archive(file)
    rows, packed, left = [], 0, _MOST_HEADERS
    for member in archive:
        if not member.endswith(".npy"):
            raise Malformed(f"{file.name} holds {member!r}, which is no array", fix="it is no .npz of numpy.savez")
        name = member.removesuffix(".npy")
        begin = archive.start(member, _USUAL_HEADER)
        if 10 + int.from_bytes(begin[8:10], "little") > len(begin) or begin[6:7] > b"\1":
            begin = archive.start(member, 16 + _LONGEST_HEADER)
        left -= len(begin)
        if left < 0:
            raise Refused(f"{file.name} has more headers than any model", fix="do not trust this file")
        array = parse(begin, f"{file.name}: {name}")
        stored = archive.is_stored(member)
        packed += not stored
        row = _row(name, array, file.name, index, archive.offset(member) + array.start if stored else NOWHERE)
        if archive.size(member) != array.start + row.nbytes:
            raise Malformed(f"{file.name}: {name!r} is not of the size that its header says", fix="download it again")
        rows.append(row)
    if not rows:
        raise Malformed(f"{file.name} holds no array")
    notes = [f"{packed:,} of its arrays are compressed: bytes are those once unpacked"] if packed else []
    return Header(rows=rows, stated=Stated(), notes=notes)


def _row(name: str, array: Array, file: str, index: int, offset: int) -> Row:
    if array.dtype is None:
        raise Unknown(f"{file}: {name!r} is a record array", fix="save its fields as arrays of their own")
    return Row(name, array.dtype, array.shape, index, offset, array.dtype.nbytes(numel(array.shape)))
