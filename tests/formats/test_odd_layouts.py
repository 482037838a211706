"""Layouts of real repositories that differ from what transformers builds today: each was once miscounted."""

import json
from math import prod
from pathlib import Path
from typing import Any

import gguf
import layouts
import numpy as np
import peft
import pytest
import tiny

from weighbridge.formats.models import open_model
from weighbridge.ledger import Ledger
from weighbridge.ledger.errors import Unknown


def _open(folder: Path, layout: layouts.Layout, **config: Any) -> Ledger:
    return open_model(str(layouts.write_folder(folder, layout, config=config)))


Q = {"target_modules": ["q_proj", "v_proj"]}
METHODS = {
    "LoHa": lambda: peft.LoHaConfig(r=4, **Q),
    "LoKr": lambda: peft.LoKrConfig(r=4, **Q),
    "IA3": lambda: peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "OFT": lambda: peft.OFTConfig(oft_block_size=8, r=0, **Q),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, **Q),
    "VeRA": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "HRA": lambda: peft.HRAConfig(r=4, **Q),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=10, **Q),
    "LN tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=4, total_step=10, **Q),
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "RoAd": lambda: peft.RoadConfig(group_size=8, **Q),
    "C3A": lambda: peft.C3AConfig(block_size=8, **Q),
    "RandLoRA": lambda: peft.RandLoraConfig(**Q),
    "VB-LoRA": lambda: peft.VBLoRAConfig(num_vectors=16, vector_length=8, r=4, **Q),
    "DeLoRA": lambda: peft.DeloraConfig(**Q),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_adapter_counts_as_peft_counts_it(method: str, tmp_path: Path) -> None:
    model = tiny.build("llama")
    model.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    adapted = peft.get_peft_model(model, METHODS[method]())
    adapted.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(tmp_path / "base")}))
    assert open_model(str(tmp_path / "adapter")).trainable == adapted.get_nb_trainable_parameters()[0]


def test_batch_norms_without_a_step_counter_still_have_parameters(tmp_path: Path) -> None:
    # torchvision's ResNets were saved before PyTorch 0.4.1 had the counter.
    layout: layouts.Layout = {
        "layer2.0.downsample.0.weight": ("F32", (8, 4, 1, 1)),
        "layer2.0.downsample.1.weight": ("F32", (8,)),
        "layer2.0.downsample.1.bias": ("F32", (8,)),
        "layer2.0.downsample.1.running_mean": ("F32", (8,)),
        "layer2.0.downsample.1.running_var": ("F32", (8,)),
    }
    ledger = _open(tmp_path, layout)
    assert (ledger.total, ledger.buffers) == (8 * 4 + 16, 16)
    frozen = _open(tmp_path / "detr", layout, model_type="detr")
    assert (frozen.total, frozen.buffers) == (8 * 4, 32)


