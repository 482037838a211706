"""The expressions in blueprints: a small part of Python's, over whole numbers, texts and lists, with bounds on all of
them.

Blueprints are ours, the configs they are applied to are not: a value may be of any JSON type and any size. Arithmetic
takes numbers only, lists and ranges stay short, and nothing has methods, so that no config can make a program of it.
"""

import ast
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Protocol

from weighbridge.ledger.errors import Malformed, Unknown

LONGEST = 100_000  # of a list or range: real models have tens to a few thousand layers
_LARGEST = 1 << 62


class Scope(Protocol):
    """Where names are looked up."""

    def read(self, name: str, /) -> Any:
        """The value of a name.

        Raises:
            Unknown: nobody states it.
        """


Value = Any  # int, float, bool, str, None, list, tuple, or a Settings
Expression = Callable[[Scope], Value]


class Fields(Mapping[str, Any]):
    """Marks values that have fields: configs."""


def _number(value: Value) -> int | float:
    if isinstance(value, (int, float)):
        if -_LARGEST < value < _LARGEST:
            return value
        raise Malformed(f"a number of {value:.3g}")
    raise Malformed(f"{_shown(value)} where a number is needed")


def _shown(value: Value) -> str:
    text = "null" if value is None else repr(value) if isinstance(value, (str, int, float, list)) else "an object"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _add(one: Value, other: Value) -> Value:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return _short([*one, *other])
    return _number(one) + _number(other)


def _multiply(one: Value, other: Value) -> Value:
    if isinstance(one, list) and isinstance(other, int):
        if len(one) * other > LONGEST:
            raise Malformed(f"a list of {len(one) * other:,} entries")
        return one * other
    return _number(one) * _number(other)


def _short(values: list[Any]) -> list[Any]:
    if len(values) > LONGEST:
        raise Malformed(f"a list of {len(values):,} entries, more than any model has")
    return values


def _power(one: Value, other: Value) -> Value:
    base, exponent = _number(one), _number(other)
    if abs(exponent) > 64 or abs(base) > 1 << 32:
        raise Malformed(f"{base} to the power of {exponent}")
    return base**exponent


def _divided(operation: Callable[[Any, Any], Value]) -> Callable[[Value, Value], Value]:
    def divide(one: Value, other: Value) -> Value:
        if not _number(other):
            raise Malformed("a division by zero")
        return operation(_number(one), other)

    return divide


