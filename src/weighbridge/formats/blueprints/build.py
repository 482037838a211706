"""Runs a blueprint on a config: tensors with names and shapes, buffers, ties, and what each layer mixes tokens with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from weighbridge.formats.blueprints import library
from weighbridge.formats.blueprints.expressions import bind
from weighbridge.formats.blueprints.forms import form, forms
from weighbridge.formats.blueprints.language import Call, Expr, Part, Statement, pieces
from weighbridge.formats.blueprints.settings import Settings
from weighbridge.formats.blueprints.values import shown
from weighbridge.ledger.errors import Malformed, Refused, Unknown

_MOST_TENSORS = 200_000
_MOST_MODULES = 5_000  # of one list: the deepest models have a few hundred layers
_MOST_STEPS = 3_000_000
_LARGEST = 1 << 36  # of one dimension: a thousand times the largest vocabulary
_MOST_ELEMENTS = 1 << 61  # of one tensor: PyTorch counts its bytes in 63 bits
_DEEPEST = 60
_LEARNED_ACTIVATIONS = ("prelu", "xielu")
_MULTIPLE = re.compile(r"(\w+) % (\w+) != 0(?: and |$)")
_INDEX = re.compile(r"\.\d+(?=\.|$)")


class NotCovered(Unknown):
    """A config that the blueprint does not speak for: a choice it does not know, a field nobody states."""


class _Choice(NotCovered):
    """A choice that a blueprint does not know, below conditions that are yet to be named."""


class _Demand(Malformed):
    """Something that transformers demands, below conditions that are yet to be named."""


@dataclass(slots=True, kw_only=True)
class Built:
    """What a model of that config holds. Names as the framework gives them, shapes row-major."""

    model_type: str
    class_name: str
    settings: Settings
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    buffers: dict[str, tuple[tuple[int, ...], str | None]] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)  # tensors, and modules with all below, that are not trained
    parts: list[tuple[str, Settings]] = field(default_factory=list)  # modules that sub-configs build, outermost first
    mixers: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)  # (layer, kind, facts)
    routers: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    forms: dict[str, list[str]] = field(default_factory=dict)  # shapes in the config's terms, where asked for
    counts: dict[str, tuple[str, int]] = field(default_factory=dict)  # likewise, how many modules a list has


def build(
    config: Mapping[str, Any],
    *,
    model_type: str,
    class_name: str | None = None,
    facts_only: bool = False,
    forms: bool = False,
) -> Built:
    """The model of a config; `class_name` is the one wanted, by default the type's usual one.

    `facts_only` leaves the tensors out: how layers mix tokens is all that is wanted. `forms` gives every shape in terms
    of the config's fields, too.

    Raises:
        NotCovered: no blueprint knows the type, the class, or a choice that the config makes.
        Malformed: a field of the wrong kind, with its name.
    """
    family = library.family_of(model_type)
    if family is None:
        raise NotCovered(f"no blueprint knows the model type {model_type!r}")
    settings = Settings(config, model_type=model_type, derive=_derive)
    name, part = family.class_part(model_type, class_name)
    if part is None:
        raise NotCovered(f"the blueprint of {model_type} knows no class {name!r}")
    built = Built(model_type=model_type, class_name=name, settings=settings)
    scope = _Scope({}, settings)
    try:
        _Builder(built, facts_only=facts_only, forms=forms, traced=False).part(part, family, scope, "", depth=0)
    except (Malformed, NotCovered):
        # Once more, with an eye on which fields each value comes from: the error shall name them.
        again = Built(model_type=model_type, class_name=name, settings=settings)
        _Builder(again, facts_only=facts_only, forms=forms, traced=True).part(
            part, family, _Scope({}, settings), "", depth=0
        )
        raise
    if settings.unread_of_layers:
        raise NotCovered(f"a choice that the blueprint does not know: {settings.unread_of_layers[0]}")
    if not facts_only:
        built.ties = _resolved(built)
        _refuse_learned_activations(config, built)
    return built


def _refuse_learned_activations(config: Mapping[str, Any], built: Built) -> None:
    """Two activations have parameters, wherever a config may put them; only a blueprint that says so counts them."""
    if any(name.endswith((".alpha_p", "act_fn.weight", "activation_fn.weight")) for name in built.tensors):
        return
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, str) and value in _LEARNED_ACTIVATIONS:
            raise NotCovered(f"a choice that the blueprint does not know: the activation {value}, which has parameters")


def _resolved(built: Built) -> dict[str, str]:
    """Ties followed to their ends; copies leave the tensors."""
    ends: dict[str, str] = {}
    for copy, original in built.ties.items():
        seen = {copy}
        while original in built.ties and original not in seen:
            seen.add(original)
            original = built.ties[original]
        if original not in built.tensors:
            raise Malformed(f"{copy} is tied to {original}, which the model does not have")
        ends[copy] = original
    for copy in ends:
        built.tensors.pop(copy, None)
    return ends


class _Scope:
    """Names of one part: its parameters and lets, then the config's fields. `terms` are what the names stand for,
    `sources` the fields that they come from, where either is asked for.
    """

    __slots__ = ("names", "settings", "sources", "terms")

    def __init__(self, names: dict[str, Any], settings: Settings) -> None:
        self.names, self.settings = names, settings
        self.terms: dict[str, str] = {}
        self.sources: dict[str, dict[str, Any]] = {}

    def read(self, name: str, /) -> Any:
        return self.names[name] if name in self.names else self.settings.read(name)


def _derive(settings: Settings) -> None:
    """Runs what the blueprint of a config's type says of its fields."""
    family = library.family_of(settings.model_type)
    if family is None:
        return
    scope = _Scope({}, settings)
    kind = family.types.get(settings.model_type)
    for statement in kind.body if kind else ():
        _derive_one(statement, scope)
    for text in settings.refused:
        condition = Expr(text=text)
        try:
            met = condition.compute(scope)
        except Unknown:  # of a field that neither the config nor its class states
            continue
        except (Malformed, TypeError, ValueError, KeyError, OverflowError, ZeroDivisionError) as error:
            if None in _fields(condition, scope).values():  # what the class puts there is not known
                continue
            raise _named(getattr(error, "what", str(error)), condition, scope) from None
        if met:
            if (multiple := _MULTIPLE.match(text)) is not None:
                (value, number), (of, divisor) = ((settings.path(n), f"{scope.read(n):,}") for n in multiple.groups())
                raise Malformed(
                    f"{value} is {number}, which {of}, {divisor}, does not divide",
                    fix="correct either; transformers refuses such a config too",
                )
            told = ", ".join(f"{path} is {_said(value)}" for path, value in _fields(condition, scope).items())
            raise Malformed(f"{told}: transformers refuses a config where {text}", fix="correct either")


