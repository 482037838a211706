"""A file's bytes through windows of bounded size, by the fastest way that cannot crash.

Pages that the kernel holds in memory are hashed in place, a third faster than copied by read(); but a mapping kills the
process (SIGBUS) when another one truncates the file, or the disk fails. So a window is mapped only under two guards of
Linux: a read lease, by which the kernel holds back whoever would write to the file until we let go, and
MADV_POPULATE_READ, which turns a disk's failure into an error. Where either is refused, on other systems, and where the
disk must be waited for anyway, bytes are copied with preadv.
"""

import mmap
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from weighbridge.ledger import File, read_exactly
from weighbridge.ledger.errors import Truncated

_PAGE = mmap.ALLOCATIONGRANULARITY
_POPULATE_READ = 22  # Linux 5.14; Python has no name for it yet
_COPIED = 1 << 20  # stays in a core's cache between the copy and the hash
_FETCHED = 20 << 20  # more than a far file keeps for rereading, so that nothing piles up


class Windows(Protocol):
    """A file, seen a window at a time. Views are valid until the next call."""

    def view(self, offset: int, length: int, /) -> memoryview:
        """At least one and at most `length` bytes from `offset`."""

    def close(self) -> None:
        """Gives everything back; no view may be alive."""


class FarWindows:
    """Of a file that is not on a disk: read by the file's own method, in requests of some MiB."""

    def __init__(self, file: File, *, stop: int) -> None:
        """Nothing from `stop` on is asked for."""
        self._file, self._stop = file, stop
        self._start, self._data = 0, b""

    def view(self, offset: int, length: int, /) -> memoryview:
        """At least one and at most `length` bytes from `offset`."""
        at = offset - self._start
        if not 0 <= at < len(self._data):
            self._data = read_exactly(self._file, offset, min(_FETCHED, self._stop - offset))
            self._start, at = offset, 0
        return memoryview(self._data)[at : at + length]

    def close(self) -> None:
        """Forgets the window."""
        self._data = b""


class NearWindows:
    """Of a file on a disk."""

    def __init__(self, fd: int, *, name: str, stop: int, window: int) -> None:
        """`fd` stays the caller's; nothing from `stop` on is looked at; `window` bytes are mapped at a time."""
        self._fd, self._name, self._stop, self._window = fd, name, stop, window
        self._start, self._view = 0, memoryview(b"")
        self._map: mmap.mmap | None = None
        self._buffer: memoryview | None = None
        self._leased = _lease(fd)

    def view(self, offset: int, length: int, /) -> memoryview:
        """At least one and at most `length` bytes from `offset`.

        Raises:
            Truncated: the file ends there.
        """
        at = offset - self._start
        if not 0 <= at < len(self._view):
            self._release()
            if not (self._leased and self._mapped(offset)):
                self._copied(offset)
            at = offset - self._start
        return self._view[at : at + length]

    def _mapped(self, offset: int) -> bool:
        start = offset - offset % _PAGE
        end = min(start + self._window, self._stop)
        try:
            if not _holds(self._fd):
                raise OSError("another process wants to write")
            if not self._in_memory(start, end):
                return False
            self._map = mmap.mmap(self._fd, end - start, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED, offset=start)
            self._map.madvise(_POPULATE_READ)
        except (OSError, ValueError):
            self._release()
            _unlease(self._fd)
            self._leased = False
            return False
        self._start, self._view = start, memoryview(self._map)
        return True

    def _in_memory(self, start: int, end: int) -> bool:
        """Whether the kernel has these pages already, to judge by three of them; if not, copying reads ahead better."""
        try:
            for at in (start, (start + end) // 2, end - 1):
                os.preadv(self._fd, [bytearray(1)], at, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        return True

    def _copied(self, offset: int) -> None:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(_COPIED))
        count = os.preadv(self._fd, [self._buffer[: min(_COPIED, self._stop - offset)]], offset)
        if count == 0:
            raise Truncated(
                f"{self._name} ends at {offset:,} bytes, {self._stop:,} are needed", fix="download it again"
            )
        self._start, self._view = offset, self._buffer[:count]

    def _release(self) -> None:
        self._view.release()
        self._view = memoryview(b"")
        if self._map is not None:
            self._map.close()
            self._map = None

    def close(self) -> None:
        """Unmaps the window and lets writers in."""
        self._release()
        if self._leased:
            _unlease(self._fd)


def pread_exactly(fd: int, name: str) -> Callable[[int, int], bytes]:
    """A function (offset, length) that reads so many bytes of an open file, or raises `Truncated`."""

    def read(offset: int, length: int) -> bytes:
        data = os.pread(fd, length, offset)
        if len(data) != length:
            raise Truncated(f"{name} ends before its byte {offset + length:,}", fix="download it again")
        return data

    return read


def _lease(fd: int) -> bool:
    """Whether nobody has the file open for writing, and nobody can open it so before `_unlease`."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        # The kernel tells of a would-be writer by a signal that would end the process; this one is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def _holds(fd: int) -> bool:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def _unlease(fd: int) -> None:
    import fcntl

    with suppress(OSError):  # the kernel takes it back itself after 45 seconds, from a process that was suspended
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
