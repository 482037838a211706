"""The TFLite reader, against files that TensorFlow converted (scripts/make-fixtures-tensorflow) and forged ones."""

import json
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import graphs
import pytest

from weighbridge.formats import tflite
from weighbridge.formats.header import Header
from weighbridge.formats.local import LocalFile
from weighbridge.ledger import Ledger
from weighbridge.ledger.errors import Malformed, Truncated, Unknown, WeighError

DATA = Path(__file__).parents[1] / "data"
COUNTS: dict[str, dict[str, Any]] = json.loads((DATA / "tensorflow.json").read_text())["tflite"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tflite")
    with zipfile.ZipFile(DATA / "tensorflow.zip") as archive:
        archive.extractall(place, [name for name in archive.namelist() if name.endswith(".tflite")])
    return place


def _read(path: Path) -> tuple[Header, Ledger]:
    file = LocalFile(path)
    header = tflite.read(file)
    return header, graphs.weighed(header, path, "tflite", [file])


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_every_model_counts_as_keras_counts_it(models: Path, name: str) -> None:
    assert _read(models / f"{name}.tflite")[1].total == COUNTS[name]["parameters"]


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_tensors_are_those_that_the_interpreter_lists(models: Path, name: str) -> None:
    # The interpreter lists the main graph only.
    theirs = {one["name"]: (one["shape"], one["dtype"]) for one in COUNTS[name]["tensors"]}
    dtypes = {"F32": "float32", "F16": "float16", "I8": "int8", "I32": "int32", "I64": "int64", "BOOL": "bool"}
    rows = {row.name: row for row in _read(models / f"{name}.tflite")[0].rows}
    both = rows.keys() & theirs.keys()
    assert len(both) > 10
    for name in both:
        assert (list(rows[name].shape), dtypes[rows[name].dtype.name]) == theirs[name]


def test_quantized_weights_are_parameters_of_their_own_width(models: Path) -> None:
    ledger = _read(models / "cnn_int8.tflite")[1]
    assert ledger.by_dtype() == {"I8": 1250 + 80 + 36 + 108 + 4, "I32": 10 + 5 + 4 + 4}
    assert ledger.trainable == 0
    assert ledger.by_role()["conv"] == 108 + 36 + 80 + 4 + 4 + 5


def test_values_lie_where_the_row_says(models: Path) -> None:
    # Both files hold the same weights, of which one was rounded to half of its width.
    import numpy as np

    whole, half = (_read(models / f"cnn{kind}.tflite")[0] for kind in ("", "_half"))
    rows = {row.name: row for row in half.rows}
    compared = 0
    for row in whole.rows:
        if row.dtype.name == "F32" and row.name in rows:
            a = np.frombuffer(LocalFile(models / "cnn.tflite").read(row.offset, row.nbytes), "f4")
            other = rows[row.name]
            b = np.frombuffer(LocalFile(models / "cnn_half.tflite").read(other.offset, other.nbytes), "f2")
            assert (a.astype("f2") == b).all()
            compared += 1
    assert compared > 5


class _Writer:
    """A TFLite file of one graph, by the flatbuffers package."""

    def __init__(self) -> None:
        self.b = flatbuffers.Builder(1024)

    def vector(self, values: list[int], *, form: str = "i") -> int:
        size = {"i": 4, "o": 4}[form]
        self.b.StartVector(size, len(values), 4)
        for value in reversed(values):
            if form == "o":
                self.b.PrependUOffsetTRelative(value)
            else:
                self.b.PrependInt32(value)
        return self.b.EndVector()

    def table(self, fields: dict[int, tuple[str, int]], count: int) -> int:
        self.b.StartObject(count)
        for number, (form, value) in fields.items():
            match form:
                case "o":
                    self.b.PrependUOffsetTRelativeSlot(number, value, 0)
                case "b":
                    self.b.PrependInt8Slot(number, value, 0)
                case "I":
                    self.b.PrependUint32Slot(number, value, 0)
                case "Q":
                    self.b.PrependUint64Slot(number, value, 0)
                case _:
                    self.b.PrependInt32Slot(number, value, -1)
        return self.b.EndObject()

    def model(
        self,
        tensors: list[tuple[str, int, list[int], int]],
        operators: list[tuple[int, list[int], list[int]]],
        buffers: list[bytes],
        *,
        body: int | None = None,
        places: dict[int, tuple[int, int]] | None = None,
    ) -> bytes:
        """Tensors are (name, type, shape, buffer), operators (code, inputs, outputs); `body` is what they all run."""
        stored = []
        for number, data in enumerate(buffers):
            fields = {0: ("o", self.b.CreateByteVector(data))} if data else {}
            for at, value in enumerate((places or {}).get(number, ())):
                fields[1 + at] = ("Q", value)
            stored.append(self.table(fields, 3))
        listed = [
            self.table(
                {0: ("o", self.vector(shape)), 1: ("b", kind), 2: ("I", buffer), 3: ("o", self.b.CreateString(name))},
                10,
            )
            for name, kind, shape, buffer in tensors
        ]
        codes = []
        for code, _, _ in operators:
            custom = self.b.CreateString("Own") if code == 32 else None
            codes.append(self.table({3: ("i", code)} | ({1: ("o", custom)} if custom else {}), 4))
        ran = []
        for at, (_, inputs, outputs) in enumerate(operators):
            fields = {0: ("I", at), 1: ("o", self.vector(inputs)), 2: ("o", self.vector(outputs))}
            if body is not None:
                fields[4] = ("o", self.table({0: ("i", body), 1: ("i", body)}, 2))
            ran.append(self.table(fields, 13))
        graph = self.table(
            {0: ("o", self.vector(listed, form="o")), 1: ("o", self.vector([0])), 3: ("o", self.vector(ran, form="o"))},
            5,
        )
        root = {0: ("I", 3), 1: ("o", self.vector(codes, form="o")), 2: ("o", self.vector([graph], form="o"))}
        root[4] = ("o", self.vector(stored, form="o"))
        self.b.Finish(self.table(root, 8), file_identifier=b"TFL3")
        return bytes(self.b.Output())


def _save(folder: Path, *arguments: Any, **more: Any) -> Path:
    path = folder / "m.tflite"
    path.write_bytes(_Writer().model(*arguments, **more))
    return path


X = ("x", 0, [1, 4], 0)


def test_a_name_that_occurs_twice_gets_its_graph(tmp_path: Path) -> None:
    tensors = [X, ("w", 0, [2, 4], 1), ("w", 0, [2], 2), ("y", 0, [1, 2], 0)]
    header, ledger = _read(_save(tmp_path, tensors, [(9, [0, 1, 2], [3])], [b"", bytes(32), bytes(8)]))
    assert (len({row.name for row in header.rows}), ledger.total) == (2, 10)


def test_tensors_of_one_buffer_count_once(tmp_path: Path) -> None:
    tensors = [X, ("a", 0, [4, 4], 1), ("b", 0, [4, 4], 1), ("h", 0, [1, 4], 0), ("y", 0, [1, 4], 0)]
    header, ledger = _read(_save(tmp_path, tensors, [(9, [0, 1, -1], [3]), (9, [3, 2, -1], [4])], [b"", bytes(64)]))
    assert (header.aliases, ledger.total) == ({"b": "a"}, 16)


@pytest.mark.parametrize(("count", "dtype"), [(4, "I4"), (5, "U8")])
def test_four_bit_weights_count_one_by_one(tmp_path: Path, count: int, dtype: str) -> None:
    tensors = [X, ("w", 17, [1, count], 1), ("y", 0, [1, 1], 0)]
    header, ledger = _read(_save(tmp_path, tensors, [(9, [0, 1, -1], [2])], [b"", bytes(-(-count // 2))]))
    assert (ledger.total, header.rows[0].dtype.name) == (count, dtype)


def test_constants_without_evidence_are_counted_apart(tmp_path: Path) -> None:
    tensors = [X, ("arith.constant", 0, [3, 4], 1), ("zeros", 0, [3, 4], 2), ("y", 0, [3, 4], 0)]
    header, ledger = _read(_save(tmp_path, tensors, [(0, [0, 1], [3]), (0, [3, 2], [3])], [b"", b"\1" * 48, bytes(48)]))
    assert (ledger.total, ledger.buffers, ledger.extras) == (0, 12, {"constants_of_unknown_origin": 12})
    assert "counted apart" in header.notes[0]


def test_values_behind_the_flatbuffer_are_found(tmp_path: Path) -> None:
    tensors = [X, ("w", 0, [2, 4], 1), ("y", 0, [1, 2], 0)]
    arguments = (tensors, [(9, [0, 1, -1], [2])], [b"", b""])
    path = _save(tmp_path, *arguments, places={1: (4096, 32)})
    path.write_bytes(path.read_bytes().ljust(4096 + 32, b"\0"))
    header, ledger = _read(path)
    assert (ledger.total, header.rows[0].offset) == (8, 4096)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Truncated):
        _read(path)


def test_integer_matrices_of_custom_operators_are_refused(tmp_path: Path) -> None:
    tensors = [X, ("w", 3, [2, 4], 1), ("y", 0, [1, 2], 0)]
    with pytest.raises(Unknown, match="'Own', a custom operator"):
        _read(_save(tmp_path, tensors, [(32, [0, 1], [2])], [b"", bytes(8)]))


@pytest.mark.parametrize(
    ("tensor", "buffers", "error", "says"),
    [
        (("w", 0, [2, 4], 1), [b"", bytes(31)], Malformed, "has 31 bytes"),
        (("w", 0, [2, 4], 7), [b"", bytes(32)], Malformed, "buffer 7 of 2"),
        (("w", 0, [-2, 4], 1), [b"", bytes(32)], Malformed, "shape"),
        (("w", 0, [1] * 70, 1), [b"", bytes(4)], Malformed, "at most 64"),
        (("w", 99, [2], 1), [b"", bytes(8)], Unknown, "type 99"),
        (("w", 0, [2, 4], 0), [b"", bytes(32)], Malformed, "no tensor"),
    ],
)
def test_a_tensor_that_lies_is_refused_with_the_reason(
    tmp_path: Path, tensor: Any, buffers: list[bytes], error: type[WeighError], says: str
) -> None:
    with pytest.raises(error, match=says):
        _read(_save(tmp_path, [X, tensor], [], buffers))


def test_buffers_that_overlap_and_operators_of_no_tensor_are_refused(tmp_path: Path) -> None:
    tensors = [X, ("a", 0, [2, 4], 1), ("b", 0, [2, 4], 2)]
    with pytest.raises(Malformed, match="overlap"):
        _read(_save(tmp_path, tensors, [], [b"", b"", b""], places={1: (40, 32), 2: (50, 32)}))
    with pytest.raises(Malformed, match="not there"):
        _read(_save(tmp_path, tensors, [(9, [0, 50], [2])], [b"", bytes(32), bytes(32)]))


def test_a_graph_that_runs_itself_ends(tmp_path: Path) -> None:
    tensors = [X, ("w", 0, [2, 4], 1)]
    assert _read(_save(tmp_path, tensors, [(119, [0, 1], [0])], [b"", bytes(32)], body=0))[1].total == 0
    with pytest.raises(Malformed, match="without end"):
        _read(_save(tmp_path, tensors, [(119, [0, 1], [0])], [b"", bytes(32)], body=9))


def test_every_prefix_is_truncated_or_malformed(models: Path, tmp_path: Path) -> None:
    whole = (models / "recurrent.tflite").read_bytes()
    path = tmp_path / "m.tflite"
    for size in [*range(0, 64), *range(64, len(whole) - 64, 211)]:
        path.write_bytes(whole[:size])
        with pytest.raises(Malformed):
            _read(path)


def test_damage_gives_a_plain_error_or_a_sound_header(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    for name in ("recurrent", "cnn_int8", "text_half"):
        path.write_bytes((models / f"{name}.tflite").read_bytes())
        graphs.survives(path, lambda: _read(path), copies=50, seed=5)


def test_tables_shared_without_end_are_refused_in_time(tmp_path: Path) -> None:
    # A vector of a hundred thousand references to one table.
    writer = _Writer()
    tensor = writer.table({0: ("o", writer.vector([4])), 1: ("b", 0)}, 10)
    graph = writer.table({0: ("o", writer.vector([tensor] * 50_000, form="o"))}, 5)
    graphs = writer.vector([graph] * 1500, form="o")
    writer.b.Finish(writer.table({2: ("o", graphs)}, 8), file_identifier=b"TFL3")
    path = tmp_path / "m.tflite"
    path.write_bytes(bytes(writer.b.Output()))
    with pytest.raises(Malformed):
        _read(path)
