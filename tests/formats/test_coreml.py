"""The Core ML reader, against packages that coremltools wrote (scripts/make-fixtures-coreml) and forged ones."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import graphs
import pytest

from weighbridge.formats import coreml
from weighbridge.formats.folder import LocalFolder
from weighbridge.formats.header import Header
from weighbridge.formats.local import LocalFile
from weighbridge.ledger import Ledger
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Truncated, Unknown, WeighError

DATA = Path(__file__).parents[1] / "data"
COUNTS: dict[str, dict[str, Any]] = json.loads((DATA / "coreml.json").read_text())["models"]
INNER = Path("Data") / "com.apple.CoreML"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("coreml")
    with zipfile.ZipFile(DATA / "coreml.zip") as archive:
        archive.extractall(place)
    return place


class _Package:
    """A package with all its folders."""

    def __init__(self, path: Path) -> None:
        self.path, self.location, self.base, self.version = path, str(path), path.name, None
        self.files = {str(one.relative_to(path)): one.stat().st_size for one in path.rglob("*") if one.is_file()}

    def open(self, name: str, /) -> LocalFile:
        return LocalFile(self.path / name, name=name)


def _read(path: Path) -> tuple[Header, Ledger]:
    package = _Package(path)
    header = coreml.read_folder(package)
    main = package.open(next(name for name in package.files if name.endswith(".mlmodel")))
    files = [main, *header.files]
    return header, graphs.weighed(header, path, "coreml", files)


@pytest.mark.parametrize("name", sorted(name for name in COUNTS if "sparse" not in name))
def test_every_model_counts_as_torch_counts_it(models: Path, name: str) -> None:
    assert _read(models / f"{name}.mlpackage")[1].total == COUNTS[name]["parameters"]


def test_a_pruned_weight_counts_the_values_that_its_mask_keeps(models: Path) -> None:
    header, ledger = _read(models / "encoder-sparse.mlpackage")
    kept = {}
    for row in header.rows:
        if row.name.endswith(".mask"):
            raw = header.files[row.file - 1].read(row.offset, row.nbytes)
            kept[row.name.removesuffix(".mask")] = sum(byte.bit_count() for byte in raw)
    assert len(kept) > 5
    stored = {row.name: row.shape for row in header.rows}
    assert all(stored[f"{name}.nonzero_data"] == (count,) for name, count in kept.items())
    whole = _read(models / "encoder-half.mlpackage")[0]
    others = sum(
        row.shape[0] for row in whole.rows if row.dtype.kind == "float" and row.name not in kept and len(row.shape) == 1
    )
    assert ledger.total == sum(kept.values()) + others
    assert any("sparse" in note for note in header.notes)


def test_norms_keep_their_running_statistics_as_buffers(models: Path) -> None:
    ledger = _read(models / "convolutions-half.mlpackage")[1]
    kinds = {n: family.kind for family in ledger.families for n in family.names}
    assert {n: kinds[n] for n in kinds if n.startswith("norm_")} == {
        "norm_running_mean_to_fp16": "buffer",
        "norm_running_var_to_fp16": "buffer",
        "norm_weight_to_fp16": "parameter",
        "norm_bias_to_fp16": "parameter",
    }
    assert ledger.by_role()["conv"] == 8 * 27 + 8 + 8 * 16 * 4 + 16


def test_quantized_parts_are_named_extras(models: Path) -> None:
    palette = _read(models / "encoder-palette3.mlpackage")[1]
    assert palette.extras == {"quantization_codebook": 8 * (4 * 4 + 8 + 4)}
    blocks = _read(models / "encoder-int4.mlpackage")[1]
    assert blocks.by_dtype()["I4"] == 10631 - sum(v for k, v in blocks.by_dtype().items() if k != "I4")
    # One for each sixteen weights of a matrix: embedding, head, four of attention, two of the feed-forward part.
    assert blocks.extras == {"quantization_scales": (50 * 32 + 7 * 32 + 4 * 32 * 32 + 2 * 64 * 32) // 16}


def test_values_lie_where_the_row_says(models: Path) -> None:
    import numpy as np

    half, whole = (_read(models / f"encoder-{kind}.mlpackage")[0] for kind in ("half", "float"))
    rows = {row.name: row for row in half.rows}
    compared = 0
    for row in whole.rows:
        other = rows.get(f"{row.name}_to_fp16")
        if row.file and other and other.file:
            a = np.frombuffer(whole.files[0].read(row.offset, row.nbytes), "f4")
            b = np.frombuffer(half.files[0].read(other.offset, other.nbytes), "f2")
            assert (a.astype("f2") == b).all()
            compared += 1
    assert compared > 8


def test_the_folder_within_the_package_is_read_alike(models: Path) -> None:
    inner = models / "encoder-half.mlpackage" / INNER
    folder = LocalFolder(inner, location=str(inner), base="x", version=None)
    assert coreml.read_folder(folder).rows == _read(models / "encoder-half.mlpackage")[0].rows


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    shutil.copytree(models / "encoder-int8.mlpackage", tmp_path / "m.mlpackage")
    return tmp_path / "m.mlpackage"


def test_missing_and_short_weights_are_told(copy: Path) -> None:
    weights = copy / INNER / "weights" / "weight.bin"
    weights.write_bytes(weights.read_bytes()[:-4000])
    with pytest.raises(Truncated):
        _read(copy)
    weights.unlink()
    with pytest.raises(NotFound, match="copy the whole"):
        _read(copy)
    (copy / INNER / "model.mlmodel").unlink()
    with pytest.raises(NotFound, match="holds 0 models"):
        coreml.read_folder(_Package(copy))


def _field(number: int, raw: bytes) -> bytes:
    def varint(value: int) -> bytes:
        found = b""
        while value > 127:
            found += bytes([value & 127 | 128])
            value >>= 7
        return found + bytes([value])

    return varint(number << 3 | 2) + varint(len(raw)) + raw


def _number(number: int, value: int) -> bytes:
    return bytes([number << 3]) + bytes([value])


def _program(value: bytes, *, nested: int = 0) -> bytes:
    output = _field(3, _field(1, b"w"))
    block = _field(3, _field(1, b"const") + output + _field(5, _field(1, b"val") + _field(2, value)))
    for _ in range(nested):
        block = _field(3, _field(1, b"cond") + _field(4, block))
    function = _field(3, _field(1, b"CoreML7") + _field(2, block))
    return _number(1, 7) + _field(502, _field(2, _field(1, b"main") + _field(2, function)))


def _type(kind: int, size: int) -> bytes:
    return _field(2, _field(1, _number(1, kind) + _field(3, _field(1, _number(1, size)))))


def _floats(count: int) -> bytes:
    return _field(3, _field(1, _field(1, _field(1, bytes(4 * count)))))


@pytest.mark.parametrize(
    ("raw", "error", "says"),
    [
        (_program(_type(11, 3) + _floats(2)), Malformed, "values of its shape"),
        (_program(_type(11, 3)), Malformed, "values of its shape"),
        (_program(_type(99, 3) + _floats(3)), Unknown, "type 99"),
        (_program(_type(11, 3) + _field(5, _field(1, b"@model_path/../../w.bin"))), Refused, "outside its folder"),
        (_program(_type(11, 3) + _field(5, _field(1, b"/etc/passwd"))), Refused, "outside its folder"),
        (_program(_type(11, 3) + _field(5, _field(1, b"@model_path/w.bin"))), NotFound, "not there"),
        (_program(_type(11, 3) + _floats(3), nested=40), Malformed, "blocks within blocks"),
        (_number(1, 4) + _field(500, b""), Unknown, "old kind"),
        (_number(1, 4) + _field(402, b""), Unknown, "tree ensemble"),
        (_number(1, 4) + _field(2001, b""), Unknown, "kind 2001"),
        (_number(1, 4), Malformed, "not a Core ML model"),
        (b"", Malformed, "not a Core ML model"),
    ],
)
def test_a_model_that_lies_is_refused_with_the_reason(
    tmp_path: Path, raw: bytes, error: type[WeighError], says: str
) -> None:
    path = tmp_path / "m.mlmodel"
    path.write_bytes(raw)
    with pytest.raises(error, match=says):
        coreml.read(LocalFile(path))


def test_a_program_alone_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.mlmodel"
    path.write_bytes(_program(_type(11, 3) + _floats(3)))
    (row,) = coreml.read(LocalFile(path)).rows
    assert (row.name, row.shape, row.nbytes) == ("w", (3,), 12)
    assert LocalFile(path).read(row.offset, 12) == bytes(12)


@pytest.mark.parametrize("name", ["model.mlmodel", "weights/weight.bin"])
def test_every_prefix_and_every_damage_gives_a_plain_error(copy: Path, name: str) -> None:
    path = copy / INNER / name
    whole = path.read_bytes()
    for size in range(0, len(whole) - 64, max(len(whole) // 80, 1)):
        path.write_bytes(whole[:size])
        with pytest.raises(WeighError):
            _read(copy)
    path.write_bytes(whole)
    graphs.survives(path, lambda: _read(copy), copies=60, seed=7)
