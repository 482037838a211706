"""Core ML: `.mlpackage` folders and `.mlmodel` files that hold an ML program.

Parameters are what operations take as weight, bias, gamma or beta (`mil`), and constants with a name that the source
model gave; running statistics, settings and shapes are buffers; scales, zero points and palettes are extras.

Source: coremltools 9.0 `mlmodel/format/Model.proto` and its converter.
"""

import re
from collections.abc import Callable, Iterator

from weighbridge.formats import mil
from weighbridge.formats.folder import Repository
from weighbridge.formats.graph_notes import UNATTRIBUTED, graph_notes
from weighbridge.formats.header import Header
from weighbridge.formats.mil import BUFFER, OPERAND, PARAMETER, STATE, TABLE, Program, Use
from weighbridge.formats.mil_values import Blob, missing
from weighbridge.formats.protobuf import BYTES, VARINT, Wire
from weighbridge.ledger import DTYPES, NOWHERE, File, Row, Stated, numel, role_of
from weighbridge.ledger.errors import Malformed, NotFound, Unknown

_LARGEST_STATE = 64 << 10
_PROGRAM = 502
_OTHERS = {
    303: "a neural network of the old kind", 403: "a neural network of the old kind",
    500: "a neural network of the old kind",
    200: "a pipeline", 201: "a pipeline", 202: "a pipeline", 302: "a tree ensemble", 402: "a tree ensemble",
}  # fmt: skip
_SUFFIX = re.compile(r"(?:_(?:to_(?:fp|u?int)\d+|quantized|palettized|promoted|cast_\w+|cast|sparsified))+(?:_\d+)?$")
_INVENTED = re.compile(r".*_\d+|(?:const|var|op|tmp)\w*|[xy]|.*_(?:axes|epsilon|pad|perm|shape|begin|end|eps)")
_NUMBER = re.compile(r"\d+")


def read_folder(repository: Repository, *, index: int = 0) -> Header:
    """The constants of a `.mlpackage`: `repository` is the package, or the folder in it that holds the model.

    Raises:
        NotFound: no model, or its file of weights is missing.
        Malformed, Unknown: as `read`.
    """
    models = [name for name in repository.files if name.endswith(".mlmodel")]
    if len(models) != 1:
        raise NotFound(f"{repository.location} holds {len(models)} models", fix="name the .mlpackage itself")
    folder = models[0].rpartition("/")[0]

    def beside(name: str) -> File | None:
        path = f"{folder}/{name}" if folder else name
        return repository.open(path) if path in repository.files else None

    return read(repository.open(models[0]), index=index, beside=beside)


def read(file: File, *, index: int = 0, beside: Callable[[str], File | None] | None = None) -> Header:
    """The constants of a Core ML model; `beside` opens the files of weights.

    Raises:
        Malformed: not such a file, or one that no converter writes.
        Truncated: it, or a file of weights, ends too soon.
        NotFound: a file of weights is missing.
        Unknown: a model that is no ML program.
    """
    wire, program = Wire(file), None
    specification = 0
    for part in wire.fields(0, file.size):
        if part.number == 1 and part.wire == VARINT:
            specification = part.value
        elif part.number == _PROGRAM and part.wire == BYTES:
            program = part
        elif part.number in _OTHERS or (200 <= part.number < 4000 and part.wire == BYTES):
            what = _OTHERS.get(part.number, f"a model of kind {part.number}")
            raise Unknown(
                f"{file.name} is {what}", fix="convert it to an ML program, or weigh what it was converted from"
            )
    if program is None or not specification:
        raise Malformed(f"{file.name} is not a Core ML model", fix="ML programs are read")
    opened: dict[str, tuple[int, File]] = {}

    def open_blobs(name: str) -> File:
        if name not in opened:
            found = beside(name) if beside is not None and len(opened) < 1000 else None
            if found is None:
                raise missing(name, file.name)
            opened[name] = index + 1 + len(opened), found
        return opened[name][1]

    return _header(mil.functions(wire, program, open_blobs), file, index, opened, specification)


