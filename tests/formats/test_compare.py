"""A checkpoint against its config: real checkpoints are complete, broken ones say what is missing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import weighbridge
from weighbridge.cli.main import weigh
from weighbridge.ledger.errors import NotFound, Refused

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 60}


def compared(path: Path) -> dict[str, Any]:
    return weighbridge.compare(path).to_dict()["compare"]  # type: ignore[return-value]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


@pytest.mark.parametrize(
    "model",
    [
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, tie_word_embeddings=True)),
        lambda: tf.BertForMaskedLM(tf.BertConfig(**SMALL)),
        lambda: tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=8, head_dim=8)),
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(num_layers=2, d_model=32, d_kv=8, num_heads=2, d_ff=40, vocab_size=50)
        ),
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50)),
    ],
    ids=["llama", "bert", "qwen3-moe", "t5", "gpt2"],
)
def test_what_transformers_saves_is_complete(model: Any, tmp_path: Path) -> None:
    # Experts are saved one by one and built stacked: element for element the same.
    model().save_pretrained(tmp_path)
    found = compared(tmp_path)
    assert found["complete"], found
    assert found["missing"] == found["unexpected"] == found["wrong_shape"] == {}


def test_shards_that_are_missing_or_cut_are_named_with_what_they_held(folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    first, second = shards[0], shards[1]
    lost = set(load_file(first)) | set(load_file(second))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    found = compared(folder)
    assert not found["complete"]
    assert set(found["missing"]) == lost
    assert len(found["files"]) == 2
    assert first.name in found["files"][0]
    assert second.name in found["files"][1]


def test_wrong_shapes_and_strangers_are_told_apart(tmp_path: Path) -> None:
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(31)
    tensors["model.layers.0.self_attn.q_proj.extra"] = torch.zeros(3)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = compared(tmp_path)
    assert found["wrong_shape"] == {"model.norm.weight": {"config": [32], "files": [31]}}
    assert found["unexpected"] == {"model.layers.0.self_attn.q_proj.extra": [3]}
    assert found["missing"] == {"model.layers.1.mlp.up_proj.weight": [48, 32]}


def test_an_expert_that_is_missing_is_named_by_its_number(tmp_path: Path) -> None:
    config = tf.Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=8, head_dim=8)
    tf.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "layers.1.mlp.experts.2." not in n}
    assert len(kept) < len(tensors), "transformers saves experts one by one"
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert compared(tmp_path)["missing_experts"] == {"layers.1": [2]}


def test_other_names_for_the_same_places_match(tmp_path: Path) -> None:
    tf.BertModel(tf.BertConfig(**SMALL)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[f"bert.{name}"] = tensor
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = compared(tmp_path)
    assert found["missing"] == {}, found
    assert found["unexpected"] == {}, found


def test_the_command_exits_with_1_when_something_is_missing(folder: Path) -> None:
    run = CliRunner().invoke(weigh, ["show", str(folder), "--compare", "--json"], standalone_mode=False)
    assert run.return_value == 0
    assert json.loads(run.output)["schema"] == "weighbridge/show/1"
    next(iter(folder.glob("*.safetensors"))).unlink()
    run = CliRunner().invoke(weigh, ["show", str(folder), "--compare"], standalone_mode=False)
    assert run.return_value == 1
    assert "NOT" in run.output


def test_there_must_be_a_config_and_weights_it_speaks_of(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json"):
        weighbridge.compare(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    found = compared(tmp_path)
    assert found["files"]
    assert not found["complete"]
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(Refused, match="adapter"):
        weighbridge.compare(tmp_path)
