"""Adapter folders that PEFT writes, against what PEFT says of them."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny

from weighbridge.formats.models import open_model
from weighbridge.ledger.errors import NotFound, Refused


def _adapted(tmp_path: Path, **fields: Any) -> tuple[Any, Path, Path]:
    """(PEFT model, adapter folder, base folder) of a small llama."""
    base, adapter = tmp_path / "tiny-llama", tmp_path / "support-lora"
    model = tiny.build("llama")
    model.save_pretrained(base)
    model.config._name_or_path = str(base)
    model.name_or_path = str(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **fields))
    adapted.save_pretrained(adapter)
    return adapted, adapter, base


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "up_proj"]},
        {"target_modules": ["q_proj"], "lora_bias": True},
    ],
)
def test_an_adapter_with_its_base_counts_as_peft_counts(fields: dict[str, Any], tmp_path: Path) -> None:
    adapted, adapter, base = _adapted(tmp_path, **fields)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    trainable, every = adapted.get_nb_trainable_parameters()
    ledger = open_model(str(adapter))
    assert ledger.trainable == trainable
    assert ledger.total == every
    assert ledger.total - ledger.trainable == tiny.counted(tiny.build("llama"))
    assert (ledger.signature.base_model, ledger.signature.adapter) == ("tiny-llama", "support-lora")


def test_an_adapter_without_its_base_counts_itself_and_says_so(tmp_path: Path) -> None:
    adapted, adapter, _ = _adapted(tmp_path, target_modules=["q_proj", "v_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "acme/absent-7b"}))
    trainable, _ = adapted.get_nb_trainable_parameters()
    ledger = open_model(str(adapter))
    assert (ledger.total, ledger.trainable) == (trainable, trainable)
    assert ledger.by_role() == {"adapter": trainable}
    assert str(ledger.signature) == "acme/absent-7b+support-lora"
    assert any("acme/absent-7b" in note for note in ledger.notes)


def test_the_base_can_be_named(tmp_path: Path) -> None:
    _, adapter, base = _adapted(tmp_path, target_modules=["q_proj"])
    moved = base.rename(tmp_path / "elsewhere")
    ledger = open_model(str(adapter), base=str(moved))
    assert ledger.signature.base_model == "elsewhere"
    with pytest.raises(NotFound):
        open_model(str(adapter), base=str(tmp_path / "nowhere"))


def test_a_base_that_has_none_of_the_adapter_s_modules_is_refused(tmp_path: Path) -> None:
    _, adapter, _ = _adapted(tmp_path, target_modules=["q_proj"])
    tiny.build("gpt2").save_pretrained(tmp_path / "other")
    with pytest.raises(Refused, match="none of the modules"):
        open_model(str(adapter), base=str(tmp_path / "other"))


def test_an_adapter_that_names_itself_as_base_does_not_turn_in_circles(tmp_path: Path) -> None:
    _, adapter, _ = _adapted(tmp_path, target_modules=["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(adapter)}))
    ledger = open_model(str(adapter))
    assert ledger.total == ledger.trainable
