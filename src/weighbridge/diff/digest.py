"""The value digest of a model: one hash over its tensors' names, dtypes, shapes and values, and nothing else.

    leaf = BLAKE3(values)                       contiguous, row-major, little-endian; block types as they are stored
    root = BLAKE3(entry, entry, ...)            in key-derivation mode, context "weighbridge tensors v1"
    entry = text(name) text(dtype) u64(dimensions) u64(each dimension) leaf
    text = u64(bytes) UTF-8

Entries are sorted by the UTF-8 bytes of their names, u64 is little-endian. Copies of tied tensors are left out as
`copies` says. File format, shard boundaries, order, alignment and metadata leave no trace. docs/signature.md has
the same for third parties, with ten lines of Python that recompute it.
"""

import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from struct import pack, unpack_from
from typing import Any

from weighbridge.diff import cache as store
from weighbridge.diff.copies import left_out
from weighbridge.ledger import Ledger
from weighbridge.ledger.errors import Malformed, MissingExtra, NotFound, Refused, Unknown, WeighError

CONTEXT = "weighbridge tensors v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """The digest of a model's values.

    `hex` is 64 lower-case hex digits. `by_tensor` holds the leaf of every tensor that it covers, copies left out;
    `tensors` and `nbytes` count those.
    """

    hex: str
    tensors: int
    nbytes: int
    by_tensor: Mapping[str, str]


def digest(
    ledger: Ledger,
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    cache: bool = True,
) -> Digest:
    """The digest of a model's values, reading every tensor whose file has changed since it was last read.

    `progress(done, total)` is called now and then, in bytes, from the calling thread. `workers` threads read and
    hash, by default one for each core this process may use. `cache=False` neither trusts nor touches what earlier
    runs found.

    Raises:
        MissingExtra: blake3 is not installed.
        NotFound: a file is gone, or the model has no values (a configuration alone).
        Malformed: a file changed since its header was read, or while its values were; a name is there twice.
        Truncated: a tensor lies beyond its file's end.
        Refused: no tensor, a file cannot be read, or lists its bytes over and over, as only a forged one does.
    """
    if not len(ledger):
        raise Refused(
            f"{ledger.source.location} holds no tensor, so that no digest tells it from others that hold none",
            fix="sign a model that has learned something",
        )
    files = _stamps(ledger)
    known = store.Cache() if cache else None
    try:
        key = _fingerprint(ledger, files)
        found = _unpacked(known.root(key), ledger) if known and key else None
        if found:
            if progress:
                progress(found.nbytes, found.nbytes)
            return found
        blake3 = _blake3()
        from weighbridge.diff.leaves import leaves

        hashed, lasting = leaves(ledger, files, blake3=blake3, cache=known, progress=progress, workers=workers)
        dropped, found = _joined(ledger, hashed, blake3)
        if known and key and lasting:
            known.keep_root(key, _packed(found, dropped, ledger))
            known.keep_root(_seen(files), b"signed")
        return found
    finally:
        if known:
            known.close()


def cached(ledger: Ledger) -> Digest | None:
    """The digest if an earlier run found it and no file has changed since: reads no values, imports no blake3."""
    if not os.path.exists(store.location()):
        return None
    known = store.Cache(wait=0.02)
    try:
        files = _stamps(ledger)
        if known.root(_seen(files)) is None:
            return None
        key = _fingerprint(ledger, files)
        return _unpacked(known.root(key), ledger) if key else None
    except WeighError:
        return None
    finally:
        known.close()


def _blake3() -> Any:
    try:
        from blake3 import blake3
    except ImportError:
        raise MissingExtra("blake3", extra="tensors", purpose="weigh sign") from None
    return blake3


def _stamps(ledger: Ledger) -> dict[int, store.Near | None]:
    """The files that hold tensors: those on a disk with their state now, those elsewhere with None.

    Raises:
        NotFound: a file is gone, or there never was one.
        Malformed: a file has another size than when its header was read.
    """
    found: dict[int, store.Near | None] = {}
    for index in sorted(set(ledger.rows.files)):
        if not 0 <= index < len(ledger.source.files):
            raise NotFound(f"{ledger.source} has no values, only the shape of a model", fix="name a model with weights")
        file = ledger.source.files[index]
        path = getattr(file, "path", None)
        found[index] = near = None if path is None else store.near(os.fspath(path), file.name)
        if near is not None and near.stamp[0] != file.size:
            raise Malformed(
                f"{file.name} changed since its header was read", fix="run it again when nothing writes there"
            )
    return found


def _ties(ledger: Ledger) -> Mapping[str, str]:
    try:
        return ledger.ties
    except Unknown:  # packed weights that cannot be counted still have values
        return {}


def _joined(ledger: Ledger, hashed: Sequence[bytes], blake3: Any) -> tuple[set[str], Digest]:
    """The root over the leaves of all rows; also the names of the copies left out."""
    rows = ledger.rows
    values = {row.name: (row.dtype.name, row.shape, leaf) for row, leaf in zip(rows, hashed, strict=True)}
    if len(values) != len(rows):
        names = sorted(row.name for row in rows)
        twice = next(one for one, other in pairwise(names) if one == other)
        raise Malformed(
            f"{ledger.source} has two tensors called {twice!r}", fix="no reader can tell which one is meant"
        )
    dropped = left_out(values, _ties(ledger))
    root = blake3(derive_key_context=CONTEXT)
    # Python sorts text by code points, which is the order of its UTF-8 bytes.
    for name in sorted(values.keys() - dropped):
        dtype, shape, leaf = values[name]
        root.update(_text(name) + _text(dtype) + pack(f"<{1 + len(shape)}Q", len(shape), *shape) + leaf)
    by_tensor = {name: value[2].hex() for name, value in values.items() if name not in dropped}
    nbytes = sum(row.nbytes for row in rows if row.name not in dropped)
    return dropped, Digest(hex=root.hexdigest(), tensors=len(by_tensor), nbytes=nbytes, by_tensor=by_tensor)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")  # a JSON header can hold half a surrogate pair
    return pack("<Q", len(raw)) + raw


def _fingerprint(ledger: Ledger, files: Mapping[int, store.Near | None]) -> bytes | None:
    """A key for all that the digest follows from. The files' states stand for their values."""
    if not files or None in files.values():
        return None
    rows = ledger.rows
    kinds: dict[tuple[str, tuple[int, ...]], int] = {}
    code_of = {id(kind): kinds.setdefault((kind.dtype.name, kind.shape), len(kinds)) for kind in rows.kinds}
    codes = [code_of[id(kind)] for kind in rows.kinds]
    told = (
        "places",
        CONTEXT,
        files,
        list(kinds),
        sorted(_ties(ledger).items()),
        ledger.metadata.get("strides"),
        len(rows),
    )
    parts = [repr(told).encode("utf-8", "backslashreplace")]
    parts += [array("Q", column).tobytes() for column in (codes, rows.files, rows.offsets, map(len, rows.names))]
    parts.append("".join(rows.names).encode("utf-8", "surrogatepass"))
    return store.blake2b(b"".join(parts), digest_size=32).digest()


