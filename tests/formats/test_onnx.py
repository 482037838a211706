"""The ONNX reader, against what torch exports, what onnxruntime quantizes, and files that nobody should write."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import graphs
import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from weighbridge.formats import onnx as reader
from weighbridge.formats.header import Header
from weighbridge.formats.local import LocalFile
from weighbridge.formats.onnx_uses import _operators
from weighbridge.ledger import NOWHERE, File, Ledger
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Truncated, Unknown, WeighError


def _beside(path: Path) -> Callable[[str], File | None]:
    return lambda name: LocalFile(path.parent / name) if (path.parent / name).exists() else None


def _read(path: Path) -> tuple[Header, Ledger]:
    file = LocalFile(path)
    header = reader.read(file, beside=_beside(path))
    files = [file, *header.files]
    return header, graphs.weighed(header, path, "onnx", files)


class _Convolutions(torch.nn.Module):
    """Batch norms that fold into a convolution and one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, bias=False)
        self.stem_norm = torch.nn.BatchNorm2d(8)
        self.up = torch.nn.ConvTranspose2d(8, 6, 2)
        self.act = torch.nn.PReLU(6)
        self.norm = torch.nn.BatchNorm2d(6)
        self.group = torch.nn.GroupNorm(2, 6)
        self.head = torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.relu(self.act(self.up(self.stem_norm(self.stem(x))))))
        return self.head(self.group(x).mean((2, 3)))


class _Encoder(torch.nn.Module):
    """A transformer with positions, a class token, a rotary table and a head tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(50, 32)
        self.pos = torch.nn.Parameter(torch.zeros(1, 10, 32))
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 32))
        self.register_buffer("inv_freq", torch.zeros(16))
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.enc = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(32, 50, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(10).float()[:, None] * self.inv_freq
        h = self.emb(x) + self.pos + torch.cat([angles.cos(), angles.sin()], -1)
        h = self.enc(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), h], 1))
        return self.head(h)


class _Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(12, 8, 2, bidirectional=True, batch_first=True)
        self.gru = torch.nn.GRU(16, 6, batch_first=True)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(self.lstm(x)[0])[0])


MODELS: dict[str, tuple[Callable[[], torch.nn.Module], torch.Tensor]] = {
    "convolutions": (_Convolutions, torch.zeros(2, 3, 8, 8)),
    "encoder": (_Encoder, torch.zeros(1, 10, dtype=torch.long)),
    "recurrent": (_Recurrent, torch.zeros(2, 5, 12)),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, torch.nn.Module]]:
    """{(model, exporter): (file, module)}, with values that differ, since exporters join equal ones."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    folder, found = tmp_path_factory.mktemp("onnx"), {}
    for name, (make, example) in MODELS.items():
        torch.manual_seed(1)
        module = make().eval()
        for value in module.state_dict().values():
            if value.dtype.is_floating_point:
                torch.nn.init.uniform_(value, 0.1, 1)
        for exporter in ("new", "old"):
            path = folder / f"{name}-{exporter}.onnx"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(module, (example,), str(path), dynamo=exporter == "new", verbose=False)
            found[name, exporter] = path, module
    return found


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("exporter", ["new", "old"])
def test_a_transformer_counts_as_torch_counts_it_its_tied_head_once(exported: dict, exporter: str) -> None:
    path, module = exported["encoder", exporter]
    header, ledger = _read(path)
    assert ledger.total == _parameters(module)
    assert ledger.extras == {"tied_copies": module.emb.weight.numel()}
    assert len(header.aliases) == 1
    roles = ledger.by_role()
    assert roles["ffn"] == sum(p.numel() for n, p in module.named_parameters() if ".linear" in n)
    assert roles["attention"] == sum(p.numel() for n, p in module.named_parameters() if ".self_attn" in n)
    assert roles["norm"] == sum(p.numel() for n, p in module.named_parameters() if ".norm" in n)


