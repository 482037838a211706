"""PyTorch's zip container: where the records lie, from as few reads as can be.

A zip ends with a directory that says where each record's local header starts. The record's bytes follow that header,
whose length only the header itself gives. On a disk the headers are simply read. Behind HTTP that would be one request
per tensor, so there the place is deduced twice: from the padding that torch's writer computes, and from where the next
header starts. Where the two agree it is taken; where they do not (another writer), the header is read.

Source: APPNOTE.TXT 6.3; PyTorch 2.13 `caffe2/serialize/inline_container.cc` (`getPadding`) and its miniz.
"""

import struct
import zlib
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from weighbridge.ledger import File, read_exactly
from weighbridge.ledger.errors import Malformed, Refused, Truncated

HEAD, TAIL = 128 << 10, 192 << 10

_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_LONGEST_COMMENT = 0xFFFF
_MOST_RECORDS = 120_000
_LARGEST_DIRECTORY = 16 << 20
_FULL = 0xFFFFFFFF  # the 32-bit value that says: look into the 64-bit field
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _TRAILED = 1, 8
_ALIGNMENT = 64  # where the file does not say


class Ends:
    """A file whose first and last bytes are read once: for most checkpoints that is all of the header."""

    __slots__ = ("_file", "_head", "_tail", "name", "size")

    def __init__(self, file: File) -> None:
        self._file = file
        self.name, self.size = file.name, file.size
        self._head = file.read(0, min(HEAD, file.size))
        self._tail = b""

    def read(self, offset: int, length: int, /) -> bytes:
        """Up to `length` bytes from `offset`."""
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        start = max(self.size - TAIL, 0)
        if offset >= start:
            self._tail = self._tail or self._file.read(start, self.size - start)
            return self._tail[offset - start : offset - start + length]
        return self._file.read(offset, length)


class Record(NamedTuple):
    """One file of the archive, as the directory lists it."""

    header: int  # where its local header starts
    size: int
    packed: int  # its size as stored
    method: int
    flags: int
    crc: int
    name_length: int
    next: int = 0  # where the next local header, or the directory, starts


class Archive:
    """A zip's records by name. `folder` is the one that all of torch's own records lie in."""

    def __init__(self, file: File, *, near: bool) -> None:
        """Reads the directory. `near` says that reading a header costs no request.

        Raises:
            Truncated: the directory is missing or incomplete.
            Malformed: it is not sound: records overlap, or lie outside the file, or share a name.
        """
        self._near = near
        self._file = file
        count, size, start = find_directory(self._file)
        if size > _LARGEST_DIRECTORY or count > _MOST_RECORDS:
            raise Malformed(f"{file.name}: a directory of {count:,} records in {size:,} bytes")
        records = _directory(read_exactly(self._file, start, size), count, self._file.name)
        self.records = _in_order(records, end=start, name=file.name)
        self.folder = next(iter(self.records), "").partition("/")[0]

    def __contains__(self, name: str) -> bool:
        return f"{self.folder}/{name}".lower() in self.records

    def record(self, name: str) -> Record:
        """The record `name` of torch's folder.

        Raises:
            Truncated: there is none.
        """
        try:
            return self.records[f"{self.folder}/{name}".lower()]
        except KeyError:
            raise Truncated(f"{self._file.name}: its record {name!r} is missing", fix="download it again") from None

    def read(self, name: str, *, largest: int) -> bytes:
        """A whole record, checked against its checksum.

        Raises:
            Refused: larger than `largest`, encrypted, or packed by another method than deflate.
            Malformed: it is not what the directory says.
        """
        record = self.record(name)
        if record.size > largest or record.packed > largest:
            raise Refused(
                f"{self._file.name}: its {name} has {record.size:,} bytes, over the {largest:,} of a real one"
            )
        raw = read_exactly(self._file, self.places([name])[name], record.packed)
        if record.method == _DEFLATED:
            raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, record.size + 1)
        elif record.method != _STORED or record.flags & _ENCRYPTED:
            raise Refused(f"{self._file.name}: its {name} is packed in a way that torch does not read")
        # torch.serialization.set_crc32_options(False) writes 0.
        if len(raw) != record.size or record.crc not in (0, zlib.crc32(raw)):
            raise Malformed(f"{self._file.name}: its {name} does not match its checksum", fix="download it again")
        return raw

    def places(self, names: Iterable[str]) -> dict[str, int]:
        """{name: offset of its first byte in the file}.

        Raises:
            Malformed: a local header is not where the directory says, or leaves no room for its record.
        """
        alignment = None if self._near else self._alignment()
        found = {}
        for name in names:
            record = self.record(name)
            place = _deduced(record, alignment) if alignment else None
            found[name] = self._beyond_header(record, name) if place is None else place
        return found

    def _alignment(self) -> int:
        record = self.records.get(f"{self.folder}/.storage_alignment".lower())
        if record is None or not 0 < record.size < 8:
            return _ALIGNMENT
        text = read_exactly(self._file, self._beyond_header(record, ".storage_alignment"), record.size)
        return int(text) if text.isdigit() and int(text) else _ALIGNMENT

    def _beyond_header(self, record: Record, name: str) -> int:
        header = _LOCAL.unpack(read_exactly(self._file, record.header, _LOCAL.size))
        start = record.header + _LOCAL.size + header[9] + header[10]
        if header[0] != b"PK\x03\x04" or start + record.packed > record.next:
            raise Malformed(f"{self._file.name}: its record {name!r} is not where the directory says")
        return start


