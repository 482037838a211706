"""The SavedModel reader, against folders that TensorFlow wrote (scripts/make-fixtures-tensorflow) and forged ones."""

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import graphs
import pytest

from weighbridge.formats import saved_model
from weighbridge.formats.folder import LocalFolder
from weighbridge.formats.header import Header
from weighbridge.formats.local import LocalFile
from weighbridge.formats.sstable import entries
from weighbridge.ledger import NOWHERE, Ledger, Source
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Truncated, Unknown, WeighError

DATA = Path(__file__).parents[1] / "data"
COUNTS: dict[str, dict[str, Any]] = json.loads((DATA / "tensorflow.json").read_text())["saved_models"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tensorflow")
    with zipfile.ZipFile(DATA / "tensorflow.zip") as archive:
        archive.extractall(place)
    return place


def _read(path: Path) -> tuple[Header, Ledger]:
    folder = LocalFolder(path, location=str(path), base=path.name, version=None)
    header = saved_model.read_folder(folder)
    for row in () if any("slices" in note for note in header.notes) else header.rows:
        assert row.offset == NOWHERE or row.offset + row.nbytes <= header.files[row.file].size
    ledger = Ledger(
        source=Source(location=str(path), files=header.files),
        format="saved_model",
        rows=header.rows,
        aliases=header.aliases,
        stated=header.stated,
    )
    assert ledger.total + ledger.buffers + sum(ledger.extras.values()) == ledger.stored
    return header, ledger


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_every_model_counts_as_tensorflow_counts_it(models: Path, name: str) -> None:
    known = COUNTS[name]
    header, ledger = _read(models / name)
    assert ledger.total == known["parameters"]
    assert ledger.trainable == known.get("trainable", known["parameters"])
    assert ledger.buffers == known.get("buffers", 0)
    expected = {"optimizer_state": known.get("optimizer", 0), "tied_copies": known.get("copies", 0)}
    assert ledger.extras == {extra: count for extra, count in expected.items() if count}
    parameters = {n for family in ledger.parameters for n in family.names}
    shapes = {row.name: list(row.shape) for row in header.rows if row.name in parameters}
    assert shapes == known["names"]


def test_roles_follow_the_layers(models: Path) -> None:
    roles = _read(models / "trained")[0].stated.roles
    for name, role in roles.items():
        expected = {"multi_head_attention": "attention", "layer_normalization": "norm", "embedding": "embedding"}
        assert role == next((r for word, r in expected.items() if word in name.split("/")[0]), role)
    assert set(roles.values()) >= {"attention", "norm", "embedding"}


def test_a_sharded_model_names_all_its_files(models: Path) -> None:
    header, _ = _read(models / "sharded")
    assert len(header.files) > 2
    assert {row.file for row in header.rows} <= set(range(len(header.files)))


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    shutil.copytree(models / "saved", tmp_path / "m")
    return tmp_path / "m"


def test_a_missing_or_short_shard_is_told(copy: Path) -> None:
    shard = copy / "variables" / "variables.data-00000-of-00001"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:200])
    with pytest.raises(Truncated):
        _read(copy)
    shard.unlink()
    with pytest.raises(NotFound, match="data-00000-of-00001"):
        _read(copy)


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_a_folder_without_graph_or_index_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(NotFound, match="constants of its graph"):
        _read(copy)


