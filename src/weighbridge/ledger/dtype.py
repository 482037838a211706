"""Element types of every format that Weighbridge reads, in one table.

Names are those of the format that owns the type: safetensors for scalar types, ggml for block types. A block type
stores `block` elements in `block_bytes` bytes, scales included, so that bits per element come out exactly.

Sources: safetensors 0.8 `Dtype`; ggml's `ggml_type` with `ggml_blck_size` and `ggml_type_size` (gguf 0.19
`GGML_QUANT_SIZES`); the OCP Microscaling specification 1.0 for MXFP4; ONNX 1.23 `TensorProto` for I4, U4, I2, U2.
"""

from dataclasses import dataclass

from weighbridge.ledger.errors import Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class DType:
    """An element type: `block` elements take `block_bytes` bytes."""

    name: str
    kind: str  # float | int | bool | complex | block
    block: int
    block_bytes: int

    @property
    def bits(self) -> float:
        """Bits per element, block scales included."""
        return self.block_bytes * 8 / self.block

    def nbytes(self, count: int, /) -> int:
        """Bytes of `count` elements.

        Raises:
            Unknown: `count` is not a whole number of blocks.

        """
        blocks, rest = divmod(count, self.block)
        if rest:
            raise Unknown(f"{count} elements are not a whole number of {self.name} blocks of {self.block}")
        return blocks * self.block_bytes

    def __str__(self) -> str:
        return self.name


def _scalars() -> list[DType]:
    widths = {
        "float": {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
        | {"F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1},
        "int": {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
        "bool": {"BOOL": 1},
        "complex": {"C64": 8, "C128": 16, "C32": 4},
    }
    rows = [
        DType(name=name, kind=kind, block=1, block_bytes=width)
        for kind, names in widths.items()
        for name, width in names.items()
    ]
    rows += [
        DType(name="F4", kind="float", block=2, block_bytes=1),
        DType(name="F6_E2M3", kind="float", block=4, block_bytes=3),
        DType(name="F6_E3M2", kind="float", block=4, block_bytes=3),
        DType(name="I4", kind="int", block=2, block_bytes=1),
        DType(name="U4", kind="int", block=2, block_bytes=1),
        DType(name="I2", kind="int", block=4, block_bytes=1),
        DType(name="U2", kind="int", block=4, block_bytes=1),
    ]
    return rows


# ggml type id -> (name, elements per block, bytes per block). Ids 4, 5, 31-33 and 36-38 were removed from ggml: files
# that carry them need a loader of their day. Q8_1 is 36 bytes as in ggml's own struct (two halves and 32 bytes); the
# gguf package still lists the older 40.
_GGML: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

DTYPES: dict[str, DType] = {row.name: row for row in _scalars()}
DTYPES |= {
    name: DType(name=name, kind="block", block=block, block_bytes=size)
    for name, block, size in _GGML.values()
    if name not in DTYPES
}

GGML_TYPES: dict[int, DType] = {number: DTYPES[name] for number, (name, _, _) in _GGML.items()}


def dtype(name: str, /) -> DType:
    """The element type called `name`.

    Raises:
        Unknown: no such type; its width is never guessed.

    """
    try:
        return DTYPES[name]
    except KeyError:
        raise Unknown(f"unknown dtype {name!r}", fix="a newer Weighbridge may know it") from None
