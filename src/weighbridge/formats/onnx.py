"""ONNX: a graph of operators and the constants that it stores, in one protocol buffer or with the values beside it.

A graph says of a constant what it is used for, seldom whether it was learned. It is a parameter when an operator takes
it as a weight or bias (`onnx_uses`), or when it carries a name that a program gave it; torch's exporter states the kind
itself (`onnx_judge`). What has neither (a folded table of positions, the anchors of a detector) is counted apart.

Source: onnx 1.23 (IR version 14); torch 2.13 `torch.onnx.export`; onnxruntime 1.32.
"""

from collections.abc import Callable, Iterator

from weighbridge.formats import onnx_uses, onnx_values
from weighbridge.formats.graph_notes import graph_notes
from weighbridge.formats.header import Header
from weighbridge.formats.onnx_graph import Model, parse
from weighbridge.formats.onnx_judge import (
    REPEATED,
    Stating,
    Stored,
    folded_copies,
    kind_of,
    maybe_tied,
    role_to_state,
    settled,
)
from weighbridge.formats.onnx_uses import FOREIGN, OPERAND, PARAMETER
from weighbridge.ledger import DTYPES, NOWHERE, File, Row, Stated, numel
from weighbridge.ledger.errors import Malformed, NotFound, Truncated

_MOST_FILES = 20_000
_SAMPLES = 12


def read(file: File, *, index: int = 0, beside: Callable[[str], File | None] | None = None) -> Header:
    """The constants of an ONNX file; `beside` opens the files that hold values of theirs.

    Parameters are weights and biases by their use; running statistics, shapes, axes, masks are buffers; scales and zero
    points are extras; packed weights count as the weights they stand for.

    Raises:
        Malformed: not such a file, or one that no program writes.
        Truncated: it, or a file beside it, ends before its tensors do.
        NotFound: a file of values is missing.
        Unknown: packed weights of an operator that is not known; models that keep what they learned as settings.
    """
    model = parse(file)
    stating = Stating(model.graph)
    everything = settled(list(_listed(model, file.name, stating)), file.name)
    listed = [one for one in everything if one.constant.dtype is not None]
    if not listed:
        raise Malformed(f"{file.name} stores no tensor", fix="save the model with its weights")
    rows, files = _rows(listed, file, index, beside)
    aliases = _shared(rows, [file, *files], index)
    aliases |= {copy: original for copy, original in folded_copies(listed).items() if copy not in aliases}
    tied = _tied([one for one in listed if one.name not in aliases], rows, [file, *files], index)
    kinds, roles, elements = {}, {}, {}
    for one, row in zip(listed, rows, strict=True):
        kind = kind_of(one, file.name, signed=bool(stating))
        if kind is not None:
            kinds[one.name] = kind
        role = role_to_state(one) if kind in (None, PARAMETER) else None
        if role is not None:
            roles[one.name] = role
        packed = one.use.elements if one.use is not None and kind == PARAMETER else None
        count = numel(one.constant.shape) if packed is None else packed
        if one.how == REPEATED and kind == PARAMETER:
            count = onnx_values.unrepeated(row, [file, *files][row.file - index])
        elif one.use is not None and one.use.halves and kind == PARAMETER:
            count = onnx_values.without_empty_halves(row, [file, *files][row.file - index])
        if count != numel(row.shape):
            elements[one.name] = count
    notes = list(_notes(everything, rows, kinds, model))
    if not stating:
        notes += _by_name(listed, kinds)
    notes += [
        f"{copy!r} is {table!r} once more ({_SAMPLES} values compared): counted once" for copy, table in tied.items()
    ]
    return Header(
        rows=rows,
        metadata=dict(model.metadata) | {"opsets": dict(model.opsets)},
        aliases=aliases | tied,
        stated=Stated(kinds=kinds, roles=roles, elements=elements),
        notes=notes,
        files=files,
    )


def _listed(model: Model, file: str, stating: Stating) -> Iterator[Stored]:
    """Every constant of every graph; those of inner graphs are named by their node where a name is taken."""
    names: set[str] = set()
    for where, graph, values in onnx_uses.uses(model, file):
        places = {indices.name for _, indices, _ in graph.sparse}
        for own, value in values.items():
            name, again = own, 0
            while name in names:
                again += 1
                name = f"{where}{own}" if again == 1 else f"{where}{own}@{again}"
            names.add(name)
            constant = graph.constants[own]
            stated, sources, how = stating.of(own, graph)
            inner = graph is not model.graph
            yield Stored(name, own, constant, value.use, own in places, stated, sources, how, inner)


