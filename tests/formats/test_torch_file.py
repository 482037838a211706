"""The reader of PyTorch checkpoints, against what torch itself saves and loads."""

import argparse
import datetime
import enum
import io
import json
import pathlib
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.serialization import config

from weighbridge.formats.header import Header
from weighbridge.formats.local import LocalFile
from weighbridge.formats.models import open_model
from weighbridge.formats.torch_file import read, read_checkpoint
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Truncated, Unknown, WeighError

CONTAINERS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
# How safetensors calls a dtype is the independent word for how the ledger should; these it does not store.
ONLY_TORCH = {torch.complex32: "C32", torch.complex128: "C128"}
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64, *ONLY_TORCH),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]


class Far:
    """The same file, as if behind HTTP: every read is counted."""

    def __init__(self, path: Path) -> None:
        self._file = LocalFile(path)
        self.name, self.size = self._file.name, self._file.size
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, length: int, /) -> bytes:
        self.reads.append((offset, length))
        return self._file.read(offset, length)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2)])
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("dropped", torch.arange(5), persistent=False)
        self.register_parameter("nothing", None)
        self.notes = {"history": [1, 2], "best": torch.zeros(9)}


class Mode(enum.Enum):
    FAST = "fast"


def save(path: Path, value: object, *, zipped: bool) -> LocalFile:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return LocalFile(path)


