"""How PyTorch writes an object to a file: the containers of `torch.save`, opened.

Two: the zip that `torch.save` writes since 1.6 (and `torch.jit.save` always did), and before it a row of pickles
followed by the storages' bytes. Either holds one pickled object that refers to storages by key.

Source: PyTorch 2.13 `torch/serialization.py` (`_save`, `_load`, `_legacy_save`, `_legacy_load`).
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from weighbridge.formats import torch_calls, torch_names
from weighbridge.formats.inert import Meter, Record
from weighbridge.formats.local import LocalFile
from weighbridge.formats.pickles import Machine
from weighbridge.formats.torch_names import Storage, width
from weighbridge.formats.torch_zip import Archive, Ends
from weighbridge.ledger import File, read_exactly
from weighbridge.ledger.errors import Malformed, Refused, Truncated

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LARGEST_PICKLE = 24 << 20
# Bytes of memory, as estimated, that reading may take beside the pickle itself. A real tensor costs some 3,000 of them.
_BUDGET = 176_000_000
# A legacy file does not say how long its pickles are, so more of it is read until they end.
_WINDOWS = (1 << 18, 1 << 22, _LARGEST_PICKLE)

Places = Mapping[str, tuple[int, int]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A file's object, and `locate`, which finds storages: {key: (offset in the file, bytes)}."""

    root: object
    meter: Meter
    locate: Callable[[Iterable[str]], Places]


def guarded(name: str, work: Callable[[], T]) -> T:
    """Whatever a forged file makes fail is the file's fault."""
    try:
        return work()
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise Malformed(f"{name}: damaged or forged ({type(error).__name__}: {str(error)[:200]})") from error
    except (struct.error, zlib.error) as error:
        raise Malformed(f"{name}: damaged or forged ({str(error)[:200]})", fix="download it again") from error


def open_file(file: File) -> Opened:
    """Reads the pickle in a file.

    Raises:
        Refused: it calls what no checkpoint needs, or is absurdly large, or the file is of a kind that is not read.
        Malformed: not a PyTorch file, or a damaged one; Truncated when bytes are missing.
    """
    ends, near = Ends(file), isinstance(file, LocalFile)
    start = ends.read(0, 512)
    if start[257:262] == b"ustar":
        raise Refused(f"{file.name} is in the tar format of early PyTorch", fix="load it and save it again")
    if start.startswith(b"version https://git-lfs"):
        raise Malformed(f"{file.name} is a Git LFS pointer, not the file itself", fix="git lfs pull")
    opener = _open_zip if start.startswith(b"PK\x03\x04") else _open_legacy
    return guarded(file.name, lambda: opener(ends, near=near))


def _machine(data: bytes, meter: Meter, storages: dict[str, Storage]) -> Machine:
    """The machine for torch's pickles; `storages` takes in those that the pickle refers to, by key."""

    def persistent(identity: object) -> object:
        found = torch_names.storage(identity)
        if isinstance(found, Storage):
            storages.setdefault(found.key, found)
        return found

    return Machine(data, meter=meter, admit=torch_names.admit, call=torch_calls.call, persistent=persistent)


def _open_zip(file: File, *, near: bool) -> Opened:
    archive = Archive(file, near=near)
    if "data.pkl" not in archive:
        raise Malformed(f"{file.name} is a zip, but no PyTorch checkpoint: it has no data.pkl")
    if "byteorder" in archive and archive.read("byteorder", largest=64) != b"little":
        raise Refused(f"{file.name} holds big-endian numbers", fix="save it again on a little-endian machine")
    meter = Meter(file.name, _BUDGET)
    root = _machine(archive.read("data.pkl", largest=_LARGEST_PICKLE), meter, {}).load()

    def locate(keys: Iterable[str]) -> Places:
        names = {key: f"data/{key}" for key in keys}
        records = {key: archive.record(name) for key, name in names.items()}
        if any(record.method or record.flags & 1 for record in records.values()):
            raise Refused(f"{file.name}: its tensors are compressed or encrypted", fix="save it again with torch.save")
        places = archive.places(names.values())
        return {key: (places[names[key]], record.size) for key, record in records.items()}

    return Opened(root=root, meter=meter, locate=locate)


def _open_legacy(file: File, *, near: bool) -> Opened:
    for window in _WINDOWS:
        data = file.read(0, min(window, file.size))
        try:
            return _read_legacy(file, data, near=near)
        except Truncated:
            if len(data) >= file.size:
                raise
    raise Refused(f"{file.name}: its pickle has more than {_LARGEST_PICKLE:,} bytes", fix="save the state dict alone")


def _read_legacy(file: File, data: bytes, *, near: bool) -> Opened:
    meter = Meter(file.name, _BUDGET)
    storages: dict[str, Storage] = {}
    machine = _machine(data, meter, storages)
    first = machine.load()
    if isinstance(first, Record):
        raise Refused(
            f"{file.name} is a pickle of a {str(first.type)[:200]}, which runs code when it is loaded",
            fix=torch_names.safer(first.type.module),
        )
    if first != _MAGIC:
        raise Malformed(
            f"{file.name} is a pickle that torch.save did not write",
            fix="save it with torch.save, an estimator with skops.io.dump",
        )
    version, system = machine.load(), machine.load()
    if version != _PROTOCOL or not isinstance(system, dict):
        raise Malformed(f"{file.name}: not the PyTorch format that it claims to be")
    if system.get("little_endian") is not True:
        raise Refused(f"{file.name} holds big-endian numbers", fix="save it again on a little-endian machine")
    root = machine.load()
    keys = machine.load()
    if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
        raise Malformed(f"{file.name}: its list of storages is none")
    order, base = [str(key) for key in keys], machine.pos
    return Opened(root=root, meter=meter, locate=lambda _: _legacy_places(file, order, storages, base, near=near))


def _legacy_places(file: File, order: list[str], storages: Mapping[str, Storage], base: int, *, near: bool) -> Places:
    """Each storage is its number of elements in 8 bytes, then they. The number is checked where that is cheap."""
    places: dict[str, tuple[int, int]] = {}
    for key in order:
        storage = storages.get(key)
        if storage is None or key in places:
            raise Malformed(f"{file.name}: storage {key!r} is listed, but not once and not for a tensor")
        size = storage.numel * width(storage.dtype)
        if near and int.from_bytes(read_exactly(file, base, 8), "little") != storage.numel:
            raise Malformed(f"{file.name}: storage {key!r} is not where it should be", fix="download it again")
        places[key] = (base + 8, size)
        base += 8 + size
    if base > file.size:
        raise Truncated(f"{file.name} ends at {file.size:,} bytes, {base:,} are needed", fix="download it again")
    return places
