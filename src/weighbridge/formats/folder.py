"""A model's files by name, wherever they lie: a local folder here, a hub repository in `hub`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from weighbridge.formats.local import LocalFile
from weighbridge.ledger import File
from weighbridge.ledger.errors import Malformed, Refused


class Repository(Protocol):
    """Files by relative name. `location` is what the user gave, `version` a commit where one is known."""

    @property
    def location(self) -> str:
        """As the user gave it."""

    @property
    def base(self) -> str:
        """The model's name."""

    @property
    def version(self) -> str | None:
        """The commit or revision, when there is one."""

    @property
    def files(self) -> Mapping[str, int]:
        """{relative name: size in bytes}."""

    def open(self, name: str, /) -> File:
        """The file of that name."""


class LocalFolder:
    """A folder on a disk, with `levels` of subfolders: one, for those that may hold quantizations or parts. `odd` are
    the names of what is no file: pipes, links to nothing.
    """

    _MOST_FILES = 100_000

    def __init__(self, path: Path, *, location: str, base: str, version: str | None, levels: int = 1) -> None:
        self.path, self.location, self.base, self.version = path, location, base, version
        self.files: dict[str, int] = {}
        self.odd: list[str] = []
        try:
            self._list(path, "", levels=levels)
        except OSError as error:
            raise Refused(f"cannot read {location}: {error.strerror}") from None

    def _list(self, folder: Path, prefix: str, *, levels: int) -> None:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if len(self.files) > self._MOST_FILES:
                    raise Refused(
                        f"{self.location} has more than {self._MOST_FILES:,} files", fix="name the model's own folder"
                    )
                try:
                    if entry.is_file():
                        self.files[prefix + entry.name] = entry.stat().st_size
                    elif not entry.is_dir():
                        self.odd.append(prefix + entry.name)
                    elif levels and not entry.name.startswith("."):
                        self._list(folder / entry.name, f"{prefix}{entry.name}/", levels=levels - 1)
                except OSError:
                    continue  # a link in circles, a folder that may not be read: nothing of the model's

    def open(self, name: str, /) -> LocalFile:
        """The file of that name."""
        return LocalFile(self.path / name, name=name)


def read_small(repository: Repository, name: str, *, largest: int) -> bytes | None:
    """A whole small file; None when there is none.

    Raises:
        Malformed: larger than any real file of that name.

    """
    size = repository.files.get(name)
    if size is None:
        return None
    if size > largest:
        raise Malformed(f"{name} has {size:,} bytes, more than the {largest:,} of any real one")
    return repository.open(name).read(0, size)