def _header(
    functions: list[tuple[str, Program]],
    file: File,
    index: int,
    opened: dict[str, tuple[int, File]],
    specification: int,
) -> Header:
    rows: list[Row] = []
    kinds, roles, elements, aliases = {}, {}, {}, {}
    places: dict[tuple[int, int], Row] = {}
    for name, blob, use in _listed(functions):
        at = index if blob.location is None else opened[blob.location][0]
        offset = blob.offset if blob.offset or blob.location is not None else NOWHERE
        row = Row(name, blob.dtype, blob.shape, at, offset, blob.nbytes)
        kind = _kind(blob, use)
        if kind == STATE:
            holder = file if blob.location is None else opened[blob.location][1]
            zeros = blob.offset and blob.nbytes <= _LARGEST_STATE and not any(holder.read(blob.offset, blob.nbytes))
            kind = BUFFER if zeros else UNATTRIBUTED
        if kind is not None:
            kinds[name] = kind
        if kind in (None, PARAMETER):
            roles[name] = _role(blob.name, use)
        count = numel(blob.dense) if _packed(blob, use) else numel(blob.shape)
        if count != numel(blob.shape):
            if count > blob.nbytes * 8 * 8:
                raise Malformed(f"{file.name}: {name!r} stands for {count:,} values", fix="convert the model again")
            elements[name] = count
        # Functions of one model share their weights.
        first = places.setdefault((at, blob.offset), row) if blob.location is not None and row.nbytes else row
        if first is not row:
            if (first.dtype, first.nbytes) != (row.dtype, row.nbytes):
                raise Malformed(f"{file.name}: {name!r} overlaps {first.name!r}", fix="convert the model again")
            aliases[name] = first.name
            if kind not in (None, PARAMETER):
                kinds[name] = "tied_copies"
        rows.append(row)
    if not rows:
        raise Malformed(f"{file.name} stores no tensor", fix="convert the model again")
    _no_overlap(list(places.values()), index, [one for _, one in opened.values()])
    return Header(
        rows=rows,
        metadata={"specification_version": specification},
        aliases=aliases,
        stated=Stated(kinds=kinds, roles=roles, elements=elements),
        notes=list(graph_notes(rows, kinds, sparse=sum(kind == mil.MASK for kind in kinds.values()))),
        files=[found for _, found in opened.values()],
    )


def _listed(functions: list[tuple[str, Program]]) -> Iterator[tuple[str, Blob, Use | None]]:
    names: set[str] = set()
    for function, program in functions:
        for own, blob in program.constants.items():
            name, again = own, 0
            while name in names:
                again += 1
                name = f"{function}/{own}" if again == 1 else f"{function}/{own}@{again}"
            names.add(name)
            yield name, blob, program.uses.get(own)


def _no_overlap(rows: list[Row], index: int, files: list[File]) -> None:
    last: Row | None = None
    for row in sorted(rows, key=lambda row: (row.file, row.offset)):
        if last is not None and row.file == last.file and row.offset < last.offset + last.nbytes:
            where = files[row.file - index - 1].name
            raise Malformed(f"{where}: {row.name!r} overlaps {last.name!r}", fix="convert the model again")
        last = row


def _packed(blob: Blob, use: Use | None) -> bool:
    """Whether a constant holds codes of what has another shape: a palette's indices."""
    whole = blob.name.endswith((".indices", ".quantized_data", ".data")) or blob.dtype is DTYPES["U8"]
    return (
        whole
        and not blob.name.endswith(".nonzero_data")
        and bool(blob.dense)
        and (use is None or use.kind in (PARAMETER, TABLE, OPERAND))
    )


def _bare(name: str) -> str:
    """A constant's name without what the converter appends; the end alone is looked at."""
    own = name.partition(".")[0]
    return own[:-64] + _SUFFIX.sub("", own[-64:])


def _kind(blob: Blob, use: Use | None) -> str | None:
    kind = use.kind if use is not None else OPERAND
    if kind not in (PARAMETER, BUFFER, TABLE, OPERAND):
        return kind
    bare = _bare(blob.name)
    coded = "." in blob.name  # a part of a quantized weight
    anonymous = _INVENTED.fullmatch(bare) is not None
    if blob.dtype.kind in ("int", "bool") and not coded and not (kind == PARAMETER and blob.dtype.bits <= 8):
        return BUFFER
    if kind in (PARAMETER, BUFFER):
        return kind
    if numel(blob.shape) <= 1:
        return BUFFER
    if coded:
        return UNATTRIBUTED if anonymous else PARAMETER
    return UNATTRIBUTED if anonymous else None


def _role(name: str, use: Use | None) -> str:
    if use is not None and use.role is not None and use.role != "embedding":
        return use.role
    bare = _NUMBER.sub("#", _bare(name))
    # Dots of the source model's names became underscores.
    for text in (bare, bare.replace("_", ".")):
        role = role_of(text, ())
        if role != "other":
            return role
    return (use.role if use is not None else None) or "other"
