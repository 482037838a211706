"""A checkpoint against its config: real checkpoints are complete, broken ones say what is missing."""

import importlib.util
import json
from collections.abc import Callable
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


# Types whose files have other names than their classes: by words, by parts of their own class, by stacked experts, by
# fused projections; whose prefixes come and go; whose class passes over what it does not use.
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
        *("qwen2_vl", "voxtral", "mllama", "jamba", "hgnet_v2", "qwen3_vl_moe", "altclip", "t5", "flava", "nomic_bert"),
        *("bart", "moshi_depth", "dinov2"),
    ],
)
def test_whole_and_damaged_files_of_many_types_are_judged_as_transformers_judges_them(model_type: str) -> None:
    said: list[str] = []
    row = bench().weigh_type(model_type, said.append)
    assert not row["false_alarms"] + row["missed"] + row["misnamed"] + row["skipped"], said
    assert row["complete"] >= 1
    assert row["found"] >= 8


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


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """Two layers of four experts, which transformers saves one by one."""
    config = tf.Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=8, head_dim=8)
    tf.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def _changed(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> dict[str, Any]:
    """The comparison after a change of the file."""
    tensors = {name: tensor.contiguous() for name, tensor in change(load_file(path / "model.safetensors")).items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return compared(path)


def test_an_expert_that_is_missing_is_named_by_its_number(experts: Path) -> None:
    found = _changed(experts, lambda held: {n: t for n, t in held.items() if "layers.1.mlp.experts.2." not in n})
    assert found["missing_experts"] == {"model.layers.1": [2]}
    assert found["missing"] == found["unexpected"] == found["wrong_shape"] == {}


def test_a_piece_of_an_expert_that_is_missing_is_named_as_it_would_be_stored(experts: Path) -> None:
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    found = _changed(experts, lambda held: {n: t for n, t in held.items() if n != name})
    assert found["missing"] == {name: [8, 32]}
    assert found["missing_experts"] == {}


def test_a_missing_expert_does_not_hide_that_another_has_a_wrong_shape(experts: Path) -> None:
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    found = _changed(
        experts,
        lambda held: {n: t.T if n == name else t for n, t in held.items() if "layers.1.mlp.experts.2." not in n},
    )
    assert found["missing_experts"] == {"model.layers.1": [2]}
    assert found["wrong_shape"] == {name: {"config": [8, 32], "files": [32, 8]}}


def test_experts_beyond_those_of_the_config_are_told_by_layer_and_number(experts: Path) -> None:
    found = _changed(
        experts, lambda held: held | {n.replace("experts.3.", "experts.4."): t.clone() for n, t in held.items()}
    )
    assert found["extra_experts"] == {"model.layers.0": [4], "model.layers.1": [4]}
    assert found["unexpected"] == found["missing"] == {}


def test_an_expert_under_another_number_is_no_substitute_for_the_one_that_is_missing(experts: Path) -> None:
    # transformers would stack them as they come, and route to the wrong ones.
    found = _changed(experts, lambda held: {n.replace("experts.1.", "experts.7."): t for n, t in held.items()})
    assert found["missing_experts"] == {"model.layers.0": [1], "model.layers.1": [1]}
    assert found["extra_experts"] == {"model.layers.0": [7], "model.layers.1": [7]}


def test_what_is_alike_but_for_its_number_takes_one_line(experts: Path) -> None:
    tensors = load_file(experts / "model.safetensors")
    save_file({n: t[:4].clone() if "up_proj" in n else t for n, t in tensors.items()}, experts / "model.safetensors")
    run = CliRunner().invoke(weigh, ["show", str(experts), "--compare"], standalone_mode=False)
    (line,) = [line for line in run.output.splitlines() if "up_proj" in line]
    assert "model.layers.#.mlp.experts.#.up_proj.weight (8)" in line
    assert "8 x 32, stored 4 x 32" in line


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "model.model."])
def test_a_prefix_that_transformers_does_not_take_off_is_one_fault_with_its_mend(prefix: str, tmp_path: Path) -> None:
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    found = _changed(tmp_path, lambda held: {prefix + name: tensor for name, tensor in held.items()})
    count = found["matched"]
    assert not found["complete"]
    assert found["prefixes"] == [{"files": prefix, "config": "", "tensors": count}]
    assert found["missing"] == found["unexpected"] == {}
    run = CliRunner().invoke(weigh, ["show", str(tmp_path), "--compare"], standalone_mode=False)
    assert f"prefix: the names of {count} tensors begin with {prefix!r}" in " ".join(run.output.split())
    assert run.return_value == 1


