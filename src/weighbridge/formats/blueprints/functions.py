"""The functions that expressions in blueprints call."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from weighbridge.formats.blueprints.values import (
    LONGEST,
    Fields,
    Value,
    floor_divide,
    listed,
    number,
    short,
    shown,
    whole,
)
from weighbridge.ledger.errors import Malformed, Unknown


def _range(*bounds: Value) -> range:
    for bound in bounds:
        if not isinstance(bound, int):
            raise Malformed(f"{shown(bound)} where a whole number is needed")
    if len(bounds) == 3 and not bounds[2]:
        raise Malformed("a range of steps of zero")
    found = range(*bounds)
    if not found and bounds[-1 if len(bounds) < 3 else 1] < 0:
        raise Malformed(f"{bounds[-1]} where a count is needed")
    if found and (found[-1] - found[0]) // found.step >= LONGEST:
        raise Malformed(f"a count of {bounds[-1]:,}, more than any model has")
    return found


def _fold(operation: Callable[[Iterable[Any]], Value]) -> Callable[..., Value]:
    def fold(*values: Value) -> Value:
        folded = values if len(values) > 1 else listed(values[0])
        if not folded:
            raise Malformed("an empty list")
        return operation([number(value) for value in folded])

    return fold


def _pair(value: Value) -> list[Any]:
    """Height and width: a number stands for both."""
    if not isinstance(value, (list, tuple)):
        return [value, value]
    if len(value) != 2:
        raise Unknown(f"{shown(list(value))} where height and width are needed")
    return list(value)


def _patches(image: Value, patch: Value) -> Value:
    """How many patches an image is cut into."""
    height, width = (floor_divide(size, step) for size, step in zip(_pair(image), _pair(patch), strict=True))
    return number(height) * number(width)


def _stages(features: Value, indices: Value, last: Value) -> list[int]:
    """Numbers of the stages that a backbone gives out, of "stem", "stage1", ...: by name, by number, or the last."""
    if features is None and indices is None:
        return [whole(last)]
    if features is None:
        found = [index if index >= 0 else whole(last) + 1 + index for index in map(whole, listed(indices))]
        if not all(0 <= index <= whole(last) for index in found):
            raise Malformed(f"{shown(list(listed(indices)))} where numbers of the {whole(last) + 1} stages are needed")
        return found
    numbers: dict[Any, int] = {"stem": 0} | {f"stage{at}": at for at in _range(1, whole(last) + 1)}
    unknown = [name for name in listed(features) if not isinstance(name, str) or name not in numbers]
    if unknown:
        raise Malformed(f"{shown(unknown[0])} where the name of a stage is needed")
    return [numbers[name] for name in listed(features)]


def _divisible(value: Value, divisor: Value = 8, least: Value = None) -> int:
    """The multiple of a divisor nearest to a width, and not less than nine tenths of it: as convolutional nets do."""
    wish, step = number(value), number(divisor)
    found = max(step if least is None else number(least), floor_divide(whole(wish + step / 2), step) * step)
    return whole(found + step if found < 0.9 * wish else found)


def _split(text: Value, *pairs: Value) -> list[Any]:
    """The letters of a pattern, each by its word: split("M*", "M", "mamba", "*", "attention")."""
    words = dict(zip(pairs[::2], pairs[1::2], strict=True))
    if not isinstance(text, str) or len(text) > LONGEST or not set(text) <= words.keys():
        raise Malformed(f"{shown(text)} where a pattern of {', '.join(words)} is needed")
    return [words[letter] for letter in text]


def _whole_numbers(text: Value, mark: Value) -> list[Any]:
    """The whole numbers in a text, between marks: of "4/8" and "/" [4, 8]."""
    parts = text.split(mark) if isinstance(text, str) else []
    if not parts or not all(part.strip().isdecimal() and len(part) < 12 for part in parts):
        raise Malformed(f"{shown(text)} where whole numbers between {mark!r} are needed")
    return [int(part) for part in parts]


def _words(text: Value, mark: Value) -> list[Any]:
    """The words of a text, between marks."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise Malformed(f"{shown(text)} where words between {mark!r} are needed")
    return text.split(mark)


def _primes(least: Value, count: Value) -> list[int]:
    """The first primes from a number on."""
    if number(count) > 10_000 or number(least) > 1 << 40:
        raise Malformed(f"{count:,} primes from {least:,} on")
    found: list[int] = []
    candidate = max(whole(least), 2)
    while len(found) < count:
        if _is_prime(candidate):
            found.append(candidate)
        candidate += 1
    return found


def _is_prime(value: int) -> bool:
    """Miller's and Rabin's test, whose witnesses leave no doubt below 2 ** 48."""
    witnesses = (2, 3, 5, 7, 11, 13, 17)
    if any(value % witness == 0 for witness in witnesses):
        return value in witnesses
    halvings = [value - 1]
    while halvings[-1] % 2 == 0:
        halvings.append(halvings[-1] // 2)
    return all(
        pow(witness, halvings[-1], value) == 1 or any(pow(witness, half, value) == value - 1 for half in halvings[1:])
        for witness in witnesses
    )


def _log(value: Value) -> float:
    if number(value) <= 0:
        raise Malformed(f"the logarithm of {value}")
    return math.log(value)


FUNCTIONS: dict[str, Callable[..., Value]] = {
    "len": lambda value: len(value) if isinstance(value, (str, Fields)) else len(listed(value)),
    "range": _range,
    "min": _fold(min),
    "max": _fold(max),
    "sum": lambda values: sum(number(value) for value in listed(values)),
    "any": lambda values: any(listed(values)),
    "all": lambda values: all(listed(values)),
    "int": whole,
    "bool": bool,
    "round": lambda value: round(number(value)),
    "ceil": lambda value: math.ceil(number(value)),
    "floor": lambda value: math.floor(number(value)),
    "sqrt": lambda value: math.sqrt(number(value)),
    "log": _log,
    "abs": lambda value: abs(number(value)),
    "prod": lambda values: number(math.prod(number(value) for value in listed(values))),
    "zip": lambda *lists: list(zip(*map(listed, lists), strict=False)),
    "enumerate": lambda values: list(enumerate(listed(values))),
    "reversed": lambda values: list(listed(values))[::-1],
    "sorted": lambda values: sorted(number(value) for value in listed(values)),
    "list": lambda values: list(listed(values)),
    "flat": lambda lists: short([value for one in listed(lists) for value in listed(one)]),
    "unique": lambda values: list(dict.fromkeys(listed(values))),
    "index": lambda values, value: list(listed(values)).index(value),
    "field": lambda owner, name, otherwise=None: (
        owner[name] if isinstance(owner, Mapping) and name in owner else otherwise
    ),
    "values": lambda owner: list(owner.values()) if isinstance(owner, Mapping) else listed(owner),
    "only": lambda owner, names: {
        name: owner[name] for name in listed(names) if name in getattr(owner, "stated", owner)
    },
    "whole_numbers": _whole_numbers,
    "split": _split,
    "words": _words,
    "divisible": _divisible,
    "primes": _primes,
    "is_list": lambda value: isinstance(value, (list, tuple)),
    "is_text": lambda value: isinstance(value, str),
    "is_number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "starts": lambda text, start: isinstance(text, str) and text.startswith(start),
    "states": lambda config, name: name in getattr(config, "stated", ()),
    "ends": lambda text, end: isinstance(text, str) and text.endswith(end),
    "pair": _pair,
    "patches": _patches,
    "stages": _stages,
}
