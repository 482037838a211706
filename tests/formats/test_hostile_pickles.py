"""Checkpoints forged to run code, to exhaust the machine, or to point where they should not: one clear error each."""

import functools
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from weighbridge.formats import torch_containers
from weighbridge.formats.local import LocalFile
from weighbridge.formats.torch_file import read, read_checkpoint
from weighbridge.ledger.errors import Malformed, Refused, Truncated, WeighError

CANARY = "canary-that-must-not-sing"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x0ctQ"  # 12 floats


def zipped(pickled: bytes, *, storage: bytes = b"\0" * 48) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", storage)
    return buffer.getvalue()


def legacy(pickled: bytes) -> bytes:
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(value, 2) for value in head) + pickled + pickle.dumps([], 2)


def file(folder: Path, raw: bytes) -> LocalFile:
    (folder / "model.pt").write_bytes(raw)
    return LocalFile(folder / "model.pt")


class Touch:
    """An object whose pickle touches the canary when loaded."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.how = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.how


class Awake(nn.Module):
    """A class whose instances act when they are given their state."""

    def __setstate__(self, state: object) -> None:
        Path(CANARY).touch()


def touch() -> None:
    Path(CANARY).touch()


SHELL = f"touch {CANARY}"
PYTHON = f"open({CANARY!r}, 'w')"

CALLS = {
    "os.system, by name": b"cos\nsystem\n(S'%b'\ntR." % SHELL.encode(),
    "os.system, as an instance": b"(S'%b'\nios\nsystem\n." % SHELL.encode(),
    "os.system, as an object": b"(cos\nsystem\nS'%b'\no." % SHELL.encode(),
    "os.system, through torch's own modules": b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93)R.",
    "os.system, wrapped as a tensor subclass": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNttR.",
    "a call of what a call gave": b"\x80\x02cfunctools\npartial\nc__main__\nf\n\x85R)R.",
    "an extension code": b"\x80\x02\x82\x01)R.",
    "an instance of a dangerous class": b"\x80\x02csubprocess\nPopen\n)\x81}b.",
    "a name left uncalled": b"\x80\x02cos\nsystem\n.",
    "torch.hub.load": b"\x80\x02ctorch.hub\nload\n(X\x03\0\0\0a/btR.",
    "torch.load": b"\x80\x02ctorch\nload\n(X\x01\0\0\0atR.",
    "numpy's runstring": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(X\x01\0\0\0a}tR.",
}
OBJECTS = {
    "os.system": lambda: Touch(os.system, SHELL),
    "subprocess.run": lambda: Touch(subprocess.run, ["touch", CANARY]),
    "eval": lambda: Touch(eval, PYTHON),
    "exec": lambda: Touch(exec, PYTHON),
    "open": lambda: Touch(open, CANARY, "w"),
    "getattr": lambda: Touch(getattr, Path, "touch"),
    "import": lambda: Touch(__import__, "this"),
    "a pickle within": lambda: Touch(pickle.loads, pickle.dumps(Touch(os.system, SHELL))),
    "a partial": lambda: Touch(functools.partial, os.system, SHELL),
    "a function of one's own": lambda: Touch(touch),
    "a pathlib method": lambda: Touch(Path.touch, Path(CANARY)),
}


@pytest.mark.parametrize("container", [zipped, legacy, bytes], ids=["zip", "legacy", "bare"])
@pytest.mark.parametrize("name", CALLS)
def test_a_handwritten_call_is_refused_by_name_and_not_made(
    name: str, container: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="which no tensor file needs; nothing was executed") as caught:
        read(file(tmp_path, container(CALLS[name])))
    assert not Path(CANARY).exists()
    assert "\n" not in str(caught.value)
    assert "ask its author for safetensors" in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_that_acts_when_loaded_is_refused_under_every_protocol(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps({"weight": [1, OBJECTS[name]()]}, protocol)
    for raw in (zipped(pickled), legacy(pickled)):
        with pytest.raises(Refused, match="nothing was executed"):
            read_checkpoint(file(tmp_path, raw))
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
def test_torch_save_of_an_object_that_acts_is_refused(
    new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "x": Touch(touch)}, "m.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(Refused, match=r"calls [\w.]*touch, which"):
        read(LocalFile(tmp_path / "m.pt"))
    assert not Path(CANARY).exists()


def test_state_is_data_even_for_a_class_that_would_act_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = Awake()
    net.layer = nn.Linear(2, 2)
    torch.save(net, "net.pt")
    assert [row.name for row in read(LocalFile(tmp_path / "net.pt")).rows] == ["layer.weight", "layer.bias"]
    assert not Path(CANARY).exists()


def test_names_in_errors_cannot_break_the_line(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        read(file(tmp_path, zipped(b"\x80\x04\x8c\x02os\x8c\x0aa\nb\x1b[31mcd\x93.")))
    assert str(caught.value).isprintable()


# Tensors that point where they should not


def tensor(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """The opcodes that build a view of the storage."""
    return TENSOR + b"(" + STORAGE + b"".join(map(_push, (offset, shape, strides))) + b"\x89NtR"


def _push(value: object) -> bytes:
    """The opcodes that push a number or a tuple of them."""
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_push, value)) + b"t"
    raw = int(value).to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + raw


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (12, (), ()),
        (-1, (2,), (1,)),
        (0, (-1,), (1,)),
        (0, (2, 2), (1,)),
        (0, (2,), (-1,)),
        (0, (4, 4), (3, 1)),
        (0, (2,), (1 << 70,)),
        (1 << 100, (2,), (1,)),
        (0, (1 << 40, 1 << 40), (0, 0)),
        (0, (1,) * 65, (1,) * 65),
    ],
)
def test_a_tensor_beyond_its_storage_is_malformed(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], tmp_path: Path
) -> None:
    pickled = b"\x80\x02}X\x01\0\0\0w" + tensor(offset, shape, strides) + b"s."
    with pytest.raises(Malformed):
        read(file(tmp_path, zipped(pickled)))


def test_the_same_tensor_within_its_storage_is_read(tmp_path: Path) -> None:
    pickled = b"\x80\x02}X\x01\0\0\0w" + tensor(2, (3, 3), (3, 1)) + b"s."
    (row,) = read(file(tmp_path, zipped(pickled))).rows
    assert (row.name, row.shape, row.nbytes) == ("w", (3, 3), 36)


def test_a_storage_shorter_than_the_pickle_says_is_truncated(tmp_path: Path) -> None:
    pickled = b"\x80\x02}X\x01\0\0\0w" + tensor(0, (2,), (1,)) + b"s."
    with pytest.raises(Truncated):
        read(file(tmp_path, zipped(pickled, storage=b"\0" * 40)))


def test_a_storage_that_is_missing_is_truncated(tmp_path: Path) -> None:
    pickled = (b"\x80\x02}X\x01\0\0\0w" + tensor(0, (2,), (1,)) + b"s.").replace(b"\x01\0\0\x000", b"\x01\0\0\x009")
    with pytest.raises(Truncated, match="'data/9' is missing"):
        read(file(tmp_path, zipped(pickled)))


def test_two_tensors_of_one_name_are_malformed(tmp_path: Path) -> None:
    one = tensor(0, (2,), (1,))
    pickled = b"\x80\x02}(K\x01" + one + b"X\x01\0\0\x001" + one + b"u."
    with pytest.raises(Malformed, match="two tensors are called '1'"):
        read(file(tmp_path, zipped(pickled)))


# Archives that lie


def _patched(raw: bytes, signature: bytes, at: int, form: str, *values: int, which: int = 0) -> bytes:
    """The archive with numbers written over those at `at` in the entry that begins with `signature`."""
    place = -1
    for _ in range(which + 1):
        place = raw.index(signature, place + 1)
    patched = bytearray(raw)
    struct.pack_into(form, patched, place + at, *values)
    return bytes(patched)


_GOOD = zipped(b"\x80\x02}X\x01\0\0\0w" + tensor(0, (2,), (1,)) + b"s.")
_CENTRAL, _END = b"PK\x01\x02", b"PK\x05\x06"
LIES = {
    "an offset past the end": _patched(_GOOD, _CENTRAL, 42, "<I", 1 << 31),
    "two entries at one place": _patched(_GOOD, _CENTRAL, 42, "<I", 0, which=1),
    "a size past the end": _patched(_GOOD, _CENTRAL, 20, "<2I", 1 << 31, 1 << 31),
    "two sizes": _patched(_GOOD, _CENTRAL, 24, "<I", 9, which=1),
    "a bomb": _patched(_GOOD, _CENTRAL, 10, "<H", 8),
    "more entries than there are": _patched(_GOOD, _END, 8, "<2H", 9, 9),
    "more entries than can be": _patched(_GOOD, _END, 10, "<H", 0xFFFF),
    "a directory past the end": _patched(_GOOD, _END, 12, "<2I", 1 << 31, 1 << 31),
    "a local header elsewhere": _patched(_GOOD, b"PK\x03\x04", 26, "<2H", 60_000, 60_000),
    "no local header": _GOOD.replace(b"PK\x03\x04", b"PK\x03\x05"),
    "a name twice": _GOOD.replace(b"a/data/0", b"a/DATA.P").replace(b"a/data.pkl", b"a/data.p\0\0"),
    "an encrypted pickle": _patched(_GOOD, _CENTRAL, 8, "<H", 1),
    "an unknown method": _patched(_GOOD, _CENTRAL, 10, "<H", 99),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_lies_is_told(lie: str, tmp_path: Path) -> None:
    assert read(file(tmp_path, _GOOD)).rows
    with pytest.raises((Malformed, Refused)):
        read(file(tmp_path, LIES[lie]))


def test_a_pickle_that_inflates_is_stopped_at_its_declared_size(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"N" * (64 << 20))
    with pytest.raises(Refused, match=r"data\.pkl has 67,108,864 bytes"):
        read(file(tmp_path, buffer.getvalue()))


# Pickles that would exhaust the machine. They run in a process of their own, without torch, whose memory is measured.


def _doubling(start: bytes, twice: bytes) -> bytes:
    """Sixty levels, each of which holds the one before it twice."""
    levels = b"".join(twice % (n, n) + b"q%c" % (n + 1) for n in range(1, 61))
    return b"\x80\x02" + start + b"q\x01" + levels + b"."


_ONE = tensor(0, (2,), (1,))
_MILLION = 1_000_000
BOMBS: dict[str, Callable[[], bytes]] = {
    "dictionaries": lambda: b"\x80\x02" + b"}" * (2 * _MILLION) + b".",
    "one great dictionary": lambda: (
        b"\x80\x02}(" + b"".join(b"J%bN" % struct.pack("<i", n) for n in range(2 * _MILLION)) + b"u."
    ),
    "keys that hash alike": lambda: (
        b"\x80\x02}("
        + b"".join(b"\x8a\x0b%bN" % (n * ((1 << 61) - 1)).to_bytes(11, "little") for n in range(1, 40_000))
        + b"u."
    ),
    "tuples as keys": lambda: _doubling(b"N", b"h%ch%c\x86")[:-1] + b"}h\x3dNs.",
    "tensors counted again and again": lambda: b"\x80\x02](" + _ONE + b"q\x01" + b"h\x01" * _MILLION + b"e.",
    "doubling lists": lambda: _doubling(_ONE, b"](h%ch%ce"),
    "doubling tuples": lambda: _doubling(_ONE, b"h%ch%c\x86"),
    "doubling dictionaries": lambda: _doubling(_ONE, b"}(X\x01\0\0\0ah%cX\x01\0\0\0bh%cu"),
    "one list seen from everywhere": lambda: b"\x80\x02](" + b"N" * 100_000 + b"eq\x01(" + b"h\x01" * _MILLION + b"l.",
    "depth": lambda: b"\x80\x02" + b"}X\x01\0\0\0a" * 200_000 + _ONE + b"s" * 200_000 + b".",
    "a list within itself": lambda: b"\x80\x02]q\x01(" + _ONE + b"h\x01h\x01h\x01e.",
    "a model within itself": lambda: b"\x80\x02}q\x01(X\x05\0\0\0modelh\x01X\x01\0\0\0w" + _ONE + b"u.",
    "text encoded again and again": lambda: (
        b"\x80\x02c_codecs\nencode\nq\x01X\0\0\x10\0"
        + b"a" * (1 << 20)
        + b"X\x06\0\0\0latin1\x86q\x02"
        + b"h\x01h\x02R" * 1000
        + b"."
    ),
    "a long integer": lambda: b"\x80\x02\x8b\0\0\0\x01" + b"\x7f" * (1 << 24) + b".",
    "a string of no end": lambda: b"\x80\x02X\xff\xff\xff\x7f" + b"a" * 1000,
    "memo indexes far apart": lambda: b"\x80\x02N" + b"".join(b"r%b" % struct.pack("<I", n << 10) for n in range(9999)),
    "names": lambda: b"\x80\x02" + b"".join(b"cm\n%x\n" % n for n in range(500_000)) + b".",
    "marks": lambda: b"\x80\x02" + b"(" * _MILLION + b".",
}
_HARMLESS = {"keys that hash alike", "tuples as keys", "a list within itself", "a model within itself"}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_ends_in_one_error_after_its_share_of_the_budget(
    bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_containers, "_BUDGET", torch_containers._BUDGET // 10)
    target = file(tmp_path, zipped(BOMBS[bomb]()))
    start = time.process_time()
    if bomb in _HARMLESS:
        _attempt(target)
    else:
        with pytest.raises((Refused, Malformed)):
            read_checkpoint(target)
    assert time.process_time() - start < 1


_CHILD = """
import sys, time
from pathlib import Path
from weighbridge.formats.local import LocalFile
from weighbridge.formats.torch_file import read_checkpoint
from weighbridge.ledger.errors import WeighError
start = time.process_time()
try:
    read_checkpoint(LocalFile(Path(sys.argv[1])))
