"""Blueprints: how a family of models is built out of its config, as data.

A blueprint is text that mirrors the module tree of a model: names, shapes, loops over layers, and which config fields
they hang on. docs/blueprints.md describes the language; `families/` holds one file a family. This module turns a file
into statements, `build` runs them on a config.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from weighbridge.formats.blueprints.expressions import Expression, compile_expression, names_in, targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Expr:
    """An expression and its text, which errors quote."""

    text: str

    @property
    def compute(self) -> Expression:
        """The function that computes it in a scope. Compiled when first used: most parts of a file never run."""
        return compile_expression(self.text)

    @property
    def names(self) -> list[str]:
        """The names that it reads."""
        return names_in(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A part with its arguments; `config` is the config that the part is built from, when it is another."""

    part: str
    positional: tuple[Expr, ...] = ()
    named: tuple[tuple[str, Expr], ...] = ()
    config: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One line of a blueprint with what is indented below it.

    `kind` is one of: tensor, buffer, module, include, loop, if, let, set, require, demand, tie, freeze, attends,
    routes, sub, alias.
    """

    kind: str
    line: int
    name: str = ""
    expressions: tuple[Expr, ...] = ()
    call: Call | None = None
    when: Expr | None = None
    body: tuple["Statement", ...] = ()
    otherwise: tuple["Statement", ...] = ()
    variables: tuple[str, ...] = ()
    dtype: str | None = None
    only_null: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A module, as a function of its parameters and of the config."""

    name: str
    parameters: tuple[tuple[str, Expr | None], ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Type:
    """A model type: what its classes are called, what its config derives from other fields."""

    name: str
    prefix: str
    base: str = "Model"
    usual: str | None = None
    body: tuple[Statement, ...] = ()


@dataclass(slots=True, kw_only=True)
class Blueprint:
    """A parsed file."""

    name: str
    uses: list[str] = field(default_factory=list)
    types: dict[str, Type] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)


class Mistake(SyntaxError):
    """A line of a blueprint that is not in its language: a defect of this package."""


_Line = tuple[int, int, str]  # number, indentation, text
_NAME = r"(?:[A-Za-z0-9_.]|\{[^{}]+\})+?"
_MODULE = re.compile(rf"(?P<name>{_NAME})\s*:(?:\s+(?P<rest>.+))?")
_LOOP = re.compile(rf"(?P<name>{_NAME})\[(?P<variable>\w+) of (?P<count>.+?)\]\s*:(?:\s+(?P<rest>.+))?")
_CALL = re.compile(r"(?P<part>[\w.]+)\s*\((?P<arguments>.*)\)(?:\s*@\s*(?P<config>.+))?", re.DOTALL)
_TYPE = re.compile(
    r"type (?P<names>[\w\-., ]+?) as (?P<prefixes>[\w, ]+?)(?: base (?P<base>\w+))?(?: usual (?P<usual>\w+))?:?"
)
_KEYWORDS = {"let", "require", "demand", "tie", "freeze", "attends", "routes", "include", "buffer", "sub", "class"}
_KEYWORDS |= {"for", "if"}


def parse(text: str, name: str) -> Blueprint:
    """The blueprint in a file's text.

    Raises:
        Mistake: a line that is not in the language.
    """
    found = Blueprint(name=name)
    for number, line, body in _blocks(list(_lines(text, name))):
        if line.startswith("use "):
            found.uses += [used.strip() for used in line.removeprefix("use ").split(",")]
        elif line.startswith("type "):
            for one in _types(line, number, _statements(body, name, in_type=True), name):
                found.types[one.name] = one
        elif line.startswith("part "):
            part = _part(line, number, body, name)
            found.parts[part.name] = part
        else:
            raise Mistake(f"{name}:{number}: {line!r} is no use, type or part")
    return found


def _blocks(lines: Sequence[_Line]) -> Iterator[tuple[int, str, Sequence[_Line]]]:
    """(number, text, lines indented below it) of each line that is not below another."""
    at = 0
    while at < len(lines):
        number, indent, line = lines[at]
        below = at + 1
        while below < len(lines) and lines[below][1] > indent:
            below += 1
        yield number, line, lines[at + 1 : below]
        at = below


