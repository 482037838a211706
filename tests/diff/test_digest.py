"""The digest of a model's values: what it depends on, what not, and that nothing can make it wrong."""

import os
import random
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from weighbridge.diff import Digest, cached, digest, reading, strided
from weighbridge.diff import cache as cache_module
from weighbridge.diff.copies import left_out
from weighbridge.formats import safetensors, torch_file
from weighbridge.formats.local import LocalFile
from weighbridge.ledger import DTYPES, Architecture, Ledger, Row, Source
from weighbridge.ledger.errors import Malformed, MissingExtra, NotFound, Refused, Truncated, WeighError

ROOT = Path(__file__).parents[2]
State = Mapping[str, torch.Tensor]
unhurried = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        "model.embed_tokens.weight": torch.randn(17, 6, dtype=torch.bfloat16),
        "model.layers.0.mlp.up_proj.weight": torch.randn(8, 6),
        "model.layers.0.mlp.up_proj.bias": torch.zeros(8),
        "model.layers.0.input_layernorm.weight": torch.ones(6, dtype=torch.float16),
        "model.layers.1.input_layernorm.weight": torch.ones(6, dtype=torch.float16),
        "model.layers.0.position_ids": torch.arange(9),
        "model.layers.0.nothing": torch.empty(0, 4),
        "scalar": torch.tensor(3.5),
        "größe.weight": torch.randn(2, 3, 4).to(torch.float8_e4m3fn),
    }


def opened(*paths: Path, tied: bool | None = None, aliases: Mapping[str, str] | None = None) -> Ledger:
    files = [LocalFile(path) for path in paths]
    read = torch_file.read if paths[0].suffix == ".bin" else safetensors.read
    headers = [read(file, index=index) for index, file in enumerate(files)]
    return Ledger(
        source=Source(location="model", files=files),
        format="safetensors",
        rows=[row for header in headers for row in header.rows],
        metadata=headers[0].metadata,
        aliases=headers[0].aliases if aliases is None else aliases,
        architecture=Architecture(tied_embeddings=tied),
    )


def saved(folder: Path, tensors: State, *, shards: int = 1, **metadata: str) -> Ledger:
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    paths = []
    for index in range(shards):
        paths.append(folder / f"{index}.safetensors")
        part = {name: tensors[name].contiguous().clone() for name in names[index::shards]}
        save_file(part, paths[-1], metadata=metadata or None)
    return opened(*paths)


def pickled(path: Path, tensors: State) -> Ledger:
    torch.save(dict(tensors), path)
    return opened(path)


def independent(tensors: State) -> str:
    """The definition once more, from live tensors."""
    dtypes = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
    dtypes[torch.float8_e4m3fn] = "F8_E4M3"
    root = blake3(derive_key_context="weighbridge tensors v1")
    for name in sorted(tensors, key=lambda name: name.encode()):
        tensor = tensors[name]
        for text in (name.encode(), dtypes[tensor.dtype].encode()):
            root.update(len(text).to_bytes(8, "little") + text)
        for number in (tensor.dim(), *tensor.shape):
            root.update(number.to_bytes(8, "little"))
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        root.update(blake3(raw).digest())
    return root.hexdigest()


def by_hand(data: bytes, *rows: tuple[str, str, tuple[int, ...], int, int], **more: Any) -> Ledger:
    """A ledger over bytes in memory, as of a file that is not on a disk."""
    file = SimpleNamespace(name="far", size=len(data), read=lambda offset, length: data[offset : offset + length])
    listed = [Row(name, DTYPES[dtype], shape, 0, offset, size) for name, dtype, shape, offset, size in rows]
    return Ledger(source=Source(location="far", files=[file]), format="test", rows=listed, **more)