except WeighError as error:
    print(error)
print(time.process_time() - start)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux tells it")
@pytest.mark.parametrize("bomb", ["one great dictionary", "tensors counted again and again"])
def test_the_whole_budget_is_little_time_and_memory(bomb: str, tmp_path: Path) -> None:
    path = file(tmp_path, zipped(BOMBS[bomb]())).path
    run = subprocess.run([sys.executable, "-c", _CHILD, path], capture_output=True, text=True, timeout=60, check=True)
    verdict, seconds, kilobytes = run.stdout.splitlines()
    assert "builds more than any real checkpoint does" in verdict
    assert float(seconds) < 5  # 2 on an idle machine of 2026
    assert int(kilobytes) < 230_000  # of which the interpreter and the file itself have some 50,000


# Anything else


@functools.cache
def _samples() -> list[bytes]:
    """Sound checkpoints: zip and legacy, a dictionary and a module."""
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    found = []
    for value in ({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, net):
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=new)
            found.append(buffer.getvalue())
    return found


_EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255), st.sampled_from(["set", "cut", "add"])))


def _edited(raw: bytes, edits: list[tuple[int, int, str]]) -> bytes:
    edited = bytearray(raw)
    for place, value, kind in edits:
        at = place % (len(edited) or 1)
        if kind == "set" and edited:
            edited[at] = value
        elif kind == "cut":
            del edited[at : at + 1 + value % 9]
        else:
            edited[at:at] = bytes([value])
    return bytes(edited)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sample=st.integers(0, 3), edits=_EDITS)
