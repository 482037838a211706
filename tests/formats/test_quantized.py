"""Quantized checkpoints: parameters counted unpacked, what serves them counted apart."""

import json
from math import ceil, prod
from pathlib import Path
from typing import Any

import layouts
import pytest
import tiny
import torch
import transformers as tf

from weighbridge.formats.models import open_model
from weighbridge.ledger.errors import Unknown


def _quantized(tmp_path: Path, config: Any, name: str = "llama") -> tuple[Any, Path]:
    model = tiny.build(name, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "plain")
    loaded = type(model).from_pretrained(tmp_path / "plain", quantization_config=config, dtype=torch.bfloat16)
    loaded.save_pretrained(tmp_path / "quantized")
    return model, tmp_path / "quantized"


def _identity(ledger: Any) -> None:
    assert ledger.total + ledger.buffers + sum(ledger.extras.values()) == ledger.stored + ledger.packed


@pytest.mark.parametrize(
    "fields",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": torch.bfloat16},
    ],
)
def test_bitsandbytes_keeps_the_number_of_parameters(fields: dict[str, Any], tmp_path: Path) -> None:
    model, folder = _quantized(tmp_path, tf.BitsAndBytesConfig(**fields))
    ledger = open_model(str(folder))
    assert ledger.total == tiny.counted(model)
    assert ledger.buffers == 0
    _identity(ledger)


