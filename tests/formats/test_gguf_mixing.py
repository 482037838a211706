"""Layers of GGUF models: windows, latent attention, states, as llama.cpp's own rules give them."""

from typing import Any

import pytest

from weighbridge.formats.config import from_gguf
from weighbridge.ledger import DTYPES, Mixer, Row


def rows(layers: int, *tensors: tuple[str, tuple[int, ...]], only: Any = lambda _: True) -> list[Row]:
    return [
        Row(f"blk.{n}.{name}.weight", DTYPES["F16"], shape, 0, 0, 2)
        for n in range(layers)
        if only(n)
        for name, shape in tensors
    ]


ATTENTION = (("attn_q", (64, 64)), ("attn_k", (16, 64)), ("attn_v", (16, 64)))


def mixers(family: str, tensors: list[Row], **fields: Any) -> tuple[Mixer, ...]:
    metadata = {"general.architecture": family, f"{family}.block_count": 12, f"{family}.embedding_length": 64}
    metadata |= {f"{family}.{name.replace('__', '.')}": value for name, value in fields.items()}
    return from_gguf(metadata, tensors).mixers


def test_a_llama_is_full_attention_with_its_own_key_width() -> None:
    found = mixers(
        "llama", rows(12, *ATTENTION), attention__head_count=8, attention__head_count_kv=2, attention__key_length=32
    )
    assert {(m.kind, m.heads, m.kv_heads, m.head_dim, m.value_dim) for m in found} == {("full", 8, 2, 32, 8)}
    assert [m.module for m in found] == [f"blk.{n}" for n in range(12)]


def test_heads_may_differ_by_layer() -> None:
    kv = [1, 2, 4] * 4
    found = mixers("openelm", rows(12, *ATTENTION), attention__head_count=[8] * 12, attention__head_count_kv=kv)
    assert [m.kv_heads for m in found] == kv


@pytest.mark.parametrize(
    ("family", "full"),
    [("gemma2", [1, 3, 5, 7, 9, 11]), ("gemma3", [5, 11]), ("cohere2", [3, 7, 11]), ("gpt-oss", [1, 3, 5, 7, 9, 11])],
)
def test_windows_come_in_the_family_s_period(family: str, full: list[int]) -> None:
    found = mixers(family, rows(12, *ATTENTION), attention__head_count=8, attention__sliding_window=512)
    assert [n for n, m in enumerate(found) if m.kind == "full"] == full
    assert {m.window for m in found if m.kind == "sliding"} == {512}


def test_a_stated_pattern_wins_and_a_window_that_llama_cpp_ignores_is_none() -> None:
    stated = mixers(
        "gemma3", rows(4, *ATTENTION), attention__head_count=8, attention__sliding_window=512,
        attention__sliding_window_pattern=[True, False, False, True],
    )  # fmt: skip
    assert [m.kind for m in stated] == ["sliding", "full", "full", "sliding"]
    ignored = mixers("llama", rows(4, *ATTENTION), attention__head_count=8, attention__sliding_window=4096)
    assert {m.kind for m in ignored} == {"full"}


def test_latent_attention_keeps_its_rank_and_rope() -> None:
    found = mixers(
        "deepseek2", rows(3, ("attn_kv_a_mqa", (576, 64)), ("attn_q", (64, 64))), attention__head_count=128,
        attention__kv_lora_rank=512, rope__dimension_count=64, attention__key_length_mla=192,
        attention__value_length_mla=128,
    )  # fmt: skip
    assert {(m.kind, m.kv_rank, m.rope_dim, m.nope_dim, m.value_dim) for m in found} == {("latent", 512, 64, 128, 128)}


def test_hybrids_have_a_state_in_some_layers_and_keys_in_others() -> None:
    tensors = rows(8, ("ssm_conv1d", (8192, 4)), ("ssm_ba", (64, 64)), only=lambda n: (n + 1) % 4)
    tensors += rows(8, *ATTENTION, only=lambda n: not (n + 1) % 4)
    found = mixers(
        "qwen3next", tensors, attention__head_count=8, attention__head_count_kv=2, ssm__inner_size=4096,
        ssm__state_size=128, ssm__time_step_rank=32, ssm__group_count=16, ssm__conv_kernel=4,
    )  # fmt: skip
    assert [m.kind for m in found] == ["linear", "linear", "linear", "full"] * 2
    assert (found[0].conv, found[0].state) == ((8192, 4), (32, 128, 128))


def test_encoders_keep_nothing() -> None:
    assert {m.kind for m in mixers("bert", rows(2, *ATTENTION), attention__head_count=8)} == {"bidirectional"}


def test_experts_are_listed_with_how_many_a_token_uses() -> None:
    metadata = {"general.architecture": "qwen3moe", "qwen3moe.expert_count": 128, "qwen3moe.expert_used_count": 8}
    found = from_gguf(metadata, rows(3, ("ffn_gate_inp", (128, 64)))).routers
    assert [(r.experts, r.top_k, r.shared) for r in found] == [(128, 8, 0)] * 3


def test_nonsense_in_metadata_makes_no_mixers() -> None:
    for value in ("x", -3, None, [], [None], 2.5):
        assert mixers("llama", rows(2, *ATTENTION), attention__head_count=value) == ()
