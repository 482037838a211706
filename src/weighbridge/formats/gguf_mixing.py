"""How each layer of a GGUF model mixes tokens: by the tensors that it holds, with the widths that the metadata states.

Sources: llama.cpp's `llama_hparams` (a layer has a window when its number modulo the period is less than the period
less one; keys are given as `head_count_kv` heads of `key_length`), the GGUF specification, and llama.cpp's defaults for
families whose files state no period, in `data/gguf_windows.json`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from weighbridge.ledger import Mixer, Router, Row

_BLOCK = re.compile(r"blk\.(\d{1,5})\.(.+?)(?:\.weight)?$")
_KEYS = frozenset({"attn_k", "attn_qkv", "attn_kv_a_mqa"})
# Families without a causal mask: their layers keep nothing.
_ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "t5encoder"}
)
_ENCODERS |= {"neo-bert", "eurobert", "gemma-embedding", "clip"}

Shapes = Mapping[str, tuple[int, ...]]


def mixers_of(metadata: Mapping[str, object], rows: Iterable[Row]) -> tuple[tuple[Mixer, ...], tuple[Router, ...]]:
    """(mixers, routers), layer by layer. Empty where the metadata does not state what they hang on."""
    family = str(metadata.get("general.architecture"))
    layers: defaultdict[int, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for row in rows:
        match = _BLOCK.match(row.name)
        if match:
            layers[int(match[1])][match[2]] = row.shape
    says = _Says(metadata, family)
    mixers: list[Mixer] = []
    routers: list[Router] = []
    for layer in sorted(layers):
        held = layers[layer]
        mixers += _attention(layer, held, says)
        mixers += _state(layer, held, says)
        if "ffn_gate_inp" in held:
            experts, used = says.number("expert_count"), says.number("expert_used_count")
            if experts:
                shared = 1 if any(name.endswith("_shexp") for name in held) else 0
                routers.append(Router(module=f"blk.{layer}", experts=experts, top_k=used, shared=shared))
    return tuple(mixers), tuple(routers)


class _Says:
    """What the metadata states of a family, for a layer where it lists one value each."""

    def __init__(self, metadata: Mapping[str, object], family: str) -> None:
        self.metadata, self.family = metadata, family

    def value(self, name: str) -> Any:
        return self.metadata.get(f"{self.family}.{name}")

    def number(self, name: str, layer: int = 0) -> int | None:
        value = self.value(name)
        if isinstance(value, list):
            value = value[layer] if layer < len(value) else None
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    def windowed(self, layer: int) -> bool:
        """Whether llama.cpp gives the layer a window."""
        if not self.number("attention.sliding_window") and self.family != "llama4":
            return False
        pattern = self.value("attention.sliding_window_pattern")
        if isinstance(pattern, list):
            return bool(pattern[layer]) if layer < len(pattern) else False
        known = _windows()["periods"].get(self.family)
        period = pattern if isinstance(pattern, int) and not isinstance(pattern, bool) else known
        return period is not None and (period == 0 or layer % period < period - 1)


@lru_cache(maxsize=1)
def _windows() -> Any:
    return json.loads((Path(__file__).parent / "data" / "gguf_windows.json").read_text("utf-8"))


def _attention(layer: int, held: Shapes, says: _Says) -> list[Mixer]:
    if _KEYS.isdisjoint(held) and "attn_q" not in held:
        return []
    heads, hidden = says.number("attention.head_count", layer), says.number("embedding_length")
    if not heads or not hidden:
        return []
    module = f"blk.{layer}"
    rank = says.number("attention.kv_lora_rank")
    if rank and "attn_kv_a_mqa" in held:
        rope = says.number("rope.dimension_count")
        key = says.number("attention.key_length_mla") or says.number("attention.key_length")
        value = says.number("attention.value_length_mla") or says.number("attention.value_length")
        nope = key - rope if key and rope else None
        return [
            Mixer(
                module=module, kind="latent", heads=heads, kv_rank=rank, rope_dim=rope, nope_dim=nope, value_dim=value
            )
        ]
    windowed = says.windowed(layer)
    suffix = "_swa" if windowed and says.number("attention.key_length_swa") else ""
    width = says.number(f"attention.key_length{suffix}") or hidden // heads
    value = says.number(f"attention.value_length{suffix}") or hidden // heads
    kv = says.number("attention.head_count_kv", layer)
    facts: dict[str, Any] = {
        "heads": heads,
        "kv_heads": heads if kv is None else kv,
        "head_dim": width,
        "value_dim": value if value != width else None,
    }
    shared = says.number("attention.shared_kv_layers")
    blocks = says.number("block_count")
    if shared and blocks and layer >= blocks - shared:
        last = max((n for n in range(blocks - shared) if says.windowed(n) == windowed), default=None)
        facts["kv_from"] = None if last is None else f"blk.{last}"
    if says.family in _ENCODERS or says.value("attention.causal") is False:
        return [Mixer(module=module, kind="bidirectional", **facts)]
    if windowed:
        kind = "chunked" if says.family == "llama4" else "sliding"
        window = says.number("attention.sliding_window") or _windows()["llama4_chunk"]
        return [Mixer(module=module, kind=kind, window=window, **facts)]
    return [Mixer(module=module, kind="full", **facts)]


def _state(layer: int, held: Shapes, says: _Says) -> list[Mixer]:
    module = f"blk.{layer}"
    if "shortconv.conv" in held:
        return [Mixer(module=module, kind="linear", conv=held["shortconv.conv"])]
    if "ssm_conv1d" not in held:
        return []
    conv = held["ssm_conv1d"]
    inner, state = says.number("ssm.inner_size"), says.number("ssm.state_size")
    rank = says.number("ssm.time_step_rank")
    if not inner or not state:
        return [Mixer(module=module, kind="ssm", conv=conv)]
    if "ssm_x" in held:  # Mamba: one state for each channel
        return [Mixer(module=module, kind="ssm", conv=conv, state=(inner, state))]
    if not rank or inner % rank:
        return [Mixer(module=module, kind="ssm", conv=conv)]
    if "ssm_ba" in held or "ssm_beta" in held:  # gated delta net: keys by values for each head
        return [Mixer(module=module, kind="linear", conv=conv, state=(rank, state, inner // rank))]
    return [Mixer(module=module, kind="ssm", conv=conv, state=(rank, inner // rank, state))]