def _seen(files: Mapping[int, store.Near | None]) -> bytes:
    """A key for the files alone: whether they were ever signed, before anything is asked of 90,000 tensors."""
    return store.blake2b(repr(("files", CONTEXT, files)).encode("utf-8", "backslashreplace"), digest_size=32).digest()


def _packed(found: Digest, dropped: set[str], ledger: Ledger) -> bytes:
    """For the cache: the root, the places of the rows left out, the leaves of the others in the order of the rows."""
    places = array("Q", [at for at, name in enumerate(ledger.rows.names) if name in dropped])
    leaves = bytes.fromhex("".join(found.by_tensor.values()))
    return bytes.fromhex(found.hex) + pack("<Q", len(places)) + places.tobytes() + leaves


def _unpacked(body: bytes | None, ledger: Ledger) -> Digest | None:
    if not body:
        return None
    start = 40 + 8 * unpack_from("<Q", body, 32)[0]
    places = array("Q")
    places.frombytes(body[40:start])
    dropped = set(places)
    rows = [row for at, row in enumerate(ledger.rows) if at not in dropped]
    digits = body[start:].hex()
    if len(digits) != 64 * len(rows):
        return None
    by_tensor = {row.name: digits[64 * at : 64 * at + 64] for at, row in enumerate(rows)}
    nbytes = sum(row.nbytes for row in rows)
    return Digest(hex=body[:32].hex(), tensors=len(rows), nbytes=nbytes, by_tensor=by_tensor)
