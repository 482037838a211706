"""How each layer of a model mixes tokens, and where its experts are: from what a blueprint built."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from weighbridge.formats.blueprints import Built, Settings
from weighbridge.ledger import Mixer, Router, role_of
from weighbridge.ledger.errors import Malformed

_TOWERS = ("vision", "audio")
_AUDIO = ("num_mel_bins", "feat_extract_norm", "conv_stride")  # fields that only configs of sound have
_MIXER_FACTS = frozenset(field.name for field in fields(Mixer)) - {"module", "kind", "tower"}
_ROUTER_FACTS = frozenset(field.name for field in fields(Router)) - {"module"}


def mixers_of(built: Built) -> tuple[Mixer, ...]:
    """Layer by layer, in the order in which the model holds them."""
    return tuple(
        Mixer(module=module, kind=kind, tower=_tower(module, built.settings), **_checked(facts, _MIXER_FACTS, module))
        for module, kind, facts in built.mixers
    )


def routers_of(built: Built) -> tuple[Router, ...]:
    """The mixtures of experts, layer by layer."""
    return tuple(Router(module=module, **_checked(facts, _ROUTER_FACTS, module)) for module, facts in built.routers)


def _tower(module: str, settings: Settings) -> str:
    """By the words in the module's name; a model of images or sound alone has no such word."""
    role = role_of(f"{module}.weight", (1, 1))
    if role in _TOWERS:
        return role
    if "decoder" in module or settings.has("text_config"):
        return "text"
    if any(map(settings.has, _AUDIO)):
        return "audio"
    return "vision" if settings.has("image_size") and not settings.has("vocab_size") else "text"


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
        found[name] = tuple(value) if isinstance(value, (list, tuple)) else value
    return found
