"""How each layer of a model mixes tokens, and where its experts are: from what a blueprint built."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from weighbridge.formats.blueprints import Built, Settings, class_of
from weighbridge.ledger import Mixer, Router, Tower, role_of
from weighbridge.ledger.errors import Malformed

_TOWERS = ("vision", "audio")
# What a model takes in first, as its class in transformers calls it.
_TAKES = {
    "input_ids": "text",
    "pixel_values": "vision",
    "pixel_values_videos": "vision",
    "input_features": "audio",
    "input_values": "audio",
    "audio_mel": "audio",
    "latents": "audio",
}
_NAMED = re.compile(
    r"(?<!_to)(?:^|[_-])(text|vision|audio|speech)(?:_model|_encoder)?$"
)  # types of parts, by their last word
_KINDS = {"text": "text", "vision": "vision", "audio": "audio", "speech": "audio"}
_MIXER_FACTS = frozenset(field.name for field in fields(Mixer)) - {"module", "kind", "tower"}
_ROUTER_FACTS = frozenset(field.name for field in fields(Router)) - {"module"}


def mixers_of(built: Built) -> tuple[Mixer, ...]:
    """Layer by layer, in the order in which the model holds them."""
    return tuple(
        Mixer(module=module, kind=kind, tower=_tower(module, built), **_checked(facts, _MIXER_FACTS, module))
        for module, kind, facts in built.mixers
    )


def routers_of(built: Built) -> tuple[Router, ...]:
    """The mixtures of experts, layer by layer."""
    return tuple(Router(module=module, **_checked(facts, _ROUTER_FACTS, module)) for module, facts in built.routers)


# What configs of towers call their sizes.
_SIZES = {
    "hidden": ("hidden_size", "d_model", "embed_dim", "width"),
    "ffn": ("intermediate_size", "encoder_ffn_dim", "mlp_dim", "ffn_dim"),
    "image": ("image_size",),
    "patch": ("patch_size",),
    "mel_bins": ("num_mel_bins", "num_mel_filters"),
}


def towers_of(built: Built, mixers: Sequence[Mixer]) -> tuple[Tower, ...]:
    """The parts that see or hear and have a config of their own."""
    found: list[Tower] = []
    for module, settings in built.parts:
        if not module or any(f"{module}.".startswith(f"{one.module}.") for one in found):
            continue
        own = [mixer for mixer in mixers if mixer.module.startswith(f"{module}.")]
        kinds = {mixer.tower for mixer in own}
        if len(kinds) != 1 or kinds.isdisjoint(_TOWERS):
            continue
        one = {field: {getattr(mixer, field) for mixer in own} for field in ("heads", "head_dim")}
        facts = {field: next(iter(values)) for field, values in one.items() if len(values) == 1}
        facts |= {field: next(iter(_numbers(settings, names)), None) for field, names in _SIZES.items()}
        # Where a config has both the width of the tower and that of what it gives out, the heads tell which is which.
        widths = _numbers(settings, _SIZES["hidden"])
        width = (facts.get("heads") or 0) * (facts.get("head_dim") or 0)
        facts["hidden"] = width if width in widths else facts["hidden"]
        found.append(
            Tower(
                module=module,
                tower=kinds.pop(),
                model_type=settings.model_type,
                layers=len({mixer.module for mixer in own}),
                **facts,
            )
        )
    return tuple(found)


def _numbers(settings: Settings, names: tuple[str, ...]) -> list[int]:
    """Those of these fields that are whole numbers; of a square, one side."""
    found = []
    for name in names:
        value = settings.read(name) if settings.has(name) else None
        if isinstance(value, list) and value and value == value[:1] * len(value):
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 40:
            found.append(value)
    return found


def _tower(module: str, built: Built) -> str:
    """By the words in the module's name; else by what the model takes in whose config the module is built from: that
    of the part it lies in, or of the whole.
    """
    role = role_of(f"{module}.weight", (1, 1))
    if role in _TOWERS:
        return role
    if "text_" in module:  # text_model, text_encoder: of a model that sees or hears first
        return "text"
    inside = [settings for at, settings in built.parts if f"{module}.".startswith(f"{at}." if at else "")]
    for settings in [*reversed(inside), built.settings]:
        word, found = _NAMED.search(settings.model_type), class_of(settings.model_type)
        if kind := _KINDS[word[1]] if word else _TAKES.get(found.input or "" if found else ""):
            # Of a model that writes down what it sees or hears, the decoder is of text.
            return "text" if "decoder" in module and settings.has("vocab_size") else kind
    return "text"


def _checked(facts: Mapping[str, Any], known: frozenset[str], module: str) -> dict[str, Any]:
    """Facts as a record takes them: whole numbers, shapes as tuples, null left out."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if name not in known:
            raise Malformed(f"{module} has no fact called {name}")
        if value is None:
            continue
        whole = value if isinstance(value, (list, tuple)) else [value]
        if name != "kv_from" and not all(isinstance(part, int) and 0 <= part <= 1 << 40 for part in whole):
            raise Malformed(
                f"config.json makes {name} of {module} {str(value)[:40]}", fix="it should be a whole number"
            )
        if name in ("heads", "kv_heads", "head_dim") and value == 0:
            raise Malformed(f"config.json makes {name} of {module} 0", fix="it should be 1 or more")
        found[name] = tuple(value) if isinstance(value, (list, tuple)) else value
    return found
