"""The towers of a model of images or sound: which parameters are theirs, and which project into the language model."""

import re
from collections.abc import Sequence

from weighbridge.ledger.ledger import Ledger

_SEEN = ("vision", "audio")
# Modules in a tower that project what it sees or hears: not below its layers.
_PROJECTS = re.compile(r"[^\d]*?\.\w*(?:merger|projector|connector|aligner|resampler|adapter)\w*(?=\.)")


def towers(ledger: Ledger) -> tuple[list[dict[str, object]], dict[str, int]]:
    """([each tower with its sizes and parameters], {projector: parameters}). A projector may lie in its tower, and is
    among the tower's parameters then. Where names do not show what is a tower's, no parameters are given.
    """
    known = ledger.architecture.towers
    names = [family.first.name for family in ledger.parameters]
    places = [_place(tower.module, names) for tower in known]
    if not known or None in places or len({*places}) < len(known):
        return [tower.to_dict() for tower in known], {}
    inside = dict.fromkeys(map(str, places), 0)
    projectors: dict[str, int] = {}
    for family in ledger.parameters:
        name = family.first.name
        place = next((one for one in inside if name.startswith(f"{one}.")), None)
        module = None
        if place is not None:
            inside[place] += family.total
            match = _PROJECTS.match(name, len(place))
            module = name[: match.end()] if match is not None else None
        elif family.role in _SEEN:
            module = _beside(name, next(iter(inside)))
        if module is not None:
            projectors[module] = projectors.get(module, 0) + family.total
    counts = zip(known, inside.items(), strict=True)
    return [one.to_dict() | {"module": place, "parameters": count} for one, (place, count) in counts], projectors


def _place(module: str, names: Sequence[str]) -> str | None:
    """Where a module lies in the names at hand: files may leave words out that come before it."""
    while not any(name.startswith(f"{module}.") for name in names):
        _, dot, module = module.partition(".")
        if not dot:
            return None
    return module


def _beside(name: str, tower: str) -> str:
    """The module beside a tower that a tensor belongs to."""
    parent = tower.rpartition(".")[0]
    depth = parent.count(".") + 2 if parent and name.startswith(f"{parent}.") else 1
    return ".".join(name.split(".")[:depth])
