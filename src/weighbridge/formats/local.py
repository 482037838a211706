"""Files on a disk."""

import os
from pathlib import Path

from weighbridge.ledger.errors import NotFound, Refused


class LocalFile:
    """A file on a disk, opened when first read. Only regular files: a pipe or device has no size and may never end."""

    __slots__ = ("_fd", "name", "path", "size")

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        """`name` is what people call it: relative to its model.

        Raises:
            NotFound: no such file.
            Refused: not a regular file, or not allowed to read.

        """
        self.path = path
        self.name = name or path.name
        self._fd = -1
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no such file: {self.name}") from None
        except OSError as error:
            raise Refused(f"cannot read {self.name}: {error.strerror}") from None
        if not path.is_file():
            raise Refused(f"{self.name} is not a regular file")
        self.size = status.st_size

    def read(self, offset: int, length: int, /) -> bytes:
        """Up to `length` bytes from `offset`."""
        if self._fd < 0:
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise Refused(f"cannot read {self.name}: {error.strerror}") from None
        parts = []
        while length > 0:
            try:
                part = os.pread(self._fd, min(length, 1 << 30), offset)
            except OSError as error:
                raise Refused(f"cannot read {self.name}: {error.strerror}") from None
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Gives the file descriptor back; reading opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()
