"""TensorFlow SavedModels: a folder of a graph, and of variables in shards with an index.

The index says what is stored; the graph's file is stepped through only for what it says of the variables
(`saved_graph`). Variables that are not trained are buffers (moving averages, seeds, counters), unless their name is
that of a weight, which then is frozen; an optimizer's are extras.

Source: TensorFlow 2.21 `tensor_bundle.proto`; Keras 3.15 `Model.export`.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from weighbridge.formats.folder import Repository
from weighbridge.formats.header import Header
from weighbridge.formats.protobuf import BYTES, FIXED32, Field, Wire
from weighbridge.formats.saved_graph import Said, names_of, said_by
from weighbridge.formats.sstable import entries
from weighbridge.ledger import DTYPES, NOWHERE, DType, File, Row, Stated, numel, role_of
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Truncated, Unknown

GRAPH, INDEX = "saved_model.pb", "variables/variables.index"
OPTIMIZER, TIED_COPIES = "optimizer_state", "tied_copies"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_TYPES = {
    1: "F32", 2: "F64", 3: "I32", 4: "U8", 5: "I16", 6: "I8", 8: "C64", 9: "I64", 10: "BOOL", 14: "BF16", 17: "U16",
    18: "C128", 19: "F16", 22: "U32", 23: "U64", 24: "F8_E5M2", 25: "F8_E4M3",
}  # fmt: skip
_TEXT = 7
_SLICE = "\0"  # how the keys of slices begin: the variable's own entry says what they are slices of
_MOST_TENSORS = 150_000
_MOST_SHARDS = 10_000
_WEIGHTS = frozenset(
    [
        "kernel",
        "bias",
        "gamma",
        "beta",
        "embeddings",
        "recurrent_kernel",
        "depthwise_kernel",
        "pointwise_kernel",
        "alpha",
    ]
)
_OPTIMIZERS = re.compile(r"(?:^|/)_?optimizer(?:/|$)|/\.OPTIMIZER_SLOT/")
_SLOTS = re.compile(
    r"/(?:Adam|Adam_1|Momentum|Adagrad|RMSProp|RMSProp_1|Ftrl|Ftrl_1|ExponentialMovingAverage)$|^beta[12]_power$"
)
_NUMBER = re.compile(r"\d+")


class _Entry(NamedTuple):
    """What the index says of a tensor; `sum` is the checksum of its values."""

    key: str
    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    sum: bytes
    sliced: bool


def read_folder(repository: Repository, *, index: int = 0) -> Header:
    """The variables of a SavedModel.

    Raises:
        NotFound: no variables, or a shard is missing.
        Malformed: files that are not what TensorFlow writes.
        Truncated: a shard ends before its variables do.
        Unknown: a type that is not known; a model that does not say which of its variables are trained.
    """
    for name in (GRAPH, INDEX):
        if name not in repository.files:
            raise NotFound(
                f"{repository.location} has no {name}",
                fix="a model whose weights are constants of its graph is not read; save it with its variables",
            )
    table = repository.open(INDEX)
    found, shards = _index(table)
    opened: dict[int, tuple[int, File]] = {}
    for entry in found:
        if entry.shard not in opened:
            name = f"variables/variables.data-{entry.shard:05d}-of-{shards:05d}"
            if name not in repository.files:
                raise NotFound(f"{repository.location} has no {name}", fix="download it with the others")
            opened[entry.shard] = index + len(opened), repository.open(name)
    _check(found, opened)
    said = said_by(repository.open(GRAPH))
    objects = next((entry for entry in found if entry.key == _OBJECTS and entry.kind == _TEXT), None)
    names = names_of(opened[objects.shard][1], objects.offset, objects.nbytes) if objects is not None else {}
    listed = [entry for entry in found if entry.kind != _TEXT and not entry.key.startswith(_SLICE)]
    # Keras exports each variable twice; the plain one is the original.
    listed.sort(key=lambda entry: entry.key.startswith("_all_variables/"))
    called, aliases = _called(listed, names)
    rows, kinds, roles, frozen = [], {}, {}, set()
    for entry in listed:
        name = called[entry.key]
        offset = NOWHERE if entry.sliced else entry.offset
        element = _dtype(entry, table.name)
        rows.append(Row(name, element, entry.shape, opened[entry.shard][0], offset, element.nbytes(numel(entry.shape))))
        number, own = names.get(entry.key, (-1, entry.key))
        kinds[name] = _kind(entry, said, number, own)
        if kinds[name] == "frozen":
            kinds[name], _ = "parameter", frozen.add(name)
        if kinds[name] == "parameter":
            roles[name] = _role(own, entry.shape)
        elif name in aliases:
            kinds[name] = TIED_COPIES
    if not rows:
        raise Malformed(f"{repository.location} holds no variable", fix="save the model with its variables")
    sliced = sum(entry.sliced for entry in listed)
    notes = [f"{sliced:,} variables are stored in slices"] if sliced else []
    if said.layered and said.listed is None:
        notes.append("the file does not say which layers are frozen: what is learned in them counts as trainable")
    return Header(
        rows=rows,
        aliases=aliases,
        stated=Stated(kinds=kinds, roles=roles, frozen=frozenset(frozen)),
        notes=notes,
        files=[opened_file for _, opened_file in opened.values()],
    )


def _index(table: File) -> tuple[list[_Entry], int]:
    """(entries, number of shards)."""
    wire, found, shards = Wire(table), [], 0
    for key, value in entries(table):
        if key == b"":
            for part in wire.fields(value.start, value.end):
                if part.number == 1:
                    shards = part.value
                elif part.number == 2 and part.value:
                    raise Refused(f"{table.name} is of a big-endian machine", fix="save the model on another")
            continue
        if len(found) >= _MOST_TENSORS:
            raise Malformed(f"{table.name} lists more than {_MOST_TENSORS:,} tensors")
        found.append(_entry(wire, key.decode("utf-8", "backslashreplace"), value, table.name))
    if not 0 < shards <= _MOST_SHARDS or any(entry.shard >= shards for entry in found):
        raise Malformed(f"{table.name} speaks of {shards:,} shards", fix="download it again")
    return found, shards


def _entry(wire: Wire, key: str, value: Field, name: str) -> _Entry:
    kind = shard = offset = size = 0
    total, sliced = b"", False
    shape: list[int] = []
    for part in wire.fields(value.start, value.end):
        if part.number == 1:
            kind = part.value
        elif part.number == 2 and part.wire == BYTES:
            for dim in wire.fields(part.start, part.end):
                if dim.number == 2 and dim.wire == BYTES:
                    shape.append(next((each.value for each in wire.fields(dim.start, dim.end) if each.number == 1), 0))
        elif part.number == 3:
            shard = part.value
        elif part.number == 4:
            offset = part.value
        elif part.number == 5:
            size = part.value
        elif part.number == 6 and part.wire == FIXED32:
            total = wire.read(part, largest=4)
        elif part.number == 7:
            sliced = True
    if len(shape) > 254 or numel(tuple(shape)) >= 1 << 60 or max(offset, size, shard) >= 1 << 60:
        raise Malformed(f"{name}: {key!r} has a shape of {str(shape)[:80]}", fix="download it again")
    return _Entry(key, kind, tuple(shape), shard, offset, size, total, sliced)


def _dtype(entry: _Entry, name: str) -> DType:
    if entry.kind not in _TYPES:
        raise Unknown(
            f"{name}: {entry.key!r} is of TensorFlow type {entry.kind}", fix="a newer Weighbridge may know it"
        )
    return DTYPES[_TYPES[entry.kind]]


def _check(found: list[_Entry], opened: Mapping[int, tuple[int, File]]) -> None:
    """Sizes are those of the shapes, and no value lies upon another or beyond its file."""
    whole = sum(_dtype(entry, INDEX).nbytes(numel(entry.shape)) for entry in found if entry.sliced)
    if whole != sum(entry.nbytes for entry in found if entry.key.startswith(_SLICE)):
        raise Malformed(f"{INDEX}: slices that do not make up their variables", fix="download it again")
    last: tuple[int, int] = (-1, 0)
    for entry in sorted(found, key=lambda entry: (entry.shard, entry.offset, entry.nbytes)):
        file = opened[entry.shard][1]
        if entry.sliced:
            continue
        if entry.kind != _TEXT and _dtype(entry, file.name).nbytes(numel(entry.shape)) != entry.nbytes:
            raise Malformed(f"{file.name}: {entry.key!r} of {list(entry.shape)} has {entry.nbytes:,} bytes")
        end = entry.offset + entry.nbytes
        if end > file.size:
            raise Truncated(f"{file.name} ends at {file.size:,} bytes, {end:,} are needed", fix="download it again")
        if last[0] == entry.shard and entry.offset < last[1] and entry.nbytes:
            raise Malformed(f"{file.name}: {entry.key!r} overlaps another variable", fix="download it again")
        last = entry.shard, max(end, last[1] if last[0] == entry.shard else 0)


def _called(listed: list[_Entry], names: Mapping[str, tuple[int, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """({key: name}, {copy: original}). A variable stored twice has one name, shape and checksum of its values."""
    called: dict[str, str] = {}
    first: dict[str, _Entry] = {}
    aliases = {}
    for entry in listed:
        name = names.get(entry.key, (-1, entry.key))[1]
        path = entry.key.removesuffix(_SUFFIX)
        original = first.setdefault(name, entry)
        if original is entry:
            called[entry.key] = name
            continue
        if path in first:
            path = entry.key
        first[path] = entry
        called[entry.key] = path
        alike = (entry.kind, entry.shape, entry.sum) == (original.kind, original.shape, original.sum)
        if alike and entry.sum and not entry.sliced:
            aliases[path] = name
    return called, aliases


def _kind(entry: _Entry, said: Said, number: int, name: str) -> str:
    """Parameter, frozen, buffer, or an extra.

    Raises:
        Unknown: nothing says whether the variable is trained.
    """
    known, trained = said.variables.get(number, ("", False))
    # An optimizer lists the weights that it trains among its own state.
    if (_OPTIMIZERS.search(entry.key) and not trained) or (_SLOTS.search(entry.key) and not said.objects):
        return OPTIMIZER
    if _TYPES[entry.kind][0] in "IUB" and entry.kind != 14:
        return "buffer"
    if said.objects:
        if number not in said.variables or known != name:
            if entry.key == "save_counter" + _SUFFIX:
                return "buffer"
            raise Unknown(f"the graph does not say whether {name!r} is trained", fix="save the model again")
        if trained:
            return "parameter" if said.listed is None or number in said.listed else "frozen"
        return "frozen" if name.rpartition("/")[2] in _WEIGHTS else "buffer"
    if not said.collections:
        raise Unknown(f"nothing says whether {name!r} is trained", fix="save the model with TensorFlow 2")
    return "parameter" if name in said.trained else "buffer"


def _role(name: str, shape: tuple[int, ...]) -> str:
    parts = _NUMBER.sub("#", name).split("/")
    if parts[-1] in (
        "kernel",
        "embeddings",
        "gamma",
        "alpha",
        "depthwise_kernel",
        "pointwise_kernel",
        "recurrent_kernel",
    ):
        parts[-1] = "weight"
    if any("normalization" in part for part in parts):
        return "norm"
    if any("attention" in part for part in parts):
        return "attention"  # before the "head" in multi_head_attention is taken for one
    return role_of(".".join(parts), shape)