def _lines(text: str, name: str) -> Iterator[_Line]:
    """Lines with their indentation; what stands inside brackets goes on to the next line."""
    pending, started, indent = "", 0, 0
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.split(" #")[0].rstrip() if not raw.lstrip().startswith("#") else ""
        if not line.strip():
            continue
        if not pending:
            started, indent = number, len(line) - len(line.lstrip(" "))
        pending = f"{pending} {line.strip()}".strip()
        if pending.count("(") + pending.count("[") > pending.count(")") + pending.count("]"):
            continue
        yield started, indent, pending
        pending = ""
    if pending:
        raise Mistake(f"{name}:{started}: a bracket is not closed")


def _types(line: str, number: int, body: tuple[Statement, ...], name: str) -> Iterator[Type]:
    match = _TYPE.fullmatch(line)
    if match is None:
        raise Mistake(f"{name}:{number}: {line!r}")
    names = [part.strip() for part in match["names"].split(",")]
    prefixes = [part.strip() for part in match["prefixes"].split(",")]
    if len(prefixes) == 1:
        prefixes *= len(names)
    for one, prefix in zip(names, prefixes, strict=True):
        yield Type(name=one, prefix=prefix, base=match["base"] or "Model", usual=match["usual"], body=body)


def _part(line: str, number: int, body: Sequence[_Line], name: str) -> Part:
    match = re.fullmatch(r"part (?P<name>\w+)(?:\((?P<parameters>.*)\))?:", line)
    if match is None:
        raise Mistake(f"{name}:{number}: {line!r}")
    parameters = []
    for parameter in _split(match["parameters"] or ""):
        key, equals, default = parameter.partition("=")
        parameters.append((key.strip(), _expression(default, name, number) if equals else None))
    return Part(name=match["name"], parameters=tuple(parameters), body=_statements(body, name))


def _split(text: str) -> list[str]:
    """Parts between commas that stand in no bracket and no quotes."""
    found, depth, start, quote = [], 0, 0, ""
    for at, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign == "," and not depth:
            found.append(text[start:at].strip())
            start = at + 1
    if text[start:].strip():
        found.append(text[start:].strip())
    return found


def _expression(text: str, name: str, number: int) -> Expr:
    if not text.strip():
        raise Mistake(f"{name}:{number}: an expression is missing")
    return Expr(text=text.strip())


def _statements(lines: Sequence[_Line], name: str, *, in_type: bool = False) -> tuple[Statement, ...]:
    found: list[Statement] = []
    for number, line, below in _blocks(lines):
        body = _statements(below, name, in_type=in_type)
        try:
            if line == "else:" or line.startswith("elif "):
                _otherwise(found, line, number, body, name)
            elif in_type and line.split(" ")[0] not in _KEYWORDS:
                found.append(_setting(line, number, name))
            else:
                found.append(_statement(line, number, body, name))
        except (AttributeError, ValueError, IndexError):
            raise Mistake(f"{name}:{number}: {line!r}") from None
    return tuple(found)


def _otherwise(found: list[Statement], line: str, number: int, body: tuple[Statement, ...], name: str) -> None:
    """Hangs an else or elif on the if before it, at the end of its chain."""
    if not found or found[-1].kind != "if":
        raise Mistake(f"{name}:{number}: {line!r} without an if")
    if line != "else:":
        test = _expression(line.removeprefix("elif ").removesuffix(":"), name, number)
        body = (Statement(kind="if", line=number, expressions=(test,), body=body),)
    found[-1] = _hung(found[-1], body)


def _hung(branch: Statement, body: tuple[Statement, ...]) -> Statement:
    inner = branch.otherwise
    if len(inner) == 1 and inner[0].kind == "if":
        body = (_hung(inner[0], body),)
    return Statement(kind="if", line=branch.line, expressions=branch.expressions, body=branch.body, otherwise=body)


def _setting(line: str, number: int, name: str) -> Statement:
    """`field = expression`, or `field ?= expression` for where the field is absent or null."""
    match = re.fullmatch(r"([\w.]+) (\??=) (.+)", line)
    if match is None:
        raise Mistake(f"{name}:{number}: {line!r}")
    value = _expression(match[3], name, number)
    return Statement(kind="set", line=number, name=match[1], expressions=(value,), only_null=match[2] == "?=")


