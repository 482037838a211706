"""From a tensor's name to its role.

A name is a path of module names. The words in it, not the model family, say what the tensor is for; they are data
(`data/roles.json`), so that a new family usually needs none and seldom more than one.

Judged in this order: adapter; norm; tower (vision, audio); mixture of experts; the innermost block whose word is known
(`self_attn`, `mlp`, `lm_head`); the tensor's own word where no block is named (`q_proj`, `fc1`); at last the shape.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

# Leaf names that say nothing of their own: the module before them does.
_PLAIN_LEAVES = frozenset({"weight", "bias", "scale", "gamma", "beta", "weight_g", "weight_v"})
# llama.cpp before it stacked them: blk.#.ffn_gate.#.weight.
_EXPERT_OF_OLD = re.compile(r"blk\.#\.ffn_(?:gate|up|down)\.#$")
# llama.cpp's `v.blk` and `a.conv1d`: others may have a module of one letter, too.
_BELOW_A_TOWER = re.compile(r"(?:blk|[\w#]*embd[\w#]*|\w+_ln|conv[\w#]*|std_\w+|mm[\w#]*|tile_\w+|\w*resmpl\w*)$")
_NORMS = frozenset({"ln", "ln_f", "ln_pre", "ln_post", "ln_q", "ln_k", "ln_kv", "bn", "gn", "layerscale"})


@lru_cache(maxsize=1)
def _words() -> Any:
    return json.loads((Path(__file__).parent / "data" / "roles.json").read_text("utf-8"))


@lru_cache(maxsize=8)
def _table(name: str) -> dict[str, str]:
    return {word: role for role, words in _words()[name].items() for word in words}


@lru_cache(maxsize=8)
def _set(name: str) -> frozenset[str]:
    return frozenset(_words()[name])


@lru_cache(maxsize=1)
def _prefixes() -> tuple[str, ...]:
    return tuple(_words()["adapter_prefix"])


def role_of(pattern: str, shape: Sequence[int]) -> str:
    """The role of a tensor called `pattern`, in which every number is written "#".

    >>> role_of("model.layers.#.self_attn.q_proj.weight", (4096, 4096))
    'attention'
    """
    parts = pattern.split(".")
    if any(part.startswith(_prefixes()) or part in _set("adapter") for part in parts):
        return "adapter"
    towers = _table("tower")
    if parts[0] in _table("tower_first") and (len(parts[0]) > 1 or _BELOW_A_TOWER.match(".".join(parts[1:2]))):
        return _table("tower_first")[parts[0]]
    for part in parts[:-1]:
        if part in towers:
            return towers[part]
    if len(parts) == 2 and parts[0] in _table("root"):
        return _table("root")[parts[0]]
    modules = parts[:-1] if parts[-1] in _PLAIN_LEAVES and len(parts) > 1 else parts
    if _is_norm(modules):
        return "norm"
    role = _mixture(modules, shape) or _block(modules) or _own_word(modules)
    if role is None:
        role = "conv" if len(shape) >= 3 else "other"
    return role


def _is_norm(modules: Sequence[str]) -> bool:
    # Numbered members of an nn.Sequential say nothing; the module that holds them does.
    own = next((part for part in reversed(modules) if part != "#"), "")
    bare = own.lower().replace("#", "").strip("_")
    return "norm" in bare or bare in _NORMS


def _mixture(modules: Sequence[str], shape: Sequence[int]) -> str | None:
    """Shared experts count as `ffn`, since every token runs them; `expert` is the routed part alone."""
    pairs = zip(("", *modules), modules, strict=False)
    if any(word in _set("router") or f"{outer}.{word}" in _set("router") for outer, word in pairs):
        return "router"
    if any(word in _set("shared") for word in modules):
        return "ffn"
    if any(word in _set("expert") for word in modules) or _EXPERT_OF_OLD.search(".".join(modules)):
        return "expert"
    if len(shape) >= 3 and any(word in _set("stacked") for word in modules):
        return "expert"
    return None


def _block(modules: Sequence[str]) -> str | None:
    containers, fragments = _table("container"), _table("fragment")
    for at in range(len(modules) - 1, -1, -1):
        word = modules[at]
        pair = f"{modules[at - 1]}.{word}" if at else word
        role = containers.get(pair) or containers.get(word)
        if role is not None:
            return role
        bare = word.lower()
        for fragment, fragment_role in fragments.items():
            if fragment in bare:
                return fragment_role
    return None


def _own_word(modules: Sequence[str]) -> str | None:
    words = _table("leaf")
    for word in reversed(modules):
        if "conv" in word:
            return "conv"
        role = words.get(word) or words.get(word.rpartition("_")[2]) or words.get(word.partition("_")[0])
        if role is not None:
            return role
    return None
