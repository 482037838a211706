"""Zip archives of strangers: members by name, read from their beginning, within bounds.

The standard library's zipfile does the reading; what it trusts is checked before: the size of the directory, names that
occur twice, members that unpack to more than they say.
"""

import io
import zipfile
from collections.abc import Iterator

from weighbridge.formats.torch_zip import find_directory
from weighbridge.ledger import File
from weighbridge.ledger.errors import Malformed, Refused, Truncated

_LARGEST_DIRECTORY = 16 << 20
_MOST_MEMBERS = 120_000


class _Stream(io.RawIOBase):
    """A `File` as zipfile wants it."""

    def __init__(self, file: File) -> None:
        self._file, self._at = file, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._file.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class Archive:
    """The members of a zip."""

    def __init__(self, file: File) -> None:
        """Reads the directory.

        Raises:
            Truncated: no directory, or not all of it.
            Malformed: not a zip, or one that lists a name twice.
        """
        count, size, _ = find_directory(file)
        if size > _LARGEST_DIRECTORY or count > _MOST_MEMBERS:
            raise Malformed(f"{file.name}: a directory of {count:,} members in {size:,} bytes")
        self.name = file.name
        try:
            self._zip = zipfile.ZipFile(io.BufferedReader(_Stream(file), 1 << 16))  # type: ignore[arg-type]
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise Malformed(f"{file.name} is not a sound zip archive ({error})", fix="download it again") from None
        self.members = {info.filename: info for info in self._zip.infolist()}
        if len(self.members) != len(self._zip.infolist()):
            raise Malformed(f"{file.name} lists a member twice", fix="no reader can tell which one is meant")
        for info in self.members.values():
            if info.header_offset + info.compress_size > file.size:
                raise Truncated(f"{file.name} ends before its member {info.filename!r} does", fix="download it again")

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def size(self, name: str) -> int:
        """Bytes of a member once unpacked, as the directory says."""
        return self.members[name].file_size

    def is_stored(self, name: str) -> bool:
        """Whether its bytes lie in the archive as they are."""
        return self.members[name].compress_type == zipfile.ZIP_STORED

    def start(self, name: str, length: int) -> bytes:
        """The first bytes of a member.

        Raises:
            Refused: encrypted, or packed by a method that Python lacks.
            Malformed: damaged.
        """
        try:
            with self._zip.open(name) as member:
                return member.read(length)
        except (RuntimeError, NotImplementedError) as error:
            raise Refused(f"{self.name}: its {name!r} cannot be read ({error})", fix="pack it again, plainly") from None
        except Exception as error:  # zlib's, lzma's, zipfile's own: all mean that the bytes are damaged
            raise Malformed(
                f"{self.name}: its {name!r} is damaged ({str(error)[:80]})", fix="download it again"
            ) from None

    def read(self, name: str, *, largest: int) -> bytes:
        """A whole member.

        Raises:
            Refused: larger than `largest`, encrypted, or packed by a method that Python lacks.
            Malformed: not there, damaged, or of another size than the directory says.
        """
        if name not in self.members:
            raise Malformed(f"{self.name} has no {name!r}", fix="it is not complete: save it again")
        if self.size(name) > largest:
            raise Refused(
                f"{self.name}: its {name!r} has {self.size(name):,} bytes, over the {largest:,} of a real one"
            )
        data = self.start(name, largest + 1)
        if len(data) != self.size(name):
            raise Malformed(f"{self.name}: its {name!r} is not of the size that the directory says")
        return data

    def offset(self, name: str) -> int:
        """Where a stored member's bytes begin in the archive; 0 for a packed one, whose bytes lie nowhere."""
        if not self.is_stored(name):
            return 0
        try:
            with self._zip.open(name) as member:
                found = getattr(member, "_orig_compress_start", None)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
            raise Malformed(f"{self.name}: {name!r} is damaged ({error})", fix="download it again") from None
        return int(found) if found is not None else 0
