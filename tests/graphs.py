"""What the tests of every format that stores a graph share: a ledger of one header, and damaged copies of a file."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from weighbridge.formats.header import Header
from weighbridge.ledger import NOWHERE, File, Ledger, Source
from weighbridge.ledger.errors import WeighError


def weighed(header: Header, path: Path, format: str, files: list[File]) -> Ledger:
    """The ledger of a header; each row lies within its file, and the parts add up to what is stored."""
    for row in header.rows:
        assert row.offset == NOWHERE or 0 <= row.offset <= row.offset + row.nbytes <= files[row.file].size
    ledger = Ledger(
        source=Source(location=str(path), files=files),
        format=format,
        rows=header.rows,
        aliases=header.aliases,
        stated=header.stated,
    )
    assert ledger.total + ledger.buffers + sum(ledger.extras.values()) == ledger.stored + ledger.packed
    return ledger


def damaged(whole: bytes, *, copies: int, seed: int) -> Iterator[bytes]:
    """Copies of a file with one to five bytes changed."""
    draw = random.Random(seed)
    for _ in range(copies):
        raw = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        yield bytes(raw)


def survives(path: Path, read: Callable[[], object], *, copies: int, seed: int) -> None:
    """Damages the file at `path` again and again: `read` gives a ledger or an error of one line. Then mends it."""
    whole = path.read_bytes()
    for raw in damaged(whole, copies=copies, seed=seed):
        path.write_bytes(raw)
        try:
            read()
        except WeighError as error:
            assert "\n" not in str(error)
    path.write_bytes(whole)
