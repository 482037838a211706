"""PyTorch checkpoints (`.pt`, `.pth`, `.bin`, `.ckpt`), read without torch and without executing their pickle."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TypeVar

from weighbridge.formats.header import Header
from weighbridge.formats.hyperparameters import Value, flatten
from weighbridge.formats.inert import Meter, Record
from weighbridge.formats.torch_containers import Opened, Places, guarded, open_file
from weighbridge.formats.torch_contents import Contents, Named, children, sort_out
from weighbridge.formats.torch_names import StoredTensor, names, width
from weighbridge.ledger import DTYPES, File, Row, Stated
from weighbridge.ledger.errors import Malformed, NotFound, Truncated, Unknown

_MOST_ELEMENTS = 1 << 62


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

    Only the pickle and the directory are read, in two or three requests for a file behind HTTP. Offsets point to a
    tensor's first element and `nbytes` is its elements times their width. Metadata: "strides" has {name: strides in
    elements} of tensors that are not contiguous, and the
    name of each torchao tensor the form in which its parts are listed.

    Raises:
        NotFound: no tensors in it, or only an optimizer's.
        Refused: the pickle calls what no checkpoint needs, is absurdly large, or the bytes cannot be used as they lie.
        Malformed: not a PyTorch checkpoint, or a damaged one; Truncated when bytes are missing.
        Unknown: a dtype or layout whose bytes are not known.
    """
    opened = _Opened(open_file(file))
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
    opened = _Opened(open_file(file))
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
    opened = _Opened(open_file(file))
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
        if key in names().settings_keys or not isinstance(value, dict | list | tuple | Record):
            named.append((key, value))
    return flatten(named, meter)


T = TypeVar("T")


class _Opened:
    """A checkpoint on its way to rows."""

    def __init__(self, opened: Opened) -> None:
        self.root = opened.root
        self.meter = opened.meter
        self.name = opened.meter.name
        self._locate = opened.locate

    @cached_property
    def contents(self) -> Contents:
        return self.guard(lambda: sort_out(self.root, self.meter))

    def guard(self, work: Callable[[], T]) -> T:
        return guarded(self.name, work)

    def header(self, index: int) -> Header:
        header = self.rows(self.contents.model, index)
        frozen = frozenset(name for name, tensor in self.contents.model if tensor.frozen)
        stated = Stated(kinds=dict.fromkeys(self.contents.buffers, "buffer"), frozen=frozen)
        return replace(header, stated=stated, notes=list(notes_on_rest(self.contents)))

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
        listed = names().dtypes.get(tensor.dtype)
        if listed is None:
            raise Unknown(f"{self.name}: {name!r} has dtype torch.{tensor.dtype}, which is not known here")
        dtype, shape, wide = DTYPES[listed], tensor.shape, width(tensor.dtype)
        if storage.key not in places:
            raise Malformed(f"{self.name}: {name!r} has its data in storage {storage.key!r}, which is not listed")
        start, held = places[storage.key]
        first, elements = storage.view or (0, storage.numel)
        start, size = start + first * width(storage.dtype), elements * width(storage.dtype)
        if storage.numel * width(storage.dtype) > held:
            raise Truncated(f"{self.name}: {name!r} needs more than the {held:,} bytes of its storage")
        count = prod(shape)
        reach = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, tensor.strides, strict=True)) + 1
        if count > _MOST_ELEMENTS or (count and reach * wide > size):
            raise Malformed(f"{self.name}: {name!r} reaches past its storage of {size:,} bytes")
        if listed == "F4":
            if not shape or not _contiguous(tensor):
                raise Unknown(f"{self.name}: {name!r} has packed elements, but not in rows", fix="save it contiguous")
            shape = (*shape[:-1], 2 * shape[-1])
        return Row(name, dtype, shape, index, start + (tensor.offset * wide if count else 0), count * wide)


def notes_on_rest(contents: Contents) -> Iterator[str]:
    """What is to be said of groups of tensors beside the one that was taken for the model."""
    taken = sum(prod(tensor.shape) for _, tensor in contents.model)
    for key, named in contents.other.items():
        count = sum(prod(tensor.shape) for _, tensor in named)
        if count * 100 >= taken:  # not random states and the like
            path = ".".join(contents.path)
            yield f"{path!r} is taken for the model; {count:,} values called {key!r} are beside it, and not counted"


def _contiguous(tensor: StoredTensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in tensor.shape
        expected *= size
    return True