@pytest.mark.parametrize("exporter", ["new", "old"])
def test_a_batch_norm_that_the_exporter_folds_leaves_a_bias_and_one_that_stays_has_buffers(
    exported: dict, exporter: str
) -> None:
    path, module = exported["convolutions", exporter]
    _, ledger = _read(path)
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(module.stem, module.stem_norm)
    others = _parameters(module) - _parameters(module.stem) - _parameters(module.stem_norm)
    assert ledger.total == others + _parameters(fused)
    names = {row.name: row for row in ledger.rows}
    buffers = {n for family in ledger.families if family.kind == "buffer" for n in family.names}
    assert {"norm.running_mean", "norm.running_var"} <= buffers
    assert "norm.weight" in names.keys() - buffers
    assert ledger.by_role()["conv"] == _parameters(fused) + _parameters(module.up)


@pytest.mark.parametrize("exporter", ["new", "old"])
def test_recurrent_weights_that_the_exporter_reorders_are_counted(exported: dict, exporter: str) -> None:
    path, module = exported["recurrent", exporter]
    assert _read(path)[1].total == _parameters(module)


def test_values_lie_where_the_onnx_package_reads_them(exported: dict) -> None:
    path, _ = exported["encoder", "new"]
    header = _read(path)[0]
    files = [LocalFile(path), *header.files]
    theirs = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    rows = {row.name: row for row in header.rows}
    assert rows.keys() == theirs.keys()
    for name, array in theirs.items():
        row = rows[name]
        assert row.shape == array.shape
        if row.nbytes:
            assert files[row.file].read(row.offset, row.nbytes) == array.tobytes()


@pytest.mark.parametrize("one_file", [True, False])
def test_values_beside_the_file_are_found_there(exported: dict, tmp_path: Path, one_file: bool) -> None:
    path, module = exported["encoder", "new"]
    model = onnx.load(path)
    out = tmp_path / "model.onnx"
    onnx.save_model(
        model,
        out,
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="d.bin" if one_file else None,
        size_threshold=100,
    )
    header, ledger = _read(out)
    assert ledger.total == _parameters(module)
    assert (len(header.files) == 1) is one_file
    theirs = {
        t.name: numpy_helper.to_array(t, str(tmp_path))
        for t in onnx.load(out, load_external_data=False).graph.initializer
    }
    for row in header.rows:
        if row.file:
            assert header.files[row.file - 1].read(row.offset, row.nbytes) == theirs[row.name].tobytes()
    victim = Path(header.files[0].path)  # type: ignore[attr-defined]
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(Truncated, match="needs"):
        _read(out)
    victim.unlink()
    with pytest.raises(NotFound, match="download it beside"):
        _read(out)
    with pytest.raises(NotFound):
        reader.read(LocalFile(out))