def _deduced(record: Record, alignment: int) -> int | None:
    """The start of a record that torch's own writer made; None where the evidence does not close."""
    start = record.header + _LOCAL.size + record.name_length + 4
    wide = record.header >= _FULL or record.size >= _FULL
    if wide:
        start += 4 + (16 if record.size >= _FULL else 0) + (8 if record.header >= _FULL else 0)
    start += -start % alignment
    trailer = (24 if wide else 16) if record.flags & _TRAILED else 0
    return start if start + record.packed + trailer == record.next else None


def find_directory(file: File) -> tuple[int, int, int]:
    """(records, bytes, offset) of the central directory."""
    length = min(file.size, _END.size + _LONGEST_COMMENT)
    tail = read_exactly(file, file.size - length, length)
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
    if at < 0:
        raise Truncated(f"{file.name}: the directory at the end of the zip is missing", fix="download it again")
    _, disk, first_disk, _, count, size, start, _ = _END.unpack_from(tail, at)
    end = file.size - length + at
    if end >= _LOCATOR.size:
        signature, _, wide_at, _ = _LOCATOR.unpack(read_exactly(file, end - _LOCATOR.size, _LOCATOR.size))
        if signature == b"PK\x06\x07":
            wide = _END_64.unpack(read_exactly(file, wide_at, _END_64.size))
            if wide[0] != b"PK\x06\x06":
                raise Malformed(f"{file.name}: the zip's 64-bit directory is not where it says")
            disk, first_disk, count, size, start, end = *wide[4:6], *wide[7:10], wide_at
    if disk or first_disk or start + size > end:
        raise Malformed(f"{file.name}: the zip's directory is not sound")
    return count, size, start


def _directory(raw: bytes, count: int, name: str) -> dict[str, Record]:
    records: dict[str, Record] = {}
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(raw):
            raise Truncated(f"{name}: the zip's directory is incomplete", fix="download it again")
        field = _CENTRAL.unpack_from(raw, at)
        signature, flags, method, crc, packed, size, *lengths = (
            field[place] for place in (0, 3, 4, 7, 8, 9, 10, 11, 12)
        )
        start = at + _CENTRAL.size
        middle, end = start + lengths[0], start + sum(lengths)
        if signature != b"PK\x01\x02" or end > len(raw):
            raise Malformed(f"{name}: the zip's directory is not sound")
        # torch finds records by name without regard to case.
        key = raw[start:middle].decode("utf-8", "backslashreplace").lower()
        if key in records:
            raise Malformed(f"{name}: the zip lists {key!r} twice")
        size, packed, header = _wide(raw[middle : middle + lengths[1]], size, packed, field[16])
        records[key] = Record(header, size, packed, method, flags, crc, lengths[0])
        at = end
    return records


def _wide(extra: bytes, *values: int) -> tuple[int, ...]:
    """Size, packed size and offset, from the 64-bit extra field where the 32-bit ones are full."""
    if _FULL not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return tuple(next(field, value) if value == _FULL else value for value in values)
        at += 4 + length
    return values


def _in_order(records: dict[str, Record], *, end: int, name: str) -> dict[str, Record]:
    """The records with what follows each of them, none overlapping another."""
    order = sorted(records, key=lambda key: records[key].header)
    starts = [records[key].header for key in order] + [end]
    bounds = dict(zip(order, pairwise(starts), strict=True))
    for key, (start, following) in bounds.items():
        record = records[key]
        if start + _LOCAL.size + record.name_length + record.packed > following:
            raise Malformed(f"{name}: its record {key!r} overlaps another, or reaches past the directory")
        if record.method == _STORED and record.size != record.packed:
            raise Malformed(f"{name}: its record {key!r} has two sizes")
    return {key: record._replace(next=bounds[key][1]) for key, record in records.items()}