class Progress:
    """Remembers what was reported; `read` is how many bytes were not known before."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))

    @property
    def read(self) -> int:
        return self.calls[0][1] - self.calls[0][0]


def bytes_read(ledger: Ledger) -> int:
    progress = Progress()
    digest(ledger, progress=progress)
    return progress.read


# What it is


def test_equals_an_independent_computation_from_live_tensors(tmp_path: Path) -> None:
    found = digest(saved(tmp_path, state()))
    assert found.hex == independent(state())
    assert re.fullmatch("[0-9a-f]{64}", found.hex)
    assert found.tensors == len(found.by_tensor) == len(state())
    assert found.nbytes == sum(t.numel() * t.element_size() for t in state().values())
    assert found.by_tensor["scalar"] == blake3(struct.pack("<f", 3.5)).hexdigest()
    assert found.by_tensor["model.layers.0.nothing"] == blake3(b"").hexdigest()


def test_the_documentation_says_how_to_recompute_it(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "signature.md").read_text("utf-8"), re.DOTALL)
    ledger = saved(tmp_path, state(), shards=2)
    paths = [str(file.path) for file in ledger.source.files]
    told = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == digest(ledger).hex
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10


def test_block_types_are_hashed_as_they_are_stored() -> None:
    data = random.Random(0).randbytes(36)
    found = digest(by_hand(data, ("blk.0.ffn_up.weight", "Q4_0", (2, 32), 0, 36)))
    assert found.by_tensor == {"blk.0.ffn_up.weight": blake3(data).hexdigest()}


def test_a_version_1_digest_never_changes() -> None:
    ledger = by_hand(bytes(range(24)), ("a", "F32", (2, 2), 0, 16), ("b.weight", "BF16", (4,), 16, 8))
    assert digest(ledger).hex == "b36bf6193281e786c565481aac3b2e6167df14f063312620aea0ba4b0e1096d1"


# What it does not depend on


@unhurried
@given(shards=st.integers(1, 4), seed=st.randoms(use_true_random=False), padding=st.text(max_size=40))
def test_shards_order_and_header_leave_no_trace(tmp_path: Path, shards: int, seed: random.Random, padding: str) -> None:
    names = list(state())
    seed.shuffle(names)
    ledger = saved(tmp_path, {name: state()[name] for name in names}, shards=shards, note=padding)
    assert digest(ledger, cache=False).hex == independent(state())


def test_pytorch_and_safetensors_files_agree(tmp_path: Path) -> None:
    assert digest(pickled(tmp_path / "model.bin", state())).hex == independent(state())


def test_the_order_in_memory_leaves_no_trace(tmp_path: Path) -> None:
    plain = {"a.weight": torch.arange(60.0).view(6, 10), "b.weight": torch.arange(24).view(2, 3, 4)}
    turned = {name: tensor.mT.contiguous().mT for name, tensor in plain.items()}
    turned["a.weight"] = torch.cat([turned["a.weight"], torch.zeros(6, 3)], 1)[:, :10]
    ledger = pickled(tmp_path / "model.bin", turned)
    assert set(ledger.metadata["strides"]) == set(plain)
    assert digest(ledger).hex == independent(plain)


@unhurried
@given(data=st.data())
def test_any_view_is_gathered_row_by_row(data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "_TILE", data.draw(st.sampled_from([16, 64, 1 << 20])))
    monkeypatch.setattr(strided, "_SMALL", data.draw(st.sampled_from([8, 64, 1 << 16])))
    monkeypatch.setattr(strided, "_SPARSE", data.draw(st.sampled_from([1, 8])))
    shape = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    whole = np.arange(np.prod(shape), dtype=data.draw(st.sampled_from(["u1", "<u2", "<u4", "<u8", "<c16"]))).reshape(
        shape
    )
    view = whole.transpose(data.draw(st.permutations(range(len(shape)))))
    view = view[tuple(slice(data.draw(st.integers(0, n - 1)), None, data.draw(st.integers(1, 3))) for n in view.shape)]
    if data.draw(st.booleans()):
        view = np.broadcast_to(view, (3, *view.shape))
    offset = view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    kind = {1: "U8", 2: "U16", 4: "U32", 8: "U64", 16: "C128"}[view.itemsize]
    strides = [step // view.itemsize for step in view.strides]
    row = ("view", kind, view.shape, offset, view.nbytes)
    ledger = by_hand(whole.tobytes(), row, metadata={"strides": {"view": strides}})
    assert digest(ledger).by_tensor["view"] == blake3(np.ascontiguousarray(view).tobytes()).hexdigest()


def test_ways_of_reading_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = state() | {"large.weight": torch.randn(3_000_001), "larger.weight": torch.randn(20_000_003)}
    ledger = saved(tmp_path, tensors)
    path = ledger.source.files[0].path
    right = independent(tensors)
    assert {digest(ledger, cache=False, workers=workers).hex for workers in (1, 2, 7)} == {right}
    far = by_hand(path.read_bytes())
    far.rows = ledger.rows
    assert digest(far).hex == right
    monkeypatch.setattr(reading, "_lease", lambda fd: False)
    assert digest(ledger, cache=False).hex == right
    monkeypatch.undo()
    with path.open("r+b"):  # somebody has it open for writing: no lease, no mapping
        assert digest(ledger, cache=False).hex == right


@pytest.mark.skipif(sys.platform != "linux", reason="reads its own peak from /proc")
def test_memory_stays_small_whatever_the_size(tmp_path: Path) -> None:
    size = 1 << 29
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(size)
    for parts in (1, 7):
        code = f"""
        from pathlib import Path
        from weighbridge.diff import digest
        from weighbridge.formats.local import LocalFile
        from weighbridge.ledger import DTYPES, Ledger, Row, Source
        each = {size} // {parts}
        rows = [Row(str(at), DTYPES["U8"], (each,), 0, at * each, each) for at in range({parts})]
        ledger = Ledger(source=Source(location="m", files=[LocalFile(Path({str(path)!r}))]), format="test", rows=rows)
        found = digest(ledger)
        peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
        print(found.nbytes // each, int(peak) // 1024)
        """
        count, peak = run(code).split()
        assert int(count) == parts
        assert int(peak) < 200, f"{peak} MB"


def run(code: str, *, check: bool = True) -> str:
    text = re.sub(r"(?m)^        ", "", code)
    return subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, check=check).stdout


# What it depends on


@unhurried
@given(data=st.data())
def test_every_bit_of_every_value_counts(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name, tensor in state().items() if tensor.numel()]))
    tensors = state()
    raw = tensors[name].reshape(-1).view(torch.uint8)
    at = data.draw(st.integers(0, raw.numel() * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    found, before = digest(saved(tmp_path / "new", tensors), cache=False), digest(saved(tmp_path / "old", state()))
    assert found.hex != before.hex
    assert {name} == {other for other in found.by_tensor if found.by_tensor[other] != before.by_tensor[other]}


def test_names_dtypes_shapes_and_places_count(tmp_path: Path) -> None:
    up, bias = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias"
    first, second = "model.layers.0.input_layernorm.weight", "model.layers.0.nothing"
    variants = [
        state(),
        state(seed=1),
        {name.replace("up_proj", "gate_proj"): tensor for name, tensor in state().items()},
        {**state(), up: state()[up].view(torch.int32)},
        {**state(), up: state()[up].reshape(6, 8)},
        {**state(), up: state()[up].reshape(-1)},
        {**state(), up: state()[up].reshape(1, 8, 6)},
        {**state(), bias: torch.zeros(4, dtype=torch.float64)},
        {**state(), first: state()[second], second: state()[first]},
        {**state(), second: torch.empty(4, 0)},
        {name: tensor for name, tensor in state().items() if name != second},
        {**state(), "extra": torch.empty(0)},
        {},
    ]
    found = {digest(saved(tmp_path / str(at), variant)).hex for at, variant in enumerate(variants) if variant}
    assert len(found) == len(variants) - 1


def test_no_two_lists_of_tensors_give_the_same_bytes() -> None:
    """Lengths stand before texts, so letters cannot move from a name to a dtype or from one entry to the next."""
    data = bytes(16)
    one = by_hand(data, ("a", "F16", (2,), 0, 4), ("b", "F16", (), 4, 2))
    other = by_hand(data, ("aF16", "F16", (), 0, 2), ("b", "F16", (2,), 4, 4))
    assert digest(one).hex != digest(other).hex


# Tied tensors


def test_a_tied_head_counts_once_however_it_is_stored(tmp_path: Path) -> None:
    once = state()
    embedding = once["model.embed_tokens.weight"]
    twice = once | {"lm_head.weight": embedding}
    other_order = {"lm_head.weight": embedding} | once
    right = independent(once)
    assert digest(pickled(tmp_path / "after.bin", twice)).hex == right
    assert digest(pickled(tmp_path / "before.bin", other_order)).hex == right
    stored = saved(tmp_path / "copied", twice)
    assert digest(stored).hex == right
    for tied in (True, False, None):
        ledger = opened(stored.source.files[0].path, tied=tied)
        assert digest(ledger, cache=False).hex == right, f"tied: {tied}"
        assert digest(ledger).by_tensor == digest(saved(tmp_path / "once", once)).by_tensor


def test_a_head_of_its_own_counts(tmp_path: Path) -> None:
    tensors = state()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    path = saved(tmp_path, tensors).source.files[0].path
    assert digest(opened(path, tied=True)).hex == digest(opened(path, tied=False)).hex == independent(tensors)


@pytest.mark.parametrize(
    ("stays", "copies"),
    [
        ("shared.weight", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]),
        ("model.shared.weight", ["model.encoder.embed_tokens.weight", "lm_head.weight"]),
        ("transformer.wte.weight", ["lm_head.weight"]),
        ("gpt_neox.embed_in.weight", ["embed_out.weight"]),
        ("token_embd.weight", ["output.weight"]),
        ("bert.embeddings.word_embeddings.weight", ["cls.predictions.decoder.weight"]),
        ("cls.predictions.bias", ["cls.predictions.decoder.bias"]),
        ("model.decoder.embed_tokens.weight", ["proj_out.weight"]),
    ],
)
def test_the_name_that_transformers_keeps_stays_in_whatever_order_aliases_are_listed(
    stays: str, copies: Sequence[str]
) -> None:
    value = ("F32", (4, 2), b"leaf")
    names = [stays, *copies]
    for original in names:
        ties = {name: original for name in names if name != original}
        assert left_out(dict.fromkeys(names, value), ties) == set(copies)


def test_equal_tensors_that_nothing_ties_all_count() -> None:
    ones = ("F32", (4,), b"ones")
    names = [
        "layers.0.norm.weight",
        "layers.1.norm.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    ]
    assert left_out(dict.fromkeys(names, ones), {}) == set()


def test_a_hundred_thousand_forged_ties_take_no_time() -> None:
    names = [f"{at}.weight" for at in range(100_000)]
    ties = dict(zip(names[1:], names, strict=False))
    assert len(left_out(dict.fromkeys(names, ("F32", (), b"")), ties)) == 99_999


# The cache


def test_the_second_time_nothing_is_read(tmp_path: Path) -> None:
    ledger = saved(tmp_path, state() | {"lm_head.weight": state()["model.embed_tokens.weight"]}, shards=3)
    assert cached(ledger) is None
    found = digest(ledger)
    assert cached(ledger) == digest(ledger) == digest(opened(*(file.path for file in ledger.source.files))) == found
    assert isinstance(found, Digest)
    assert bytes_read(ledger) == 0
    assert digest(ledger, cache=False) == found


def test_one_changed_shard_is_read_alone(tmp_path: Path) -> None:
    before = saved(tmp_path, state(), shards=3)
    digest(before)
    changed = {name: tensor + 1 if tensor.dtype == torch.int64 else tensor for name, tensor in state().items()}
    (name,) = (name for name, tensor in state().items() if tensor.dtype == torch.int64)
    shard = list(state()).index(name) % 3
    kept = tmp_path / "kept"
    after = saved(kept, changed, shards=3)
    os.replace(after.source.files[shard].path, before.source.files[shard].path)
    ledger = opened(*(file.path for file in before.source.files))
    assert cached(ledger) is None
    assert bytes_read(ledger) == sum(row.nbytes for row in ledger.rows if row.file == shard)
    assert digest(ledger).hex == independent(changed)


def test_a_change_shows_even_when_size_and_time_of_modification_are_put_back(tmp_path: Path) -> None:
    ledger = saved(tmp_path, state())
    path, before = ledger.source.files[0].path, digest(ledger)
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cached(ledger) is None
    assert digest(ledger).hex != before.hex


@pytest.mark.parametrize("pause", [0, 0.001, 0.005])
def test_a_write_right_after_the_reading_shows(tmp_path: Path, pause: float) -> None:
    """File systems read a clock that ticks every few milliseconds: within a tick, a stamp vouches for nothing."""
    path = saved(tmp_path, {"a": torch.zeros(4)}).source.files[0].path
    for value in range(1, 6):
        with path.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(struct.pack("<f", value))
        ledger = opened(path)
        assert digest(ledger).hex == independent({"a": torch.tensor([0.0, 0, 0, value])})
        threading.Event().wait(pause)


def test_ledgers_that_see_one_file_differently_do_not_share_a_result(tmp_path: Path) -> None:
    plain = saved(tmp_path, {"a": torch.arange(12.0).view(3, 4), "b": torch.zeros(2)})
    file = plain.source.files[0]
    a, b = plain.rows
    views: list[tuple[list[Row], dict[str, object]]] = [
        ([a, b], {}),
        ([a], {}),
        ([a._replace(shape=(4, 3)), b], {}),
        ([a._replace(dtype=DTYPES["I32"]), b], {}),
        ([a._replace(name="c"), b], {}),
        ([a._replace(shape=(4, 3)), b], {"strides": {"a": [1, 4]}}),
        ([a._replace(name="b"), b._replace(name="a")], {}),
    ]
    ledgers = [Ledger(source=Source(location="m", files=[file]), format="t", rows=r, metadata=m) for r, m in views]
    first = [digest(ledger).hex for ledger in ledgers]
    assert len(set(first)) == len(views)
    assert [digest(ledger, cache=False).hex for ledger in ledgers] == first
    assert [found.hex for found in map(cached, ledgers) if found] == first


def _garbage(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a database at all" * 500)


def _folder_in_its_place(path: Path) -> None:
    path.mkdir(parents=True)


def _other_schema(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE files (one, other)")
    connection.close()


def _file_for_a_folder(path: Path) -> None:
    path.parent.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.parent.write_text("in the way")


@pytest.mark.parametrize("spoil", [_garbage, _folder_in_its_place, _other_schema, _file_for_a_folder])
def test_a_spoiled_cache_costs_nothing_but_time(tmp_path: Path, spoil: Any) -> None:
    spoil(Path(cache_module.location()))
    ledger = saved(tmp_path, state())
    assert cached(ledger) is None
    for _ in range(3):
        assert digest(ledger).hex == independent(state())


def test_garbage_in_place_of_the_cache_is_replaced(tmp_path: Path) -> None:
    _garbage(Path(cache_module.location()))
    ledger = saved(tmp_path, state())
    digest(ledger)
    digest(ledger)
    assert cached(ledger) is not None


@pytest.mark.parametrize("table", ["files", "roots"])
def test_a_damaged_entry_is_not_believed(tmp_path: Path, table: str) -> None:
    ledger = saved(tmp_path, state())
    digest(ledger)
    with sqlite3.connect(cache_module.location()) as connection:
        other = {"files": "roots", "roots": "files"}[table]
        connection.execute(f"DELETE FROM {other}")
        entries = connection.execute(f"SELECT key, body FROM {table}").fetchall()
        key, body = max(entries, key=lambda entry: len(entry[1]))
        for at in (0, 20, 60, len(body) - 1):
            spoiled = bytearray(body)
            spoiled[at] ^= 1
            connection.execute(f"UPDATE {table} SET body = ? WHERE key = ?", (bytes(spoiled), key))
            connection.commit()
            assert digest(ledger).hex == independent(state())
        connection.execute(f"UPDATE {table} SET body = 7")
    connection.close()
    assert digest(ledger).hex == independent(state())


def test_a_locked_cache_is_waited_for_only_shortly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = saved(tmp_path, state())
    digest(ledger)
    connection = sqlite3.connect(cache_module.location(), isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(cache_module.Cache.__init__, "__kwdefaults__", {"wait": 0.05})
    assert cached(ledger) is None
    assert digest(ledger).hex == independent(state())
    connection.close()


@pytest.mark.parametrize("told", ["database or disk is full", "attempt to write a readonly database"])
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    class Full(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if statement.startswith("INSERT"):
                raise sqlite3.OperationalError(told)
            return super().execute(statement, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, factory=Full, **kwargs))
    ledger = saved(tmp_path, state())
    assert digest(ledger).hex == independent(state())
    assert cached(ledger) is None


SIGN = """
        import os, signal
        from pathlib import Path
        from weighbridge.diff import digest
        from weighbridge.formats.local import LocalFile
        from weighbridge.formats.safetensors import read
        from weighbridge.ledger import Ledger, Source
        files = [LocalFile(path) for path in sorted(Path({folder!r}).iterdir())]
        rows = [row for index, file in enumerate(files) for row in read(file, index=index).rows]
        ledger = Ledger(source=Source(location="m", files=files), format="safetensors", rows=rows)
"""


def test_a_killed_run_leaves_a_cache_that_serves(tmp_path: Path) -> None:
    ledger = saved(tmp_path, {str(at): torch.full((1000,), float(at)) for at in range(6)}, shards=6)
    kill = """
        def progress(done, total):
            if done > total / 2:
                os.kill(os.getpid(), signal.SIGKILL)
        digest(ledger, progress=progress, workers=1)
    """
    run(SIGN.format(folder=str(tmp_path)) + kill, check=False)
    assert cached(ledger) is None
    assert 0 < bytes_read(ledger) < ledger.nbytes
    assert digest(ledger) == digest(ledger, cache=False)


def test_processes_share_the_cache(tmp_path: Path) -> None:
    ledger = saved(tmp_path, {str(at): torch.full((100,), float(at)) for at in range(20)}, shards=20)
    code = SIGN.format(folder=str(tmp_path)) + "        print(digest(ledger).hex)"
    text = re.sub(r"(?m)^        ", "", code)
    runs = [subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    right = digest(ledger, cache=False).hex
    assert {run.communicate()[0].strip() for run in runs} == {right}
    assert bytes_read(ledger) == 0


def test_looking_into_the_cache_loads_nothing_heavy(tmp_path: Path) -> None:
    ledger = saved(tmp_path, state())
    look = """
        from weighbridge.diff import cached
        import sys
        found = cached(ledger)
        heavy = {"blake3", "numpy", "platformdirs", "threading", "queue", "sqlite3", "mmap"}
        print(found and found.hex, sorted(heavy & sys.modules.keys()))
    """
    code = SIGN.format(folder=str(tmp_path)) + look
    assert run(code).strip() == "None []"
    right = digest(ledger).hex
    assert run(code).startswith(f"{right} ['sqlite3'")
    assert "blake3" not in run(code)


def test_the_cache_lies_where_the_platform_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import platformdirs

    assert Path(cache_module.location()).parent == Path(os.environ["WEIGH_HOME"]) / "cache"
    monkeypatch.delenv("WEIGH_HOME")
    for value in (None, "", str(tmp_path)):
        if value is None:
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert Path(cache_module.location()).parent == Path(platformdirs.user_cache_dir("weighbridge"))


# What can go wrong


def test_a_file_cut_after_its_header_was_read_is_an_error(tmp_path: Path) -> None:
    ledger = saved(tmp_path, state())
    os.truncate(ledger.source.files[0].path, 1000)
    with pytest.raises(Malformed, match="changed since its header was read"):
        digest(ledger)


def test_a_file_gone_after_its_header_was_read_is_an_error(tmp_path: Path) -> None:
    ledger = saved(tmp_path, state())
    ledger.source.files[0].path.unlink()
    with pytest.raises(NotFound, match="not there any more"):
        digest(ledger)
    assert cached(ledger) is None


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("how", ["cut", "rewritten", "replaced"])
def test_a_file_changed_while_it_is_read_is_an_error(
    tmp_path: Path, how: str, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = saved(tmp_path, {"a": torch.zeros(10_000), "b": torch.zeros(10_000)})
    path = ledger.source.files[0].path
    if not mapped:
        monkeypatch.setattr(reading, "_lease", lambda fd: False)

    def change(done: int, total: int) -> None:
        if how == "cut":
            os.truncate(path, 50_000)
        elif how == "rewritten":
            path.write_bytes(path.read_bytes())
        else:
            path.with_suffix(".new").write_bytes(path.read_bytes())
            path.with_suffix(".new").replace(path)

    with pytest.raises(Malformed, match=r"changed while it was being read|ends"):
        digest(ledger, progress=change)
    assert cached(ledger) is None


def test_a_file_cut_under_a_mapping_does_not_crash(tmp_path: Path) -> None:
    """Reading a mapped page beyond a file's new end would end the process by SIGBUS."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 28)
    code = f"""
        import os, threading, time
        from pathlib import Path
        from weighbridge.diff import digest
        from weighbridge.formats.local import LocalFile
        from weighbridge.ledger import DTYPES, Ledger, Row, Source
        from weighbridge.ledger.errors import WeighError
        path = Path({str(path)!r})
        open(path, "rb").read(1 << 28)  # in memory, hence mapped
        ledger = Ledger(source=Source(location="m", files=[LocalFile(path)]), format="test",
                        rows=[Row("a", DTYPES["U8"], (1 << 28,), 0, 0, 1 << 28)])
        threading.Timer(0.01, lambda: os.truncate(path, 1 << 20)).start()
        try:
            digest(ledger, cache=False)
        except WeighError as error:
            print("error", error)
        else:
            print("too late")
    """
    assert run(code).split()[0] in ("error", "too")


def test_strides_that_lead_out_of_the_file_are_refused() -> None:
    row = ("a", "F32", (4, 4), 0, 64)
    for strides, error in (([100, 1], Truncated), ([-4, 1], Malformed), ([4], Malformed)):
        with pytest.raises(error):
            digest(by_hand(bytes(64), row, metadata={"strides": {"a": strides}}))


def test_a_tensor_beyond_the_end_of_its_file_is_an_error() -> None:
    with pytest.raises(Truncated, match="beyond the end"):
        digest(by_hand(bytes(60), ("a", "F32", (4, 4), 0, 64)))


def test_a_small_file_that_lists_terabytes_is_refused() -> None:
    row = ("a", "F32", (1 << 40,), 0, 1 << 42)
    with pytest.raises(Refused, match="in files of 64"):
        digest(by_hand(bytes(64), row, metadata={"strides": {"a": [0]}}))


def test_two_tensors_of_one_name_are_an_error() -> None:
    with pytest.raises(Malformed, match="two tensors called 'a'"):
        digest(by_hand(bytes(8), ("a", "F32", (), 0, 4), ("a", "F32", (), 4, 4)))


def test_a_model_without_values_is_an_error() -> None:
    shape_only = Ledger(
        source=Source(location="m", files=[]), format="config", rows=[Row("a", DTYPES["F32"], (1,), 0, 0, 4)]
    )
    with pytest.raises(NotFound, match="no values"):
        digest(shape_only)
    assert cached(shape_only) is None


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = saved(tmp_path, state())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "blake3", None)
        with pytest.raises(MissingExtra, match=r"weigh sign needs blake3; pip install 'weighbridge\[tensors\]'"):
            digest(ledger)
    right = digest(ledger)
    monkeypatch.setitem(sys.modules, "blake3", None)
    assert digest(ledger) == right, "what the cache knows needs no blake3"