def _derive_one(statement: Statement, scope: _Scope) -> None:
    settings = scope.settings
    if statement.kind == "sub":
        settings.sub(statement.name, str(statement.dtype))
    elif statement.kind == "if":
        for inner in statement.body if _compute(statement.expressions[0], scope) else statement.otherwise:
            _derive_one(inner, scope)
    elif statement.kind in ("require", "demand"):
        _require(statement, scope)
    elif statement.kind == "let":
        scope.sources[statement.name] = _fields(statement.expressions[0], scope)
        scope.names[statement.name] = _compute(statement.expressions[0], scope)
    elif statement.kind == "set":
        owner, _, name = statement.name.rpartition(".")
        target = settings
        for step in owner.split(".") if owner else ():
            target = target.read(step)
        if not isinstance(target, Settings):
            return  # a sub-config that is not there
        if statement.only_null and target.has(name) and target.read(name) is not None:
            return
        sources = statement.expressions[0].names if target is settings else ()
        target.set(name, _compute(statement.expressions[0], scope), sources)


def _compute(expression: Expr, scope: _Scope) -> Any:
    """The value; what is wrong with it is told with the fields that it hangs on."""
    try:
        return expression.compute(scope)
    except NotCovered:
        raise
    except Unknown as error:
        told = error.what if error.what.endswith("is not stated") else _named(error.what, expression, scope).what
        raise NotCovered(told) from None
    except Malformed as error:
        raise _named(error.what, expression, scope) from None
    except (TypeError, ValueError, KeyError, OverflowError, ZeroDivisionError) as error:
        raise _named(str(error), expression, scope) from None


def _named(what: str, expression: Expr, scope: _Scope) -> Malformed:
    """The error with the fields that the expression hangs on, and their values: those that it quotes where it does,
    else those below zero where there are any.
    """
    fields = _fields(expression, scope)
    words = re.split(r"[\s;]+", what.replace(",", ""))
    quoted = [path for path, value in fields.items() if _said(value) in words]
    negative = [path for path, value in fields.items() if isinstance(value, int | float) and value < 0]
    told = ", ".join(f"{path} is {_said(fields[path])}" for path in quoted or negative or fields)
    return Malformed(f"{what}; {told}" if told else what)


def _fields(expression: Expr, scope: _Scope) -> dict[str, Any]:
    """{path: value} of the config's fields that an expression reads, or that what it reads was computed from."""
    found: dict[str, Any] = {}
    for name in expression.names:
        if name in scope.names:
            found |= scope.sources.get(name, {})
        elif scope.settings.has(name):
            value = scope.read(name)
            if not isinstance(value, Settings):
                found[scope.settings.path(name)] = value
            for source in scope.settings.sources(name) if not scope.settings.given(name) else ():
                if scope.settings.has(source) and not isinstance(scope.read(source), Settings):
                    found[scope.settings.path(source)] = scope.read(source)
    return found


