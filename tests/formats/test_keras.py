"""Keras files and live models, against Keras's own counts."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weighbridge
from weighbridge.ledger.errors import WeighError

os.environ["KERAS_BACKEND"] = "torch"
import keras

L = keras.layers
INT4 = keras.quantizers.Int4QuantizationConfig


def _convolutions() -> Any:
    at = keras.Input((16, 16, 3))
    x = L.BatchNormalization()(L.Conv2D(8, 3, name="stem")(at))
    x = L.SeparableConv2D(6, 3, use_bias=False)(L.Dropout(0.5)(x))
    x = L.GroupNormalization(2)(L.DepthwiseConv2D(3)(x))
    inner = keras.Sequential([L.Dense(12), L.BatchNormalization(scale=False), L.PReLU()], name="inner")
    return keras.Model(at, L.Dense(3, name="head")(inner(L.Flatten()(x))), name="net")


def _sequences() -> Any:
    at = keras.Input((7,), dtype="int32")
    x = L.Embedding(50, 8)(at)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 4)(x, x))
    x = L.GRU(5)(L.Bidirectional(L.LSTM(4, return_sequences=True))(x))
    return keras.Model(at, L.Dense(2)(x))


def _frozen() -> Any:
    model = _convolutions()
    model.get_layer("stem").trainable = False
    model.get_layer("inner").trainable = False
    return model


def _shared() -> Any:
    first, second, dense = keras.Input((4,)), keras.Input((4,)), L.Dense(4, name="both")
    return keras.Model([first, second], L.Add()([dense(first), dense(second)]))


def _bare_norm() -> Any:
    return keras.Sequential([keras.Input((5,)), L.BatchNormalization(center=False, scale=False), L.Dense(1)])


def _wrapped() -> Any:
    """Layers that hold others, some of them frozen within and some from without."""
    at = keras.Input((6, 8, 8, 3))
    x = L.TimeDistributed(L.Conv2D(4, 3), name="each")(at)
    x = L.ConvLSTM2D(3, 3)(x)
    x = L.SpectralNormalization(L.Dense(5), name="bounded")(L.Reshape((4, 12))(x))
    both = L.Bidirectional(L.RNN(L.StackedRNNCells([L.LSTMCell(4), L.GRUCell(3)]), return_sequences=True))
    x = L.GroupQueryAttention(4, 4, 2)(both(x), both(x))
    inner = keras.Sequential([L.Dense(4, name="kept"), L.Dense(3, name="learned")], name="inner")
    model = keras.Model(at, keras.Sequential([inner, L.Dense(2)], name="outer")(x))
    model.get_layer("each").trainable = False
    inner.get_layer("kept").trainable = False
    return model


MODELS = [_convolutions, _sequences, _frozen, _shared, _bare_norm, _wrapped]


def _count(variables: Any) -> int:
    found = {id(v): v for v in variables}
    return sum(int(v.value.numel()) for v in found.values())


def _equal(report: Any, model: Any) -> None:
    said = report.data
    learned = [v for layer in model._flatten_layers() for v in layer._trainable_variables]
    assert said["parameters"]["total"] == _count(learned)
    # Keras counts moving statistics in; the seeds of dropouts are no weights to it.
    weights = {id(v) for v in model.weights}
    seeds = _count([v for v in model.variables if id(v) not in weights])
    assert said["parameters"]["total"] + said["buffers"]["total"] - seeds == model.count_params()
    assert said["parameters"]["trainable"] == _count(model.trainable_weights)


@pytest.mark.parametrize("make", MODELS)
def test_a_live_model_counts_as_keras_does(make: Callable[[], Any]) -> None:
    model = make()
    report = weighbridge.show(model)
    _equal(report, model)
    assert report.data["parameters"]["by_role"].keys() <= {"embedding", "attention", "ffn", "norm", "conv", "ssm"}


@pytest.mark.parametrize("make", MODELS)
def test_a_keras_archive_counts_as_the_model(make: Callable[[], Any], tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model.keras")
    report = weighbridge.show(tmp_path / "model.keras")
    live = weighbridge.show(model).data["parameters"]
    assert report.data["parameters"]["total"] == live["total"]
    assert report.data["parameters"]["trainable"] == live["trainable"]
    assert report.data["parameters"]["by_role"] == live["by_role"]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", ["model.weights.h5", "model.h5"])
def test_an_h5_file_counts_as_the_model(make: Callable[[], Any], name: str, tmp_path: Path) -> None:
    model = make()
    (model.save_weights if "weights" in name else model.save)(tmp_path / name)
    said = weighbridge.show(tmp_path / name).data["parameters"]
    live = weighbridge.show(model).data["parameters"]
    assert said["total"] == live["total"]
    if "weights" not in name:  # weights alone do not say what is frozen
        assert said["trainable"] == live["trainable"]


def test_an_optimizer_in_the_file_is_an_extra(tmp_path: Path) -> None:
    model = _shared()
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    said = weighbridge.show(tmp_path / "model.keras").data
    assert said["parameters"]["total"] == model.count_params()
    # Two moments of each parameter, the iteration and the learning rate.
    assert said["extras"]["total"] == 2 * model.count_params() + 2


def test_values_are_signed_where_they_lie(tmp_path: Path) -> None:
    """The archive, the weights beside it and the live values have one digest a tensor."""
    model = _shared()
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        (tmp_path / "model.weights.h5").write_bytes(archive.read("model.weights.h5"))
    keyed = [weighbridge.sign(tmp_path / name, full=True).digest for name in ("model.keras", "model.weights.h5")]
    assert keyed[0] == keyed[1]


def test_what_nobody_tells_is_refused(tmp_path: Path) -> None:
    """A batch norm under a name of the user's own, in a layer of the user's own: no file says what its vectors are."""

    class Own(L.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.scale = L.BatchNormalization(name="dense", center=False, scale=False)

        def call(self, x: Any) -> Any:
            return self.scale(x)

    model = keras.Sequential([keras.Input((5,)), Own()])
    model.save(tmp_path / "model.keras")
    with pytest.raises(WeighError, match="cannot be told"):
        weighbridge.show(tmp_path / "model.keras")
    said = weighbridge.show(model).data
    assert (said["parameters"]["total"], said["buffers"]["total"]) == (0, 10)


def _low_rank() -> Any:
    model = keras.Sequential([keras.Input((5,), dtype="int32"), L.Embedding(40, 12), L.Dense(9), L.Dense(2)])
    model.layers[0].enable_lora(2)
    model.layers[1].enable_lora(3)
    return model


def test_low_rank_adapters_count_where_they_are_stored(tmp_path: Path) -> None:
    """Keras adds them to the weights when it saves an archive, and stores them apart in its older format."""
    model = _low_rank()
    _equal(weighbridge.show(model), model)
    model.save(tmp_path / "model.h5")
    said = weighbridge.show(tmp_path / "model.h5").data["parameters"]
    assert (said["total"], said["trainable"]) == (model.count_params(), _count(model.trainable_weights))
    model.save(tmp_path / "model.keras")
    lora = _count([v for v in model.trainable_weights if "lora" in v.name])
    said = weighbridge.show(tmp_path / "model.keras").data["parameters"]
    assert said["total"] == model.count_params() - lora
    assert said["trainable"] == _count(model.trainable_weights) - lora


def test_a_layer_of_its_author_s_own_counts_where_its_variables_names_tell(tmp_path: Path) -> None:
    class Scaled(L.Layer):
        def __init__(self, named: str, **rest: Any) -> None:
            super().__init__(**rest)
            self.named = named

        def build(self, shape: Any) -> None:
            self.own = self.add_weight(name=self.named, shape=shape[-1:])

        def call(self, x: Any) -> Any:
            return x * self.own

    for named, told in (("gamma", True), ("memory", False)):
        model = keras.Sequential([keras.Input((5,)), Scaled(named), L.Dense(1)])
        model.save(tmp_path / "model.h5")
        if told:
            assert weighbridge.show(tmp_path / "model.h5").data["parameters"]["total"] == model.count_params() == 11
        else:
            with pytest.raises(WeighError, match=r"memory is learned cannot be told.*weighbridge.show\(model\)"):
                weighbridge.show(tmp_path / "model.h5")
        assert weighbridge.show(model).data["parameters"]["total"] == 11


@pytest.mark.parametrize(
    "how",
    ["int8", "int4", "float8", INT4(block_size=-1)],
    ids=lambda how: how if isinstance(how, str) else "int4-per-channel",
)
def test_quantized_layers_count_as_what_they_stand_for(how: Any, tmp_path: Path) -> None:
    layers = [L.Dense(9), L.Reshape((3, 3)), L.EinsumDense("abc,cd->abd", (3, 5), bias_axes="d"), L.Flatten()]
    nets = [keras.Sequential([keras.Input((7,)), *layers, L.Dense(3, use_bias=False)])]
    if isinstance(how, str):  # nothing tells how long an embedding's row is when int4 has no groups
        nets.append(keras.Sequential([keras.Input((4,)), L.Embedding(20, 7)]))
    for model in nets:
        plain = model.count_params()
        model.quantize(*((how,) if isinstance(how, str) else (None, how)))
        model.save(tmp_path / "model.keras")
        for thing in (tmp_path / "model.keras", model):
            said = weighbridge.show(thing).data
            assert said["parameters"]["total"] == plain
            assert said["stored"]["elements"] == model.count_params()


def test_what_does_not_tell_its_quantization_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8,)), L.Dense(8)])
    model.quantize("int8")
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(WeighError, match="quantized"):
        weighbridge.show(tmp_path / "model.weights.h5")
    table = keras.Sequential([keras.Input((4,)), L.Embedding(20, 7)])
    table.quantize(None, INT4(block_size=-1))
    table.save(tmp_path / "table.keras")
    for thing in (tmp_path / "table.keras", table):
        with pytest.raises(WeighError, match="cannot be told"):
            weighbridge.show(thing)


def test_broken_files_are_refused_in_one_line(tmp_path: Path) -> None:
    _shared().save_weights(tmp_path / "model.weights.h5")
    whole = (tmp_path / "model.weights.h5").read_bytes()
    for end in range(0, len(whole), 97):
        path = tmp_path / "cut.h5"
        path.write_bytes(whole[:end])
        with pytest.raises(WeighError):
            weighbridge.show(path)
    for at in range(0, len(whole), 13):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        try:
            weighbridge.show(path)
        except WeighError as refusal:
            assert "\n" not in str(refusal)
