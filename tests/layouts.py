"""Header-only checkpoints: real names, shapes and dtypes, sparse files instead of data.

Used by tests and benchmarks alike. A layout is {tensor name: (dtype, shape)}.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from math import ceil, prod
from pathlib import Path
from typing import Any

BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
}
BITS |= {"U8": 8, "U32": 32, "BOOL": 8, "F4": 4}
Layout = dict[str, tuple[str, tuple[int, ...]]]


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    return prod(shape) * BITS[dtype] // 8


def header(layout: Mapping[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors header, tensors one after the other in the order given."""
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape) in layout.items():
        end = at + nbytes(dtype, shape)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def write_file(path: Path, layout: Layout, *, metadata: dict[str, str] | None = None) -> None:
    head = header(layout, metadata)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(nbytes(*entry) for entry in layout.values()))


def write_folder(folder: Path, layout: Layout, *, config: dict[str, Any] | None = None, shards: int = 1) -> Path:
    """A model folder: config.json, and the layout in one file or in `shards` with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_file(folder / "model.safetensors", layout, metadata={"format": "pt"})
        return folder
    names = list(layout)
    per_shard = ceil(len(names) / shards)
    weight_map = {}
    for at in range(shards):
        name = f"model-{at + 1:05d}-of-{shards:05d}.safetensors"
        part = names[at * per_shard : (at + 1) * per_shard]
        write_file(folder / name, {n: layout[n] for n in part}, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    total = sum(nbytes(*entry) for entry in layout.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def llama(*, layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, tied: bool = False) -> Layout:
    """Llama's tensors in bf16."""
    kv = hidden // heads * kv_heads
    layout: Layout = {"model.embed_tokens.weight": ("BF16", (vocab, hidden))}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        layout |= {
            f"{at}self_attn.q_proj.weight": ("BF16", (hidden, hidden)),
            f"{at}self_attn.k_proj.weight": ("BF16", (kv, hidden)),
            f"{at}self_attn.v_proj.weight": ("BF16", (kv, hidden)),
            f"{at}self_attn.o_proj.weight": ("BF16", (hidden, hidden)),
            f"{at}mlp.gate_proj.weight": ("BF16", (ffn, hidden)),
            f"{at}mlp.up_proj.weight": ("BF16", (ffn, hidden)),
            f"{at}mlp.down_proj.weight": ("BF16", (hidden, ffn)),
            f"{at}input_layernorm.weight": ("BF16", (hidden,)),
            f"{at}post_attention_layernorm.weight": ("BF16", (hidden,)),
        }
    layout["model.norm.weight"] = ("BF16", (hidden,))
    if not tied:
        layout["lm_head.weight"] = ("BF16", (vocab, hidden))
    return layout


def deepseek(config: dict[str, Any], *, fp8: bool = True, mtp: bool = True) -> Layout:
    """DeepSeek-V3's tensors as its repository stores them: experts apart, FP8 blocks of 128, MTP layer last."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    layout: Layout = {}

    def linear(name: str, out: int, into: int) -> None:
        layout[f"{name}.weight"] = ("F8_E4M3" if fp8 else "BF16", (out, into))
        if fp8:
            layout[f"{name}.weight_scale_inv"] = ("F32", (ceil(out / 128), ceil(into / 128)))

    def plain(name: str, *shape: int, dtype: str = "BF16") -> None:
        layout[name] = (dtype, shape)

    def gated(name: str, width: int) -> None:
        linear(f"{name}.gate_proj", width, hidden)
        linear(f"{name}.up_proj", width, hidden)
        linear(f"{name}.down_proj", hidden, width)

    def layer(number: int) -> None:
        at = f"model.layers.{number}."
        linear(f"{at}self_attn.q_a_proj", q_rank, hidden)
        plain(f"{at}self_attn.q_a_layernorm.weight", q_rank)
        linear(f"{at}self_attn.q_b_proj", heads * (nope + rope), q_rank)
        linear(f"{at}self_attn.kv_a_proj_with_mqa", kv_rank + rope, hidden)
        plain(f"{at}self_attn.kv_a_layernorm.weight", kv_rank)
        linear(f"{at}self_attn.kv_b_proj", heads * (nope + value), kv_rank)
        linear(f"{at}self_attn.o_proj", hidden, heads * value)
        plain(f"{at}input_layernorm.weight", hidden)
        plain(f"{at}post_attention_layernorm.weight", hidden)
        if number < config["first_k_dense_replace"]:
            gated(f"{at}mlp", config["intermediate_size"])
            return
        width = config["moe_intermediate_size"]
        for expert in range(config["n_routed_experts"]):
            gated(f"{at}mlp.experts.{expert}", width)
        gated(f"{at}mlp.shared_experts", width * config["n_shared_experts"])
        plain(f"{at}mlp.gate.weight", config["n_routed_experts"], hidden)
        plain(f"{at}mlp.gate.e_score_correction_bias", config["n_routed_experts"], dtype="F32")

    plain("model.embed_tokens.weight", config["vocab_size"], hidden)
    layers = config["num_hidden_layers"]
    for number in range(layers):
        layer(number)
    if mtp:
        layer(layers)
        at = f"model.layers.{layers}."
        plain(f"{at}embed_tokens.weight", config["vocab_size"], hidden)
        plain(f"{at}enorm.weight", hidden)
        plain(f"{at}hnorm.weight", hidden)
        plain(f"{at}eh_proj.weight", hidden, 2 * hidden)
        plain(f"{at}shared_head.norm.weight", hidden)
        plain(f"{at}shared_head.head.weight", config["vocab_size"], hidden)
    plain("model.norm.weight", hidden)
    plain("lm_head.weight", config["vocab_size"], hidden)
    return layout