def _said(value: Any) -> str:
    return "an object" if isinstance(value, Mapping) else shown(value)[:40]


def _require(statement: Statement, scope: _Scope) -> None:
    if statement.when is not None and not _compute(statement.when, scope):
        return
    expression = statement.expressions[0]
    if not _compute(expression, scope):
        fields = _fields(expression, scope) | (_fields(statement.when, scope) if statement.when else {})
        told = ", ".join(f"{path} is {_said(value)}" for path, value in fields.items()) or expression.text
        if statement.kind == "demand":
            raise _Demand(f"{told}: transformers builds no such model", fix="correct it")
        raise _Choice(f"a choice that the blueprint does not know: {told}")


class _Builder:
    def __init__(self, built: Built, *, facts_only: bool, forms: bool, traced: bool) -> None:
        self.built = built
        self.facts_only = facts_only
        self.forms = forms
        self.traced = traced
        self.steps = 0

    def part(
        self,
        part: Part,
        family: library.Family,
        scope: _Scope,
        prefix: str,
        *,
        depth: int,
    ) -> None:
        """Adds what a part holds, below `prefix`; the scope has its arguments."""
        if depth > _DEEPEST:
            raise Malformed(f"parts nested {depth} deep at {prefix}")
        for name, default in part.parameters:
            if name not in scope.names:
                if default is None:
                    raise Malformed(f"{part.name} needs {name}")
                self._bind(name, default, scope, scope)
        self.body(part.body, family, scope, prefix, depth)

    def body(
        self, statements: tuple[Statement, ...], family: library.Family, scope: _Scope, prefix: str, depth: int
    ) -> None:
        for statement in statements:
            if self.facts_only and not family.wanted(statement):
                continue
            self.steps += 1
            if self.steps > _MOST_STEPS:
                raise Refused("a model of more parts than any has", fix="look at its counts of layers and experts")
            if (
                statement.when is not None
                and statement.kind not in ("require", "demand")
                and not _compute(statement.when, scope)
            ):
                continue
            getattr(self, f"_{statement.kind}")(statement, family, scope, prefix, depth)

    # Statements ------------------------------------------------------------------------------------------------------

    def _tensor(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        name = prefix + self._name(statement.name, scope)
        if name in self.built.tensors:
            raise Malformed(f"{name} twice")
        if len(self.built.tensors) >= _MOST_TENSORS:
            raise Refused(
                f"more than {_MOST_TENSORS:,} tensors at {name}",
                fix="look at the config's counts of layers and experts",
            )
        shape = self.built.tensors[name] = self._shape(statement.expressions[0], scope, name)
        if self.forms:
            self.built.forms[name] = forms(statement.expressions[0].text, scope.terms, scope.settings, shape)

    def _buffer(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        name = prefix + self._name(statement.name, scope)
        self.built.buffers[name] = (self._shape(statement.expressions[0], scope, name), statement.dtype)

    def _module(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        below = f"{prefix}{self._name(statement.name, scope)}."
        if statement.call is not None:
            self.call(statement.call, family, scope, below, depth)
        self.body(statement.body, family, scope, below, depth)

    def _include(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        assert statement.call is not None
        self.call(statement.call, family, scope, prefix, depth)

    def _loop(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        names = list(statement.variables)
        values = _compute(statement.expressions[0], scope)
        if not isinstance(values, (list, tuple, range)):
            raise _named("no list", statement.expressions[0], scope)
        if len(values) > _MOST_MODULES:
            raise _named(f"{len(values):,} modules, more than any model has", statement.expressions[0], scope)
        if self.forms and len(statement.body) == 1 and statement.body[0].kind == "module":
            place = prefix + statement.body[0].name.partition(".{")[0]
            text = statement.expressions[0].text
            if text.startswith("range("):
                text = form(text[len("range(") : -1], scope.terms, scope.settings, len(values))
                self.built.counts[place] = (text, len(values))
        for value in values:
            scope.names |= bind(names, value)
            if self.forms:
                scope.terms |= {name: _term(scope.names[name]) for name in names}
            if self.traced:
                scope.sources |= dict.fromkeys(names, _fields(statement.expressions[0], scope))
            self.body(statement.body, family, scope, prefix, depth)

    def _if(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        chosen = statement.body if _compute(statement.expressions[0], scope) else statement.otherwise
        try:
            self.body(chosen, family, scope, prefix, depth)
        except (_Choice, _Demand) as error:
            fields = _fields(statement.expressions[0], scope)
            told = [f"{path} is {_said(value)}" for path, value in fields.items() if path not in error.what]
            if isinstance(error, _Choice):
                raise NotCovered(", ".join([error.what, *told])) from None
            raise Malformed(", ".join([*told, error.what]), fix="correct either" if told else "correct it") from None

    def _let(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        self._bind(statement.name, statement.expressions[0], scope, scope)

    def _require(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        _require(statement, scope)

    _demand = _require

    def _tie(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        copy = prefix + self._name(statement.name, scope)
        original = prefix + self._name(str(statement.dtype), scope)
        if copy != original:
            self.built.ties[copy] = original

    def _freeze(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        self.built.frozen.append(prefix + self._name(statement.name, scope))

    def _attends(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        assert statement.call is not None
        facts = self._facts(statement.call, scope)
        for name, expression in statement.call.named:
            if name in ("heads", "kv_heads", "head_dim") and facts[name] == 0:
                raise _named(f"{name} of {_layer(prefix)} would be 0", expression, scope)
        self.built.mixers.append((_layer(prefix), statement.call.part, facts))

    def _routes(self, statement: Statement, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        assert statement.call is not None
        self.built.routers.append((_layer(prefix), self._facts(statement.call, scope)))

    # What they are made of -------------------------------------------------------------------------------------------

    def call(self, call: Call, family: library.Family, scope: _Scope, prefix: str, depth: int) -> None:
        """Builds a part with its arguments. `auto(config)` is the base model of that config's own type."""
        settings = scope.settings
        if call.part == "auto":
            positional = [_compute(argument, scope) for argument in call.positional]
            inner = positional[0]
            if not isinstance(inner, Settings):
                raise Malformed(f"no config for {prefix.rstrip('.')}")
            other = library.family_of(inner.model_type)
            if other is None:
                raise NotCovered(f"no blueprint knows the model type {inner.model_type!r} of {inner.where}")
            part = other.auto_part(inner.model_type, positional[1] if len(positional) > 1 else None)
            if part is None:
                raise NotCovered(f"the blueprint of {inner.model_type} has no such model for {inner.where}")
            self.built.parts.append((prefix.rstrip("."), inner))
            inside = _Scope({}, inner)
            for name, argument in call.named:
                self._bind(name, argument, scope, inside)
            self.part(part, other, inside, prefix, depth=depth + 1)
            return
        if call.config is not None:
            settings = _compute(call.config, scope)
            if not isinstance(settings, Settings):
                raise Malformed(f"no config for {prefix.rstrip('.')}: {call.config.text} is null")
            self.built.parts.append((prefix.rstrip("."), settings))
        found = family.part(call.part)
        if found is None:
            raise Malformed(f"no part is called {call.part}")
        names = [name for name, _ in found.parameters]
        if len(call.positional) > len(names) or not {name for name, _ in call.named} <= set(names):
            raise Malformed(f"{call.part} takes {', '.join(names)}")
        inside = _Scope({}, settings)
        for name, argument in [*zip(names, call.positional, strict=False), *call.named]:
            self._bind(name, argument, scope, inside)
        self.part(found, family, inside, prefix, depth=depth + 1)

    def _bind(self, name: str, expression: Expr, scope: _Scope, target: _Scope) -> None:
        """Gives a name in `target` the value that an expression has in `scope`."""
        value = _compute(expression, scope)
        if self.forms:
            plain = isinstance(value, int) and not isinstance(value, bool)
            target.terms[name] = form(expression.text, scope.terms, scope.settings, value) if plain else _term(value)
        if self.traced:
            target.sources[name] = _fields(expression, scope)
        target.names[name] = value

    def _name(self, name: str, scope: _Scope) -> str:
        if "{" not in name:
            return name
        return "".join(part if isinstance(part, str) else str(_compute(part, scope)) for part in pieces(name))

    def _facts(self, call: Call, scope: _Scope) -> dict[str, Any]:
        return {name: _compute(value, scope) for name, value in call.named}

    def _shape(self, expression: Expr, scope: _Scope, name: str) -> tuple[int, ...]:
        shape = tuple(_compute(expression, scope))
        for size in shape:
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _LARGEST:
                said = "null" if size is None else repr(size)[:40]
                raise _named(f"{name} would have a dimension of {said}", expression, scope)
        if prod(shape) >= _MOST_ELEMENTS:
            raise _named(f"{name} would have {' x '.join(map(str, shape))} elements", expression, scope)
        return shape


def _term(value: Any) -> str:
    """What stands for a value in a formula: a config for its place, all else for itself."""
    return value.where or "config" if isinstance(value, Settings) else repr(value)


def _layer(prefix: str) -> str:
    """The numbered module that a prefix lies in: `model.layers.0` of `model.layers.0.self_attn.`."""
    path = prefix.rstrip(".")
    last = None
    for match in _INDEX.finditer(f".{path}"):
        last = match.end() - 1
    return path if last is None else path[:last]