def values(path: Path, header: Header, name: str) -> bytes:
    """The bytes of a tensor in row-major order, taken from the file by the header alone."""
    row = next(row for row in header.rows if row.name == name)
    raw = path.read_bytes()
    strides = header.metadata.get("strides", {}).get(name)
    if strides is None:
        return raw[row.offset : row.offset + row.nbytes]
    width = row.dtype.block_bytes
    start = np.frombuffer(raw, dtype=f"V{width}", offset=row.offset, count=(len(raw) - row.offset) // width)
    return np.lib.stride_tricks.as_strided(start, row.shape, [s * width for s in strides]).tobytes()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def holds(path: Path, header: Header, expected: dict[str, torch.Tensor]) -> None:
    assert [row.name for row in header.rows] == list(expected)
    for row in header.rows:
        tensor = expected[row.name]
        assert row.shape == tuple(tensor.shape)
        assert row.nbytes == tensor.numel() * tensor.element_size()
        assert values(path, header, row.name) == bits(tensor)


@CONTAINERS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_named_as_safetensors_names_it_and_its_bytes_are_found(
    dtype: torch.dtype, zipped: bool, tmp_path: Path
) -> None:
    tensor = torch.randint(0, 255, (3, 16), dtype=torch.uint8).view(dtype) if dtype is not torch.bool else None
    state = {"x": torch.rand(3, 5) > 0.5 if tensor is None else tensor}
    header = read(save(tmp_path / "model.pt", state, zipped=zipped))
    holds(tmp_path / "model.pt", header, state)
    if dtype in ONLY_TORCH:
        assert header.rows[0].dtype.name == ONLY_TORCH[dtype]
    else:
        raw = safetensors.torch.save(state)
        assert header.rows[0].dtype.name == json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["x"]["dtype"]


def test_a_float4_tensor_counts_two_elements_a_byte_as_in_safetensors(tmp_path: Path) -> None:
    state = {"x": torch.randint(0, 255, (3, 16), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    (row,) = read(save(tmp_path / "model.pt", state, zipped=True)).rows
    raw = safetensors.torch.save(state)
    listed = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["x"]
    assert (row.dtype.name, list(row.shape), row.nbytes) == (listed["dtype"], listed["shape"], 48)


@CONTAINERS
def test_views_of_every_kind_are_found_by_offset_and_strides(zipped: bool, tmp_path: Path) -> None:
    whole = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    state = {
        "whole": whole,
        "part": whole[1],
        "column": whole[:, :, 2],
        "transposed": whole.transpose(0, 2),
        "expanded": torch.randn(4, 1).expand(4, 6),
        "stepped": torch.arange(20)[3::4],
        "scalar": torch.tensor(7.5),
        "last": whole[2, 3, 4],
        "none": torch.zeros(0, 3),
        "ones": torch.randn(1, 5, 1)[:, 2:4],
        "channels": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    header = read(save(tmp_path / "model.pt", state, zipped=zipped))
    holds(tmp_path / "model.pt", header, state)
    assert set(header.metadata["strides"]) == {name for name, t in state.items() if not t.is_contiguous()}
    assert header.metadata["strides"]["expanded"] == [1, 0]


@CONTAINERS
def test_tied_tensors_are_aliases_of_the_first_name_and_other_views_are_not(zipped: bool, tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    state = {"a": weight, "b": weight, "c": weight[:2], "d": weight.t(), "e": weight[:2], "f": weight.clone()}
    header = read(save(tmp_path / "model.bin", state, zipped=zipped))
    holds(tmp_path / "model.bin", header, state)
    assert header.aliases == {"b": "a", "e": "c"}


@CONTAINERS
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
def test_a_whole_module_gives_the_names_of_its_state_dict(zipped: bool, tmp_path: Path) -> None:
    net = Net()
    header = read(save(tmp_path / "net.pth", net, zipped=zipped))
    holds(tmp_path / "net.pth", header, net.state_dict())
    assert header.aliases == {"out.weight": "embed.weight"}
    assert set(header.stated.kinds) == {n for n, _ in net.named_buffers()} - {"dropped"}


def test_a_whole_module_says_what_it_freezes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    net[0].weight.requires_grad_(False)
    torch.save(net, tmp_path / "net.pt")
    ledger = open_model(str(tmp_path / "net.pt"))
    assert (ledger.total, ledger.trainable) == (21, 9)


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_quantized_module_is_refused(tmp_path: Path) -> None:
    net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear})
    torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
    with pytest.raises(Unknown, match="before it is quantized"):
        open_model(str(tmp_path / "net.pt"))


def test_a_second_net_in_the_file_is_named(tmp_path: Path) -> None:
    nets = {"generator": nn.Linear(4, 3).state_dict(), "discriminator": nn.Linear(4, 4).state_dict()}
    torch.save(nets, tmp_path / "nets.pt")
    assert any("20 values called 'discriminator'" in note for note in open_model(str(tmp_path / "nets.pt")).notes)


def test_a_wrapped_module_keeps_its_prefix(tmp_path: Path) -> None:
    state = nn.DataParallel(nn.Linear(2, 2)).state_dict()
    header = read(save(tmp_path / "model.pt", state, zipped=True))
    assert [row.name for row in header.rows] == ["module.weight", "module.bias"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_the_parts_of_a_quantized_state_dict_are_named_by_their_place(tmp_path: Path) -> None:
    weight = torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 2, torch.qint8)
    state = {"fc.scale": torch.tensor(1.0), "fc._packed_params._packed_params": (weight, None)}
    header = read(save(tmp_path / "model.pt", state, zipped=True))
    assert [(row.name, row.dtype.name) for row in header.rows][1] == ("fc._packed_params._packed_params.0", "I8")
    assert values(tmp_path / "model.pt", header, header.rows[1].name) == weight.int_repr().numpy().tobytes()


def test_a_torchscript_archive_is_read_by_its_attributes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(net).save(tmp_path / "net.pt")
    holds(tmp_path / "net.pt", read(LocalFile(tmp_path / "net.pt")), net.state_dict())


def test_a_torchao_tensor_is_listed_by_its_parts_as_in_safetensors(tmp_path: Path) -> None:
    from torchao import quantization

    net = nn.Sequential(nn.Linear(64, 32, bias=False))
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig(version=2))
    header = read(save(tmp_path / "model.bin", net.state_dict(), zipped=True))
    assert header.rows[0].name == "0._weight_qdata"
    assert values(tmp_path / "model.bin", header, "0._weight_qdata") == bits(net[0].weight.qdata)
    assert json.loads(header.metadata["0.weight"])["_data"] == {"shape": [32, 64]}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", "params", "net", "generator"])
def test_the_model_in_a_wrapper_goes_by_its_own_names(key: str, tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    ema = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    saved = {"ema": ema, "epoch": 4, key: state, "mean": torch.zeros(3), "discriminator": {"w": torch.ones(1)}}
    checkpoint = read_checkpoint(save(tmp_path / "a.ckpt", saved, zipped=True))
    holds(tmp_path / "a.ckpt", checkpoint.model, state)
    assert list(checkpoint.path) == [key]
    other = {name: [row.name for row in rows] for name, rows in checkpoint.other.items()}
    assert other == {"ema": ["weight", "bias"], "mean": ["mean"], "discriminator": ["w"]}
    assert checkpoint.hyperparameters["epoch"] == 4


def test_a_moving_average_is_the_model_only_where_there_is_no_other(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    header = read(save(tmp_path / "a.pt", {"ema": state, "model": None}, zipped=True))
    assert [row.name for row in header.rows] == ["weight", "bias"]


def test_groups_that_no_custom_names_are_the_model_together(tmp_path: Path) -> None:
    saved = {"encoder": {"w": torch.zeros(2)}, "decoder": {"w": torch.zeros(3)}, "step": 3}
    header = read(save(tmp_path / "a.pt", saved, zipped=True))
    assert [(row.name, row.shape) for row in header.rows] == [("encoder.w", (2,)), ("decoder.w", (3,))]


def test_one_group_inside_a_model_stays_part_of_the_names(tmp_path: Path) -> None:
    saved = {"model": {"language_model": {"embedding": {"w": torch.zeros(2)}}}}
    assert read(save(tmp_path / "a.pt", saved, zipped=True)).rows[0].name == "language_model.embedding.w"


def test_a_single_tensor_is_called_tensor(tmp_path: Path) -> None:
    holds(tmp_path / "a.pt", read(save(tmp_path / "a.pt", x := torch.randn(3), zipped=True)), {"tensor": x})


@CONTAINERS
def test_a_lightning_checkpoint_falls_into_model_optimizer_and_hyperparameters(zipped: bool, tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4, weight_decay=0.1)
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    saved = {
        "epoch": 2,
        "global_step": 500,
        "pytorch-lightning_version": "2.5",
        "state_dict": net.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 3}],
        "callbacks": {"ModelCheckpoint": {"best_k_models": {}, "best_model_score": torch.tensor(0.5)}},
        "hyper_parameters": {"lr": 3e-4, "layers": [1, 2], "path": pathlib.Path("/data"), "hub_token": "hunter2"},
    }
    checkpoint = read_checkpoint(save(tmp_path / "last.ckpt", saved, zipped=zipped))
    holds(tmp_path / "last.ckpt", checkpoint.model, net.state_dict())
    state = optimizer.state_dict()["state"]
    expected = {f"state.{n}.{key}": tensor for n, kept in state.items() for key, tensor in kept.items()}
    holds(tmp_path / "last.ckpt", Header(rows=checkpoint.optimizer), expected)
    found = checkpoint.hyperparameters
    assert found["param_groups.0.lr"] == 3e-4
    assert found["param_groups.0.betas"] == [0.9, 0.999]
    assert "param_groups.0.params" not in found
    assert found["hyper_parameters.layers"] == [1, 2]
    assert found["hyper_parameters.path"] == "/data"
    assert (found["epoch"], found["global_step"]) == (2, 500)
    assert not any("token" in name for name in found)


def test_several_optimizers_are_numbered(tmp_path: Path) -> None:
    nets = [nn.Linear(2, 2, bias=False) for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in nets]
    for net, optimizer in zip(nets, optimizers, strict=True):
        net(torch.randn(1, 2)).sum().backward()
        optimizer.step()
    saved = {"state_dict": nets[0].state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
    checkpoint = read_checkpoint(save(tmp_path / "a.pt", saved, zipped=True))
    names = [row.name for row in checkpoint.optimizer]
    assert names == ["0.state.0.momentum_buffer", "1.state.0.momentum_buffer"]
    assert checkpoint.hyperparameters["1.param_groups.0.lr"] == 0.1


def test_an_optimizer_alone_is_no_model(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters())
    file = save(tmp_path / "optimizer.pt", optimizer.state_dict(), zipped=True)
    assert not read_checkpoint(file).model.rows
    with pytest.raises(NotFound, match=r"optimizer\.pt holds no tensors"):
        read(file)


def test_what_checkpoints_carry_beside_tensors_is_understood(tmp_path: Path) -> None:
    saved = {
        "model": {"w": torch.zeros(2)},
        "args": argparse.Namespace(lr=0.1, dtype=torch.bfloat16, device=torch.device("cuda", 1), tags={"a"}, size=None),
        "best_metric": np.float64(0.25),
        "step": np.int64(12),
        "when": datetime.datetime(2026, 1, 1),
        "rng": np.random.RandomState(0).get_state(),
        "counts": defaultdict(int, a=1),
        "blob": b"\x00\xff",
        "array": bytearray(b"ab"),
        "size": torch.Size([1, 2]),
        "frozen": frozenset({1}),
        "complex": 1j,
        "ordered": OrderedDict(a=1),
        "numbers": np.arange(3),
    }
    found = read_checkpoint(save(tmp_path / "a.pt", saved, zipped=True)).hyperparameters
    assert found == {
        "args.lr": 0.1,
        "args.dtype": "torch.bfloat16",
        "args.device": "cuda:1",
        "args.tags": ["a"],
        "args.size": None,
        "best_metric": 0.25,
        "step": 12,
    }


def test_a_class_of_ones_own_is_read_as_data_but_a_call_of_ones_own_is_not(tmp_path: Path) -> None:
    holder = Net()
    holder.mode = Mode.FAST  # an enum member is pickled as a call of its class
    with pytest.raises(Refused, match=r"calls .*Mode, which no tensor file needs; nothing was executed"):
        read(save(tmp_path / "a.pt", holder, zipped=True))


@pytest.mark.parametrize("secret", ["hf_" + "a" * 30, "sk-" + "b" * 24, "https://me:pw@host/x"])
def test_a_secret_is_dropped_by_its_looks_under_any_name(secret: str, tmp_path: Path) -> None:
    saved = {"model": {"w": torch.zeros(1)}, "args": {"comment": secret, "list": ["a", secret], "eos_token": "</s>"}}
    found = read_checkpoint(save(tmp_path / "a.pt", saved, zipped=True)).hyperparameters
    assert found == {"args.eos_token": "</s>"}


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.eye(3).to_sparse(), "is sparse"),
        (torch.zeros(2, 2, device="meta"), "is a meta tensor"),
        (torch.randn(3, dtype=torch.complex64).conj(), "conjugate"),
        (torch.zeros(4, dtype=torch.uint8).view(torch.bits8), "dtype torch.bits8"),
    ],
)
def test_a_tensor_without_plain_bytes_is_unknown(tensor: torch.Tensor, told: str, tmp_path: Path) -> None:
    file = save(tmp_path / "a.pt", {"ok": torch.zeros(1), "odd": tensor}, zipped=True)
    with pytest.raises(Unknown, match=f"'odd' .*{told}"):
        read(file)


