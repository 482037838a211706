"""How each layer of a GGUF model mixes tokens: by the tensors that it holds, with the widths that the metadata states.

Sources: llama.cpp's `llama_hparams` (a layer has a window when its number modulo the period is less than the period
less one; keys are given as `head_count_kv` heads of `key_length`), the GGUF specification, and llama.cpp's defaults for
families whose files state no period, in `data/gguf_families.json`. Checked against what llama.cpp allocates for a file
of each family by `benchmarks/gguf_layers.py`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from weighbridge.ledger import Mixer, Router, Row

# Layers of the model itself, of an encoder and a decoder, of a tower that sees or hears.
_BLOCK = re.compile(r"((?:(enc|dec|v|a)\.)?blk\.(\d{1,5}))\.(.+?)(?:\.weight)?$")
_TOWERS = {"v": "vision", "a": "audio"}
_KEYS = frozenset({"attn_k", "attn_qkv", "attn_kv_a_mqa"})

Shapes = Mapping[str, tuple[int, ...]]


def mixers_of(metadata: Mapping[str, object], rows: Iterable[Row]) -> tuple[tuple[Mixer, ...], tuple[Router, ...]]:
    """(mixers, routers), layer by layer. Empty where the metadata does not state what they hang on."""
    family = str(metadata.get("general.architecture"))
    layers: defaultdict[tuple[str, int, str], dict[str, tuple[int, ...]]] = defaultdict(dict)
    for row in rows:
        match = _BLOCK.match(row.name)
        if match:
            layers[match[2] or "", int(match[3]), match[1]][match[4]] = row.shape
    says = _Says(metadata, family)
    # Multi-token prediction lies in blocks after the model's own.
    own = (says.number("block_count") or 1 << 20) - (says.number("nextn_predict_layers") or 0)
    mixers: list[Mixer] = []
    routers: list[Router] = []
    for part, layer, module in sorted(layers):
        held = layers[part, layer, module]
        if part in _TOWERS:
            mixers += _seeing(module, held, _Says(metadata, f"{family}.{_TOWERS[part]}"), _TOWERS[part])
            continue
        if not part and layer >= own:
            continue
        mixers += [*_attention(module, layer, held, says, part), *_state(module, held, says)]
        if "ffn_gate_inp" in held:
            experts, used = says.number("expert_count"), says.number("expert_used_count")
            if experts:
                stored = any(name.endswith("_shexp") for name in held)
                shared = (says.number("expert_shared_count") or 1) if stored else 0
                routers.append(Router(module=module, experts=experts, top_k=used, shared=shared))
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
        wanted = _families()["only_with_layers"].get(self.family)
        if wanted is not None and self.number("block_count") != wanted:
            return False
        known = _families()["periods"].get(self.family)
        period = pattern if isinstance(pattern, int) and not isinstance(pattern, bool) else known
        if period is None or period == 0:
            return period == 0
        return layer % period != 0 if self.family in _families()["full_first"] else layer % period < period - 1


@lru_cache(maxsize=1)
def _families() -> Any:
    return json.loads((Path(__file__).parent / "data" / "gguf_families.json").read_text("utf-8"))


def _attention(module: str, layer: int, held: Shapes, says: _Says, part: str) -> list[Mixer]:
    fused = "attn_qkv" in held and "ssm_conv1d" in held  # of a gated delta net: it goes through the convolution
    if (_KEYS.isdisjoint(held) and "attn_q" not in held) or fused or "ssm_conv1d_q" in held:
        return []
    heads, hidden = says.number("attention.head_count", layer), says.number("embedding_length")
    if not heads or not hidden:
        return []
    rank, key = says.number("attention.kv_lora_rank"), says.number("attention.key_length_mla")
    if rank and key and "attn_kv_a_mqa" in held:  # files from before `key_length_mla` have keys for every head
        rope = says.number("rope.dimension_count")
        value = says.number("attention.value_length_mla")
        keys = says.number("attention.indexer.head_count"), says.number("attention.indexer.key_length")
        indexer = (keys[0], keys[1]) if keys[0] and keys[1] and "indexer.attn_k" in held else None
        return [
            Mixer(
                module=module, kind="latent", heads=heads, kv_rank=rank, rope_dim=rope, value_dim=value,
                nope_dim=key - rope if rope else None, indexer=indexer,
            )
        ]  # fmt: skip
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
    window = says.number("attention.sliding_window") or (_families()["llama4_chunk"] if windowed else None)
    if part == "enc" or says.family in _families()["encoders"] or says.value("attention.causal") is False:
        return [Mixer(module=module, kind="bidirectional", window=window if windowed else None, **facts)]
    found = Mixer(module=module, kind="full", **facts)
    if windowed:
        kind = "chunked" if says.family == "llama4" else "sliding"
        found = Mixer(module=module, kind=kind, window=window, **facts)
    return [found, Mixer(module=module, kind="cross", **facts)] if "cross_attn_k" in held else [found]


def _seeing(module: str, held: Shapes, says: _Says, tower: str) -> list[Mixer]:
    heads, hidden = says.number("attention.head_count"), says.number("embedding_length")
    if not heads or not hidden or (_KEYS.isdisjoint(held) and "attn_q" not in held):
        return []
    return [
        Mixer(
            module=module, kind="bidirectional", tower=tower, heads=heads, kv_heads=heads, head_dim=hidden // heads
        )
    ]  # fmt: skip


def _state(module: str, held: Shapes, says: _Says) -> list[Mixer]:
    if "shortconv.conv" in held:
        return [Mixer(module=module, kind="linear", conv=held["shortconv.conv"])]
    if "time_mix_receptance" in held:
        return _rwkv(module, says)
    if "ssm_conv1d_q" in held:  # Kimi's delta attention: three convolutions of one width
        heads, width = says.number("attention.head_count"), says.number("kda.head_dim")
        kernel = says.number("ssm.conv_kernel")
        if not heads or not width or not kernel:
            return []
        return [Mixer(module=module, kind="linear", conv=(3 * heads * width, kernel), state=(heads, width, width))]
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


def _rwkv(module: str, says: _Says) -> list[Mixer]:
    """RWKV: a matrix for each head, and the last token's input of each half of the layer."""
    hidden, width = says.number("embedding_length"), says.number("wkv.head_size")
    shifted = says.number("token_shift_count")
    if not hidden or not width or hidden % width:
        return []
    halves = 2 if shifted is None else shifted
    return [
        Mixer(module=module, kind="linear", conv=(halves * hidden, 2), state=(hidden // width, width, width))
    ]  # fmt: skip
