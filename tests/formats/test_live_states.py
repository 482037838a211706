"""Objects in memory that are no plain modules: training states, quantized and sharded modules, pytrees."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import weighbridge
from weighbridge.ledger.errors import NotFound, Refused, Unknown


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight


def counted(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def shown(thing: object) -> Any:
    return weighbridge.show(thing).data


def trained(net: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(net.parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


def test_a_training_state_counts_its_model_wherever_it_lies() -> None:
    net = Tied()
    optimizer = trained(net)
    state, moments = net.state_dict(), optimizer.state_dict()
    kept = sum(t.numel() for one in moments["state"].values() for t in one.values())
    states: list[tuple[object, int]] = [
        ({"model": state}, 0),
        ({"model": state, "optimizer": moments, "rng_state": torch.get_rng_state()}, kept),
        ({"state_dict": state, "optimizer_states": [moments], "epoch": 3}, kept),
        ({"model": state, "best_loss": torch.tensor(0.3)}, 0),
        ({"model": state, "optim": optimizer}, kept),
        ({"model_type": "gpt2", "state_dict": state}, 0),
    ]
    for thing, optimizer_values in states:
        said = shown(thing)
        assert said["parameters"]["total"] == counted(net)
        assert said["buffers"]["total"] == sum(b.numel() for b in net.buffers())
        assert said["extras"].get("optimizer_state", said["extras"].get("by_name", {}).get("optimizer_state", 0)) == (
            optimizer_values
        )
    with pytest.raises(NotFound, match="optimizer state, and no model"):
        weighbridge.show(moments)


def test_an_optimizer_of_eight_bits_is_an_extra() -> None:
    net = nn.Linear(8, 4)
    codes = {"state1": torch.zeros(4, 8, dtype=torch.uint8), "qmap1": torch.zeros(256), "absmax1": torch.zeros(1)}
    said = shown({"model": net.state_dict(), "optimizer": {"state": {0: codes}, "param_groups": [{"params": [0]}]}})
    assert said["parameters"]["total"] == counted(net)
    assert said["extras"]["by_name"]["optimizer_state"] == 32 + 256 + 1


def test_a_whole_module_in_a_dictionary_is_to_be_shown_itself() -> None:
    with pytest.raises(Refused, match="show the module itself"):
        weighbridge.show({"model": Tied(), "epoch": 3})


def test_a_tangled_tree_ends_in_a_refusal() -> None:
    tangle: dict[str, Any] = {"w": torch.ones(2)}
    tangle |= {"left": tangle, "right": tangle}
    with pytest.raises(Refused, match="deeper or larger"):
        weighbridge.show(tangle)


def test_what_lies_beside_the_model_is_named() -> None:
    two = {"generator": nn.Linear(4, 3).state_dict(), "discriminator": nn.Linear(4, 4).state_dict()}
    notes = weighbridge.show(two).to_dict()["notes"]
    assert any("'discriminator'" in str(note) and "not counted" in str(note) for note in notes)  # type: ignore[union-attr]


def test_ties_of_a_state_dict_on_the_meta_device_are_seen() -> None:
    with torch.device("meta"):
        net = Tied()
    assert shown(net.state_dict())["parameters"]["total"] == counted(net)


def test_a_module_shows_by_itself_what_is_tied() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    net = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, tie_word_embeddings=True))
    net.requires_grad_(False)
    net.lm_head = nn.Linear(32, 64, bias=False)
    said = shown(net)
    assert (said["parameters"]["total"], said["parameters"]["trainable"]) == (counted(net), 2048)
    net.model.layers = net.model.layers[:1]
    said = shown(net)
    assert said["parameters"]["total"] == counted(net)
    assert len(said["architecture"]["mixers"]) == 1


class Named(nn.Module):
    """Names that packed weights have, for plain floats."""

    def __init__(self) -> None:
        super().__init__()
        self.W_q, self.W_k = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.zeros(8, 8))
        self.blocks, self.scales = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(3))
        self.register_buffer("mask", torch.zeros(5, 5))


def test_plain_floats_are_what_the_module_says_whatever_they_are_called() -> None:
    net = Named()
    net.W_q.requires_grad_(False)
    said = shown(net)
    assert (said["parameters"]["total"], said["buffers"]["total"]) == (counted(net), 25)
    assert said["parameters"]["trainable"] == counted(net) - 64


def _held(parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> nn.Module:
    net = nn.Module()
    for name, value in parameters.items():
        net.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))
    for name, value in buffers.items():
        net.register_buffer(name, value)
    return nn.Sequential(net)


CODES = {
    "int8 weight and its scale": (
        _held({}, {"weight": torch.zeros(64, 32, dtype=torch.int8), "scale": torch.ones(64)}),
        2048,
    ),
    "int8 parameter and scales": (
        _held({"weight": torch.zeros(64, 32, dtype=torch.int8), "scales": torch.ones(64)}, {}),
        2048,
    ),
    "fp8 in blocks": (
        _held({"weight": torch.zeros(256, 128).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(2, 1)}, {}),
        256 * 128,
    ),
    "AWQ": (
        _held(
            {},
            {
                "qweight": torch.zeros(64, 4, dtype=torch.int32),
                "qzeros": torch.zeros(2, 4, dtype=torch.int32),
                "scales": torch.ones(2, 32),
                "bias": torch.ones(32),
            },
        ),
        64 * 32 + 32,
    ),
    "NVFP4": (
        _held(
            {"weight_scale": torch.ones(32, 4), "weight_scale_2": torch.ones(())},
            {"weight": torch.zeros(32, 32, dtype=torch.uint8)},
        ),
        32 * 64,
    ),
    "a table of places": (_held({"table": torch.ones(9, 2)}, {"places": torch.zeros(4, 4, dtype=torch.int32)}), 18),
}  # fmt: skip


@pytest.mark.parametrize("name", CODES)
def test_codes_count_as_what_they_stand_for_and_tables_as_buffers(name: str) -> None:
    net, count = CODES[name]
    assert shown(net)["parameters"]["total"] == count


def test_tables_of_whole_numbers_beside_modules_are_buffers() -> None:
    for table in (torch.zeros(9, 2, dtype=torch.int32), torch.zeros(4, 4, dtype=torch.uint8)):
        net = nn.Module()
        net.fc = nn.Linear(4, 4)
        net.register_buffer("places", table)
        for thing in (net, net.state_dict()):
            said = shown(thing)
            assert (said["parameters"]["total"], said["buffers"]["total"]) == (20, table.numel())


def test_shared_bases_of_an_adapter_are_buffers_in_its_state_dict_too() -> None:
    import peft
    import tiny

    net = peft.get_peft_model(tiny.build("llama"), peft.VeraConfig(r=4, target_modules=["q_proj"]))
    assert shown(net.state_dict())["parameters"]["total"] == shown(net)["parameters"]["total"] == counted(net)


def test_codes_are_not_trained_whatever_they_are_stored_in() -> None:
    import bitsandbytes
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    layer = bitsandbytes.nn.Linear4bit(64, 64, quant_storage=torch.bfloat16)
    layer.load_state_dict(net[0].state_dict())
    packed = nn.Sequential(layer, copy.deepcopy(net[1])).to("cpu")
    plain = 64 + 128  # the bias, and the norm
    assert shown(packed.state_dict())["parameters"]["trainable"] == plain
    quantize_(net, Float8WeightOnlyConfig())
    assert shown(net.state_dict())["parameters"]["trainable"] == plain


FOREIGN = {
    "BitNet": {"weight": torch.zeros(8, 32, dtype=torch.uint8), "weight_scale": torch.ones(1)},
    "HQQ": {"W_q": torch.zeros(8, 32, dtype=torch.uint8)},
    "AQLM": {"codes": torch.zeros(64, 12, 1, dtype=torch.int8), "codebooks": torch.ones(1, 256, 1, 8)},
    "EXL2": {"q_weight": torch.zeros(100, 64, dtype=torch.int32)},
    "Marlin": {"B": torch.zeros(4, 192, dtype=torch.int32), "s": torch.ones(1, 96)},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_codes_of_a_kind_that_is_not_known_are_refused(name: str) -> None:
    net = _held({}, FOREIGN[name])
    for thing in (net, net.state_dict()):
        with pytest.raises(Unknown):
            weighbridge.show(thing)


def test_states_of_parametrizations_and_of_pruning_are_buffers_in_a_state_dict_too() -> None:
    from torch.nn.utils import parametrizations, prune

    for change in (
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda net: prune.l1_unstructured(net, "weight", 0.5),
    ):
        net = change(nn.Linear(4, 6))
        for thing in (net, net.state_dict()):
            assert shown(thing)["parameters"]["total"] == counted(net) == 30


def test_a_quantizer_of_activations_keeps_no_parameter() -> None:
    state = {
        "quant.scale": torch.ones(1),
        "quant.zero_point": torch.zeros(1, dtype=torch.int64),
        "fc.weight": torch.ones(3, 3),
    }
    assert shown(state)["parameters"]["total"] == 9


@pytest.mark.filterwarnings("ignore")
def test_tensors_spread_over_devices_count_whole_and_those_of_the_older_fsdp_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
        whole = counted(net)
        wrapped = FullyShardedDataParallel(copy.deepcopy(net), device_id=torch.device("cpu"), use_orig_params=True)
        with pytest.raises(Unknown, match="spread over processes by FSDP"):
            weighbridge.show(wrapped)
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
        assert shown(net)["parameters"]["total"] == shown(net.state_dict())["parameters"]["total"] == whole
    finally:
        torch.distributed.destroy_process_group()


class Lazy(Mapping[str, Any]):
    """Makes its arrays when asked, as an open `.npz` does."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __getitem__(self, key: str) -> Any:
        return self._make()

    def __iter__(self) -> Iterator[str]:
        return iter([f"layer{n}" for n in range(8)])

    def __len__(self) -> int:
        return 8


