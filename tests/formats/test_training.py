"""Training checkpoints, against the optimizers, schedulers and arguments that wrote them."""

import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

from weighbridge.formats.training import Training, read_training

SECRET = "hf_" + "q" * 34


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2, bias=False))


def stepped(net: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return optimizer


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Every tensor beneath, as torch itself holds them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for held in value.values():
            yield from tensors_in(held)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from tensors_in(held)


def agrees(training: Training, *states: object) -> None:
    """The totals are those of the tensors that were saved, and the parts sum to them."""
    assert training.optimizer is not None
    tensors = list(tensors_in(states))
    total, parts = training.optimizer.total, training.optimizer.by_key.values()
    assert total.tensors == len(tensors) == sum(part.tensors for part in parts)
    assert total.elements == sum(tensor.numel() for tensor in tensors) == sum(part.elements for part in parts)
    assert total.nbytes == sum(tensor.nbytes for tensor in tensors) == sum(part.nbytes for part in parts)


def test_a_folder_without_training_state_has_none(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    assert read_training(tmp_path) is None
    assert read_training(tmp_path / "nowhere") is None
    assert read_training(tmp_path / "config.json") is None


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_trainer_checkpoint_is_read_whole(net: nn.Module, tmp_path: Path) -> None:
    import transformers

    optimizer = stepped(net, torch.optim.AdamW(net.parameters(), lr=2e-4, weight_decay=0.05))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    arguments = transformers.TrainingArguments(
        output_dir="runs/a", learning_rate=2e-4, num_train_epochs=3, hub_token=SECRET, report_to=[], seed=7
    )
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(scheduler.state_dict(), tmp_path / "scheduler.pt")
    torch.save(arguments, tmp_path / "training_args.bin")
    torch.save({"cpu": torch.get_rng_state()}, tmp_path / "rng_state.pth")
    state = {"global_step": 500, "epoch": 1.25, "max_steps": 1200, "best_metric": None, "log_history": [{"loss": 1.0}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    training = read_training(tmp_path)
    assert training is not None
    assert training.notes == ()
    agrees(training, optimizer.state_dict()["state"])
    assert training.optimizer.name == "adam-like (exp_avg, exp_avg_sq)"
    assert set(training.optimizer.by_key) == {"step", "exp_avg", "exp_avg_sq"}
    parameters = sum(parameter.numel() for parameter in net.parameters())
    assert training.optimizer.by_key["exp_avg"].elements == parameters
    assert training.progress == {"global_step": 500, "epoch": 1.25, "max_steps": 1200}
    assert training.scheduler["base_lrs"] == [2e-4]
    assert training.scheduler["last_epoch"] == 0
    found = training.hyperparameters
    assert found["param_groups.0.weight_decay"] == 0.05
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if isinstance(value, bool | int | float) and field.init:
            assert found[field.name] == value
    assert found["lr_scheduler_type"] == "linear"
    assert found["eval_strategy"] == "no"
    assert "hub_token" not in found
    assert SECRET not in json.dumps(training.to_dict())
    assert not any(name.startswith("_") for name in found)


def test_an_accelerate_checkpoint_counts_all_its_optimizers(net: nn.Module, tmp_path: Path) -> None:
    first = stepped(net, torch.optim.Adam(net.parameters()))
    second = stepped(net, torch.optim.Adam(net.parameters(), amsgrad=True))
    torch.save(first.state_dict(), tmp_path / "optimizer.bin")
    torch.save(second.state_dict(), tmp_path / "optimizer_1.bin")
    for name, last in (("scheduler.bin", 3), ("scheduler_1.bin", 4)):
        torch.save({"last_epoch": last}, tmp_path / name)
    training = read_training(tmp_path)
    assert training is not None
    agrees(training, first.state_dict()["state"], second.state_dict()["state"])
    assert training.scheduler == {"scheduler.last_epoch": 3, "scheduler_1.last_epoch": 4}


def test_deepspeed_partitions_of_the_latest_step_add_up(tmp_path: Path) -> None:
    states = []
    for step in (100, 1000):
        folder = tmp_path / f"global_step{step}"
        folder.mkdir()
        for rank in range(2):
            base = {"state": {0: {"step": 4, "exp_avg": torch.zeros(50), "exp_avg_sq": torch.zeros(50)}}}
            base["param_groups"] = [{"lr": 1e-5, "betas": (0.9, 0.95), "params": [0]}]
            state = {"base_optimizer_state": base, "single_partition_of_fp32_groups": [torch.zeros(50)]}
            state |= {"zero_stage": 2, "partition_count": [2], "loss_scaler": None}
            saved = {"optimizer_state_dict": state, "ds_config": {"train_batch_size": 8}, "ds_version": "0.18"}
            torch.save(saved, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
            states += [state] if step == 1000 else []
        torch.save({"module": {}}, folder / "mp_rank_00_model_states.pt")
    training = read_training(tmp_path)
    assert training is not None
    agrees(training, states)
    assert set(training.optimizer.by_key) == {"exp_avg", "exp_avg_sq", "single_partition_of_fp32_groups"}
    assert training.progress == {"global_step": 1000}
    assert training.hyperparameters["ds_config.train_batch_size"] == 8


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "stateless, as plain sgd"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum, as sgd and muon keep (momentum_buffer)"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad-like (exp_avg, exp_avg_sq, max_exp_avg_sq)"),
        (lambda p: torch.optim.NAdam(p), "nadam-like (exp_avg, exp_avg_sq, mu_product)"),
        (lambda p: torch.optim.Adamax(p), "adamax-like (exp_avg, exp_inf)"),
        (lambda p: torch.optim.RMSprop(p), "rmsprop-like (square_avg)"),
        (lambda p: torch.optim.Adadelta(p), "adadelta-like (square_avg, acc_delta)"),
        (lambda p: torch.optim.Adagrad(p), "adagrad-like (sum)"),
        (lambda p: torch.optim.Rprop(p), "rprop-like (prev, step_size)"),
        (lambda p: torch.optim.Adafactor(p), "adafactor-like (row_var, col_var)"),
    ],
)
def test_an_optimizer_is_known_by_what_it_keeps(make: object, name: str, net: nn.Module, tmp_path: Path) -> None:
    optimizer = stepped(net, make(net.parameters()))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    training = read_training(tmp_path)
    assert training is not None
    assert training.optimizer.name == name
    agrees(training, optimizer.state_dict()["state"])


def test_a_table_that_all_parameters_share_counts_once(tmp_path: Path) -> None:
    table = torch.zeros(256)
    state = {n: {"state1": torch.zeros(9, dtype=torch.uint8), "qmap1": table} for n in range(5)}
    torch.save({"state": state, "param_groups": []}, tmp_path / "optimizer.pt")
    training = read_training(tmp_path)
    assert training is not None
    assert training.optimizer.by_key["qmap1"].to_dict() == {"tensors": 1, "elements": 256, "bytes": 1024}
    assert training.optimizer.total.elements == 256 + 45


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch sprung",)


def test_a_hostile_or_broken_file_becomes_a_note_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), "training_args.bin")
    Path("optimizer.pt").write_bytes(b"PK\x03\x04 cut")
    Path("scheduler.pt").write_bytes(b"")
    Path("trainer_state.json").write_text("[" * 100_000)
    torch.save({"state": {}, "param_groups": [{"lr": 0.5}]}, "optimizer_1.bin")
    training = read_training(tmp_path)
    assert training is not None
    assert not Path("sprung").exists()
    assert len(training.notes) == 4
    assert any("system, which no tensor file needs; nothing was executed" in note for note in training.notes)
    assert all(note.isprintable() for note in training.notes)
    assert training.hyperparameters == {"param_groups.0.lr": 0.5}


def test_progress_keeps_only_scalars_without_secrets(tmp_path: Path) -> None:
    state = {"global_step": 3, "is_world_process_zero": True, "trial_params": {"a": 1}, "api_key": "x", "note": SECRET}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    training = read_training(tmp_path)
    assert training is not None
    assert training.progress == {"global_step": 3}
    assert training.optimizer is None
    assert training.to_dict()["optimizer"] is None
