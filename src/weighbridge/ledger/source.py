"""Where a ledger's bytes come from: files that can be read at any offset, near or far."""

from collections.abc import Sequence
from typing import Protocol

from weighbridge.ledger.errors import Truncated


class File(Protocol):
    """A file that can be read at any offset: on a disk, behind HTTP, inside a zip."""

    @property
    def name(self) -> str:
        """Its name for people: relative to the model it belongs to."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    def read(self, offset: int, length: int, /) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""


def read_exactly(file: File, offset: int, length: int, /) -> bytes:
    """`length` bytes from `offset`.

    Raises:
        Truncated: the file ends before.

    """
    data = file.read(offset, length) if offset + length <= file.size else b""
    if len(data) != length:
        raise Truncated(
            f"{file.name} ends at {file.size:,} bytes, {offset + length:,} are needed", fix="download it again"
        )
    return data


class Source:
    """A model's files, and where they lie."""

    __slots__ = ("files", "location")

    def __init__(self, *, location: str, files: Sequence[File]) -> None:
        """`location` is what the user gave: a path, `org/name@revision`, `ollama:name`."""
        self.location = location
        self.files = tuple(files)

    def __str__(self) -> str:
        return self.location