def test_a_prefix_over_experts_one_by_one_hides_no_other_fault(experts: Path) -> None:
    lost = "layers.1.mlp.experts.2."
    found = _changed(experts, lambda held: {f"module.{n}": t for n, t in held.items() if lost not in n})
    assert [one["files"] for one in found["prefixes"]] == ["module."]
    assert found["missing_experts"] == {"model.layers.1": [2]}
    assert found["missing"] == found["unexpected"] == {}


@pytest.mark.parametrize("change", [lambda name: f"model.{name}", lambda name: name.removeprefix("model.")])
def test_the_base_models_prefix_may_come_and_go(change: Callable[[str], str], tmp_path: Path) -> None:
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    assert _changed(tmp_path, lambda held: {change(name): tensor for name, tensor in held.items()})["complete"]


def test_a_copy_of_a_tied_tensor_has_its_shape(tmp_path: Path) -> None:
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, tie_word_embeddings=True)).save_pretrained(tmp_path)
    copied = _changed(tmp_path, lambda held: held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()})
    assert copied["complete"]
    found = _changed(tmp_path, lambda held: held | {"lm_head.weight": torch.zeros(61, 32)})
    assert found["wrong_shape"] == {"lm_head.weight": {"config": [60, 32], "files": [61, 32]}}


def test_a_buffer_has_its_shape_too(tmp_path: Path) -> None:
    tiny.build("resnet").save_pretrained(tmp_path)
    name = "resnet.embedder.embedder.normalization.num_batches_tracked"
    found = _changed(tmp_path, lambda held: held | {name: torch.zeros(2, dtype=torch.int64)})
    assert found["wrong_shape"] == {name: {"config": [], "files": [2]}}


def test_old_names_of_a_layer_norm_are_for_layer_norms_alone(tmp_path: Path) -> None:
    found = _renamed(tmp_path, {"input_layernorm.weight": "input_layernorm.gamma"})
    assert len(found["missing"]) == len(found["unexpected"]) == 2


def test_codes_are_of_the_shape_that_their_packing_makes_of_the_weight(tmp_path: Path) -> None:
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = "model.layers.0.mlp.up_proj"  # 48 x 32

    def packed(codes: tuple[int, int]) -> dict[str, Any]:
        held = load_file(tmp_path / "model.safetensors")
        held.pop(f"{module}.weight", None)
        held[f"{module}.qweight"] = torch.zeros(codes, dtype=torch.int32)
        held[f"{module}.qzeros"] = torch.zeros(2, 6, dtype=torch.int32)
        held[f"{module}.scales"] = torch.zeros(2, 48, dtype=torch.float16)
        held[f"{module}.g_idx"] = torch.zeros(32, dtype=torch.int32)
        save_file(held, tmp_path / "model.safetensors")
        return compared(tmp_path)

    assert packed((4, 48))["complete"]
    assert packed((8, 24))["wrong_shape"] == {f"{module}.weight": {"config": [48, 32], "files": [8, 24]}}


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


def test_a_type_that_transformers_does_not_know_has_the_prefix_that_most_names_begin_with(tmp_path: Path) -> None:
    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "internlm3", "architectures": ["InternLM3ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert _changed(tmp_path, lambda held: {name.removeprefix("model."): tensor for name, tensor in held.items()})[
        "complete"
    ]


@pytest.mark.filterwarnings("ignore")
def test_codes_of_a_conv1d_are_turned_by_bitsandbytes_and_those_of_a_linear_layer_are_not(tmp_path: Path) -> None:
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 50}
    llama = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    models = {
        "gpt2": tf.GPT2LMHeadModel(tf.GPT2Config(**sizes)),
        "llama": tf.LlamaForCausalLM(tf.LlamaConfig(**llama, vocab_size=50)),
    }
    eight = tf.BitsAndBytesConfig(load_in_8bit=True)
    for name, model in models.items():
        model.save_pretrained(tmp_path / "plain" / name)
        coded = type(model).from_pretrained(tmp_path / "plain" / name, quantization_config=eight, device_map="cpu")
        coded.save_pretrained(tmp_path / name)
        assert compared(tmp_path / name)["complete"]
    state = load_file(tmp_path / "llama/model.safetensors")
    up = "model.layers.0.mlp.up_proj.weight"
    state[up] = state[up].T.contiguous()
    save_file(state, tmp_path / "llama/model.safetensors", {"format": "pt"})
    assert compared(tmp_path / "llama")["wrong_shape"] == {up: {"config": [96, 64], "files": [64, 96]}}