@pytest.fixture(scope="module")
def quantized(exported: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from onnxruntime import quantization as q
    from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    logging.disable(logging.WARNING)
    folder, found = tmp_path_factory.mktemp("quantized"), {}
    conv, encoder = exported["convolutions", "new"][0], exported["encoder", "old"][0]

    class Calibration(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[dict] = iter([{"x": np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)}])

        def get_next(self) -> dict | None:
            return next(self.feeds, None)

    for name, shape, per_channel in (("qdq", q.QuantFormat.QDQ, True), ("qoperator", q.QuantFormat.QOperator, False)):
        found[name] = folder / f"{name}.onnx"
        q.quantize_static(str(conv), str(found[name]), Calibration(), quant_format=shape, per_channel=per_channel)
    for name, kind in (("int4", q.QuantType.QInt4), ("uint16", q.QuantType.QUInt16)):
        found[name] = folder / f"{name}.onnx"
        q.quantize_static(str(conv), str(found[name]), Calibration(), weight_type=kind)
    found["dynamic"] = folder / "dynamic.onnx"
    q.quantize_dynamic(str(encoder), str(found["dynamic"]), weight_type=q.QuantType.QInt8)
    for bits in (4, 8):
        which = ("MatMul", "Gather") if bits == 4 else ("MatMul",)
        config = DefaultWeightOnlyQuantConfig(
            block_size=16, is_symmetric=bits == 8, bits=bits, op_types_to_quantize=which
        )
        made = MatMulNBitsQuantizer(onnx.load(encoder), algo_config=config)
        made.process()
        found[f"nbits{bits}"] = folder / f"nbits{bits}.onnx"
        onnx.save(made.model.model, found[f"nbits{bits}"])
    bnb = MatMulBnb4Quantizer(onnx.load(encoder), 1, 32)
    bnb.process()
    found["bnb4"] = folder / "bnb4.onnx"
    onnx.save(bnb.model.model, found["bnb4"])
    logging.disable(logging.NOTSET)
    return found


@pytest.mark.parametrize("how", ["qdq", "qoperator", "int4", "uint16"])
def test_static_quantization_changes_no_count(exported: dict, quantized: dict[str, Path], how: str) -> None:
    _, before = _read(exported["convolutions", "new"][0])
    _, after = _read(quantized[how])
    assert after.total == before.total
    # All the rest are scales and zero points: the quantizer's own names say which.
    scales = {row.name for row in after.rows if row.name.endswith(("_scale", "_zero_point", "_quantized_scale"))}
    extras = {
        n
        for f in after.families
        if f.extra in ("quantization_scales", "quantization_zero_points", "activation_scales")
        for n in f.names
    }
    assert scales == extras


@pytest.mark.parametrize("how", ["dynamic", "nbits4", "nbits8", "bnb4"])
def test_weights_quantized_alone_count_as_before(exported: dict, quantized: dict[str, Path], how: str) -> None:
    header, after = _read(quantized[how])
    before = _read(exported["encoder", "old"][0])[1]
    # Once one of them is quantized, a tied head is no copy of its embedding any more.
    assert after.total == before.total + before.extras["tied_copies"]
    assert after.extras["quantization_scales"] > 0
    if how == "nbits4":
        assert {row.dtype.name for row in header.rows} >= {"U8", "F32"}
        assert after.by_dtype()["U8"] > after.by_dtype()["F32"]


def _model(
    nodes: list,
    initializers: list,
    *,
    functions: list | None = None,
    sparse: list | None = None,
    inputs: list | None = None,
    outputs: list | None = None,
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", inputs or [x], outputs or [y], initializers, sparse_initializer=sparse)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1), helper.make_opsetid("com.microsoft", 1)]
    opsets.append(helper.make_opsetid("ai.onnx.ml", 3))
    return helper.make_model(graph, functions=functions or [], opset_imports=opsets)


def _save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _array(name: str, *shape: int, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape), name)


def test_weights_in_constant_nodes_in_both_branches_and_in_a_loop_are_found(tmp_path: Path) -> None:
    def branch(weight: TensorProto, out: str) -> onnx.GraphProto:
        nodes = [helper.make_node("MatMul", ["x", "val_1"], [out])]
        return helper.make_graph(nodes, out, [], [helper.make_tensor_value_info(out, 1, None)], [weight])

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Constant", [], ["val_9"], value=_array("", 4, 4)),
            helper.make_node("MatMul", ["state", "val_9"], ["mixed"]),
            helper.make_node("MatMul", ["mixed", "carried"], ["next"]),
            helper.make_node("Identity", ["carried"], ["kept"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, k, None) for n, k in (("i", 7), ("go", 9), ("state", 1), ("carried", 1))],
        [helper.make_tensor_value_info(n, k, None) for n, k in (("again", 9), ("next", 1), ("kept", 1))],
    )
    first, second = (branch(_array("val_1", 4, 4), name) for name in "ab")
    nodes = [
        helper.make_node("If", ["flag"], ["h"], name="choose", then_branch=first, else_branch=second),
        helper.make_node("Loop", ["times", "", "h", "onnx::Loop_5"], ["y", "z"], body=body),
        helper.make_node("Constant", [], ["onnx::Add_3"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Add", ["y", "onnx::Add_3"], ["w"]),
    ]  # fmt: skip
    header, ledger = _read(
        _save(
            _model(
                nodes,
                [
                    _array("times", dtype=np.int64),
                    _array("onnx::Loop_5", 4, 4),
                    numpy_helper.from_array(np.array(True), "flag"),
                ],
            ),
            tmp_path,
        )
    )
    assert ledger.total == 4 * 16
    assert ledger.buffers == 2
    assert ledger.extras == {"constants_of_unknown_origin": 3}
    assert {row.name for row in header.rows} >= {"val_1", "choose.then_branch/val_1", "val_9"}
    assert any("counted apart" in note for note in header.notes)


def test_weights_reach_their_operator_through_functions(tmp_path: Path) -> None:
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    turned = helper.make_function("own", "turn", ["w"], ["t"], [helper.make_node("Transpose", ["w"], ["t"])], opset)
    linear = helper.make_function(
        "own", "linear", ["a", "w", "b"], ["r"],
        [
            helper.make_node("turn", ["w"], ["t"], domain="own"),
            helper.make_node("Gemm", ["a", "t", "b"], ["g"]),
            helper.make_node("Constant", [], ["two"], value=_array("", dtype=np.float32)),
            helper.make_node("Mul", ["g", "two"], ["r"]),
        ],
        opset,
    )  # fmt: skip
    nodes = [helper.make_node("linear", ["x", "val_0", "val_1"], ["h"], domain="own")]
    nodes.append(helper.make_node("linear", ["h", "val_2", "val_1"], ["y"], domain="own"))
    weights = [_array("val_0", 4, 4), _array("val_1", 4), _array("val_2", 4, 4)]
    header, ledger = _read(_save(_model(nodes, weights, functions=[turned, linear]), tmp_path))
    assert (ledger.total, ledger.buffers) == (36, 1)
    assert len(header.rows) == 4


def test_values_in_typed_fields_are_counted_and_told(tmp_path: Path) -> None:
    kinds = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8]
    kinds += [TensorProto.UINT64, TensorProto.BOOL, TensorProto.COMPLEX64, TensorProto.FLOAT8E4M3FN, TensorProto.INT4]
    made = [helper.make_tensor(f"t{kind}", kind, [3, 2], [1, 0, 1, 1, 0, 1]) for kind in kinds]
    header, ledger = _read(_save(_model([], made), tmp_path))
    assert ledger.stored == 6 * len(kinds)
    assert [row.nbytes for row in header.rows] == [24, 12, 12, 48, 6, 48, 6, 48, 6, 3]
    assert sum(row.offset != NOWHERE for row in header.rows) == 3
    assert any("number by number" in note for note in header.notes)


@pytest.mark.parametrize("count", [6, 7])
def test_four_bit_weights_count_one_by_one_even_where_the_last_byte_is_half_full(tmp_path: Path, count: int) -> None:
    packed = helper.make_tensor("w_quantized", TensorProto.INT4, [count, 1], bytes(-(-count // 2)), raw=True)
    nodes = [
        helper.make_node("DequantizeLinear", ["w_quantized", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    zero = helper.make_tensor("z", TensorProto.INT4, [], b"\0", raw=True)
    header, ledger = _read(_save(_model(nodes, [packed, _array("s"), zero]), tmp_path))
    assert ledger.total == count
    assert ledger.extras == {"quantization_scales": 1, "quantization_zero_points": 1}
    assert header.rows[0].nbytes == -(-count // 2)


def test_codes_that_are_unpacked_by_plain_arithmetic_are_weights_and_by_bits_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["codes"], ["f"], to=1),
        helper.make_node("Sub", ["f", "val_1"], ["c"]),
        helper.make_node("Mul", ["c", "val_2"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    stored = [_array("codes", 4, 4, dtype=np.int8), _array("val_1", 4), _array("val_2", 4)]
    ledger = _read(_save(_model(nodes, stored), tmp_path))[1]
    assert ledger.total == 16
    assert ledger.extras == {"quantization_scales": 4, "quantization_zero_points": 4}
    nodes[0] = helper.make_node("BitwiseAnd", ["codes", "mask"], ["f"])
    stored.append(_array("mask", dtype=np.int8))
    with pytest.raises(Unknown, match="unpacked by arithmetic"):
        _read(_save(_model(nodes, stored), tmp_path))


def test_integer_matrices_of_foreign_operators_are_refused_and_floats_go_by_name(tmp_path: Path) -> None:
    node = helper.make_node("Secret", ["x", "q"], ["y"], domain="own")
    with pytest.raises(Unknown, match="goes into Secret"):
        _read(_save(_model([node], [_array("q", 4, 4, dtype=np.uint8)]), tmp_path))
    assert _read(_save(_model([node], [_array("q", 4, 4)]), tmp_path))[1].total == 16


def test_packed_weights_that_do_not_fit_their_operator_are_refused(tmp_path: Path) -> None:
    def made(columns: int) -> onnx.ModelProto:
        node = helper.make_node(
            "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", K=32, N=columns, bits=4, block_size=16
        )
        return _model([node], [_array("q", 4, 2, 8, dtype=np.uint8), _array("s", 8)])

    assert _read(_save(made(4), tmp_path))[1].total == 128
    with pytest.raises(Unknown, match="does not fit"):
        _read(_save(made(5), tmp_path))


def test_a_sparse_tensor_counts_what_it_stores(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(_array("w", 3), _array("", 3, dtype=np.int64), [4, 4])
    header, ledger = _read(
        _save(_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [], sparse=[sparse]), tmp_path)
    )
    assert ledger.total == 3
    assert ledger.extras == {"sparse_indices": 3}
    assert any("sparse" in note for note in header.notes)


def test_classical_models_count_their_coefficients_or_are_refused(tmp_path: Path) -> None:
    node = helper.make_node(
        "LinearClassifier", ["x"], ["l", "y"], domain="ai.onnx.ml", coefficients=[1.0] * 12, intercepts=[0.5] * 3
    )
    assert _read(_save(_model([node], []), tmp_path))[1].total == 15
    tree = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", nodes_values=[1.0, 2.0])
    with pytest.raises(Unknown, match="weigh the fitted model"):
        _read(_save(_model([tree], [_array("w", 2)]), tmp_path))


def test_text_is_left_out_and_a_graph_without_tensors_is_refused(tmp_path: Path) -> None:
    words = helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"])
    assert "1 constants of text are left out" in _read(_save(_model([], [words, _array("w", 2)]), tmp_path))[0].notes
    with pytest.raises(Malformed, match="no tensor"):
        _read(_save(_model([], [words]), tmp_path))


def test_two_names_of_one_place_are_one_tensor_and_overlapping_ones_are_refused(tmp_path: Path) -> None:
    def outside(name: str, offset: int) -> TensorProto:
        tensor = TensorProto(name=name, dims=[2, 2], data_type=1, data_location=1)
        for key, value in (("location", "d.bin"), ("offset", str(offset)), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
        return tensor

    (tmp_path / "d.bin").write_bytes(bytes(64))
    header, ledger = _read(_save(_model([], [outside("a", 0), outside("b", 0), outside("c", 16)]), tmp_path))
    assert (header.aliases, ledger.total) == ({"b": "a"}, 8)
    with pytest.raises(Malformed, match="overlaps"):
        _read(_save(_model([], [outside("a", 0), outside("b", 8)]), tmp_path))


@pytest.mark.parametrize(
    "location", ["../d.bin", "/etc/passwd", "a/../../d.bin", "", "C:\\d.bin", "*/_ORT_MEM_ADDR_/*", "..\\d"]
)
def test_data_outside_the_folder_is_never_opened(tmp_path: Path, location: str) -> None:
    tensor = TensorProto(name="w", dims=[2], data_type=1, data_location=1)
    tensor.external_data.add(key="location", value=location)
    path = _save(_model([], [tensor]), tmp_path)
    with pytest.raises(Refused, match="outside its folder"):
        reader.read(LocalFile(path), beside=lambda name: pytest.fail(f"opened {name}"))


@pytest.mark.parametrize(
    ("tensor", "error", "says"),
    [
        (TensorProto(name="w", dims=[2], data_type=1, raw_data=bytes(7)), Malformed, "values of its shape"),
        (TensorProto(name="w", dims=[2], data_type=1, float_data=[1.0]), Malformed, "values of its shape"),
        (TensorProto(name="w", dims=[200], data_type=7, int64_data=[1]), Malformed, "values of its shape"),
        (TensorProto(name="w", dims=[2], data_type=1), Truncated, "no values"),
        (TensorProto(name="w", dims=[-1], data_type=1), Malformed, "shape"),
        (TensorProto(name="w", dims=[2**40, 2**40], data_type=1), Malformed, "shape"),
        (TensorProto(name="w", dims=[1] * 65, data_type=1, raw_data=bytes(4)), Malformed, "shape"),
        (TensorProto(name="w", dims=[2], data_type=99, raw_data=bytes(8)), Unknown, "type 99"),
        (TensorProto(name="", dims=[2], data_type=1, raw_data=bytes(8)), Malformed, "without a name"),
        (TensorProto(name="w" * 9999, dims=[2], data_type=1, raw_data=bytes(8)), Malformed, "names"),
        (TensorProto(name="w", dims=[2], data_type=1, segment=TensorProto.Segment(begin=1)), Refused, "segments"),
    ],
)  # fmt: skip
def test_a_tensor_that_lies_is_refused_with_the_reason(
    tmp_path: Path, tensor: TensorProto, error: type[WeighError], says: str
) -> None:
    with pytest.raises(error, match=says):
        _read(_save(_model([], [tensor]), tmp_path))


def test_a_name_stored_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="'w' twice"):
        _read(_save(_model([], [_array("w", 2), _array("w", 2)]), tmp_path))


def test_functions_that_call_themselves_or_double_at_each_call_end_in_a_refusal(tmp_path: Path) -> None:
    opset = [helper.make_opsetid("own", 1)]

    def made(name: str, calls: str, times: int) -> onnx.FunctionProto:
        nodes = [helper.make_node(calls, ["a"], [f"r{at}"], domain="own") for at in range(times)]
        return helper.make_function("own", name, ["a"], ["r0"], nodes, opset)

    for functions in ([made("f0", "f0", 1)], [made(f"f{at}", f"f{at + 1}", 60) for at in range(10)]):
        model = _model([helper.make_node("f0", ["x"], ["y"], domain="own")], [_array("w", 2)], functions=functions)
        with pytest.raises(Malformed, match="without end"):
            _read(_save(model, tmp_path))


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    raw = b""
    for _ in range(2000):  # a graph in an attribute of a node of a graph
        attribute = b"\x0a\x01b\x32" + _length(raw) + raw
        node = b"\x22\x02If\x2a" + _length(attribute) + attribute
        raw = b"\x0a" + _length(node) + node
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08\x3a" + _length(raw) + raw)
    with pytest.raises(Malformed, match="graphs within graphs"):
        _read(path)


def _length(raw: bytes) -> bytes:
    value, found = len(raw), b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def test_a_file_of_a_million_empty_nodes_is_refused_at_once(tmp_path: Path) -> None:
    raw = b"\x0a\x00" * 2_000_000
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08\x3a" + _length(raw) + raw)
    with pytest.raises(Malformed, match="more fields"):
        _read(path)


def test_every_prefix_of_a_file_is_truncated_or_malformed(exported: dict, tmp_path: Path) -> None:
    raw = exported["recurrent", "new"][0].read_bytes()
    path = tmp_path / "m.onnx"
    for size in [*range(0, 400), *range(400, len(raw), 97)]:
        path.write_bytes(raw[:size])
        with pytest.raises(Malformed):
            _read(path)


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_gives_a_plain_error_or_a_sound_header(
    exported: dict, tmp_path: Path, data: st.DataObject
) -> None:
    raw = bytearray(exported["convolutions", "old"][0].read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(raw)
    try:
        _read(path)
    except WeighError as error:
        assert "\n" not in str(error)


def test_every_letter_of_the_table_stands_at_an_input_that_the_schema_calls_so() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    latest: dict[str, dict[str, object]] = {}
    for schema in state.get_all_operator_schema():
        if schema.domain in ("", "com.microsoft"):
            before = latest.setdefault(schema.name, {}).get(schema.domain)
            if before is None or before.since_version < schema.since_version:  # type: ignore[attr-defined]
                latest[schema.name][schema.domain] = schema
    words = {"S": "scale|absmax", "Z": "zero_point|zp", "A": "scale|zero_point", "I": "g_idx", "K": "scale"}
    words["W"] = words["w"] = (
        "^(w|b|r|p|a|c)$|weight|bias|scale|gamma|beta|slope|data|norm|_quant|_b$|embedding|sink|eco_a|skip|inputs|x"
    )
    for name, (letters, _) in _operators().items():
        domain, _, op = name.rpartition(":")
        schemas = latest[op] if not domain else {domain: latest[op][domain]}
        schema = schemas.get("", next(iter(schemas.values())))
        names = [one.name.lower() for one in schema.inputs]  # type: ignore[attr-defined]
        for at, letter in enumerate(letters):
            if letter in words and at < len(names):
                assert re.search(words[letter], names[at]), (name, at, letter, names)