_BINARY: dict[type[ast.AST], Callable[[Value, Value], Value]] = {
    ast.Add: _add,
    ast.Sub: lambda a, b: _number(a) - _number(b),
    ast.Mult: _multiply,
    ast.Div: _divided(lambda a, b: a / b),
    ast.FloorDiv: _divided(lambda a, b: a // b),
    ast.Mod: _divided(lambda a, b: a % b),
    ast.Pow: _power,
}
_COMPARISONS: dict[type[ast.AST], Callable[[Value, Value], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: _number(a) < _number(b),
    ast.LtE: lambda a, b: _number(a) <= _number(b),
    ast.Gt: lambda a, b: _number(a) > _number(b),
    ast.GtE: lambda a, b: _number(a) >= _number(b),
    ast.In: lambda a, b: _is_in(a, b),
    ast.NotIn: lambda a, b: not _is_in(a, b),
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
}


def _is_in(one: Value, other: Value) -> bool:
    if isinstance(other, str):
        return isinstance(one, str) and one in other
    if isinstance(other, (list, tuple, range, Fields)):
        return one in other
    raise Malformed(f"{_shown(other)} where a list is needed")


def _listed(value: Value) -> list[Any] | tuple[Any, ...] | range:
    if isinstance(value, (list, tuple, range)):
        return value
    raise Malformed(f"{_shown(value)} where a list is needed")


def _range(*bounds: Value) -> range:
    for bound in bounds:
        if not isinstance(bound, int):
            raise Malformed(f"{_shown(bound)} where a whole number is needed")
    if len(bounds) == 3 and not bounds[2]:
        raise Malformed("a range of steps of zero")
    found = range(*bounds)
    if not found and bounds[-1 if len(bounds) < 3 else 1] < 0:
        raise Malformed(f"{bounds[-1]} where a count is needed")
    if found and (found[-1] - found[0]) // found.step >= LONGEST:
        raise Malformed(f"a count of {bounds[-1]:,}, more than any model has")
    return found


def _int(value: Value) -> int:
    if not math.isfinite(_number(value)):
        raise Malformed(f"{value} where a whole number is needed")
    return int(value)


def _fold(operation: Callable[[Iterable[Any]], Value]) -> Callable[..., Value]:
    def fold(*values: Value) -> Value:
        listed = values if len(values) > 1 else _listed(values[0])
        if not listed:
            raise Malformed("an empty list")
        return operation([_number(value) for value in listed])

    return fold


def _pair(value: Value) -> list[Any]:
    """Height and width: a number stands for both."""
    if not isinstance(value, (list, tuple)):
        return [value, value]
    if len(value) != 2:
        raise Unknown(f"{_shown(list(value))} where height and width are needed")
    return list(value)


def _patches(image: Value, patch: Value) -> Value:
    """How many patches an image is cut into."""
    divide = _BINARY[ast.FloorDiv]
    height, width = (divide(size, step) for size, step in zip(_pair(image), _pair(patch), strict=True))
    return _number(height) * _number(width)


def _stages(features: Value, indices: Value, last: Value) -> list[int]:
    """Numbers of the stages that a backbone gives out, of "stem", "stage1", ...: by name, by number, or the last."""
    if features is None and indices is None:
        return [_int(last)]
    if features is None:
        return [index if index >= 0 else _int(last) + 1 + index for index in map(_int, _listed(indices))]
    numbers: dict[Any, int] = {"stem": 0} | {f"stage{at}": at for at in _range(1, _int(last) + 1)}
    unknown = [name for name in _listed(features) if not isinstance(name, str) or name not in numbers]
    if unknown:
        raise Malformed(f"{_shown(unknown[0])} where the name of a stage is needed")
    return [numbers[name] for name in _listed(features)]


def _divisible(value: Value, divisor: Value = 8, least: Value = None) -> int:
    """The multiple of a divisor nearest to a width, and not less than nine tenths of it: as convolutional nets do."""
    wish, step = _number(value), _number(divisor)
    floor = _BINARY[ast.FloorDiv]
    found = max(step if least is None else _number(least), floor(_int(wish + step / 2), step) * step)
    return _int(found + step if found < 0.9 * wish else found)


def _split(text: Value, *pairs: Value) -> list[Any]:
    """The letters of a pattern, each by its word: split("M*", "M", "mamba", "*", "attention")."""
    words = dict(zip(pairs[::2], pairs[1::2], strict=True))
    if not isinstance(text, str) or len(text) > LONGEST or not set(text) <= words.keys():
        raise Malformed(f"{_shown(text)} where a pattern of {', '.join(words)} is needed")
    return [words[letter] for letter in text]


def _whole_numbers(text: Value, mark: Value) -> list[Any]:
    """The whole numbers in a text, between marks: of "4/8" and "/" [4, 8]."""
    parts = text.split(mark) if isinstance(text, str) else []
    if not parts or not all(part.strip().isdecimal() and len(part) < 12 for part in parts):
        raise Malformed(f"{_shown(text)} where whole numbers between {mark!r} are needed")
    return [int(part) for part in parts]


def _primes(least: Value, count: Value) -> list[int]:
    """The first primes from a number on."""
    if _number(count) > 10_000 or _number(least) > 1 << 40:
        raise Malformed(f"{count:,} primes from {least:,} on")
    found: list[int] = []
    candidate = max(_int(least), 2)
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
    if _number(value) <= 0:
        raise Malformed(f"the logarithm of {value}")
    return math.log(value)


FUNCTIONS: dict[str, Callable[..., Value]] = {
    "len": lambda value: len(value) if isinstance(value, (str, Fields)) else len(_listed(value)),
    "range": _range,
    "min": _fold(min),
    "max": _fold(max),
    "sum": lambda values: sum(_number(value) for value in _listed(values)),
    "any": lambda values: any(_listed(values)),
    "all": lambda values: all(_listed(values)),
    "int": _int,
    "bool": bool,
    "round": lambda value: round(_number(value)),
    "ceil": lambda value: math.ceil(_number(value)),
    "floor": lambda value: math.floor(_number(value)),
    "sqrt": lambda value: math.sqrt(_number(value)),
    "log": _log,
    "abs": lambda value: abs(_number(value)),
    "prod": lambda values: _number(math.prod(_number(value) for value in _listed(values))),
    "zip": lambda *lists: list(zip(*map(_listed, lists), strict=False)),
    "enumerate": lambda values: list(enumerate(_listed(values))),
    "reversed": lambda values: list(_listed(values))[::-1],
    "sorted": lambda values: sorted(_number(value) for value in _listed(values)),
    "list": lambda values: list(_listed(values)),
    "flat": lambda lists: _short([value for one in _listed(lists) for value in _listed(one)]),
    "unique": lambda values: list(dict.fromkeys(_listed(values))),
    "index": lambda values, value: list(_listed(values)).index(value),
    "field": lambda owner, name, otherwise=None: (
        owner[name] if isinstance(owner, Mapping) and name in owner else otherwise
    ),
    "values": lambda owner: list(owner.values()) if isinstance(owner, Mapping) else _listed(owner),
    "only": lambda owner, names: {
        name: owner[name] for name in _listed(names) if name in getattr(owner, "stated", owner)
    },
    "whole_numbers": _whole_numbers,
    "split": _split,
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


class _Inner:
    """A scope with the loop variables of a comprehension."""

    __slots__ = ("_names", "_outer")

    def __init__(self, outer: Scope, names: dict[str, Value]) -> None:
        self._outer, self._names = outer, names

    def read(self, name: str, /) -> Value:
        return self._names[name] if name in self._names else self._outer.read(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outer, name)


@cache
def compile_expression(text: str) -> Expression:
    """The function that computes an expression in a scope.

    Raises:
        SyntaxError: not an expression, or one of a kind that blueprints do not have: a mistake in a blueprint.
    """
    return _compile(ast.parse(text.strip(), mode="eval").body)


def names_in(text: str) -> list[str]:
    """The names that an expression reads, in order: what an error about it should name."""
    found = [node for node in ast.walk(ast.parse(text.strip(), mode="eval")) if isinstance(node, ast.Name)]
    bound = {node.id for node in found if isinstance(node.ctx, ast.Store)}
    return list(dict.fromkeys(n.id for n in found if n.id not in bound and n.id not in FUNCTIONS))


def _compile(node: ast.AST) -> Expression:
    maker = _MAKERS.get(type(node))
    if maker is None:
        raise SyntaxError(f"blueprints have no {type(node).__name__}")
    return maker(node)


def _constant(node: Any) -> Expression:
    value = node.value
    return lambda _: value


def _name(node: Any) -> Expression:
    name = node.id
    return lambda scope: scope.read(name)


def _list(node: Any) -> Expression:
    parts = [(_compile(p.value), True) if isinstance(p, ast.Starred) else (_compile(p), False) for p in node.elts]

    def make(scope: Scope) -> list[Any]:
        found: list[Any] = []
        for part, spread in parts:
            if spread:
                found += _listed(part(scope))
            else:
                found.append(part(scope))
        return _short(found)

    return make


def _binary(node: Any) -> Expression:
    left, right, operation = _compile(node.left), _compile(node.right), _BINARY.get(type(node.op))
    if operation is None:
        raise SyntaxError(f"blueprints have no {type(node.op).__name__}")
    return lambda scope: operation(left(scope), right(scope))


def _unary(node: Any) -> Expression:
    operand = _compile(node.operand)
    if isinstance(node.op, ast.Not):
        return lambda scope: not operand(scope)
    return lambda scope: -_number(operand(scope))


def _logic(node: Any) -> Expression:
    parts = [_compile(part) for part in node.values]
    stop = isinstance(node.op, ast.Or)

    def decide(scope: Scope) -> Value:
        value = None
        for part in parts:
            value = part(scope)
            if bool(value) is stop:
                break
        return value

    return decide


def _compare(node: Any) -> Expression:
    first = _compile(node.left)
    rest = [(_COMPARISONS[type(op)], _compile(part)) for op, part in zip(node.ops, node.comparators, strict=True)]

    def compare(scope: Scope) -> bool:
        left = first(scope)
        for operation, part in rest:
            right = part(scope)
            if not operation(left, right):
                return False
            left = right
        return True

    return compare


def _choice(node: Any) -> Expression:
    test, yes, no = _compile(node.test), _compile(node.body), _compile(node.orelse)
    return lambda scope: yes(scope) if test(scope) else no(scope)


def _attribute(node: Any) -> Expression:
    owner, name = _compile(node.value), node.attr

    def read(scope: Scope) -> Value:
        value = owner(scope)
        if not isinstance(value, Fields):
            raise Malformed(f"{_shown(value)} where an object with {name} is needed")
        return value[name]

    return read


def _subscript(node: Any) -> Expression:
    owner = _compile(node.value)
    if isinstance(node.slice, ast.Slice):
        bounds = [None if part is None else _compile(part) for part in (node.slice.lower, node.slice.upper)]
        step = None if node.slice.step is None else _compile(node.slice.step)

        def cut(scope: Scope) -> Value:
            low, high = (None if part is None else _int(part(scope)) for part in bounds)
            return _listed(owner(scope))[low : high : None if step is None else _int(step(scope))]

        return cut
    index = _compile(node.slice)

    def read(scope: Scope) -> Value:
        value, at = owner(scope), index(scope)
        if isinstance(value, Fields):
            return value[at]
        if not isinstance(at, int) or not -len(_listed(value)) <= at < len(value):
            raise Malformed(f"a list of {len(value)} entries has none at {_shown(at)}")
        return value[at]

    return read


def _call(node: Any) -> Expression:
    if not isinstance(node.func, ast.Name) or node.keywords:
        raise SyntaxError("blueprints call functions by name and position")
    name, arguments = node.func.id, [_compile(part) for part in node.args]
    function = FUNCTIONS.get(name)
    if function is not None:
        return lambda scope: function(*[part(scope) for part in arguments])
    # Functions of the config at hand: given("x"), get("x", otherwise), ...
    return lambda scope: scope.read(f"{name}()")(*[part(scope) for part in arguments])


def _comprehension(node: Any) -> Expression:
    body = _compile(node.elt)
    loops = [(targets(g.target), _compile(g.iter), [_compile(test) for test in g.ifs]) for g in node.generators]

    def steps(scope: Scope, at: int) -> Iterator[Scope]:
        if at == len(loops):
            yield scope
            return
        names, source, tests = loops[at]
        for value in _listed(source(scope)):
            inner = _Inner(scope, bind(names, value))
            if all(test(inner) for test in tests):
                yield from steps(inner, at + 1)

    def make(scope: Scope) -> list[Any]:
        found: list[Any] = []
        for inner in steps(scope, 0):
            found.append(body(inner))
            if len(found) > LONGEST:
                raise Malformed(f"a list of more than {LONGEST:,} entries")
        return found

    return make


def targets(node: ast.AST) -> list[str]:
    """The names that a loop gives values to."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return [part.id for part in parts if isinstance(part, ast.Name)]


def bind(names: list[str], value: Value) -> dict[str, Value]:
    """{name: value} of one step of a loop."""
    if len(names) == 1:
        return {names[0]: value}
    values = _listed(value)
    if len(values) != len(names):
        raise Unknown(f"{len(values)} values where {len(names)} are needed")
    return dict(zip(names, values, strict=True))


_MAKERS: dict[type[ast.AST], Callable[[Any], Expression]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.List: _list,
    ast.Tuple: _list,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.BoolOp: _logic,
    ast.Compare: _compare,
    ast.IfExp: _choice,
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.Call: _call,
    ast.ListComp: _comprehension,
    ast.GeneratorExp: _comprehension,
}
