"""PyTorch checkpoints (`.pt`, `.pth`, `.bin`, `.ckpt`), read without torch and without executing their pickle.

Two containers: the zip that `torch.save` writes since 1.6 (and `torch.jit.save` always did), and before it a row of
pickles followed by the storages' bytes. Either holds one pickled object that refers to storages by key.

Source: PyTorch 2.13 `torch/serialization.py` (`_save`, `_load`, `_legacy_save`, `_legacy_load`).
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TypeVar

from weighbridge.formats import torch_calls, torch_names
from weighbridge.formats.header import Header
from weighbridge.formats.hyperparameters import Value, flatten
from weighbridge.formats.inert import Meter, Record
from weighbridge.formats.local import LocalFile
from weighbridge.formats.pickles import Machine
from weighbridge.formats.torch_contents import Contents, Named, children, sort_out
from weighbridge.formats.torch_names import Storage, StoredTensor
from weighbridge.formats.torch_zip import Archive, Ends
from weighbridge.ledger import DTYPES, File, Row, read_exactly
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Truncated, Unknown

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LARGEST_PICKLE = 24 << 20
# Bytes of memory, as estimated, that reading may take beside the pickle itself. A real tensor costs some 2,900 of them.
_BUDGET = 176_000_000
# A legacy file does not say how long its pickles are, so more of it is read until they end.
_WINDOWS = (1 << 18, 1 << 22, _LARGEST_PICKLE)
_MOST_ELEMENTS = 1 << 62
_UNLISTED_WIDTHS = {"bits16": 2}  # of the dtypes that no ledger type stands for, the one that is not a byte wide


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a checkpoint holds. `path` is the keys that lead to the model.

    `optimizer` has the optimizer's state tensors by their path in its state dict (`state.0.exp_avg`; several optimizers
    are numbered), `other` further groups of tensors (moving averages, random states) by their key.
    """

    model: Header
    path: Sequence[str] = ()
    optimizer: Sequence[Row] = ()
    other: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)


def read(file: File, *, index: int = 0) -> Header:
    """The model in a PyTorch checkpoint; `index` is the file's place in its source.

    Offsets point to a tensor's first element and `nbytes` is its elements times their width. Metadata: "strides" has
    {name: strides in elements} of tensors that are not contiguous, "buffers" the names that a pickled module keeps as
    buffers, and the name of each torchao tensor the form in which its parts are listed.

    Raises:
        NotFound: no tensors in it, or only an optimizer's.
        Refused: the pickle calls what no checkpoint needs, is absurdly large, or the bytes cannot be used as they lie.
        Malformed: not a PyTorch checkpoint, or a damaged one; Truncated when bytes are missing.
        Unknown: a dtype or layout whose bytes are not known.
    """
    opened = _open(file)
    header = opened.header(index)
    if not header.rows:
        held = "optimizer state, no model" if opened.contents.optimizer else "no tensors"
        raise NotFound(f"{file.name} holds {held}", fix="name the file or folder with the model's weights")
    return header


def read_checkpoint(file: File, *, index: int = 0) -> Checkpoint:
    """Everything in a PyTorch checkpoint; `index` is the file's place in its source. A model without rows is none.

    Raises:
        Refused, Malformed, Truncated, Unknown: as `read` does.
    """
    opened = _open(file)
    contents = opened.contents
    return Checkpoint(
        model=opened.header(index),
        path=contents.path,
        optimizer=opened.rows(contents.optimizer, index).rows,
        other={key: opened.rows(named, index).rows for key, named in contents.other.items()},
        hyperparameters=opened.guard(lambda: _hyperparameters(contents, opened.meter)),
    )


def read_settings(file: File) -> dict[str, Value]:
    """The scalars in any object that `torch.save` wrote (`training_args.bin`, `scheduler.pt`), by dotted name.

    Raises:
        Refused, Malformed, Truncated: as `read` does.
    """
    opened = _open(file)
    return opened.guard(
        lambda: flatten(((str(key), value) for key, value in children(opened.root, opened.meter)), opened.meter)
    )


