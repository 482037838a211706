"""A config as the class of its model type sees it: what is given, other names of it, defaults, derived fields."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from weighbridge.formats.blueprints.values import Fields
from weighbridge.ledger.errors import Malformed, Unknown

_WORDS_TOO = {"autoformer.scaling", "laguna.gating"}  # fields that are a truth value or a word
_DATA = Path(__file__).parents[1] / "data" / "configs.json"


class Class(msgspec.Struct, frozen=True):
    """What a config class fills in and demands: `parts` are its sub-configs, in `multiples` the first field must be a
    multiple of the second. `input` is what its model takes in first, such as `pixel_values`; `own_kinds` says that the
    class has kinds of layers of its own.
    """

    defaults: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    yielding: set[str] = set()  # aliases that the class declares as fields too: where both are stated, the target wins
    multiples: list[tuple[str, str]] = []
    parts: dict[str, "SubConfig"] = {}
    input: str | None = None
    own_kinds: bool = False


class SubConfig(msgspec.Struct, frozen=True):
    """The class of a sub-config: `auto` where the sub-config may state another type."""

    type: str
    auto: bool = False
    optional: bool = False
    fields: dict[str, Any] = {}


class _File(msgspec.Struct):
    types: dict[str, msgspec.Raw]
    base: dict[str, Any]
    left_out: str
    layer_types: dict[str, str]
    allowed: dict[str, list[str]]


@lru_cache(maxsize=1)
def _file() -> _File:
    return msgspec.json.decode(_DATA.read_bytes(), type=_File)


@lru_cache(maxsize=64)
def class_of(model_type: str) -> Class | None:
    """What the config class of a model type fills in; None for a type that the table does not list."""
    raw = _file().types.get(model_type)
    if raw is None:
        return None
    found = msgspec.json.decode(raw, type=Class)
    # A class may declare a field under a name that it takes for an alias of another.
    order = list(found.defaults)
    for name in [name for name in order if name in found.aliases]:
        target, value = found.aliases[name], found.defaults.pop(name)
        if target in order[order.index(name) :]:  # set after its alias: what the alias says is lost
            del found.aliases[name]
        else:
            found.yielding.add(name)
        found.defaults.setdefault(target, value)
    return found


def known_types() -> list[str]:
    """Every model type that the table of config classes lists."""
    return list(_file().types)


Derive = Callable[["Settings"], None]


class Settings(Fields):
    """A config's fields, by the names that its class gives them.

    `where` is the path of a sub-config, for messages. Which fields were read is kept.
    """

    def __init__(self, given: Mapping[str, Any], *, model_type: str, where: str = "", derive: Derive) -> None:
        found = class_of(model_type)
        self.model_type = model_type
        self.where = where
        self._class = found or Class()
        self._derive = derive
        self._parts: dict[str, Settings | None] = {}
        self._given: dict[str, Any] = {}
        aliases = self._class.aliases
        # Where a config states a field and an alias of it, transformers sets the alias last: it wins.
        self._given |= {name: value for name, value in given.items() if name not in aliases}
        stated = {aliases[name]: value for name, value in given.items() if name in aliases}
        yields = {aliases[name] for name in self._class.yielding}
        self._given |= {name: value for name, value in stated.items() if not (name in yields and name in given)}
        self._by_alias = set(stated)
        self._derived: dict[str, Any] = {}
        self._read: set[str] = set()
        if given.get("per_layer_config") is not None:
            raise Unknown(f"{self.path('per_layer_config')} is not understood")
        self._check_kinds()
        derive(self)
        self._check_layers()
        self._check_multiples()

    def _check_kinds(self) -> None:
        for name, value in self._given.items():
            default = type(self._class.defaults.get(name))
            if isinstance(value, bool) and default is int:
                raise Malformed(f"{self.path(name)} is {str(value).lower()}", fix="it should be a whole number")
            if isinstance(value, str) and default is bool and f"{self.model_type}.{name}" not in _WORDS_TOO:
                raise Malformed(f"{self.path(name)} is {value[:40]!r}", fix="it should be true or false")

    def _check_layers(self) -> None:
        """The kinds of layers that the config lists are some that transformers knows, one for each layer: others would
        be counted as any other layer.
        """
        layers = self.read("num_hidden_layers") if self.has("num_hidden_layers") else None
        if self._class.own_kinds or not self._class.defaults or not isinstance(layers, int):
            return
        for name in _file().allowed:
            kinds = self.read(name) if self._given.get(name) is not None else None
            if not isinstance(kinds, list):
                continue
            if len(kinds) != layers:
                raise Malformed(
                    f"{self.path(name)} has {len(kinds):,} entries, {self.path('num_hidden_layers')} is {layers:,}",
                    fix="give one for each layer",
                )
            for at, kind in enumerate(kinds):
                if kind not in _file().allowed[name]:
                    raise Malformed(
                        f"{self.path(name)}[{at}] is {str(kind)[:40]!r}",
                        fix=f"it should be one of {', '.join(_file().allowed[name])}",
                    )

    def _check_multiples(self) -> None:
        for name, of in self._class.multiples:
            value, divisor = self.read(name), self.read(of)
            if isinstance(value, int) and isinstance(divisor, int) and divisor > 0 and value % divisor:
                raise Malformed(
                    f"{self.path(name)} is {value:,}, which {self.path(of)}, {divisor:,}, does not divide",
                    fix="correct either; transformers refuses such a config too",
                )

    def path(self, name: str) -> str:
        """The field's full name, for messages."""
        return f"{self.where}.{name}" if self.where else name

    # Reading ---------------------------------------------------------------------------------------------------------

    def read(self, name: str, /) -> Any:
        """The value of a field, or one of the functions that expressions call.

        Raises:
            Unknown: neither the config nor its class states it.
        """
        if name.endswith("()"):
            return _FUNCTIONS[name](self)
        name = self._class.aliases.get(name, name)
        self._read.add(name)
        if name in self._derived:
            return self._derived[name]
        if name == "model_type":
            return self.model_type
        if name == "num_labels":
            return self._labels()
        if name in self._class.parts:
            return self.part(name)
        for source in (self._given, self._class.defaults, _file().base):
            if name in source:
                value = source[name]
                if name.endswith(("layer_types", "layers_block_type")) and isinstance(value, list):
                    remap = _file().layer_types
                    return [remap.get(kind, kind) if isinstance(kind, str) else kind for kind in value]
                return value
        raise Unknown(f"{self.path(name)} is not stated")

    def has(self, name: str) -> bool:
        """Whether the field is stated by anybody, null included."""
        name = self._class.aliases.get(name, name)
        return any(
            name in source
            for source in (self._derived, self._given, self._class.defaults, self._class.parts, _file().base)
        )

    def knows(self, name: str) -> bool:
        """Whether the config's class has such a field, or something that was built asked for one."""
        name = self._class.aliases.get(name, name)
        known = (self._class.defaults, self._class.parts, _file().base, self._read, ("model_type", "num_labels"))
        return any(name in names for names in known) or re.fullmatch(_file().left_out, name) is not None

    def fields(self) -> list[str]:
        """The fields and aliases that the config's class has."""
        return [*self._class.defaults, *self._class.parts, *self._class.aliases, *_file().base]

    def set(self, name: str, value: Any) -> None:
        """Gives a field a derived value."""
        self._derived[self._class.aliases.get(name, name)] = value

    def given(self, name: str) -> bool:
        """Whether the config itself states the field, other than as null."""
        return self._given.get(self._class.aliases.get(name, name)) is not None

    def aliased(self, name: str) -> bool:
        """Whether the config states the field under an alias: some classes derive from it before the alias is read."""
        return name in self._by_alias

    def _labels(self) -> int:
        stated, labels = self._given.get("num_labels"), self._given.get("id2label")
        if stated is not None:
            return stated
        return len(labels) if isinstance(labels, (dict, list)) else 2

    # Sub-configs -----------------------------------------------------------------------------------------------------

    def part(self, name: str) -> "Settings | None":
        """A sub-config; None where it is optional and absent."""
        if name not in self._parts:
            spec = self._class.parts[name]
            self._parts[name] = self._sub(name, self._given.get(name), spec)
        return self._parts[name]

    def sub(self, name: str, model_type: str) -> None:
        """Declares a field to be a sub-config of that type, which it may override by its own `model_type`."""
        if not isinstance(self._derived.get(name), Settings):
            value = self.read(name) if self.has(name) else None
            self._derived[name] = self._sub(name, value, SubConfig(type=model_type, auto=True))

    def _sub(self, name: str, value: Any, spec: SubConfig) -> "Settings | None":
        if value is None and spec.optional:
            return None
        if value is not None and not isinstance(value, Mapping):
            raise Malformed(f"{self.path(name)} is no object")
        model_type, fields = spec.type, dict(spec.fields) if value is None else dict(value)
        if spec.auto and fields.get("model_type"):
            if not isinstance(fields["model_type"], str):
                raise Malformed(f"{self.path(name)}.model_type is no text")
            model_type = fields["model_type"]
        return Settings(fields, model_type=model_type, where=self.path(name), derive=self._derive)

    def filled(self, name: str) -> "Settings | None":
        """A sub-config whose absent fields are those that stand for it where it is absent altogether."""
        spec, value = self._class.parts[name], self._given.get(name)
        return self._sub(name, {**spec.fields, **value} if isinstance(value, Mapping) else value, spec)

    def made(self, model_type: str, fields: Mapping[str, Any], name: str = "") -> "Settings":
        """A sub-config of that type with these fields."""
        return Settings(
            fields, model_type=model_type, where=self.path(name) if name else self.where, derive=self._derive
        )

    @property
    def stated(self) -> Mapping[str, Any]:
        """The fields that the config itself states."""
        return self._given

    def handed_on(self) -> dict[str, Any]:
        """All that the config states, for a sub-config that is made of it: who knows which it reads."""
        self._read |= self._given.keys()
        return dict(self._given)

    # As a mapping ----------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.has(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def _get(settings: Settings) -> Callable[..., Any]:
    return lambda name, otherwise=None: settings.read(name) if settings.has(name) else otherwise


def _made(settings: Settings) -> Callable[..., Settings]:
    def make(model_type: str, *pairs: Any) -> Settings:
        if len(pairs) == 1 and isinstance(pairs[0], Mapping):
            return settings.made(model_type, dict(pairs[0]))
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise Malformed(f"{settings.where or 'config.json'}: {str(pair)[:40]!r} where an object is needed")
        return settings.made(model_type, {pair[0]: pair[1] for pair in pairs})

    return make


_FUNCTIONS: dict[str, Callable[[Settings], Any]] = {
    "given()": lambda settings: settings.given,
    "has()": lambda settings: settings.has,
    "aliased()": lambda settings: settings.aliased,
    "get()": _get,
    "config()": _made,
    "filled()": lambda settings: settings.filled,
    "here()": lambda settings: lambda: settings,
    "fields()": lambda settings: settings.handed_on,
}
