"""Where the blueprints lie, and which one speaks for a model type."""

import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

from weighbridge.formats.blueprints.language import Blueprint, Part, Statement, parse

FOLDER = Path(__file__).parent / "families"
STANDARD = "standard"  # the parts that every family may use
_NAME = re.compile(r"[A-Za-z0-9_]{1,60}")
_TYPES = re.compile(r"^type (.+?) as ([\w, ]+?)(?: base \w+)?(?: usual \w+)?:?$", re.MULTILINE)


class Family:
    """A blueprint with those it uses. A part is looked up here first, then where this file's `use` points, then among
    the standard ones: a family overrides single parts of another, as a subclass does.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        self.types = blueprint.types
        self.line = _line(blueprint)
        self._parts = {name: part for one in reversed(self.line) for name, part in one.parts.items()}
        self._telling: dict[str, bool] = {}
        self._wanted: dict[int, bool] = {}

    def part(self, name: str) -> Part | None:
        """The part of that name."""
        return self._parts.get(name)

    def wanted(self, statement: Statement) -> bool:
        """Whether a statement counts where facts alone are wanted: one below it tells a fact, or names a value."""
        key = id(statement)  # statements live as long as the parsed file
        if key not in self._wanted:
            self._wanted[key] = statement.kind in ("let", "require", "demand") or self._tells(statement, self.wanted)
        return self._wanted[key]

    def _tells(self, statement: Statement, inner: Callable[[Statement], bool]) -> bool:
        if statement.kind in ("attends", "routes", "freeze"):
            return True
        if statement.call is not None and self._part_tells(statement.call.part):
            return True
        return any(map(inner, (*statement.body, *statement.otherwise)))

    def _part_tells(self, name: str) -> bool:
        """Whether a part tells facts. A model of another type, or a part within itself, may."""
        part = self.part(name)
        if name not in self._telling:
            self._telling[name] = True
            self._telling[name] = part is None or any(map(self._says, part.body))
        return self._telling[name]

    def _says(self, statement: Statement) -> bool:
        return self._tells(statement, self._says)

    def class_part(self, model_type: str, class_name: str | None) -> tuple[str, Part | None]:
        """(name, part) of a class of that model type; of the usual one when none is named."""
        kind = self.types[model_type]
        aliases = {s.name: str(s.dtype) for s in kind.body if s.kind == "alias"}
        if class_name is None:
            usual = kind.usual or ("ForCausalLM" if self.part("ForCausalLM") else kind.base)
            if usual not in aliases:
                return kind.prefix + usual, self.part(usual)
            class_name = usual
        if class_name in aliases:
            return class_name, self.part(aliases[class_name])
        if class_name.startswith(kind.prefix):
            return class_name, self.part(class_name.removeprefix(kind.prefix))
        return class_name, None

    def auto_part(self, model_type: str, end: str | None) -> Part | None:
        """The base model of that type, or its class with that ending."""
        return self.part(end or self.types[model_type].base)

    def classes(self, model_type: str) -> list[str]:
        """The classes that the blueprint knows of a type, most usual first."""
        kind = self.types[model_type]
        ends = dict.fromkeys(
            [name for one in self.line for name in one.parts if name.startswith("For") or name.endswith("Model")]
        )
        return [kind.prefix + end for end in ends]


def _line(blueprint: Blueprint) -> list[Blueprint]:
    found = [blueprint]
    for used in blueprint.uses:
        found += [one for one in _line(_parsed(used)) if one not in found]
    return found if blueprint.name == STANDARD else [*(one for one in found if one.name != STANDARD), _parsed(STANDARD)]


@cache
def _text(name: str) -> str:
    return (FOLDER / f"{name}.blueprint").read_text("utf-8")


@cache
def _parsed(name: str) -> Blueprint:
    return parse(_text(name), name)


@lru_cache(maxsize=1)
def _files() -> dict[str, str]:
    """{model type: file}, from the `type` lines alone."""
    found = {}
    for path in sorted(FOLDER.glob("*.blueprint")):
        found |= dict.fromkeys(_types_in(path.stem), path.stem)
    return found


def types() -> list[str]:
    """Every model type that a blueprint knows."""
    return list(_files())


@cache
def family_of(model_type: str) -> Family | None:
    """The family that speaks for a model type."""
    name = _named(model_type) or _files().get(model_type)
    return None if name is None else Family(_parsed(name))


def _named(model_type: str) -> str | None:
    """The file of that type where it is called like it, or like its beginning: reading one file beats reading all."""
    stem = model_type.replace("-", "_")
    while stem and _NAME.fullmatch(stem):
        if (FOLDER / f"{stem}.blueprint").is_file() and model_type in _types_in(stem):
            return stem
        stem = stem.rpartition("_")[0]
    return None


def _types_in(name: str) -> list[str]:
    return [kind.strip() for kinds, _ in _TYPES.findall(_text(name)) for kind in kinds.split(",")]


def type_of_class(class_name: str) -> str | None:
    """The model type whose classes are called like that: one whose usual class it is, else the longest prefix."""
    found = []
    for name in dict.fromkeys(_files().values()):
        if not _may_have(name, class_name):
            continue
        family = Family(_parsed(name))
        for kind in family.types.values():
            if class_name.startswith(kind.prefix) and family.class_part(kind.name, class_name)[1] is not None:
                found.append((family.class_part(kind.name, None)[0] != class_name, -len(kind.prefix), kind.name))
    # Of several types alike in both, the first by file: the family's own.
    return min(found, key=lambda one: one[:2])[2] if found else None


def _may_have(name: str, class_name: str) -> bool:
    """Whether a file has a prefix of that class, from its `type` lines alone: parsing all files takes long."""
    prefixes = [prefix.strip() for _, listed in _TYPES.findall(_text(name)) for prefix in listed.split(",")]
    return any(map(class_name.startswith, prefixes))