def test_a_tensor_pickled_without_torch_save_is_not_mistaken(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": torch.zeros(2)}))
    with pytest.raises(Malformed, match=r"a pickle that torch\.save did not write"):
        read(LocalFile(tmp_path / "a.pkl"))


# Containers


@pytest.mark.parametrize("alignment", [64, 4096])
def test_behind_http_places_are_deduced_without_a_read_for_each_tensor(alignment: int, tmp_path: Path) -> None:
    state = {f"layers.{n}.weight": torch.randn(n % 7, 3) for n in range(400)}
    with config.patch({"save.storage_alignment": alignment}):
        near = save(tmp_path / "model.bin", state, zipped=True)
    far = Far(tmp_path / "model.bin")
    assert read(far) == read(near)
    assert len(far.reads) <= 3


def test_places_beyond_four_gigabytes_are_those_that_torch_finds(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pt"
    state = {"huge": torch.empty((1 << 30) + 3), "small": torch.empty(7), "tiny": torch.empty(5, dtype=torch.int8)}
    with torch.serialization.skip_data():
        torch.save(state, path)
    reader = torch._C.PyTorchFileReader(str(path))
    expected = [reader.get_record_offset(f"data/{n}") for n in range(3)]
    far = Far(path)
    assert [row.offset for row in read(LocalFile(path)).rows] == expected
    assert [row.offset for row in read(far).rows] == expected
    assert sum(length for _, length in far.reads) < 1 << 20


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_another_tool_packed_again_is_read_or_refused(compression: int, tmp_path: Path) -> None:
    state = {"a": torch.randn(4, 4), "b": torch.randn(50)}
    save(tmp_path / "model.pt", state, zipped=True)
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(tmp_path / "again.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry), compress_type=compression)
    if compression == zipfile.ZIP_DEFLATED:
        with pytest.raises(Refused, match="compressed"):
            read(LocalFile(tmp_path / "again.pt"))
    else:
        header = read(LocalFile(tmp_path / "again.pt"))
        holds(tmp_path / "again.pt", header, state)
        assert read(Far(tmp_path / "again.pt")) == header


def test_checksums_that_torch_was_told_not_to_write_are_not_missed(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        file = save(tmp_path / "a.pt", {"w": torch.zeros(1)}, zipped=True)
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(read(file).rows) == 1


def test_a_damaged_pickle_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save(path, {"weight": torch.zeros(1)}, zipped=True)
    path.write_bytes(path.read_bytes().replace(b"weight", b"weighT"))
    with pytest.raises(Malformed, match="checksum"):
        read(LocalFile(path))


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", {"w": torch.zeros(1)}, zipped=True)
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, b"big" if entry.filename.endswith("byteorder") else old.read(entry))
    with pytest.raises(Refused, match="big-endian"):
        read(LocalFile(tmp_path / "big.pt"))


@CONTAINERS
def test_every_beginning_of_a_file_is_an_error_and_never_a_crash(zipped: bool, tmp_path: Path) -> None:
    save(tmp_path / "whole.pt", {"a": torch.randn(20), "b": torch.randn(3, 3)}, zipped=zipped)
    raw = (tmp_path / "whole.pt").read_bytes()
    for length in range(0, len(raw), 7):
        (tmp_path / "cut.pt").write_bytes(raw[:length])
        with pytest.raises(Malformed):
            read(LocalFile(tmp_path / "cut.pt"))
    (tmp_path / "cut.pt").write_bytes(raw[:-1])
    with pytest.raises(Truncated):
        read(LocalFile(tmp_path / "cut.pt"))


def test_files_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.json", "{}")
    cases = {
        b"version https://git-lfs.github.com/spec/v1\n": "Git LFS pointer",
        b"\0" * 257 + b"ustar\0": "tar format",
        buffer.getvalue(): r"no data\.pkl",
        b"<html>": "not a sound pickle",
        b"": "ends too early",
    }
    for raw, told in cases.items():
        (tmp_path / "a.bin").write_bytes(raw)
        with pytest.raises(WeighError, match=told):
            read(LocalFile(tmp_path / "a.bin"))
