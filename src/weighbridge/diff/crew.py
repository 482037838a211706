"""Threads that read and hash. BLAKE3 lets go of the interpreter's lock, so they use every core."""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, NamedTuple

from weighbridge.diff.cache import Near, Stamp, stamp_of
from weighbridge.diff.reading import FarWindows, NearWindows, Windows, pread_exactly
from weighbridge.diff.strided import Read, row_major
from weighbridge.ledger import File, Row, read_exactly
from weighbridge.ledger.errors import Malformed, NotFound, Refused

_WINDOW = 16 << 20
_MEMORY = 128 << 20  # of all threads' windows together
_FAR_WORKERS = 4  # they wait for the network more than for a core
_MOST_WORKERS = 32
_WIDE = 32 << 20  # a smaller tensor is not worth waking all cores for
_PATIENCE = 0.1  # seconds between two reports of progress


class Job(NamedTuple):
    """A tensor to hash, and the key that its leaf goes by within its file."""

    key: bytes
    row: Row
    strides: tuple[int, ...] | None


@dataclass(slots=True, eq=False, kw_only=True)
class Task:
    """Tensors that lie together in a file, hashed one after the other; `threads` is above 1 for one huge tensor."""

    file: int
    jobs: list[Job]
    nbytes: int
    threads: int = 1
    done: int = 0
    leaves: dict[bytes, bytes] = field(default_factory=dict)
    error: BaseException | None = None


class _Stopped(Exception):
    """Nobody waits for this task any more."""


class Crew:
    """Reads and hashes tasks."""

    def __init__(
        self,
        files: Sequence[File],
        near: Mapping[int, Near | None],
        *,
        blake3: Any,
        workers: int | None,
        total: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """`near` are the files on a disk, in the state that they shall have; `total` is what progress counts up to."""
        self._files, self._near, self._blake3 = files, near, blake3
        if workers is None:
            workers = _FAR_WORKERS if None in near.values() else _cores()
        self._workers = max(1, min(workers, _MOST_WORKERS))
        self._window = min(_WINDOW, _MEMORY // self._workers)
        self._total, self._progress = total, progress

    def run(self, tasks: Sequence[Task], finished: Callable[[Task], None]) -> None:
        """Hashes all tasks; `finished` is called with each in the calling thread."""
        self._tasks = tasks
        self._before = self._total - sum(task.nbytes for task in tasks)
        self._report()
        # Longest first, so that threads end together; a tensor that alone would keep one thread busy while the
        # others have nothing left is hashed by all of them, window by window.
        share = sum(task.nbytes for task in tasks) // (4 * self._workers)
        wide = []
        if self._workers > 1:
            wide = [t for t in tasks if t.nbytes > max(share, _WIDE) and len(t.jobs) == 1 and self._near[t.file]]
        for task in wide:
            task.threads = self._workers
        narrow = sorted((t for t in tasks if t.threads == 1), key=lambda task: -task.nbytes)
        self._share_out(wide, 1, finished)
        self._share_out(narrow, self._workers, finished)
        self._report()

    def _share_out(self, tasks: Sequence[Task], workers: int, finished: Callable[[Task], None]) -> None:
        waiting, results, stop = deque(tasks), SimpleQueue[Task](), Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    task = waiting.popleft()
                except IndexError:
                    return
                try:
                    self._hash(task, stop)
                except BaseException as error:  # whatever it is, the calling thread shall hear of it
                    task.error = error
                results.put(task)

        threads = [Thread(target=work, name="weigh sign", daemon=True) for _ in range(min(workers, len(tasks)))]
        for thread in threads:
            thread.start()
        left = len(tasks)
        try:
            while left:
                try:
                    task = results.get(timeout=_PATIENCE)
                except Empty:
                    pass
                else:
                    if task.error is not None:
                        raise task.error
                    finished(task)
                    left -= 1
                self._report()
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._before + sum(task.done for task in self._tasks), self._total)

    def _hash(self, task: Task, stop: Event) -> None:
        file, near = self._files[task.file], self._near[task.file]
        end = max(job.row.offset + job.row.nbytes for job in task.jobs)
        if near is None:
            windows: Windows = FarWindows(file, stop=end)
            self._hash_jobs(task, windows, lambda offset, length: read_exactly(file, offset, length), stop)
            return
        try:
            fd = os.open(near.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _refuse_change(file.name, fd, near.stamp)
                windows = NearWindows(fd, name=file.name, stop=end, window=self._window * task.threads)
                try:
                    self._hash_jobs(task, windows, pread_exactly(fd, file.name), stop)
                finally:
                    windows.close()
                    _refuse_change(file.name, fd, near.stamp)
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise NotFound(f"{file.name} is not there any more") from None
        except OSError as error:
            raise Refused(f"cannot read {file.name}: {error.strerror}") from None

    def _hash_jobs(self, task: Task, windows: Windows, read: Read, stop: Event) -> None:
        size = self._files[task.file].size
        for key, row, strides in task.jobs:
            hasher = self._blake3(max_threads=task.threads)
            if strides is not None:
                for tile in row_major(row, strides, read, size=size):
                    hasher.update(tile)
                    self._went_on(task, tile.nbytes, stop)
            else:
                at, end = row.offset, row.offset + row.nbytes
                while at < end:
                    view = windows.view(at, end - at)
                    hasher.update(view)
                    count = len(view)
                    del view  # a window can only move on when nobody looks through it
                    at += count
                    self._went_on(task, count, stop)
            task.leaves[key] = hasher.digest()

    @staticmethod
    def _went_on(task: Task, count: int, stop: Event) -> None:
        task.done += count
        if stop.is_set():
            raise _Stopped


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _refuse_change(name: str, fd: int, stamp: Stamp) -> None:
    """The time of change (ctime) is left out: a new name or owner changes it, and nothing that was read.

    Raises:
        Malformed: the file's bytes are not those that were there at first.
    """
    size, mtime, _, inode = stamp_of(os.fstat(fd))
    if (size, mtime, inode) != (stamp[0], stamp[1], stamp[3]):
        raise Malformed(f"{name} changed while it was being read", fix="run it again when nothing writes there")