def test_a_damaged_file_is_read_or_told_and_never_crashes(
    sample: int, edits: list[tuple[int, int, str]], tmp_path: Path
) -> None:
    _attempt(file(tmp_path, _edited(_samples()[sample], edits)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sample=st.sampled_from([0, 2]), edits=_EDITS)
def test_a_damaged_pickle_in_a_sound_archive_is_read_or_told_and_never_crashes(
    sample: int, edits: list[tuple[int, int, str]], tmp_path: Path
) -> None:
    with zipfile.ZipFile(io.BytesIO(_samples()[sample])) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for name, raw in entries.items():
            new.writestr(name, _edited(raw, edits) if name.endswith("data.pkl") else raw)
    _attempt(file(tmp_path, buffer.getvalue()))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pickled=st.binary(max_size=200))
def test_random_opcodes_are_told_and_never_crash(pickled: bytes, tmp_path: Path) -> None:
    _attempt(file(tmp_path, zipped(b"\x80\x04" + pickled)))
    _attempt(file(tmp_path, pickled))


def _attempt(target: LocalFile) -> None:
    """Reads a file: rows within it, or one line of error, soon."""
    start = time.process_time()
    try:
        checkpoint = read_checkpoint(target)
    except WeighError as error:
        assert str(error).isprintable()
        return
    finally:
        assert time.process_time() - start < 2
    for row in checkpoint.model.rows:
        row.name.encode()
        assert 0 <= row.offset <= target.size
        if row.name not in checkpoint.model.metadata.get("strides", {}):
            assert row.offset + row.nbytes <= target.size
    target.close()
