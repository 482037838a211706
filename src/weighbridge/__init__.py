"""Weighbridge: the scale for machine-learning models.

The verbs are functions here, the nouns are classes, and both load when first used:

    >>> import weighbridge
    >>> weighbridge.show("path/or/org/name")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weighbridge.formats import open_model
    from weighbridge.ledger import Architecture, Ledger, Signature, Tensor
    from weighbridge.ledger.errors import WeighError
    from weighbridge.ledger.report import Report
    from weighbridge.verbs import compare, show, sign, verify

_PLACES = {
    "compare": "weighbridge.verbs",
    "show": "weighbridge.verbs",
    "sign": "weighbridge.verbs",
    "verify": "weighbridge.verbs",
    "open_model": "weighbridge.formats",
    "Architecture": "weighbridge.ledger",
    "Ledger": "weighbridge.ledger",
    "Signature": "weighbridge.ledger",
    "Tensor": "weighbridge.ledger",
    "Report": "weighbridge.ledger.report",
    "WeighError": "weighbridge.ledger.errors",
}

__all__ = [
    "Architecture",
    "Ledger",
    "Report",
    "Signature",
    "Tensor",
    "WeighError",
    "compare",
    "open_model",
    "show",
    "sign",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'weighbridge' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