def _statement(line: str, number: int, body: tuple[Statement, ...], name: str) -> Statement:
    def expr(text: str) -> Expr:
        return _expression(text, name, number)

    word, _, rest = line.partition(" ")
    when = None
    if " when " in line:
        line, _, condition = line.rpartition(" when ")
        when, rest = expr(condition), line.partition(" ")[2]
    if word == "if":
        return Statement(kind="if", line=number, expressions=(expr(rest.removesuffix(":")),), body=body)
    if word == "for":
        names, _, source = rest.removesuffix(":").partition(" in ")
        variables = tuple(targets(ast.parse(names, mode="eval").body))
        return Statement(kind="loop", line=number, expressions=(expr(source),), variables=variables, body=body)
    if word == "let":
        variable, _, value = rest.partition(" = ")
        return Statement(kind="let", line=number, name=variable.strip(), expressions=(expr(value),), when=when)
    if word in ("require", "demand"):
        return Statement(kind=word, line=number, expressions=(expr(rest),), when=when)
    if word == "tie":
        copy, _, original = rest.partition(" to ")
        return Statement(kind="tie", line=number, name=copy.strip(), dtype=original.strip(), when=when)
    if word == "freeze":
        return Statement(kind="freeze", line=number, name=rest.strip(), when=when)
    if word in ("attends", "routes"):
        call = _call(rest if word == "attends" else f"routes{rest}", expr)
        return Statement(kind=word, line=number, call=call, when=when)
    if word == "include":
        return Statement(kind="include", line=number, call=_call(rest, expr), when=when)
    if word == "sub":
        field_name, _, of_type = rest.partition(" = ")
        return Statement(kind="sub", line=number, name=field_name.strip(), dtype=of_type.strip())
    if word == "class":
        other, _, part = rest.partition(" = ")
        return Statement(kind="alias", line=number, name=other.strip(), dtype=part.strip())
    return _member(line, number, body, when, expr)


def _member(line: str, number: int, body: tuple[Statement, ...], when: Expr | None, expr) -> Statement:  # type: ignore[no-untyped-def]
    """A tensor, a buffer, a module, or a numbered list of modules."""
    kind = "tensor"
    if line.startswith("buffer "):
        kind, line = "buffer", line.removeprefix("buffer ")
    loop = _LOOP.fullmatch(line)
    if loop is not None:
        inner = body
        if loop["rest"]:
            inner = (Statement(kind="include", line=number, call=_call(loop["rest"], expr)),)
        module = Statement(
            kind="module", line=number, name=f"{loop['name'].strip()}.{{{loop['variable']}}}", body=inner
        )
        count = expr(f"range({loop['count']})")
        return Statement(
            kind="loop", line=number, expressions=(count,), variables=(loop["variable"],), body=(module,), when=when
        )
    match = _MODULE.fullmatch(line)
    if match is None:
        raise ValueError(line)
    name, rest = match["name"].strip(), match["rest"]
    if rest is None:
        return Statement(kind="module", line=number, name=name, body=body, when=when)
    if rest.startswith("["):
        shape, _, dtype = rest.rpartition("]")
        return Statement(
            kind=kind, line=number, name=name, expressions=(expr(f"{shape}]"),), dtype=dtype.strip() or None, when=when
        )
    return Statement(kind="module", line=number, name=name, call=_call(rest, expr), when=when)


def _call(text: str, expr) -> Call:  # type: ignore[no-untyped-def]
    match = _CALL.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    positional: list[Expr] = []
    named: list[tuple[str, Expr]] = []
    for argument in _split(match["arguments"]):
        key = re.match(r"(\w+)\s*=(?!=)", argument)
        if key:
            named.append((key[1], expr(argument[key.end() :])))
        else:
            positional.append(expr(argument))
    return Call(
        part=match["part"],
        positional=tuple(positional),
        named=tuple(named),
        config=expr(match["config"]) if match["config"] else None,
    )


@cache
def pieces(name: str) -> tuple[str | Expr, ...]:
    """A name with its `{expressions}`: texts and expressions in turn."""
    parts = re.split(r"\{(.+?)\}", name)
    return tuple(Expr(text=part) if at % 2 else part for at, part in enumerate(parts))