def _hyperparameters(contents: Contents, meter: Meter) -> dict[str, Value]:
    named: list[tuple[str, object]] = []
    for place, optimizer in enumerate(contents.optimizers):
        prefix = f"{place}." if len(contents.optimizers) > 1 else ""
        groups = dict(children(optimizer, meter)).get("param_groups")
        for number, group in children(groups, meter):
            # "params" lists which parameters the group has: thousands of numbers, none of them a setting.
            settings = ((key, value) for key, value in children(group, meter) if key != "params")
            named += [(f"{prefix}param_groups.{number}.{key}", value) for key, value in settings]
    for key, value in contents.rest.items():
        if key in torch_names.names().settings_keys or not isinstance(value, dict | list | tuple | Record):
            named.append((key, value))
    return flatten(named, meter)


Places = Mapping[str, tuple[int, int]]
T = TypeVar("T")


class _Opened:
    """A checkpoint's object, and `locate`, which finds storages: {key: (offset in the file, bytes)}."""

    def __init__(self, root: object, *, meter: Meter, locate: Callable[[Iterable[str]], Places]) -> None:
        self.root = root
        self.meter = meter
        self.name = meter.name
        self._locate = locate

    @cached_property
    def contents(self) -> Contents:
        return self.guard(lambda: sort_out(self.root, self.meter))

    def guard(self, work: Callable[[], T]) -> T:
        return _guarded(self.name, work)

    def header(self, index: int) -> Header:
        header = self.rows(self.contents.model, index)
        buffers = {"buffers": self.contents.buffers} if self.contents.buffers else {}
        return Header(rows=header.rows, metadata=buffers | dict(header.metadata), aliases=header.aliases)

    def rows(self, named: list[Named], index: int) -> Header:
        return self.guard(lambda: self._rows(named, index))

    def _rows(self, named: list[Named], index: int) -> Header:
        metadata: dict[str, object] = {}
        plain = [part for name, tensor in named for part in self._parts(name, tensor, metadata)]
        places = self._locate(dict.fromkeys(tensor.storage.key for _, tensor in plain if tensor.storage))
        rows: dict[str, Row] = {}
        strides: dict[str, list[int]] = {}
        aliases: dict[str, str] = {}
        first: dict[tuple[object, ...], str] = {}
        for name, tensor in plain:
            row = self._row(name, tensor, places, index)
            if name in rows:
                raise Malformed(f"{self.name}: two tensors are called {name!r}")
            rows[name] = row
            if not _contiguous(tensor):
                strides[name] = list(tensor.strides)
            if row.nbytes and tensor.storage:
                same = (tensor.storage.key, row.offset, row.dtype.name, row.shape, tensor.strides)
                original = first.setdefault(same, name)
                if original != name:
                    aliases[name] = original
        if strides:
            metadata["strides"] = strides
        return Header(rows=list(rows.values()), metadata=metadata, aliases=aliases)

    def _parts(self, name: str, tensor: StoredTensor, metadata: dict[str, object]) -> list[Named]:
        """The plain tensors that a tensor subclass is made of, named as torchao names them in safetensors."""
        if tensor.inner is None:
            return [(name, tensor)]
        held = [(str(key), part) for key, part in children(tensor.inner, self.meter) if isinstance(part, StoredTensor)]
        if len(held) == 1 and held[0][1].shape == tensor.shape:
            return [(name, held[0][1])]
        if "qdata" not in dict(held):
            return [(name, tensor)]
        kind = tensor.inner.type.name
        metadata[name] = json.dumps({"_type": kind, "_data": {"shape": list(tensor.shape)}})
        module, _, leaf = name.rpartition(".")
        return [(f"{module}._{leaf}_{key}", part) for key, part in held]

    def _row(self, name: str, tensor: StoredTensor, places: Places, index: int) -> Row:
        storage = tensor.storage
        if tensor.problem or storage is None:
            raise Unknown(f"{self.name}: {name!r} {tensor.problem}", fix="save it as plain tensors")
        listed = torch_names.names().dtypes.get(tensor.dtype)
        if listed is None:
            raise Unknown(f"{self.name}: {name!r} has dtype torch.{tensor.dtype}, which is not known here")
        dtype, shape, width = DTYPES[listed], tensor.shape, _width(tensor.dtype)
        start, held = places[storage.key]
        first, elements = storage.view or (0, storage.numel)
        start, size = start + first * _width(storage.dtype), elements * _width(storage.dtype)
        if storage.numel * _width(storage.dtype) > held:
            raise Truncated(f"{self.name}: {name!r} needs more than the {held:,} bytes of its storage")
        count = prod(shape)
        reach = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, tensor.strides, strict=True)) + 1
        if count > _MOST_ELEMENTS or (count and reach * width > size):
            raise Malformed(f"{self.name}: {name!r} reaches past its storage of {size:,} bytes")
        if listed == "F4":
            if not shape or not _contiguous(tensor):
                raise Unknown(f"{self.name}: {name!r} has packed elements, but not in rows", fix="save it contiguous")
            shape = (*shape[:-1], 2 * shape[-1])
        return Row(name, dtype, shape, index, start + (tensor.offset * width if count else 0), count * width)


