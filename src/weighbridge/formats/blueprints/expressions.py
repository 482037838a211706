"""The expressions in blueprints: a small part of Python's, over whole numbers, texts and lists, with bounds on all of
them.

Blueprints are ours, the configs they are applied to are not: a value may be of any JSON type and any size. Arithmetic
takes numbers only, lists and ranges stay short, and nothing has methods, so that no config can make a program of it.
"""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Protocol

from weighbridge.formats.blueprints.functions import FUNCTIONS
from weighbridge.formats.blueprints.values import (
    LONGEST,
    Fields,
    Value,
    divided,
    floor_divide,
    listed,
    number,
    short,
    shown,
    whole,
)
from weighbridge.ledger.errors import Malformed, Unknown


class Scope(Protocol):
    """Where names are looked up."""

    def read(self, name: str, /) -> Any:
        """The value of a name.

        Raises:
            Unknown: nobody states it.
        """


Expression = Callable[[Scope], Value]


def _add(one: Value, other: Value) -> Value:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return short([*one, *other])
    return number(one) + number(other)


def _multiply(one: Value, other: Value) -> Value:
    if isinstance(one, list) and isinstance(other, int):
        if len(one) * other > LONGEST:
            raise Malformed(f"a list of {len(one) * other:,} entries")
        return one * other
    return number(one) * number(other)


def _power(one: Value, other: Value) -> Value:
    base, exponent = number(one), number(other)
    if abs(exponent) > 64 or abs(base) > 1 << 32:
        raise Malformed(f"{base} to the power of {exponent}")
    return base**exponent


_BINARY: dict[type[ast.AST], Callable[[Value, Value], Value]] = {
    ast.Add: _add,
    ast.Sub: lambda a, b: number(a) - number(b),
    ast.Mult: _multiply,
    ast.Div: divided(lambda a, b: a / b),
    ast.FloorDiv: floor_divide,
    ast.Mod: divided(lambda a, b: a % b),
    ast.Pow: _power,
    ast.BitAnd: lambda a, b: whole(a) & whole(b),
}
_COMPARISONS: dict[type[ast.AST], Callable[[Value, Value], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: number(a) < number(b),
    ast.LtE: lambda a, b: number(a) <= number(b),
    ast.Gt: lambda a, b: number(a) > number(b),
    ast.GtE: lambda a, b: number(a) >= number(b),
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
    raise Malformed(f"{shown(other)} where a list is needed")


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
    nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    found = [name.id for name in names if name.id not in bound and name.id not in FUNCTIONS]
    for node in nodes:  # get("x", otherwise)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "get":
            found += [str(part.value) for part in node.args[:1] if isinstance(part, ast.Constant)]
    return list(dict.fromkeys(found))


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
                found += listed(part(scope))
            else:
                found.append(part(scope))
        return short(found)

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
    return lambda scope: -number(operand(scope))


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
            raise Malformed(f"{shown(value)} where an object with {name} is needed")
        return value[name]

    return read


def _subscript(node: Any) -> Expression:
    owner = _compile(node.value)
    if isinstance(node.slice, ast.Slice):
        bounds = [None if part is None else _compile(part) for part in (node.slice.lower, node.slice.upper)]
        step = None if node.slice.step is None else _compile(node.slice.step)

        def cut(scope: Scope) -> Value:
            low, high = (None if part is None else whole(part(scope)) for part in bounds)
            return listed(owner(scope))[low : high : None if step is None else whole(step(scope))]

        return cut
    index = _compile(node.slice)

    def read(scope: Scope) -> Value:
        value, at = owner(scope), index(scope)
        if isinstance(value, Fields):
            return value[at]
        if not isinstance(at, int) or not -len(listed(value)) <= at < len(value):
            raise Malformed(f"a list of {len(value)} entries has none at {shown(at)}")
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
        for value in listed(source(scope)):
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
    values = listed(value)
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
