"""safetensors: an 8-byte length, a JSON header, then the tensors' bytes without gaps.

Source: the format description of safetensors 0.8, whose rules are enforced: a header of at most 100 MB, offsets that
cover the data exactly, no name twice.
"""

import json
from typing import Annotated, Any

import msgspec

from weighbridge.formats.header import Header
from weighbridge.ledger import File, Kind, Rows, dtype, kind_of, read_exactly
from weighbridge.ledger.errors import Malformed, Truncated

LARGEST_HEADER = 100_000_000  # the format's own bound
# Ours, so that a hostile header takes bounded memory: the largest real one, DeepSeek-V3 in one file, would have 12 MB.
_LARGEST_READ = 32_000_000
_MOST_TENSORS = 200_000
_MOST_VALUES = 200_000  # beside eight for each tensor: what a shape of five dimensions takes
_LARGEST_WITH_ESCAPES = 8_000_000
_LONGEST_NAME = 1000

_Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Shape = Annotated[tuple[_Natural, ...], msgspec.Meta(max_length=16)]


class _Entry(msgspec.Struct, gc=False):
    # All optional, so that "__metadata__" passes as an entry of nothing; `read` refuses any other such entry.
    dtype: str | None = None
    shape: _Shape | None = None
    data_offsets: tuple[_Natural, _Natural] | None = None


class _Metadata(msgspec.Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


_ENTRIES = msgspec.json.Decoder(dict[str, _Entry])
_METADATA = msgspec.json.Decoder(_Metadata)
_USUAL = b'{"__metadata__":{"format":"pt"},'  # how nearly every file begins: no second pass for these


def read(file: File, *, index: int = 0) -> Header:
    """The header of a safetensors file; `index` is the file's place in its source.

    Raises:
        Malformed: not such a file, or one that breaks the format's rules.
        Truncated: its data ends before its header says so.

    """
    length = int.from_bytes(read_exactly(file, 0, 8), "little")
    if length > LARGEST_HEADER:
        raise Malformed(
            f"{file.name} is not a safetensors file: its header would take {length:,} bytes",
            fix="the format allows 100 MB",
        )
    if length > _LARGEST_READ:
        raise Malformed(f"{file.name} has a header of {length:,} bytes; real ones stay below 32 MB")
    entries, metadata = _decode(read_exactly(file, 8, length), file.name)
    return Header(rows=_rows(entries, file, index, start=8 + length), metadata=metadata)


def _decode(raw: bytes, name: str) -> tuple[dict[str, _Entry], dict[str, str]]:
    listed = raw.count(b'"data_offsets"')
    if listed > _MOST_TENSORS or (len(raw) > _MOST_VALUES and raw.count(b",") > _MOST_VALUES + 8 * listed):
        raise Malformed(f"{name}: a header of more than {_MOST_TENSORS:,} tensors, or of absurd shapes")
    try:
        entries = _ENTRIES.decode(raw)
        metadata: dict[str, str] = {}
        if entries.pop("__metadata__", None) is not None:
            metadata = {"format": "pt"} if raw.startswith(_USUAL) else _METADATA.decode(raw).metadata
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{name}: the header is not what safetensors writes ({str(error)[:200]})") from None
    if listed != len(entries) or b"\\" in raw:
        _refuse_duplicates(raw, name)
    if max(map(len, entries), default=0) > _LONGEST_NAME:
        raise Malformed(f"{name}: a tensor's name of more than {_LONGEST_NAME:,} characters")
    return entries, metadata


def _refuse_duplicates(raw: bytes, name: str) -> None:
    """The exact check, for headers that the quick one (as many offsets as names, no escapes) leaves in doubt."""
    if len(raw) > _LARGEST_WITH_ESCAPES:
        raise Malformed(f"{name}: a header of {len(raw):,} bytes with escapes or repeated names")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        record = dict(pairs)
        if len(record) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise Malformed(f"{name} lists {twice!r} twice", fix="no reader can tell which one is meant")
        return record

    try:
        json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{name}: the header is not what safetensors writes ({str(error)[:200]})") from None


def _rows(entries: dict[str, _Entry], file: File, index: int, *, start: int) -> Rows:
    # Column by column: DeepSeek-V3's 92,000 entries take half the time of a loop over them.
    spans: list[Any] = [entry.data_offsets for entry in entries.values()]
    keys = [(entry.dtype, entry.shape) for entry in entries.values()]
    kinds: list[Any] = list(map(_KINDS.get, keys))
    if None in kinds or None in spans:
        _learn(entries, file.name)
        kinds = [_KINDS[key] for key in keys]
    if [end - begin for begin, end in spans] != [kind[2] for kind in kinds]:
        name, kind = next(
            (name, kind)
            for name, (begin, end), kind in zip(entries, spans, kinds, strict=True)
            if end - begin != kind.nbytes
        )
        size = f"{kind.dtype} {list(kind.shape)} takes {kind.nbytes:,} bytes"
        raise Malformed(f"{file.name}: {name!r} of {size}, not what its offsets give it")
    names = list(entries)
    _check_cover(names, spans, file, start)
    return Rows(names=names, kinds=kinds, files=[index] * len(names), offsets=[start + span[0] for span in spans])


# {(dtype name, shape): kind}: a model has few kinds of tensors, and its shards have the same ones.
_KINDS: dict[tuple[str | None, tuple[int, ...] | None], Kind] = {}
_MOST_KINDS = 100_000


def _learn(entries: dict[str, _Entry], file: str) -> None:
    """Makes every kind of tensor among `entries` known."""
    if len(_KINDS) > _MOST_KINDS:
        _KINDS.clear()
    for name, entry in entries.items():
        if entry.dtype is None or entry.shape is None or entry.data_offsets is None:
            raise Malformed(f"{file}: {name!r} lacks a dtype, a shape or its offsets")
        if (entry.dtype, entry.shape) not in _KINDS:
            _KINDS[entry.dtype, entry.shape] = kind_of(dtype(entry.dtype), entry.shape)


def _check_cover(names: list[str], spans: list[Any], file: File, start: int) -> None:
    """The tensors must cover the data exactly, in whatever order they are listed."""
    ordered = sorted(spans)
    at = 0
    for begin, end in ordered:
        if begin != at:
            name = names[spans.index((begin, end))]
            what = "overlaps the tensor before it" if begin < at else "leaves a gap before it"
            raise Malformed(f"{file.name}: {name!r} {what}")
        at = end
    end = start + at
    if end > file.size:
        raise Truncated(f"{file.name} ends at {file.size:,} bytes, its header needs {end:,}", fix="download it again")
    if end < file.size:
        raise Malformed(f"{file.name} has {file.size - end:,} bytes after its last tensor")
