"""What exporters compute, repeat, join and rename, against the parameters of the module that was exported.

Only what a file still holds can be counted: where an exporter drops or folds values, the case says what is left.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import graphs
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from weighbridge.formats import onnx as reader
from weighbridge.formats.header import Header
from weighbridge.formats.local import LocalFile
from weighbridge.ledger import Ledger
from weighbridge.ledger.errors import Unknown


def _read(path: Path) -> tuple[Header, Ledger]:
    file = LocalFile(path)
    header = reader.read(file, beside=lambda name: LocalFile(path.parent / name))
    return header, graphs.weighed(header, path, "onnx", [file, *header.files])


def _export(module: nn.Module, example: torch.Tensor, path: Path, *, exporter: str) -> Path:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.manual_seed(1)
    for value in module.state_dict().values():
        if value.dtype.is_floating_point:
            nn.init.uniform_(value, 0.1, 1)  # exporters join values that are equal
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (example,), str(path), dynamo=exporter == "new", verbose=False)
    return path


class _Classed(nn.Module):
    """A class token for each picture of the batch, in front of its patches, and positions added to both."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.positions = nn.Parameter(torch.zeros(1, 5, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), h], 1) + self.positions
        return self.head(h[:, 0])


class _Windowed(nn.Module):
    """Relative positions as Swin has them: a table of biases that is looked up by pairs of places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(9, 2))
        self.register_buffer("places", torch.arange(16).remainder(9).view(4, 4))
        self.qk = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.qk(x).view(-1, 4, 2, 2, 4).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places.view(-1)].view(4, 4, 2).permute(2, 0, 1)
        return (q @ k.transpose(-2, -1) + bias).softmax(-1)


class _Positions(nn.Module):
    """Sines and cosines that are stored, and a mean and a deviation of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pe", torch.zeros(1, 6, 8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("std", torch.zeros(8))
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear((x - self.mean) / self.std + self.pe)


class _Stepwise(nn.Module):
    """A cell that is called step by step, and a recurrence whose first state is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 6)
        self.rnn = nn.RNN(6, 5, batch_first=True)
        self.first = nn.Parameter(torch.zeros(1, 2, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = self.cell(x[:, 0])
        h, c = self.cell(x[:, 1], (h, c))
        return self.rnn(h[:, None], self.first)[0]


class _Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3)
        self.norm = nn.InstanceNorm1d(6, affine=True)
        self.bag = nn.EmbeddingBag(12, 4, mode="sum")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        looked = self.bag(torch.zeros(x.shape[0], 3, dtype=torch.long))
        return self.norm(self.conv(x)).sum(-1).sum() + looked


CASES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "classed": (_Classed, torch.zeros(2, 3, 8, 8)),
    "windowed": (_Windowed, torch.zeros(3, 4, 8)),
    "positions": (_Positions, torch.zeros(2, 6, 8)),
    "stepwise": (_Stepwise, torch.zeros(2, 2, 8)),
    "normed": (_Normed, torch.zeros(2, 4, 8)),
}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("exporter", ["new", "old"])
@pytest.mark.parametrize("case", ["classed", "positions", "normed"])
def test_what_is_repeated_looked_up_or_added_counts_as_torch_counts_it(
    case: str, exporter: str, tmp_path: Path
) -> None:
    make, example = CASES[case]
    module = make()
    _, ledger = _read(_export(module, example, tmp_path / "m.onnx", exporter=exporter))
    assert ledger.total == _parameters(module)
    assert not ledger.extras


def test_what_was_computed_from_parameters_that_are_gone_is_refused_where_the_exporter_says_so(tmp_path: Path) -> None:
    for case, lost in (("windowed", "table"), ("stepwise", "first")):
        make, example = CASES[case]
        with pytest.raises(Unknown, match=f"computed from '{lost}'.*optimize=False"):
            _read(_export(make(), example, tmp_path / f"{case}.onnx", exporter="new"))


def test_where_the_exporter_says_nothing_it_is_of_unknown_origin(tmp_path: Path) -> None:
    module = _Windowed()
    _, ledger = _read(_export(module, CASES["windowed"][1], tmp_path / "m.onnx", exporter="old"))
    assert ledger.total == _parameters(module) - module.table.numel()
    assert ledger.extras == {"constants_of_unknown_origin": 2 * 4 * 4}  # heads x places x places, all looked up


def test_a_cell_counts_once_however_often_it_is_called_and_a_first_state_by_its_name(tmp_path: Path) -> None:
    module = _Stepwise()
    header, ledger = _read(_export(module, CASES["stepwise"][1], tmp_path / "m.onnx", exporter="old"))
    assert ledger.total == _parameters(module)
    assert any("by their names alone (first: 'first')" in note for note in header.notes)


@pytest.mark.parametrize("exporter", ["new", "old"])
def test_a_recurrent_layer_without_one_bias_has_half_of_what_its_operator_takes(exporter: str, tmp_path: Path) -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(6, 5, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gru(x)[0]

    path = _export(Halved(), torch.zeros(2, 3, 6), tmp_path / "m.onnx", exporter=exporter)
    model = onnx.load(path)
    (biases,) = (one for one in model.graph.initializer if list(one.dims) == [1, 30])
    values = numpy_helper.to_array(biases).copy()
    whole = _read(path)[1].total
    values[:, 15:] = 0  # as a framework exports it whose layer has a bias of the inputs alone
    biases.CopyFrom(numpy_helper.from_array(values, biases.name))
    onnx.save(model, path)
    assert _read(path)[1].total == whole - 15
