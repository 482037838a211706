"""The safetensors reader, against files that break the format's rules."""

import json
import struct
from pathlib import Path

import layouts
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weighbridge.formats import safetensors
from weighbridge.formats.local import LocalFile
from weighbridge.ledger.errors import Malformed, Truncated, Unknown, WeighError


def _file(
    folder: Path, header: object, data: int = 0, *, raw: bytes | None = None, length: int | None = None
) -> LocalFile:
    text = json.dumps(header).encode() if raw is None else raw
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return LocalFile(path)


def _entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "error", "says"),
    [
        ({"a": _entry(0, 8, [2]), "b": _entry(4, 12, [2])}, 12, Malformed, "overlaps"),
        ({"a": _entry(0, 8, [2]), "b": _entry(12, 20, [2])}, 20, Malformed, "gap"),
        ({"a": _entry(0, 8, [2])}, 4, Truncated, "ends at"),
        ({"a": _entry(0, 8, [2])}, 12, Malformed, "after its last tensor"),
        ({"a": _entry(0, 8, [3])}, 8, Malformed, "takes 12 bytes"),
        ({"a": _entry(8, 0, [2])}, 8, Malformed, "takes 8 bytes"),
        ({"a": _entry(0, -8, [-2])}, 8, Malformed, "not what safetensors writes"),
        ({"a": _entry(0, 8, [2**31, 2**31, 2**31])}, 8, Malformed, "takes"),
        ({"a": _entry(0, 8, [2**70])}, 8, Malformed, "not what safetensors writes"),
        ({"a": _entry(0, 8, [1] * 65)}, 8, Malformed, "not what safetensors writes"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, Malformed, "lacks"),
        ({"a": _entry(0, 8, [2], "F7")}, 8, Unknown, "F7"),
        ({"a": {**_entry(0, 8, [2]), "shape": [2.5]}}, 8, Malformed, "not what safetensors writes"),
        ([], 0, Malformed, "not what safetensors writes"),
        ({"a": 3}, 0, Malformed, "not what safetensors writes"),
        ({"__metadata__": {"format": 3}}, 0, Malformed, "not what safetensors writes"),
    ],
)
def test_a_header_that_breaks_the_rules_is_refused_with_the_reason(
    header: object, data: int, error: type[WeighError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        safetensors.read(_file(tmp_path, header, data))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"\\u0061":{"dtype":"F32","shape":[1],"data_\\u006fffsets":[0,4]}}',
    ],
)
def test_a_name_listed_twice_is_refused_however_it_is_written(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="'a' twice"):
        safetensors.read(_file(tmp_path, None, 4, raw=raw))


def test_a_header_beyond_the_formats_limit_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="100 MB"):
        safetensors.read(_file(tmp_path, {}, length=100_000_001))


def test_absurd_numbers_of_values_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    raw = b'{"a":{"dtype":"F32","data_offsets":[0,4],"shape":[' + b"1," * 5_000_000 + b"1]}}"
    with pytest.raises(Malformed, match="absurd"):
        safetensors.read(_file(tmp_path, None, 4, raw=raw))


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    raw = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(Malformed):
        safetensors.read(_file(tmp_path, None, raw=raw))


@pytest.mark.parametrize("size", [0, 3, 8, 9])
def test_a_stub_of_a_file_is_truncated(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 64)[:8].ljust(size, b"{")[:size])
    with pytest.raises(Truncated):
        safetensors.read(LocalFile(path))


def test_metadata_and_order_of_listing_do_not_matter(tmp_path: Path) -> None:
    header = {"b": _entry(4, 8, [1]), "a": _entry(0, 4, [1]), "e": _entry(4, 4, [0]), "__metadata__": {"who": "me"}}
    read = safetensors.read(_file(tmp_path, header, 8))
    assert read.metadata == {"who": "me"}
    start = 8 + len(json.dumps(header))
    assert {row.name: row.offset - start for row in read.rows} == {"a": 0, "b": 4, "e": 4}


def test_half_byte_elements_are_counted_by_elements(tmp_path: Path) -> None:
    read = safetensors.read(_file(tmp_path, {"a": _entry(0, 8, [4, 4], "F4")}, 8))
    assert (read.rows[0].nbytes, read.rows[0].dtype.bits) == (8, 4)


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(
    st.dictionaries(st.text(min_size=1, max_size=12), st.tuples(st.sampled_from(["F32", "BF16", "U8", "I64"]), shapes))
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_written_is_read_back(tmp_path: Path, layout: layouts.Layout) -> None:
    layout.pop("__metadata__", None)
    layouts.write_file(tmp_path / "x.safetensors", layout)
    rows = safetensors.read(LocalFile(tmp_path / "x.safetensors")).rows
    assert {row.name: (row.dtype.name, row.shape) for row in rows} == layout
    assert all(row.nbytes == layouts.nbytes(*layout[row.name]) for row in rows)


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_gives_a_plain_error_or_a_sound_header(tmp_path: Path, data: st.DataObject) -> None:
    layouts.write_file(
        tmp_path / "x.safetensors", layouts.llama(layers=1, hidden=8, ffn=8, heads=2, kv_heads=1, vocab=8)
    )
    raw = bytearray((tmp_path / "x.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, 1200))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), 40, 900]))])
    file = LocalFile(path)
    try:
        rows = safetensors.read(file).rows
    except WeighError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= row.offset <= row.offset + row.nbytes <= file.size for row in rows)


def test_many_names_of_which_one_is_twice_are_refused_at_once(tmp_path: Path) -> None:
    entries = [f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(60_000)]
    raw = f"{{{','.join([*entries, entries[-1]])}}}".encode()
    with pytest.raises(Malformed, match="'t59999' twice"):
        safetensors.read(_file(tmp_path, None, raw=raw))


def test_endless_names_are_refused_in_few_words(tmp_path: Path) -> None:
    with pytest.raises(Malformed) as caught:
        safetensors.read(_file(tmp_path, {"x" * 2_000_000: _entry(0, 8, [2])}, 8))
    assert len(str(caught.value)) < 3000