def test_an_error_in_a_far_file_reaches_the_caller() -> None:
    ledger = by_hand(bytes(64), ("a", "F32", (4, 4), 0, 64))

    def fail(offset: int, length: int) -> bytes:
        raise WeighError("the line is dead")

    ledger.source.files[0].read = fail
    with pytest.raises(WeighError, match="the line is dead"):
        digest(ledger)


def test_an_interrupt_ends_all_threads(tmp_path: Path) -> None:
    ledger = saved(tmp_path, {str(at): torch.zeros(1000) for at in range(50)})

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        digest(ledger, progress=interrupt)
    assert not [thread for thread in threading.enumerate() if thread.name == "weigh sign"]


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    ledger = saved(tmp_path, state(), shards=2)
    progress = Progress()
    digest(ledger, progress=progress)
    assert progress.calls[0] == (0, ledger.nbytes)
    assert progress.calls[-1] == (ledger.nbytes, ledger.nbytes)
    assert progress.calls == sorted(progress.calls)


def test_writers_are_not_held_up_after_signing(tmp_path: Path) -> None:
    ledger = saved(tmp_path, state())
    digest(ledger, cache=False)
    path = ledger.source.files[0].path
    old = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a lease was left behind"))
    signal.alarm(5)
    try:
        path.open("r+b").close()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