@pytest.mark.parametrize("scheme", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao_keeps_the_number_of_parameters(scheme: str, tmp_path: Path) -> None:
    import torchao.quantization as ao

    model, folder = _quantized(tmp_path, tf.TorchAoConfig(getattr(ao, scheme)()))
    ledger = open_model(str(folder))
    assert ledger.total == tiny.counted(model)
    _identity(ledger)


def _linear(name: str, out: int, into: int, scheme: str) -> layouts.Layout:
    """A linear layer as each quantizer stores it; formats as their packers write them (see ledger/packing.py)."""
    groups = into // 32
    return {
        "gptq": {
            f"{name}.qweight": ("I32", (into // 8, out)),
            f"{name}.qzeros": ("I32", (groups, out // 8)),
            f"{name}.scales": ("F16", (groups, out)),
            f"{name}.g_idx": ("I32", (into,)),
        },
        "gptq-3bit": {
            f"{name}.qweight": ("I32", (into * 3 // 32, out)),
            f"{name}.qzeros": ("I32", (groups, out * 3 // 32)),
            f"{name}.scales": ("F16", (groups, out)),
            f"{name}.g_idx": ("I32", (into,)),
        },
        "awq": {
            f"{name}.qweight": ("I32", (into, out // 8)),
            f"{name}.qzeros": ("I32", (groups, out // 8)),
            f"{name}.scales": ("F16", (groups, out)),
        },
        "pack-quantized": {
            f"{name}.weight_packed": ("I32", (out, into // 8)),
            f"{name}.weight_scale": ("BF16", (out, groups)),
            f"{name}.weight_shape": ("I64", (2,)),
        },
        "fp8-block": {
            f"{name}.weight": ("F8_E4M3", (out, into)),
            f"{name}.weight_scale_inv": ("F32", (ceil(out / 128), ceil(into / 128))),
        },
        "nvfp4": {
            f"{name}.weight": ("U8", (out, into // 2)),
            f"{name}.weight_scale": ("F8_E4M3", (out, into // 16)),
            f"{name}.weight_scale_2": ("F32", ()),
            f"{name}.input_scale": ("F32", ()),
        },
        "mlx": {
            f"{name}.weight": ("U32", (out, into // 8)),
            f"{name}.scales": ("BF16", (out, groups)),
            f"{name}.biases": ("BF16", (out, groups)),
        },
        "fp8-static": {
            f"{name}.weight": ("F8_E4M3", (out, into)),
            f"{name}.weight_scale": ("F32", (1,)),
            f"{name}.input_scale": ("F32", (1,)),
        },
    }[scheme]


CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}},
    "gptq-3bit": {"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 32}},
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}},
    "pack-quantized": {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
        }
    },
    "fp8-block": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "nvfp4": {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
    "mlx": {"quantization": {"group_size": 32, "bits": 4}},
    "fp8-static": {"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}},
}


@pytest.mark.parametrize("scheme", CONFIGS)
def test_packed_weights_count_as_what_they_stand_for(scheme: str, tmp_path: Path) -> None:
    plain = layouts.llama(layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, vocab=100)
    stored: layouts.Layout = {}
    for name, (dtype, shape) in plain.items():
        if "_proj" in name:
            stored |= _linear(name.removesuffix(".weight"), *shape, scheme)
        else:
            stored[name] = (dtype, shape)
    config = {"model_type": "llama", "tie_word_embeddings": False, "num_hidden_layers": 2, **CONFIGS[scheme]}
    ledger = open_model(str(layouts.write_folder(tmp_path, stored, config=config)))
    assert ledger.total == sum(prod(shape) for _, shape in plain.values())
    assert ledger.stored == sum(prod(shape) for _, shape in stored.values())
    assert ledger.buffers == 0
    serving = {n for n in stored if "_proj" in n} - {n for n in stored if n.endswith((".weight", "qweight", "_packed"))}
    assert sum(ledger.extras.values()) == sum(prod(stored[n][1]) for n in serving)
    _identity(ledger)


def test_mxfp4_experts_hold_two_parameters_a_byte(tmp_path: Path) -> None:
    experts, hidden, ffn = 4, 64, 96
    stored: layouts.Layout = {
        "model.layers.0.mlp.experts.gate_up_proj_blocks": ("U8", (experts, 2 * ffn, hidden // 32, 16)),
        "model.layers.0.mlp.experts.gate_up_proj_scales": ("U8", (experts, 2 * ffn, hidden // 32)),
        "model.layers.0.mlp.experts.gate_up_proj_bias": ("BF16", (experts, 2 * ffn)),
        "model.layers.0.mlp.router.weight": ("BF16", (experts, hidden)),
    }
    config = {
        "model_type": "gpt_oss",
        "num_local_experts": experts,
        "num_experts_per_tok": 1,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    ledger = open_model(str(layouts.write_folder(tmp_path, stored, config=config)))
    weights, biases, router = experts * 2 * ffn * hidden, experts * 2 * ffn, experts * hidden
    assert ledger.total == weights + biases + router
    assert ledger.by_role() == {"expert": weights + biases, "router": router}
    assert ledger.active == (weights + biases) // experts + router
    assert ledger.biases == biases
    assert ledger.extras == {"quantization_scales": weights // 32}


def test_codes_of_an_unknown_method_are_refused_not_guessed(tmp_path: Path) -> None:
    stored: layouts.Layout = {"model.layers.0.mlp.up_proj.weight": ("U8", (64, 16))}
    config = {"model_type": "llama", "quantization_config": {"quant_method": "brand-new"}}
    ledger = open_model(str(layouts.write_folder(tmp_path, stored, config=config)))
    with pytest.raises(Unknown, match="brand-new"):
        _ = ledger.total


def test_the_quantization_is_part_of_the_signature(tmp_path: Path) -> None:
    stored: layouts.Layout = {"lm_head.weight": ("BF16", (8, 8))}
    folder = layouts.write_folder(tmp_path / "My-Model", stored, config={"model_type": "llama", **CONFIGS["gptq"]})
    assert str(open_model(str(folder)).signature) == "my-model~gptq-int4"


def test_json_of_a_quantized_model_adds_up(tmp_path: Path) -> None:
    from weighbridge.ledger.show import show

    _, folder = _quantized(tmp_path, tf.BitsAndBytesConfig(load_in_4bit=True))
    said = json.loads(json.dumps(show(open_model(str(folder))).to_dict()))
    parts = said["parameters"]["total"] + said["buffers"]["total"] + said["extras"]["total"]
    assert parts == said["stored"]["elements"] + said["stored"]["packed"]
