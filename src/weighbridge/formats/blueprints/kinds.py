"""Kinds of JSON values that a config's field may have, as transformers' strict config classes check them.

A kind is written `int|null|list[int]`. A truth value is no whole number, and a whole number no `float`: the classes are
as strict.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any


def _is_unbounded(value: object) -> bool:
    """How transformers writes infinity, for which JSON has no number."""
    return isinstance(value, Mapping) and value.keys() == {"__float__"}


Check = Callable[[Any], bool]
_PLAIN: dict[str, Check] = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, float) or _is_unbounded(value),
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "null": lambda value: value is None,
    "dict": lambda value: isinstance(value, Mapping),
    "list": lambda value: isinstance(value, (list, tuple)),
}
_WORDS = {
    "int": "a whole number",
    "float": "a number with a point, such as 1.0",
    "bool": "true or false",
    "str": "a text",
    "null": "null",
    "dict": "an object",
    "list": "a list",
}
_ONE = re.compile(r"'[^']*'|(?:[^|\[\]]|\[(?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*\])+")


def plain(default: object) -> str:
    """The kind of a field whose default tells it; empty where it does not."""
    name = type(default).__name__
    return name if name in ("int", "bool", "float", "str") else ""


def fits(value: object, kind: str) -> bool:
    """Whether a value is of that kind."""
    return _check(kind)(value)


def below_zero(value: object) -> bool:
    """Whether it is a whole number below zero, or a list with one."""
    return any(map(below_zero, value)) if isinstance(value, (list, tuple)) else isinstance(value, int) and value < 0


def wanted(kind: str) -> str:
    """The kind in words: "a whole number or null"."""
    if "float" in (kinds := _ONE.findall(kind)) and "int" in kinds:
        kinds = ["a number", *(one for one in kinds if one not in ("int", "float"))]
    told = [_WORDS.get(one, "a list" if one.startswith("list[") else one) for one in kinds]
    return " or ".join(dict.fromkeys(told))


@cache
def _check(kind: str) -> Check:
    checks = [_one(part) for part in _ONE.findall(kind)]
    return checks[0] if len(checks) == 1 else lambda value: any(check(value) for check in checks)


def _one(kind: str) -> Check:
    if kind.startswith("'"):
        return lambda value: value == kind[1:-1]
    if kind.startswith("list["):
        inner = _check(kind[len("list[") : -1])
        return lambda value: isinstance(value, (list, tuple)) and all(map(inner, value))
    return _PLAIN[kind]
