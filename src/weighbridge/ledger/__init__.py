"""The ledger room: what a model is made of. Imports the standard library only."""

from weighbridge.ledger.architecture import Architecture, Mixer, Router, Tower
from weighbridge.ledger.dtype import DTYPES, GGML_TYPES, DType, dtype
from weighbridge.ledger.ledger import Ledger
from weighbridge.ledger.roles import role_of
from weighbridge.ledger.signature import Signature
from weighbridge.ledger.source import File, Source, read_exactly
from weighbridge.ledger.stated import Stated
from weighbridge.ledger.tensor import NOWHERE, ROLES, Kind, Row, Rows, Tensor, kind_of, numel
from weighbridge.ledger.units import Bytes, Count

__all__ = [
    "DTYPES",
    "GGML_TYPES",
    "NOWHERE",
    "ROLES",
    "Architecture",
    "Bytes",
    "Count",
    "DType",
    "File",
    "Kind",
    "Ledger",
    "Mixer",
    "Router",
    "Row",
    "Rows",
    "Signature",
    "Source",
    "Stated",
    "Tensor",
    "Tower",
    "dtype",
    "kind_of",
    "numel",
    "read_exactly",
    "role_of",
]
