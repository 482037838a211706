"""How fast values are hashed: `weigh sign` beside its bound and its peers, over the same bytes in the same run.

    python benchmarks/sign.py --gigabytes 2 --runs 5

The bound is BLAKE3 over bytes that lie in memory already, on all cores: no reader can be faster. "Warm" files are in
the kernel's page cache, "cold" ones are not (this needs no privileges, but a disk that is a file on some other machine
may still have them in that machine's memory).
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from safetensors import safe_open
from safetensors.numpy import save_file

from weighbridge.diff import cached, digest
from weighbridge.formats import safetensors
from weighbridge.formats.local import LocalFile
from weighbridge.ledger import Ledger, Source

CORES = len(os.sched_getaffinity(0))
PIECE = 4 << 20


def make(folder: Path, nbytes: int) -> list[Path]:
    """Shards of about 1 GB with tensors as a 7B model has them, random so that nothing can be compressed away."""
    random = np.random.default_rng(0)
    layer = {"mlp.up_proj": (11008, 4096), "self_attn.q_proj": (4096, 4096), "input_layernorm": (4096,)}
    count = max(2, round(nbytes / 1e9))
    paths = []
    for shard in range(count):
        tensors: dict[str, np.ndarray] = {}
        size, at = 0, 0
        while size < nbytes // count:
            for name, shape in layer.items():
                values = random.integers(0, 1 << 16, shape, dtype=np.uint16).view(np.float16)
                tensors[f"model.layers.{shard}{at:03d}.{name}.weight"] = values
                size += values.nbytes
            at += 1
        paths.append(folder / f"model-{shard + 1:05d}-of-{count:05d}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def opened(paths: Sequence[Path]) -> Ledger:
    files = [LocalFile(path) for path in paths]
    rows = [row for index, file in enumerate(files) for row in safetensors.read(file, index=index).rows]
    return Ledger(source=Source(location="benchmark", files=files), format="safetensors", rows=rows)


def forget(paths: Sequence[Path]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read_all(paths: Sequence[Path]) -> None:
    """Reads and throws away, on all cores."""
    parts = [(path, at) for path in paths for at in range(0, path.stat().st_size, 64 << 20)]
    local = threading.local()

    def read(part: tuple[Path, int]) -> None:
        path, start = part
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(PIECE))
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            left = 64 << 20
            while left and (count := file.readinto(local.buffer[: min(PIECE, left)])):
                left -= count

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(read, parts))


def sign_copying(paths: Sequence[Path], ledger: Ledger) -> None:
    """Files that somebody has open for writing are not mapped."""
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(path.open("r+b"))
        digest(ledger, cache=False)


def sha256(paths: Sequence[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def sha256_parallel(paths: Sequence[Path]) -> None:
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(lambda path: sha256([path]), paths))


def b3sum(paths: Sequence[Path], *, threads: int) -> None:
    for path in paths:
        blake3(max_threads=threads).update_mmap(path).digest()


def load_and_hash(paths: Sequence[Path]) -> None:
    """What a script does first: every tensor through safetensors' own API."""
    for path in paths:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                blake3(np.ascontiguousarray(file.get_tensor(name)).reshape(-1).view(np.uint8)).digest()


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the model (default 2)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each, of which the median counts (default 5)")
    parser.add_argument("--folder", type=Path, help="where to make it (default: the temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        os.environ["WEIGH_HOME"] = name
        paths = make(Path(name), int(chosen.gigabytes * 1e9))
        result = measure(paths, runs=chosen.runs)
    for key, row in result["rows"].items():
        rate, best, share = row["gb_per_s"], row["best_gb_per_s"], row["of_bound"]
        print(f"{key:48} {rate:6.2f} GB/s (best {best:5.2f})  {row['seconds']:7.4f} s  of bound {share:5.2f}")
    print(f"second sign {result['second_sign_ms']:.1f} ms, cached() {result['cached_ms']:.2f} ms")
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(paths: Sequence[Path], *, runs: int) -> dict[str, Any]:
    """Each thing once a round, so that a neighbor's load falls on all of them alike."""
    size = sum(path.stat().st_size for path in paths)
    memory = b"".join(path.read_bytes() for path in paths)
    ledger = opened(paths)
    works: dict[str, Callable[[], object]] = {
        "bound: BLAKE3 in memory, all cores": lambda: blake3(memory, max_threads=CORES).digest(),
        "weigh sign, warm": lambda: digest(ledger, cache=False),
        "weigh sign where mapping is refused, warm": lambda: sign_copying(paths, ledger),
        "weigh sign, one core, warm": lambda: digest(ledger, cache=False, workers=1),
        "plain read, all cores, warm": lambda: read_all(paths),
        "blake3 update_mmap of files, all cores, warm": lambda: b3sum(paths, threads=CORES),
        "blake3 update_mmap of files, one thread, warm": lambda: b3sum(paths, threads=1),
        "sha256 of files, a file a core, warm": lambda: sha256_parallel(paths),
        "sha256 of files, one thread, warm": lambda: sha256(paths),
        "safetensors load, BLAKE3 each tensor, warm": lambda: load_and_hash(paths),
        "plain read, all cores, cold": lambda: read_all(paths),
        "weigh sign, cold": lambda: digest(ledger, cache=False),
        "blake3 update_mmap of files, all cores, cold": lambda: b3sum(paths, threads=CORES),
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            forget(paths) if name.endswith("cold") else read_all(paths)
            found[name].append(timed(work))
    digest(ledger)
    medians = {name: statistics.median(took) for name, took in found.items()}
    bound = medians["bound: BLAKE3 in memory, all cores"]
    return {
        "bytes": size,
        "shards": len(paths),
        "tensors": len(ledger),
        "cores": CORES,
        "runs": runs,
        "second_sign_ms": statistics.median(timed(lambda: digest(opened(paths))) for _ in range(9)) * 1e3,
        "cached_ms": statistics.median(timed(lambda: cached(ledger)) for _ in range(9)) * 1e3,
        "rows": {
            name: {
                "seconds": took,
                "gb_per_s": size / took / 1e9,
                "best_gb_per_s": size / min(found[name]) / 1e9,
                "of_bound": bound / took,
                "all": found[name],
            }
            for name, took in medians.items()
        },
    }


if __name__ == "__main__":
    main()
