"""Leaf digests of files already read, kept in one SQLite file.

A file is known by its path and its stamp (size, times of change in nanoseconds, inode): whoever changes its bytes
changes the stamp. The cache may be deleted at any time, and may be missing, locked, full, read-only or corrupt: each
entry carries a checksum, every failure means "not known", and no digest depends on it.
"""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from weighbridge.ledger.errors import NotFound, Refused

try:
    from _blake2 import blake2b  # what hashlib gives, without loading OpenSSL: `weigh show` counts milliseconds
except ImportError:
    from hashlib import blake2b

if TYPE_CHECKING:
    import sqlite3

_NAME = "digests-1.sqlite3"
_MOST_FILES, _MOST_ROOTS = 4096, 128
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (key BLOB PRIMARY KEY, body BLOB NOT NULL, written REAL NOT NULL);
CREATE TABLE IF NOT EXISTS roots (key BLOB PRIMARY KEY, body BLOB NOT NULL, written REAL NOT NULL);
"""
# A leaf is filed under 17 bytes: a mark, then its offset and length, or a hash of its layout when it is strided.
KEY, LEAF, _SUM = 17, 32, 16

Stamp = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode


def stamp_of(status: os.stat_result) -> Stamp:
    """What tells a file's state. ctime is in it because mtime can be set back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


class Near(NamedTuple):
    """A file on a disk, in a known state."""

    path: str
    stamp: Stamp


def near(path: str, name: str) -> Near:
    """The file at that path, as it is now; `name` is what people call it.

    Raises:
        NotFound: no such file any more.
        Refused: its folder may not be looked at.
    """
    try:
        return Near(os.path.abspath(path), stamp_of(os.stat(path)))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{name} is not there any more") from None
    except OSError as error:
        raise Refused(f"cannot read {name}: {error.strerror}") from None


def location() -> str:
    """The cache's path: in `$WEIGH_HOME/cache`, else in the platform's cache folder."""
    home = os.environ.get("WEIGH_HOME")
    if home:
        return os.path.join(home, "cache", _NAME)
    if sys.platform == "linux":  # as platformdirs has it, whose import takes 20 ms
        folder = os.environ.get("XDG_CACHE_HOME", "").strip() or os.path.expanduser("~/.cache")
        return os.path.join(folder, "weighbridge", _NAME)
    import platformdirs

    return os.path.join(platformdirs.user_cache_dir("weighbridge"), _NAME)


class Cache:
    """The cache as one process sees it; safe between processes, used from one thread at a time."""

    def __init__(self, *, wait: float = 1.0) -> None:
        """`wait` is how many seconds another process's lock is waited for, once."""
        self._wait = wait
        self._path = location()
        self._connection: sqlite3.Connection | None = None
        self._broken = False

    def leaves(self, file: Near, /) -> dict[bytes, bytes]:
        """The leaves known of a file in that state, by their keys."""
        body = self._get("files", os.fsencode(file.path), of=file.stamp)
        step = KEY + LEAF
        return {body[at : at + KEY]: body[at + KEY : at + step] for at in range(0, len(body), step)} if body else {}

    def keep_leaves(self, file: Near, leaves: Mapping[bytes, bytes], /) -> None:
        """Files the leaves of a file in that state; those of any other state are forgotten."""
        body = b"".join(key + leaf for key, leaf in leaves.items())
        self._put("files", os.fsencode(file.path), body, file.stamp, _MOST_FILES)

    def root(self, key: bytes, /) -> bytes | None:
        """What `keep_root` filed under that key."""
        return self._get("roots", key)

    def keep_root(self, key: bytes, body: bytes, /) -> None:
        """Files the result of a whole model."""
        self._put("roots", key, body, None, _MOST_ROOTS)

    def close(self) -> None:
        """Gives the file back."""
        if self._connection is not None:
            with suppress(Exception):
                self._connection.close()
            self._connection = None

    def _get(self, table: str, key: bytes, *, of: Stamp | None = None) -> bytes | None:
        if self._connection is None and not os.path.exists(self._path):
            return None
        rows = self._run(f"SELECT body FROM {table} WHERE key = ?", (key,))
        if not rows or not isinstance(rows[0][0], bytes):
            return None
        body = rows[0][0]
        return body[_SUM:] if body[:_SUM] == _checksum(key, of, body[_SUM:]) else None

    def _put(self, table: str, key: bytes, body: bytes, of: Stamp | None, most: int) -> None:
        if self._connection is None and not os.path.exists(self._path):
            with suppress(OSError):
                os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        row = (key, _checksum(key, of, body) + body, time.time())
        if self._run(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", row) is not None:
            oldest = f"SELECT key FROM {table} ORDER BY written DESC LIMIT -1 OFFSET {most}"
            self._run(f"DELETE FROM {table} WHERE key IN ({oldest})", ())

    def _run(self, statement: str, values: tuple[object, ...]) -> list[tuple[object, ...]] | None:
        """The rows, or None after any failure, which also ends the use of the cache by this process."""
        if self._broken:
            return None
        try:
            import sqlite3
        except ImportError:  # Python can be built without it
            self._broken = True
            return None
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(self._path, timeout=self._wait, isolation_level=None)
                # Checksums make a power failure harmless, so that nothing waits for the disk.
                self._connection.executescript("PRAGMA synchronous = OFF;" + _SCHEMA)
            return self._connection.execute(statement, values).fetchall()
        except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
            self.close()
            self._broken = True
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                with suppress(OSError):  # not a database: the next process begins a new one
                    os.unlink(self._path)
            return None


def _checksum(key: bytes, of: Stamp | None, body: bytes) -> bytes:
    return blake2b(repr((key, of)).encode() + body, digest_size=_SUM).digest()
