"""A checkpoint against its config: real checkpoints are complete, broken ones say what is missing."""

import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import weighbridge
from weighbridge.cli.main import weigh
from weighbridge.ledger.errors import NotFound, Refused

ROOT = Path(__file__).parents[2]
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 60}


def compared(path: Path) -> dict[str, Any]:
    return weighbridge.compare(path).to_dict()["compare"]  # type: ignore[return-value]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


@pytest.mark.parametrize("name", tiny.MODELS)
def test_what_transformers_saves_is_complete(name: str, tmp_path: Path) -> None:
    # Experts are saved one by one and built stacked: element for element the same.
    tiny.build(name).save_pretrained(tmp_path)
    found = compared(tmp_path)
    assert found["complete"], found
    assert found["missing"] == found["unexpected"] == found["wrong_shape"] == {}


@lru_cache(maxsize=1)
def bench() -> ModuleType:
    """The benchmark that stores every type as transformers does, and damages it."""
    spec = importlib.util.spec_from_file_location("bench_compare", ROOT / "benchmarks/compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Types whose files have other names than their classes: by words, by parts of their own class, by stacked experts.
@pytest.mark.parametrize(
    "model_type",
    [
        *(
            "vit",
            "segformer",
            "mimi",
            "xlm-roberta",
            "mixtral",
            "aria",
            "llava",
            "rt_detr",
            "grounding-dino",
            "gpt_neox",
        ),
        *("qwen2_vl", "voxtral", "mllama", "jamba", "hgnet_v2", "maskformer", "altclip", "kimi_linear", "t5", "flava"),
    ],
)
def test_files_with_older_names_are_complete_and_any_damage_to_them_is_found(model_type: str) -> None:
    said: list[str] = []
    row = bench().weigh_type(model_type, said.append)
    assert row == {"complete": 1, "false_alarms": 0, "found": 3, "missed": 0, "skipped": 0}, said


def _renamed(path: Path, names: dict[str, str]) -> dict[str, Any]:
    """The comparison after tensors of a small Llama got other names."""
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    for old, new in names.items():
        tensors |= {name.replace(old, new): tensors.pop(name) for name in list(tensors) if old in name}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return compared(path)


def test_one_tensor_under_another_name_is_a_mistake(tmp_path: Path) -> None:
    found = _renamed(tmp_path, {"layers.0.self_attn.q_proj": "layers.0.self_attn.query"})
    assert list(found["missing"]) == ["model.layers.0.self_attn.q_proj.weight"]
    assert list(found["unexpected"]) == ["model.layers.0.self_attn.query.weight"]


def test_names_that_transformers_would_not_load_are_a_mistake_in_every_layer(tmp_path: Path) -> None:
    found = _renamed(tmp_path, {"self_attn.q_proj": "attention.wq"})
    assert len(found["missing"]) == len(found["unexpected"]) == 2


def test_an_index_of_another_format_and_other_precisions_beside_it_change_nothing(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}))
    first = compared(folder)
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / "model.fp16.safetensors")
    assert first["complete"]
    assert compared(folder) == first


def test_tensors_that_lie_there_twice_or_hold_no_weights_are_told(tmp_path: Path) -> None:
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    half = dict(list(tensors.items())[:9])
    save_file(
        tensors | {"model.norm.weight": torch.zeros(32, dtype=torch.int64)},
        tmp_path / "model-00001-of-00002.safetensors",
    )
    save_file(half, tmp_path / "model-00002-of-00002.safetensors")
    said = " ".join(compared(tmp_path)["files"])
    assert "9 tensors lie in several files" in said
    assert "1 weights hold whole numbers that are no codes, model.norm.weight first" in said


def test_fp8_weights_without_their_scales_are_told(tmp_path: Path) -> None:
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    (problem,) = compared(tmp_path)["files"]
    assert problem == f"1 weights in FP8 have no scale beside them, {name} first"
    save_file(tensors | {f"{name}_scale_inv": torch.ones(1, 1)}, tmp_path / "model.safetensors")
    assert compared(tmp_path)["complete"]


def test_a_shard_without_what_its_index_promises_is_named(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = max(index["weight_map"].values())
    index["weight_map"]["ghost.weight"] = shard
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (problem,) = compared(folder)["files"]
    assert problem.startswith(f"{shard} lacks 1 tensors")
    assert "ghost.weight" in problem


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
    assert compared(tmp_path)["missing_experts"] == {"model.layers.1": [2]}


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