def test_arrays_that_are_made_when_asked_are_no_ties() -> None:
    assert shown(Lazy(lambda: np.ones((100, 100))))["parameters"]["total"] == 80_000
    assert shown(Lazy(lambda: torch.ones(100, 100)))["parameters"]["total"] == 80_000


class Shaped:
    def __init__(self, shape: Any) -> None:
        self.shape, self.dtype = shape, np.dtype("f4")


@pytest.mark.parametrize("shape", [(-3, 4), (2.5, 3), (None, 3), ("a",), 5, None, (10**30, 10**30)])
def test_a_shape_that_is_none_is_refused(shape: Any) -> None:
    with pytest.raises(Unknown, match="has a shape of"):
        weighbridge.show({"w": Shaped(shape), "b": np.ones(3)})


def test_moments_and_statistics_are_told_by_their_neighbors() -> None:
    import jax
    import optax

    params = {"dense": {"kernel": np.ones((4, 3), "f4"), "bias": np.ones(3, "f4")}}
    state = optax.adam(1e-3).init(params)
    for thing in ((params, state), {"params": params, "opt": state}):
        assert shown(thing)["parameters"]["total"] == 15
    assert shown(state)["parameters"]["total"] == 0
    norm = {key: np.ones(4, "f4") for key in ("scale", "bias", "mean", "var")}
    said = shown({"bn": norm})
    assert (said["parameters"]["total"], said["buffers"]["total"]) == (8, 8)
    learned = {"params": {"head": norm, "mu": params, "nu": params}}
    assert shown(jax.tree.map(np.copy, learned))["parameters"]["total"] == 4 * 4 + 2 * 15
    inside = {"params": {"step": params, "optimizer": params, "cache": params}}
    assert shown(inside)["parameters"]["total"] == 15  # one and the same, three times
    assert shown(jax.tree.map(np.copy, inside))["parameters"]["total"] == 45


def test_a_tree_that_jax_cannot_flatten_is_refused_in_one_line() -> None:
    import jax  # noqa: F401 - what is loaded decides who flattens

    endless: dict[str, Any] = {"w": np.ones(3)}
    endless["again"] = endless
    for tree in ({1: np.ones(2), "b": np.ones(2)}, endless):
        with pytest.raises(Refused):
            weighbridge.show(tree)


def test_a_config_that_cannot_be_read_costs_the_architecture_alone() -> None:
    class Odd:
        model_type = "llama"

        def to_dict(self) -> dict[str, Any]:
            raise ZeroDivisionError

    net = nn.Linear(2, 3)
    net.config = Odd()  # type: ignore[assignment]
    report = weighbridge.show(net)
    assert report.data["parameters"]["total"] == 9  # type: ignore[index]
    assert "ZeroDivisionError" in str(report)