def _width(dtype: str) -> int:
    """Bytes of an element of torch's; one float4_e2m1fn_x2 is a pair."""
    listed = torch_names.names().dtypes.get(dtype)
    return DTYPES[listed].block_bytes if listed else _UNLISTED_WIDTHS.get(dtype, 1)


def _contiguous(tensor: StoredTensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in tensor.shape
        expected *= size
    return True


# Containers


def _guarded(name: str, work: Callable[[], T]) -> T:
    """Whatever a forged file makes fail is the file's fault."""
    try:
        return work()
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise Malformed(f"{name}: damaged or forged ({type(error).__name__}: {str(error)[:200]})") from error
    except (struct.error, zlib.error) as error:
        raise Malformed(f"{name}: damaged or forged ({str(error)[:200]})", fix="download it again") from error


def _open(file: File) -> _Opened:
    start = file.read(0, 512)
    if start[257:262] == b"ustar":
        raise Refused(f"{file.name} is in the tar format of early PyTorch", fix="load it and save it again")
    if start.startswith(b"version https://git-lfs"):
        raise Malformed(f"{file.name} is a Git LFS pointer, not the file itself", fix="git lfs pull")
    return _guarded(file.name, lambda: _open_zip(file) if start.startswith(b"PK\x03\x04") else _open_legacy(file))


def _machine(data: bytes, meter: Meter, storages: dict[str, Storage]) -> Machine:
    """The machine for torch's pickles; `storages` takes in those that the pickle refers to, by key."""

    def persistent(identity: object) -> object:
        found = torch_names.storage(identity)
        if isinstance(found, Storage):
            storages.setdefault(found.key, found)
        return found

    return Machine(data, meter=meter, admit=torch_names.admit, call=torch_calls.call, persistent=persistent)


def _open_zip(file: File) -> _Opened:
    archive = Archive(file)
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

    return _Opened(root, meter=meter, locate=locate)


def _open_legacy(file: File) -> _Opened:
    ends = Ends(file)
    for window in _WINDOWS:
        data = ends.read(0, min(window, file.size))
        try:
            return _read_legacy(file, data)
        except Truncated:
            if len(data) >= file.size:
                raise
    raise Refused(f"{file.name}: its pickle has more than {_LARGEST_PICKLE:,} bytes", fix="save the state dict alone")


def _read_legacy(file: File, data: bytes) -> _Opened:
    meter = Meter(file.name, _BUDGET)
    storages: dict[str, Storage] = {}
    machine = _machine(data, meter, storages)
    if machine.load() != _MAGIC:
        raise Malformed(f"{file.name} is a pickle that torch.save did not write", fix="save it with torch.save")
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
    return _Opened(root, meter=meter, locate=lambda _: _legacy_places(file, order, storages, base))


def _legacy_places(file: File, order: list[str], storages: Mapping[str, Storage], base: int) -> Places:
    """Each storage is its number of elements in 8 bytes, then they. The number is checked where that is cheap."""
    places: dict[str, tuple[int, int]] = {}
    for key in order:
        storage = storages.get(key)
        if storage is None or key in places:
            raise Malformed(f"{file.name}: storage {key!r} is listed, but not once and not for a tensor")
        size = storage.numel * _width(storage.dtype)
        if isinstance(file, LocalFile) and int.from_bytes(read_exactly(file, base, 8), "little") != storage.numel:
            raise Malformed(f"{file.name}: storage {key!r} is not where it should be", fix="download it again")
        places[key] = (base + 8, size)
        base += 8 + size
    if base > file.size:
        raise Truncated(f"{file.name} ends at {file.size:,} bytes, {base:,} are needed", fix="download it again")
    return places
