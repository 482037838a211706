"""One tensor of a model: as a file's header lists it (`Row`) and as the ledger understands it (`Tensor`)."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

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


class Row(NamedTuple):
    """A tensor as stored. A NamedTuple, not a dataclass: large models have 90,000 and a tuple is made 8x faster."""

    name: str
    dtype: DType
    shape: tuple[int, ...]  # row-major; GGUF's reversed order is turned round by its reader
    file: int  # index into Source.files
    offset: int  # of its first byte in that file
    nbytes: int


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
