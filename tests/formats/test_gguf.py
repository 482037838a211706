"""The GGUF reader, against files that the gguf package writes and files that nobody should."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weighbridge.formats import gguf as reader
from weighbridge.formats.local import LocalFile
from weighbridge.formats.models import open_model
from weighbridge.ledger import GGML_TYPES
from weighbridge.ledger.errors import Malformed, NotFound, Truncated, Unknown, WeighError

TYPES = {t: gguf.GGML_QUANT_SIZES[t] for t in gguf.GGMLQuantizationType}


def _write(
    path: Path, *, types: list[gguf.GGMLQuantizationType] | None = None, split: tuple[int, int] | None = None
) -> Path:
    """A small llama of 4 experts; matrices of the given types in turn."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(256)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_file_type(15)
    writer.add_token_list([f"token-{i}" for i in range(5000)])
    writer.add_token_scores([0.0] * 5000)
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        writer.add_int32("split.tensors.count", 9)
    kinds = types or [gguf.GGMLQuantizationType.F32]
    names = ["token_embd.weight"] if not split or split[0] == 0 else []
    for layer in range(2):
        if split and layer != split[0]:
            continue
        names += [f"blk.{layer}.{name}.weight" for name in ("attn_q", "attn_norm", "ffn_gate_inp", "ffn_gate_exps")]
    for at, name in enumerate(names):
        shape = {"attn_norm": (256,), "ffn_gate_inp": (4, 256), "ffn_gate_exps": (4, 8, 256)}.get(
            name.split(".")[-2], (16, 256)
        )
        kind = gguf.GGMLQuantizationType.F32 if "norm" in name else kinds[at % len(kinds)]
        block, size = TYPES[kind]
        raw = np.zeros((*shape[:-1], shape[-1] // block * size), dtype=np.uint8)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_type_that_the_gguf_package_knows_has_its_block_size() -> None:
    # The package still gives Q8_1 two 4-byte floats; ggml's own struct has two halves, and no file stores the type.
    known = {t.value: size for t, size in TYPES.items() if t.name != "Q8_1"}
    assert {n: (d.block, d.block_bytes) for n, d in GGML_TYPES.items() if n in known} == known


def test_tensors_lie_where_the_gguf_package_finds_them(tmp_path: Path) -> None:
    kinds = [t for t, (block, _) in TYPES.items() if 256 % block == 0 and t.name not in ("Q8_1", "F64", "I64")]
    path = _write(tmp_path / "m.gguf", types=kinds)
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    rows = reader.read(LocalFile(path)).rows
    assert {row.name for row in rows} == theirs.keys()
    for row in rows:
        other = theirs[row.name]
        assert (row.offset, row.nbytes) == (other.data_offset, other.n_bytes)
        assert list(row.shape) == [int(n) for n in reversed(other.shape)]
        assert row.dtype == GGML_TYPES[other.tensor_type.value]


def test_metadata_and_experts_are_understood(tmp_path: Path) -> None:
    ledger = open_model(str(_write(tmp_path / "m.gguf")))
    experts = 2 * 4 * 8 * 256
    assert ledger.by_role() == {
        "embedding": 16 * 256,
        "attention": 2 * 16 * 256,
        "expert": experts,
        "router": 2 * 4 * 256,
        "norm": 2 * 256,
    }
    assert ledger.active == ledger.total - experts // 2
    assert ledger.architecture.vocabulary == 5000
    assert str(ledger.signature) == "m~q4_k_m"


def test_a_split_model_is_read_whole_from_any_part(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for part in range(2):
        _write(tmp_path / f"m-{part + 1:05d}-of-00002.gguf", split=(part, 2))
    whole = open_model(str(_write(tmp_path_factory.mktemp("whole") / "whole.gguf")))
    for spec in (tmp_path, tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"):
        ledger = open_model(str(spec))
        assert (ledger.total, len(ledger)) == (whole.total, 9)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(NotFound, match=r"00002-of-00002"):
        open_model(str(tmp_path))


def _forged(
    tmp_path: Path, *, version: int = 3, tensors: int = 0, keys: int = 0, body: bytes = b"", order: str = "<"
) -> LocalFile:
    path = tmp_path / "forged.gguf"
    path.write_bytes(b"GGUF" + struct.pack(f"{order}IQQ", version, tensors, keys) + body + bytes(64))
    return LocalFile(path)


def _text(text: str, order: str = "<") -> bytes:
    return struct.pack(f"{order}Q", len(text)) + text.encode()


def _tensor(name: str, shape: list[int], kind: int, offset: int, order: str = "<") -> bytes:
    return _text(name, order) + struct.pack(f"{order}I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"version": 1}, Malformed, "version 1"),
        ({"version": 99}, Malformed, "version 99"),
        ({"tensors": 2**60}, Malformed, "no model has"),
        ({"keys": 2**60}, Malformed, "no model has"),
        ({"keys": 1, "body": struct.pack("<Q", 2**62)}, Truncated, "ends within"),
        ({"keys": 1, "body": _text("k") + struct.pack("<I", 77)}, Malformed, "unknown type 77"),
        ({"keys": 1, "body": _text("k") + struct.pack("<IIQ", 9, 8, 2**61)}, Malformed, "array of"),
        ({"keys": 1, "body": _text("k") + struct.pack("<IIQ", 9, 10, 2**61)}, Truncated, "ends within"),
        (
            {"keys": 1, "body": _text("k") + struct.pack("<IIQIQ", 9, 9, 1, 9, 1) * 9},
            Malformed,
            "array of|unknown type",
        ),
        ({"keys": 2, "body": (_text("k") + struct.pack("<II", 4, 1)) * 2}, Malformed, "twice"),
        ({"tensors": 1, "body": _tensor("t", [8], 999, 0)}, Unknown, "ggml type 999"),
        ({"tensors": 1, "body": _tensor("t", [2**40, 2**40], 0, 0)}, Malformed, "shape"),
        ({"tensors": 1, "body": _tensor("t", [33], 2, 0)}, Malformed, "blocks of 32"),
        ({"tensors": 1, "body": _tensor("t", [2**20], 0, 0)}, Truncated, "ends at"),
        ({"tensors": 2, "body": _tensor("t", [8], 0, 0) * 2}, Malformed, "twice"),
        ({"tensors": 2, "body": _tensor("t", [8], 0, 0) + _tensor("u", [8], 0, 0)}, Malformed, "lies at 0"),
        ({"tensors": 1, "body": _text("t") + struct.pack("<I", 4_000_000)}, Malformed, "dimensions"),
    ],
)
def test_a_forged_header_is_refused_with_the_reason(
    fields: dict[str, object], error: type[WeighError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        reader.read(_forged(tmp_path, **fields))  # type: ignore[arg-type]


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    file = _forged(tmp_path, tensors=1, body=_tensor("t", [4, 2], 0, 0, ">"), order=">")
    assert reader.read(file).rows[0].shape == (2, 4)


def test_an_alignment_of_nonsense_is_refused(tmp_path: Path) -> None:
    body = _text("general.alignment") + struct.pack("<II", 4, 33)
    with pytest.raises(Malformed, match="alignment of 33"):
        reader.read(_forged(tmp_path, keys=1, body=body))


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_gives_a_plain_error_or_a_sound_header(tmp_path: Path, data: st.DataObject) -> None:
    source = tmp_path / "m.gguf"
    if not source.exists():
        _write(source)
    raw = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 300), st.integers(0, 100_000), st.integers(-70_000, -60_000)))
        raw[at % len(raw)] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(raw)
    file = LocalFile(path)
    try:
        rows = reader.read(file).rows
    except WeighError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= row.offset <= row.offset + row.nbytes <= file.size for row in rows)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
def test_a_model_that_gguf_quantized_keeps_its_parameters(kind: str, tmp_path: Path) -> None:
    model = tiny.build("llama")
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        wanted = gguf.GGMLQuantizationType[kind] if value.ndim > 1 else gguf.GGMLQuantizationType.F32
        renamed = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(renamed, gguf.quants.quantize(value, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ledger = open_model(str(tmp_path / "tiny.gguf"))
    assert ledger.total == tiny.counted(model)
    assert set(ledger.by_dtype()) == {kind, "F32"}
    assert "other" not in ledger.by_role()