def test_variables_of_which_the_graph_says_nothing_are_refused(copy: Path, models: Path) -> None:
    shutil.copy(models / "trained" / "saved_model.pb", copy / "saved_model.pb")
    with pytest.raises(Unknown, match="is trained"):
        _read(copy)
    (copy / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    with pytest.raises(Unknown, match="is trained"):
        _read(copy)


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_every_prefix_is_refused(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    step = max(len(whole) // 150, 1)
    for size in [*range(0, min(len(whole), 60)), *range(60, len(whole), step)]:
        path.write_bytes(whole[:size])
        with pytest.raises(WeighError):
            _read(copy)


def test_damage_gives_a_plain_error_or_a_sound_header(copy: Path) -> None:
    for name in ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
        graphs.survives(copy / name, lambda: _read(copy), copies=60, seed=3)


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def _table(pairs: list[tuple[bytes, bytes]], *, kind: int = 0) -> bytes:
    def block(entries: list[tuple[bytes, bytes]]) -> bytes:
        body = b"".join(_varint(0) + _varint(len(k)) + _varint(len(v)) + k + v for k, v in entries)
        return body + struct.pack("<II", 0, 1)

    data = block(pairs)
    index_at = len(data) + 5
    index = block([(b"\xff", _varint(0) + _varint(len(data)))])
    footer = _varint(0) + _varint(0) + _varint(index_at) + _varint(len(index))
    return (
        data
        + bytes([kind])
        + bytes(4)
        + index
        + bytes(5)
        + footer.ljust(40, b"\0")
        + struct.pack("<Q", 0xDB4775248B80FB57)
    )


def _entry(shape: list[int], offset: int, size: int, *, shard: int = 0, kind: int = 1) -> bytes:
    dims = b"".join(b"\x12" + _varint(len(_varint(n)) + 1) + b"\x08" + _varint(n) for n in shape)
    numbers = ((0x08, kind), (0x18, shard), (0x20, offset), (0x28, size))
    return b"\x12" + _varint(len(dims)) + dims + b"".join(bytes([k]) + _varint(v) for k, v in numbers if v)


HEADER = (b"", b"\x08\x01")


@pytest.mark.parametrize(
    ("raw", "error", "says"),
    [
        (_table([HEADER, (b"a", _entry([2], 0, 7))]), Malformed, "has 7 bytes"),
        (_table([HEADER, (b"a", _entry([2], 0, 8)), (b"b", _entry([2], 4, 8))]), Malformed, "overlaps"),
        (_table([HEADER, (b"a", _entry([2], 1 << 40, 8))]), Truncated, "are needed"),
        (_table([HEADER, (b"a", _entry([1 << 40, 1 << 40], 0, 8))]), Malformed, "shape"),
        (_table([HEADER, (b"a", _entry([2], 0, 8, shard=7))]), Malformed, "shards"),
        (_table([(b"", b"\x08\xff\xff\xff\xff\x0f"), (b"a", _entry([2], 0, 8))]), Malformed, "shards"),
        (_table([(b"", b"\x08\x01\x10\x01"), (b"a", _entry([2], 0, 8))]), Refused, "big-endian"),
        (_table([HEADER, (b"a", _entry([2], 0, 8, kind=99))]), Unknown, "type 99"),
        (_table([HEADER, (b"b", _entry([2], 0, 8)), (b"a", _entry([2], 8, 8))]), Malformed, "not in order"),
        (_table([HEADER, (b"a", _entry([2], 0, 8)), (b"a", _entry([2], 8, 8))]), Malformed, "not in order"),
        (_table([HEADER, (b"a" * 5000, _entry([2], 0, 8))]), Malformed, "not sound"),
        (_table([HEADER, (b"a", _entry([2], 0, 8))], kind=1), Refused, "packed"),
        (_table([HEADER]), Malformed, "no variable"),
        (b"x" * 100, Malformed, "no table"),
        (b"", Malformed, "no table"),
    ],
)
def test_an_index_that_lies_is_refused_with_the_reason(
    copy: Path, raw: bytes, error: type[WeighError], says: str
) -> None:
    (copy / "variables" / "variables.index").write_bytes(raw)
    with pytest.raises(error, match=says):
        _read(copy)


def test_an_index_whose_blocks_are_one_block_over_and_over_is_refused(tmp_path: Path) -> None:
    data = _table([HEADER])
    handle = _varint(0) + _varint(len(data))
    body = b"".join(_varint(0) + b"\x01" + _varint(len(handle)) + b"\xff" + handle for _ in range(1000))
    path = tmp_path / "x.index"
    index = body + struct.pack("<II", 0, 1)
    footer = _varint(0) + _varint(0) + _varint(0) + _varint(len(index))
    path.write_bytes(index + bytes(5) + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))
    with pytest.raises(WeighError):
        list(entries(LocalFile(path)))
