"""A config as the class of its model type sees it: what is given, other names of it, defaults, derived fields."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from weighbridge.formats.blueprints.kinds import below_zero, fits, plain, wanted
from weighbridge.formats.blueprints.values import Fields, shown
from weighbridge.ledger.errors import Malformed, Unknown

_MOST_LABELS = 1 << 24
_WHOLE = re.compile(r"-?\d+")
_SIZE = re.compile(r"(num|n)_.*|.*(size|dim|layers|heads?|rank|experts|width|depth|window)")
_NEEDED = re.compile(
    r"((en|de)coder_)?(hidden_size|d_model|n_embd|embed_dim|vocab_size|head_dim|patch_size)"
    r"|((en|de)coder_)?(num_)?(attention_|key_value_)?heads|n_heads?"
)
_SHARE = re.compile(r".*(dropout|drop|drop_path|pdrop)(_(prob|rate|p))?")  # of values that training leaves out
_DATA = Path(__file__).parents[1] / "data" / "configs.json"


class Class(msgspec.Struct, frozen=True):
    """What a config class fills in and demands.

    `parts` are its sub-configs, `kinds` what values a field takes where its default does not tell, `refused` the
    conditions under which the class refuses a config, `activations` the fields whose words are looked up among the
    activations. `input` is what its model takes in first, such as `pixel_values`; `own_kinds` says that the class has
    kinds of layers of its own.
    """

    defaults: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    yielding: set[str] = set()  # aliases that the class declares as fields too: where both are stated, the target wins
    kinds: dict[str, str] = {}
    refused: list[str] = []
    activations: list[str] = []
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
    activations: list[str]


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
        self._by_alias = {aliases[name]: name for name in given if name in aliases}
        self._own = {name: value for name, value in given.items() if name not in aliases}
        self._derived: dict[str, Any] = {}
        self._sources: dict[str, list[str]] = {}
        self._read: set[str] = set()
        self._layered = self._by_layer(given.get("per_layer_config"))
        self._layered_read: set[str] = set()
        self._check_kinds()
        self._check_labels()
        derive(self)
        asked = set(self._read)
        self._check_layers()
        self._check_activations()
        self._read = asked  # what is only checked is not what a model is built from
        for name in self._class.parts:  # what is wrong in a part is refused, whoever reads it
            self.part(name)

    def _by_layer(self, stated: Any) -> dict[int, Mapping[str, Any]] | None:
        """{layer: fields that it has for itself}; None where the config leaves that to its class."""
        if stated is None:
            return None
        sound = isinstance(stated, Mapping) and all(
            _WHOLE.fullmatch(str(layer)) and isinstance(fields, Mapping) for layer, fields in stated.items()
        )
        if not sound:
            raise Malformed(f"{self.path('per_layer_config')} is no object of layers with an object of fields each")
        return {int(layer): fields for layer, fields in stated.items()}

    def of_layer(self, name: str, layer: int, otherwise: Any) -> Any:
        """A field of one layer: as `per_layer_config` has it, where that leaves it out as the config itself has it;
        `otherwise` where there is none.
        """
        self._layered_read.add(name)
        if self._layered is None:
            return otherwise
        self._read.add("per_layer_config")
        fields = self._layered.get(layer, {})
        return fields[name] if name in fields else self.read(name)

    @property
    def unread_of_layers(self) -> list[str]:
        """Fields that layers have for themselves and that nobody asked for."""
        own = {name for fields in (self._layered or {}).values() for name in fields} - self._layered_read
        inner = (path for part in self._parts.values() if part is not None for path in part.unread_of_layers)
        return [*(f"{self.path('per_layer_config')}.{name}" for name in sorted(own)), *inner]

    def _check_kinds(self) -> None:
        """Each field's value is of a kind that its class takes, and of a size that can be: transformers refuses others,
        or builds what nobody means.
        """
        for name, value in self._given.items():
            if name in self._class.parts:
                continue
            default = self._class.defaults.get(name)
            kind = self._class.kinds.get(name) or plain(default)
            if kind and not fits(value, kind):
                raise Malformed(f"{self.path(name)} is {shown(value)}", fix=f"it should be {wanted(kind)}")
            size = default or (isinstance(value, int) and _SIZE.fullmatch(name))
            if kind and size and below_zero(value) and not below_zero(default):
                raise Malformed(f"{self.path(name)} is {shown(value)}", fix="it should not be below zero")
            if value == 0 != default and kind and not isinstance(value, bool) and _NEEDED.fullmatch(name):
                raise Malformed(f"{self.path(name)} is 0", fix="it should be 1 or more")
            if _SHARE.fullmatch(name) and isinstance(value, (int, float)) and not 0 <= value <= 1:
                raise Malformed(f"{self.path(name)} is {shown(value)}", fix="it should be between 0 and 1")

    def _check_labels(self) -> None:
        """There is a name for each label, and a label for each name."""
        labels = self._given.get("id2label")
        if labels is not None and not (isinstance(labels, Mapping) and all(map(_WHOLE.fullmatch, map(str, labels)))):
            raise Malformed(
                f"{self.path('id2label')} is {shown(labels)}", fix="it should be an object of numbers to names"
            )
        count = self._given.get("num_labels", 2)
        if not fits(count, "int") or not 0 <= count <= _MOST_LABELS:
            raise Malformed(
                f"{self.path('num_labels')} is {shown(count)}",
                fix=f"it should be a whole number between 0 and {_MOST_LABELS:,}",
            )

    def _check_activations(self) -> None:
        for name in self._class.activations:
            word = self.read(name)
            if isinstance(word, str) and word not in _file().activations:
                raise Malformed(
                    f"{self.path(name)} is {shown(word)}, no activation that transformers knows",
                    fix=f"did you mean {' or '.join(near)}?"
                    if (near := difflib.get_close_matches(word, _file().activations, n=2))
                    else "name one, such as silu or gelu",
                )

    def _check_layers(self) -> None:
        """The kinds of layers that the config lists are some that transformers knows, one for each layer: others would
        be counted as any other layer.
        """
        layers = self.read("num_hidden_layers") if self.has("num_hidden_layers") else None
        if self._class.own_kinds or not self._class.defaults or not isinstance(layers, int):
            return
        for name in _file().allowed:
            kinds = self.read(name) if self.has(name) else None
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

    def path(self, name: str) -> str:
        """The field's full name, for messages: as the config calls it, where it states it."""
        name = self._class.aliases.get(name, name)
        name = self._by_alias.get(name, name)
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
        """The fields that the config's class has, and the aliases of such."""
        aliases = (name for name in self._class.aliases if self.knows(name))
        return [*self._class.defaults, *self._class.parts, *aliases, *_file().base]

    def set(self, name: str, value: Any, sources: Iterable[str] = ()) -> None:
        """Gives a field a value that is derived from the fields `sources`."""
        name = self._class.aliases.get(name, name)
        self._derived[name] = value
        self._sources[name] = [one for one in sources if one != name]

    def sources(self, name: str) -> list[str]:
        """The fields that a derived field was computed from."""
        return self._sources.get(self._class.aliases.get(name, name), [])

    def given(self, name: str) -> bool:
        """Whether the config itself states the field, other than as null."""
        return self._given.get(self._class.aliases.get(name, name)) is not None

    def aliased(self, name: str) -> bool:
        """Whether the config states the field under an alias: some classes derive from it before the alias is read."""
        return name in self._by_alias

    def early(self, name: str) -> Any:
        """The field as its class sees it before it reads aliases: some classes derive others from it by then."""
        return self._own[name] if name in self._own else self._class.defaults.get(name)

    def _labels(self) -> int:
        stated, labels = self._given.get("num_labels"), self._given.get("id2label")
        if stated is not None:
            return stated
        return 2 if labels is None else len(labels)

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

    @property
    def refused(self) -> list[str]:
        """The conditions under which the config's class refuses it."""
        return self._class.refused

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
    "early()": lambda settings: settings.early,
    "activations()": lambda settings: lambda: _file().activations,
    "get()": _get,
    "of_layer()": lambda settings: settings.of_layer,
    "config()": _made,
    "filled()": lambda settings: settings.filled,
    "here()": lambda settings: lambda: settings,
    "fields()": lambda settings: settings.handed_on,
}
