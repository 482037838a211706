"""The values that blueprints compute with, and the bounds on them: numbers, texts, lists, and configs with fields."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from weighbridge.ledger.errors import Malformed

LONGEST = 100_000  # of a list or range: real models have tens to a few thousand layers
_LARGEST = 1 << 62

Value = Any  # int, float, bool, str, None, list, tuple, or a Settings


class Fields(Mapping[str, Any]):
    """Marks values that have fields: configs."""


def number(value: Value) -> int | float:
    """A number of a size that sizes have; anything else is malformed."""
    if isinstance(value, (int, float)):
        if -_LARGEST < value < _LARGEST:
            return value
        raise Malformed(f"a number of {value:.3g}")
    raise Malformed(f"{shown(value)} where a number is needed")


def shown(value: Value) -> str:
    """A value as errors quote it, cut short."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "null" if value is None else repr(value) if isinstance(value, (str, int, float, list)) else "an object"
    return text if len(text) <= 60 else f"{text[:57]}..."


def short(values: list[Any]) -> list[Any]:
    """The list, which may not be longer than any that a model needs."""
    if len(values) > LONGEST:
        raise Malformed(f"a list of {len(values):,} entries, more than any model has")
    return values


def listed(value: Value) -> list[Any] | tuple[Any, ...] | range:
    """A list; anything else is malformed."""
    if isinstance(value, (list, tuple, range)):
        return value
    raise Malformed(f"{shown(value)} where a list is needed")


def whole(value: Value) -> int:
    """A finite number, cut to a whole one."""
    if not math.isfinite(number(value)):
        raise Malformed(f"{value} where a whole number is needed")
    return int(value)


def divided(operation: Callable[[Any, Any], Value]) -> Callable[[Value, Value], Value]:
    """A division that refuses a zero below the line."""

    def divide(one: Value, other: Value) -> Value:
        if not number(other):
            raise Malformed("a division by zero")
        return operation(number(one), other)

    return divide


floor_divide = divided(lambda a, b: a // b)
