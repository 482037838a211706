"""The leaf of every tensor: from the cache where it is known, else read and hashed, then kept for the next time."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from struct import pack
from typing import Any

from weighbridge.diff.cache import Cache, Near, blake2b, stamp_of
from weighbridge.diff.crew import Crew, Job, Task
from weighbridge.ledger import NOWHERE, Ledger, Row
from weighbridge.ledger.errors import Refused, Truncated

_TASK = 32 << 20  # tensors below this are taken together
_GAP = 1 << 16  # unless more than this lies between them
_SAVE_EVERY = 10.0  # seconds
_TICK = 20_000_000  # nanoseconds: file systems read a clock that stands still for up to 10 ms
_COARSE_TICK = 2_000_000_000  # where they keep whole seconds
# No real model lists its bytes this often over; a forged one could, and be hashed for years.
_MOST_TIMES, _MOST_ANYWAY = 16, 1 << 30


def leaves(
    ledger: Ledger,
    files: Mapping[int, Near | None],
    *,
    blake3: Any,
    cache: Cache | None,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> tuple[list[bytes], bool]:
    """The leaf of every row, in their order; and whether the files' stamps will vouch for them from now on.

    Raises:
        Malformed: a file changed while it was read, or strides that do not fit.
        Truncated: a tensor lies beyond its file's end.
        Refused: tensors that overlap beyond reason, or a file that cannot be read.
    """
    jobs = [_job(row, strides) for row, strides in _with_strides(ledger)]
    _check_bounds(ledger, jobs)
    record = _Record(files, cache)
    wanted = {(job.row.file, job.key): job for job in jobs}  # PyTorch's ties name one place twice
    total = sum(job.row.nbytes for job in wanted.values())
    missing: dict[int, list[Job]] = {index: [] for index in files}
    for (index, key), job in wanted.items():
        if key not in record.known[index]:
            missing[index].append(job)
    record.missing = {index: len(found) for index, found in missing.items()}
    crew = Crew(ledger.source.files, files, blake3=blake3, workers=workers, total=total, progress=progress)
    try:
        crew.run([task for index, found in missing.items() for task in _tasks(index, found)], record.add)
    finally:
        record.save_all()
    return [record.known[job.row.file][job.key] for job in jobs], record.lasting()


class _Record:
    """The leaves known by file, and their way into the cache."""

    def __init__(self, files: Mapping[int, Near | None], cache: Cache | None) -> None:
        self._files, self._cache = files, cache
        self._settled = {index for index, file in files.items() if file and cache and _settle(file)}
        self.known = {index: cache.leaves(file) if file and cache else {} for index, file in files.items()}
        self.missing: dict[int, int] = {}
        self._unsaved: set[int] = set()
        self._saved_at = time.monotonic()

    def add(self, task: Task) -> None:
        """Takes a finished task's leaves. Those of finished files are saved, and all others every ten seconds."""
        self.known[task.file] |= task.leaves
        self.missing[task.file] -= len(task.leaves)
        self._unsaved.add(task.file)
        if not self.missing[task.file]:
            self._save(task.file)
        elif time.monotonic() - self._saved_at > _SAVE_EVERY:
            self.save_all()

    def save_all(self) -> None:
        """Saves whatever is known by now: a run cut short goes on where it was."""
        for index in list(self._unsaved):
            self._save(index)
        self._saved_at = time.monotonic()

    def lasting(self) -> bool:
        """Whether every file is as it was, and any later change of it will show."""
        return self._settled == self._files.keys() and all(file and _same(file) for file in self._files.values())

    def _save(self, index: int) -> None:
        self._unsaved.discard(index)
        file = self._files[index]
        if self._cache and file and index in self._settled and _same(file):
            self._cache.keep_leaves(file, self.known[index])


def _settle(file: Near) -> bool:
    """Whether a change after this moment must show in the file's stamp; waits for the file system's clock to tick."""
    changed = file.stamp[2]
    coarse = changed % 1_000_000_000 == 0
    age = time.time_ns() - changed
    if not coarse and 0 <= age < _TICK:
        time.sleep((_TICK - age) / 1e9)
        return True
    return age >= (_COARSE_TICK if coarse else _TICK)


def _same(file: Near) -> bool:
    try:
        return stamp_of(os.stat(file.path)) == file.stamp
    except OSError:
        return False


def _with_strides(ledger: Ledger) -> Iterator[tuple[Row, tuple[int, ...] | None]]:
    strides = ledger.metadata.get("strides")
    if not isinstance(strides, Mapping):
        strides = {}
    for row in ledger.rows:
        found = strides.get(row.name)
        yield row, None if found is None else tuple(found)


def _job(row: Row, strides: tuple[int, ...] | None) -> Job:
    if row.offset == NOWHERE and row.nbytes:
        raise Refused(
            f"the values of {row.name!r} do not lie in the file as they are: compressed, in chunks, or as text",
            fix="save the model in a format that stores them plainly, as safetensors does",
        )
    if strides is None:
        return Job(b"\0" + pack("<QQ", row.offset, row.nbytes), row, None)
    layout = repr((row.offset, row.nbytes, row.dtype.name, row.shape, strides)).encode()
    return Job(b"\1" + blake2b(layout, digest_size=16).digest(), row, strides)


def _check_bounds(ledger: Ledger, jobs: list[Job]) -> None:
    listed, files = 0, ledger.source.files
    for job in jobs:
        row = job.row
        listed += row.nbytes
        if job.strides is None and row.offset + row.nbytes > files[row.file].size:
            raise Truncated(f"{row.name!r} lies beyond the end of {files[row.file].name}", fix="download it again")
    stored = sum(files[index].size for index in {job.row.file for job in jobs})
    if listed > stored * _MOST_TIMES + _MOST_ANYWAY:
        raise Refused(f"{ledger.source} lists tensors of {listed:,} bytes in files of {stored:,}", fix="save it anew")


def _tasks(index: int, jobs: list[Job]) -> Iterator[Task]:
    """Large tensors alone, small ones that lie together in one task."""
    together: list[Job] = []
    size = end = 0
    for job in sorted(jobs, key=lambda job: job.row.offset):
        row = job.row
        if job.strides is not None or row.nbytes >= _TASK:
            yield Task(file=index, jobs=[job], nbytes=row.nbytes)
            continue
        if together and (size >= _TASK or row.offset - end > _GAP):
            yield Task(file=index, jobs=together, nbytes=size)
            together, size = [], 0
        together.append(job)
        size, end = size + row.nbytes, row.offset + row.nbytes
    if together:
        yield Task(file=index, jobs=together, nbytes=size)