def test_mlx_modules_with_packing_of_their_own(tmp_path: Path) -> None:
    layout: layouts.Layout = {
        "model.layers.0.mlp.up_proj.weight": ("U32", (64, 128 // 8)),
        "model.layers.0.mlp.up_proj.scales": ("U8", (64, 128 // 32)),
        "model.layers.0.self_attn.q_proj.weight": ("U32", (64, 128 // 4)),
        "model.layers.0.self_attn.q_proj.scales": ("BF16", (64, 128 // 64)),
        "model.layers.0.self_attn.q_proj.biases": ("BF16", (64, 128 // 64)),
    }
    own = {"model.layers.0.self_attn.q_proj": {"group_size": 64, "bits": 8}}
    quantization = {"group_size": 32, "bits": 4, "mode": "mxfp4", **own}
    assert _open(tmp_path, layout, quantization=quantization).total == 2 * 64 * 128
    with pytest.raises(Unknown, match="do not fit"):
        _ = _open(tmp_path / "stale", layout, quantization={"group_size": 32, "bits": 4}).total


def test_two_widths_of_compressed_tensors_are_told_by_their_scales(tmp_path: Path) -> None:
    layout: layouts.Layout = {
        "model.layers.0.mlp.up_proj.weight_packed": ("I32", (64, 256 // 8)),
        "model.layers.0.mlp.up_proj.weight_scale": ("BF16", (64, 256 // 128)),
        "model.layers.0.self_attn.q_proj.weight_packed": ("I32", (64, 256 // 4)),
        "model.layers.0.self_attn.q_proj.weight_scale": ("BF16", (64, 256 // 128)),
    }
    groups = {f"group_{bits}": {"weights": {"num_bits": bits, "group_size": 128}} for bits in (4, 8)}
    config = {"quant_method": "compressed-tensors", "config_groups": groups}
    assert _open(tmp_path, layout, quantization_config=config).total == 2 * 64 * 256


@pytest.mark.parametrize(
    ("layout", "method"),
    [
        ({"l.q_weight": ("I32", (8, 8)), "l.q_scale": ("I32", (8, 8))}, {"quant_method": "exl2"}),
        ({"l.codes": ("I16", (8, 8, 1)), "l.codebooks": ("F16", (1, 8, 1, 8))}, {"quant_method": "aqlm"}),
        ({"l.B": ("I32", (8, 8)), "l.s": ("F16", (8, 8))}, {"quant_method": "gptq", "bits": 4}),
        (
            {"l.weight_packed": ("I32", (8, 8)), "l.meta": ("I16", (8, 8))},
            {"quant_method": "compressed-tensors", "format": "marlin-24"},
        ),
    ],
)
def test_codes_of_other_methods_are_refused(layout: layouts.Layout, method: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Unknown):
        _ = _open(tmp_path, layout, quantization_config=method).total


def test_old_gguf_experts_one_by_one(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_expert_count(4)
    writer.add_expert_used_count(1)
    names = [f"blk.0.ffn_{part}.{expert}.weight" for part in ("gate", "up", "down") for expert in range(4)]
    for name in [*names, "token_embd.weight"]:
        writer.add_tensor(name, np.zeros((8, 8), dtype=np.float32))
    writer.add_tensor("blk.0.exp_probs_b.bias", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ledger = open_model(str(tmp_path / "m.gguf"))
    assert ledger.by_role() == {"embedding": 64, "expert": 12 * 64}
    assert (ledger.active, ledger.buffers) == (64 + 3 * 64, 4)


def test_experts_that_no_rule_knows_leave_the_active_count_open(tmp_path: Path) -> None:
    layout: layouts.Layout = {
        "layers.0.brand_new_mixture_proj.weight": ("BF16", (8, 16, 16)),
        "layers.0.router.weight": ("BF16", (8, 16)),
    }
    ledger = _open(tmp_path, layout, num_experts=8, num_experts_per_tok=2)
    assert ledger.total == 8 * 16 * 16 + 8 * 16
    with pytest.raises(Unknown, match="speaks of experts"):
        _ = ledger.active


def test_layers_with_different_numbers_of_experts_leave_the_active_count_open(tmp_path: Path) -> None:
    layout: layouts.Layout = {
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight": ("BF16", (8, 8))
        for layer, experts in ((0, 8), (1, 4))
        for expert in range(experts)
    }
    with pytest.raises(Unknown, match="different numbers"):
        _ = _open(tmp_path, layout, num_experts=8, num_experts_per_tok=2).active


def test_experts_per_token_may_be_listed_by_layer(tmp_path: Path) -> None:
    layout: layouts.Layout = {
        f"model.layers.0.mlp.experts.{expert}.up_proj.weight": ("BF16", (8, 8)) for expert in range(16)
    }
    fields: dict[str, Any] = {"model_type": "hunyuan_v1_moe", "num_experts": 16}
    assert _open(tmp_path / "same", layout, **fields, moe_topk=[8, 8]).active == 8 * 64
    with pytest.raises(Unknown):
        _ = _open(tmp_path / "differing", layout, **fields, moe_topk=[8, 4]).active


def test_gpt_oss_as_openai_stores_it(tmp_path: Path) -> None:
    layout: layouts.Layout = {
        "embedding.weight": ("BF16", (100, 64)),
        "block.0.mlp.mlp1_weight.blocks": ("U8", (4, 96, 2, 16)),
        "block.0.mlp.mlp1_weight.scales": ("U8", (4, 96, 2)),
        "block.0.mlp.mlp1_bias": ("BF16", (4, 96)),
        "block.0.mlp.gate.weight": ("BF16", (4, 64)),
        "unembedding.weight": ("BF16", (100, 64)),
    }
    ledger = _open(tmp_path, layout, num_experts=4, experts_per_token=2)
    experts = 4 * 96 * 64 + 4 * 96
    assert ledger.by_role()["expert"] == experts
    assert ledger.total == experts + 4 * 64 + 2 * 6400
    assert ledger.active_excluding_input_embedding == ledger.total - experts // 2 - 6400
    assert ledger.extras == {"quantization_scales": 4 * 96 * 2}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("model.embed_tokens.weight", True),
        ("language_model.model.embeddings.weight", True),
        ("embed.weight", True),
        ("emb.weight", True),
        ("transformer.w.weight", True),
        ("token_embd.weight", True),
        ("per_layer_token_embd.weight", False),
        ("model.embed_tokens_per_layer.weight", False),
        ("transformer.wpe.weight", False),
        ("embeddings.position_embeddings.weight", False),
    ],
)
def test_the_input_embedding_is_the_table_of_tokens(name: str, counts: bool, tmp_path: Path) -> None:
    ledger = _open(tmp_path, {name: ("BF16", (100, 8)), "norm.weight": ("BF16", (8,))})
    assert ledger.input_embedding == (800 if counts else 0)


def test_all_of_an_mtp_module_is_extra(tmp_path: Path) -> None:
    layout: layouts.Layout = {
        "model.layers.0.mlp.up_proj.weight": ("BF16", (8, 8)),
        "model.mtp_block.0.mlp.up_proj.weight": ("BF16", (8, 8)),
        "model.mtp_emb_norm.0.weight": ("BF16", (8,)),
        "mtp.fc.weight": ("BF16", (8, 16)),
    }
    ledger = _open(tmp_path, layout, model_type="ernie4_5_moe")
    assert (ledger.total, ledger.extras) == (64, {"mtp_layers": 64 + 8 + 128})


def test_weight_norm_is_learned_and_spectral_norm_is_not(tmp_path: Path) -> None:
    layout: layouts.Layout = {
        "a.weight_g": ("F32", (4,)),
        "a.weight_v": ("F32", (4, 4)),
        "b.weight_orig": ("F32", (4, 4)),
        "b.weight_u": ("F32", (4,)),
        "b.weight_v": ("F32", (4,)),
    }
    ledger = _open(tmp_path, layout)
    assert (ledger.total, ledger.buffers) == (4 + 16 + 16, 8)


def test_a_tied_head_in_another_precision_is_still_one_parameter(tmp_path: Path) -> None:
    layout: layouts.Layout = {
        "model.embed_tokens.weight": ("BF16", (10, 8)),
        "lm_head.weight": ("F32", (10, 8)),
    }
    assert _open(tmp_path, layout, model_type="llama", tie_word_embeddings=True).total == 80


def test_nonsense_that_counts_nothing_does_not_refuse_the_count(tmp_path: Path) -> None:
    layout: layouts.Layout = {"lm_head.weight": ("BF16", (10, 8))}
    fields = {"n_inner": -1, "intermediate_size": 11008.0, "max_position_embeddings": 1e30}
    ledger = _open(tmp_path, layout, **fields)
    assert ledger.total == prod((10, 8))
    assert ledger.architecture.ffn is None


def test_a_scale_beside_a_weight_of_plain_floats_is_learned(tmp_path: Path) -> None:
    layout: layouts.Layout = {
        "head.weight": ("F32", (8, 4)),
        "head.scale": ("F32", (8,)),
        "gate.gain": ("F32", (8,)),
        "gate.gain_scale": ("F32", (8,)),
    }
    ledger = _open(tmp_path, layout)
    assert (ledger.total, ledger.extras) == (32 + 8 + 8 + 8, {})


@pytest.mark.parametrize(
    "described",
    [
        '{"_type": "Int4Tensor", "_data": {"shape": [1000000, 1000000]}}',
        '{"_type": "Int4Tensor", "_data": {"shape": ["a", {}]}}',
        '{"_type": "Int4Tensor", "_data": {"shape": [-8, -8]}}',
        '{"_type": "Brand8", "_data": 3}',
        "[" * 50_000,
        "[]",
        "nonsense",
    ],
)
def test_a_torchao_header_is_not_believed_against_the_bytes(described: str, tmp_path: Path) -> None:
    layout: layouts.Layout = {"l._weight_qdata": ("I8", (8, 4)), "l._weight_scale": ("F32", (8, 1))}
    layouts.write_file(tmp_path / "m.safetensors", layout, metadata={"l.weight": described})
    with pytest.raises(Unknown):
        _ = open_model(str(tmp_path / "m.safetensors")).total


def test_a_torchao_header_that_fits_the_bytes_is_believed(tmp_path: Path) -> None:
    layout: layouts.Layout = {"l._weight_qdata": ("I8", (8, 4)), "l._weight_scale": ("F32", (8, 1))}
    described = '{"_type": "Int4Tensor", "_data": {"shape": [8, 8]}}'
    layouts.write_file(tmp_path / "m.safetensors", layout, metadata={"l.weight": described})
    assert open_model(str(tmp_path / "m.safetensors")).total == 64