def _rows(
    listed: list[Stored], file: File, index: int, beside: Callable[[str], File | None] | None
) -> tuple[list[Row], list[File]]:
    opened: dict[str, tuple[int, File]] = {}
    rows = []
    for one in listed:
        constant, at, holder = one.constant, index, file
        if constant.location is not None:
            if constant.location not in opened:
                found = beside(constant.location) if beside is not None and len(opened) < _MOST_FILES else None
                if found is None:
                    raise NotFound(
                        f"{file.name} keeps {constant.name!r} in {constant.location}, which is not there",
                        fix="download it beside the model",
                    )
                opened[constant.location] = index + 1 + len(opened), found
            at, holder = opened[constant.location]
        if constant.offset + constant.nbytes > holder.size:
            end = constant.offset + constant.nbytes
            raise Truncated(
                f"{holder.name} ends at {holder.size:,} bytes, {constant.name!r} needs {end:,}", fix="download it again"
            )
        element, shape = constant.dtype or DTYPES["U8"], constant.shape
        if numel(shape) % element.block:  # the last byte is not full, which no dtype can say
            element, shape = DTYPES["U8"], (constant.nbytes,)
        offset = constant.offset if constant.offset or constant.location is not None else NOWHERE
        rows.append(Row(one.name, element, shape, at, offset, constant.nbytes))
    return rows, [found for _, found in opened.values()]


def _shared(rows: list[Row], files: list[File], index: int) -> dict[str, str]:
    """{copy: original} of tensors that lie in one place of a file beside the model.

    Raises:
        Malformed: tensors that overlap and are not one.
    """
    aliases: dict[str, str] = {}
    outside = sorted((row for row in rows if row.file > index and row.nbytes), key=lambda row: (row.file, row.offset))
    last: Row | None = None
    for row in outside:
        if last is not None and row.file == last.file and row.offset < last.offset + last.nbytes:
            if (row.offset, row.nbytes, row.dtype) != (last.offset, last.nbytes, last.dtype):
                where = files[row.file - index].name
                raise Malformed(f"{where}: {row.name!r} overlaps {last.name!r}", fix="save the model again")
            aliases[row.name] = last.name
        else:
            last = row
    return aliases


def _tied(listed: list[Stored], rows: list[Row], files: list[File], index: int) -> dict[str, str]:
    """{head: embedding} where an exporter stored a tied head once more, transposed and under a name of its own.

    A dozen values spread over the matrix are compared: equal ones at all of them are no chance.
    """
    by_name = {row.name: row for row in rows}
    found: dict[str, str] = {}
    for head, table, transposed in maybe_tied(listed):
        copy, original = by_name[head.name], by_name[table.name]
        if head.name in found or copy.offset in (0, NOWHERE) or original.offset in (0, NOWHERE):
            continue
        height, width = original.shape
        size = copy.dtype.nbytes(1)
        seen = set()
        for sample in range(_SAMPLES):
            row, column = height * (2 * sample + 1) // (2 * _SAMPLES), width * (7 * sample % _SAMPLES) // _SAMPLES
            place = column * height + row if transposed else row * width + column
            here = files[copy.file - index].read(copy.offset + place * size, size)
            there = files[original.file - index].read(original.offset + (row * width + column) * size, size)
            if here != there:
                break
            seen.add(here)
        else:
            if len(seen) > 1:  # all alike: zeros say nothing
                found[head.name] = table.name
    return found


def _by_name(listed: list[Stored], kinds: dict[str, str]) -> Iterator[str]:
    """What the name alone makes a parameter, where no exporter says what it is."""
    loose = [one for one in listed if one.name not in kinds and (one.use is None or one.use.kind in (OPERAND, FOREIGN))]
    count = sum(numel(one.constant.shape) for one in loose)
    if loose:
        yield (
            f"{count:,} values in {len(loose):,} constants are parameters by their names alone (first:"
            f" {loose[0].own!r}): a table that is not learned would look the same"
        )


def _notes(everything: list[Stored], rows: list[Row], kinds: dict[str, str], model: Model) -> Iterator[str]:
    yield from graph_notes(
        rows,
        kinds,
        texts=sum(one.constant.dtype is None for one in everything),
        sparse=len(model.graph.sparse),
        reason="the exporter folded them and dropped their names; ",
    )
    inside = [one.constant for one in everything if one.constant.dtype and one.constant.location is None]
    loose = sum(constant.offset == 0 and constant.nbytes > 0 for constant in inside)
    if loose:
        yield f"{loose:,} constants are stored number by number: their bytes are those of their type"
    if model.trains:
        yield "the graphs for training that it also holds are not counted"
