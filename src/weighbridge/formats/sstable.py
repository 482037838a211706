"""Sorted string tables: LevelDB's file format, in which TensorFlow keeps the index of a checkpoint.

Source: LevelDB's `doc/table_format.md`; TensorFlow 2.21 `lib/io/format.cc`, which packs no block of such an index.
"""

import struct
from collections.abc import Iterator

from weighbridge.formats.protobuf import BYTES, Field
from weighbridge.ledger import File, read_exactly
from weighbridge.ledger.errors import Malformed, Refused

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5  # a byte for how a block is packed, a checksum of four
_LARGEST_BLOCK = 16 << 20
_MOST_BLOCKS = 20_000
_LONGEST_KEY = 4096
_MOST_KEYS = 32 << 20  # bytes of all keys together


def entries(file: File) -> Iterator[tuple[bytes, Field]]:
    """(key, where the value lies in the file) of every entry, in order of keys.

    Raises:
        Malformed: no such table, or one that is damaged.
        Truncated: it ends within a block.
        Refused: a block is packed.
    """
    if file.size < _FOOTER:
        raise Malformed(f"{file.name} is no table of tensors: it has {file.size:,} bytes", fix="download it again")
    footer = read_exactly(file, file.size - _FOOTER, _FOOTER)
    if struct.unpack_from("<Q", footer, 40)[0] != _MAGIC:
        raise Malformed(f"{file.name} is no table of tensors, or is cut short", fix="download it again")
    numbers, at = [], 0
    for _ in range(4):
        number, at = _number(footer, at, file.name)
        numbers.append(number)
    last, kept = b"", 0
    for blocks, (_, handle, _) in enumerate(_block(file, numbers[2], numbers[3])):
        if blocks > _MOST_BLOCKS:
            raise Malformed(f"{file.name} has more blocks than any real table")
        offset, after = _number(handle, 0, file.name)
        size, _ = _number(handle, after, file.name)
        for key, value, start in _block(file, offset, size):
            if key < last or (key == last and kept):
                raise Malformed(f"{file.name}: its keys are not in order", fix="download it again")
            last, kept = key, kept + len(key) + 1
            if kept > _MOST_KEYS:
                raise Malformed(f"{file.name} has more keys than any real table")
            yield key, Field(0, BYTES, 0, start, start + len(value))


def _block(file: File, offset: int, size: int) -> Iterator[tuple[bytes, bytes, int]]:
    """(key, value, offset of the value in the file) of a block's entries."""
    if size > _LARGEST_BLOCK or size < 4:
        raise Malformed(f"{file.name}: a block of {size:,} bytes", fix="download it again")
    raw = read_exactly(file, offset, size + _TRAILER)
    if raw[size] != 0:
        raise Refused(f"{file.name} is packed", fix="save the checkpoint with TensorFlow itself, which packs none")
    restarts = struct.unpack_from("<I", raw, size - 4)[0]
    end = size - 4 - 4 * restarts
    if end < 0:
        raise Malformed(f"{file.name}: a block that is not sound", fix="download it again")
    at, key = 0, b""
    while at < end:
        shared, at = _number(raw, at, file.name)
        fresh, at = _number(raw, at, file.name)
        length, at = _number(raw, at, file.name)
        if shared > len(key) or shared + fresh > _LONGEST_KEY or at + fresh + length > end:
            raise Malformed(f"{file.name}: an entry that is not sound", fix="download it again")
        key = key[:shared] + raw[at : at + fresh]
        at += fresh
        yield key, raw[at : at + length], offset + at
        at += length


def _number(raw: bytes, at: int, name: str) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 64:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise Malformed(f"{name}: a number that does not end", fix="download it again")
