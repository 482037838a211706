"""Roles, on the names that transformers 5, llama.cpp, MLX and PEFT give their tensors."""

import pytest

from weighbridge.ledger import ROLES
from weighbridge.ledger.roles import role_of


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("model.embed_tokens.weight", (8, 8), "embedding"),
        ("transformer.wpe.weight", (8, 8), "embedding"),
        ("model.layers.#.self_attn.q_proj.weight", (8, 8), "attention"),
        ("model.layers.#.self_attn.gate_proj.weight", (8, 8), "attention"),
        ("model.layers.#.self_attn.q_norm.weight", (8,), "norm"),
        ("model.layers.#.mlp.gate_proj.weight", (8, 8), "ffn"),
        ("model.layers.#.mlp.gate.weight", (8, 8), "router"),
        ("model.layers.#.mlp.gate.e_score_correction_bias", (8,), "router"),
        ("model.layers.#.mlp.experts.#.up_proj.weight", (8, 8), "expert"),
        ("model.layers.#.mlp.experts.gate_up_proj", (2, 8, 8), "expert"),
        ("model.layers.#.mlp.shared_experts.up_proj.weight", (8, 8), "ffn"),
        ("model.layers.#.block_sparse_moe.experts.#.w#.weight", (8, 8), "expert"),
        ("model.layers.#.block_sparse_moe.input_linear.weight", (2, 8, 8), "expert"),
        ("model.layers.#.linear_attn.conv#d.weight", (8, 1, 4), "ssm"),
        ("backbone.layers.#.mixer.in_proj.weight", (8, 8), "ssm"),
        ("backbone.layers.#.mixer.q_proj.weight", (8, 8), "attention"),
        ("encoder.layer.#.attention.output.dense.weight", (8, 8), "attention"),
        ("encoder.layer.#.intermediate.dense.weight", (8, 8), "ffn"),
        ("encoder.layer.#.output.dense.weight", (8, 8), "ffn"),
        ("encoder.layer.#.output.LayerNorm.weight", (8,), "norm"),
        ("decoder.block.#.layer.#.EncDecAttention.v.weight", (8, 8), "attention"),
        ("cls.predictions.transform.dense.weight", (8, 8), "head"),
        ("lm_head.weight", (8, 8), "head"),
        ("model.visual.blocks.#.attn.qkv.weight", (8, 8), "vision"),
        ("multi_modal_projector.linear_#.weight", (8, 8), "vision"),
        ("audio_tower.layers.#.fc#.weight", (8, 8), "audio"),
        ("base_model.model.model.layers.#.mlp.up_proj.lora_A.weight", (8, 8), "adapter"),
        ("blk.#.attn_q.weight", (8, 8), "attention"),
        ("blk.#.attn_norm.weight", (8,), "norm"),
        ("blk.#.ffn_gate.weight", (8, 8), "ffn"),
        ("blk.#.ffn_gate_exps.weight", (2, 8, 8), "expert"),
        ("blk.#.ffn_gate_inp.weight", (2, 8), "router"),
        ("blk.#.ffn_down_shexp.weight", (8, 8), "ffn"),
        ("blk.#.ssm_in.weight", (8, 8), "ssm"),
        ("token_embd.weight", (8, 8), "embedding"),
        ("output.weight", (8, 8), "head"),
        ("output_norm.weight", (8,), "norm"),
        ("v.blk.#.attn_q.weight", (8, 8), "vision"),
        ("model.layers.#.mlp.switch_mlp.up_proj.weight", (2, 8, 8), "expert"),
        ("layer#.#.conv#.weight", (8, 8, 3, 3), "conv"),
        ("bn#.weight", (8,), "norm"),
        ("fc.weight", (8, 8), "ffn"),
        ("what.is.this", (8, 8), "other"),
    ],
)
def test_a_name_says_what_a_tensor_is_for(name: str, shape: tuple[int, ...], role: str) -> None:
    assert role in ROLES
    assert role_of(name, shape) == role
