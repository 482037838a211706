"""One tensor of a model: as a file's header lists it (`Row`) and as the ledger understands it (`Tensor`)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, overload

from weighbridge.ledger.dtype import DType

ROLES = (
    "embedding",
    "attention",
    "ffn",
    "expert",
    "router",
    "norm",
    "head",
    "conv",
    "ssm",
    "vision",
    "audio",
    "adapter",
    "other",
)


# The offset of a tensor whose values do not lie in its file as they are: compressed, in chunks, as text.
NOWHERE = (1 << 64) - 1


class Row(NamedTuple):
    """A tensor as stored. A NamedTuple, not a dataclass: large models have 90,000 and a tuple is made 8x faster."""

    name: str
    dtype: DType
    shape: tuple[int, ...]  # row-major; GGUF's reversed order is turned round by its reader
    file: int  # index into Source.files
    offset: int  # of its first byte in that file, or NOWHERE
    nbytes: int


class Kind(NamedTuple):
    """What tensors of one dtype and shape have in common. Made by `kind_of` alone: equal kinds are one object."""

    dtype: DType
    shape: tuple[int, ...]
    nbytes: int


_KINDS: dict[tuple[str, tuple[int, ...]], Kind] = {}
_MOST_KINDS = 200_000


def kind_of(element: DType, shape: tuple[int, ...], /) -> Kind:
    """The kind of that dtype and shape.

    Raises:
        Unknown: part of a block.
    """
    kind = _KINDS.get((element.name, shape))
    if kind is None:
        if len(_KINDS) > _MOST_KINDS:
            _KINDS.clear()
        kind = _KINDS[element.name, shape] = Kind(element, shape, element.nbytes(prod(shape)))
    return kind


class Rows(Sequence[Row]):
    """Rows kept as columns: 92,000 of them are read, joined and grouped in half the time that records would take."""

    __slots__ = ("files", "kinds", "names", "offsets")

    def __init__(self, *, names: list[str], kinds: list[Kind], files: list[int], offsets: list[int]) -> None:
        self.names, self.kinds, self.files, self.offsets = names, kinds, files, offsets

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Rows":
        """The same rows as columns."""
        if isinstance(rows, Rows):
            return rows
        listed = list(rows)
        return cls(
            names=[row.name for row in listed],
            kinds=[kind_of(row.dtype, row.shape) for row in listed],
            files=[row.file for row in listed],
            offsets=[row.offset for row in listed],
        )

    @classmethod
    def joined(cls, parts: Iterable["Rows"]) -> "Rows":
        """All rows, one part after the other."""
        whole = cls(names=[], kinds=[], files=[], offsets=[])
        for part in parts:
            whole.names += part.names
            whole.kinds += part.kinds
            whole.files += part.files
            whole.offsets += part.offsets
        return whole

    def after(self, files: int) -> "Rows":
        """The same rows in a source that has `files` other files first."""
        return Rows(
            names=self.names, kinds=self.kinds, files=[file + files for file in self.files], offsets=self.offsets
        )

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return Rows(
                names=self.names[index],
                kinds=self.kinds[index],
                files=self.files[index],
                offsets=self.offsets[index],
            )
        kind = self.kinds[index]
        return Row(self.names[index], kind.dtype, kind.shape, self.files[index], self.offsets[index], kind.nbytes)

    def __iter__(self) -> Iterator[Row]:
        for name, kind, file, offset in zip(self.names, self.kinds, self.files, self.offsets, strict=True):
            yield Row(name, kind.dtype, kind.shape, file, offset, kind.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor with its meaning.

    `elements` counts what the model computes with: a packed 4-bit weight of shape (4096, 512) int32 holds 4096 x 4096.
    `kind` is "parameter", "buffer" or "extra"; an extra says which one in `extra`.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    role: str
    kind: str
    extra: str | None
    elements: int
    layer: int | None
    expert: int | None
    bias: bool
    trainable: bool
    tied_to: str | None
    file: int
    offset: int
    nbytes: int


def numel(shape: tuple[int, ...]) -> int:
    """Elements of a tensor of that shape; 1 for a scalar."""
    return prod(shape)
