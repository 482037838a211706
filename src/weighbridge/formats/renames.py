"""Names of tensors in checkpoints, turned into those of today's classes: by the rules that transformers itself applies
when it loads them (data/renames.json).

A rule is scoped to the part of a model whose class it is of. Here it is tried at each level of a name, and believed
where it leads to a name that is looked for. After the rules, the base model's own prefix may come or go.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from weighbridge.formats.merging import Operation

_EVERYWHERE = "legacy"
_LEVELS = 6
_MOST_SEARCHES = 400  # a real model has fewer kinds of names
_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")  # of a layer or an expert, not the one in w1

_Way = tuple[tuple[int, int], ...]  # steps: (level of the name, which class's rules)


class Merge(msgspec.Struct, array_like=True, frozen=True):
    """What is stored by other patterns than it is built by, and what becomes of it in which order."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    steps: tuple[tuple[str | int, ...], ...]

    @property
    def operations(self) -> list[Operation]:
        """The steps as `merging` takes them."""
        return [(str(name), tuple(int(dim) for dim in dims)) for name, *dims in self.steps]


class _Class(msgspec.Struct):
    """Of a rule's (pattern, replacement) pairs the first that matches counts. `of` names the class where these are not
    for all classes of the type.
    """

    of: str | None = None
    rules: list[list[tuple[str, str]]] = []
    merges: list[Merge] = []


class _PassedOver(msgspec.Struct):
    """Patterns of the names that transformers does not tell."""

    missing: list[str] = []
    unexpected: list[str] = []


class _File(msgspec.Struct):
    types: dict[str, list[_Class]]
    parts: dict[str, list[str]]
    prefixes: dict[str, dict[str, str]]
    passed_over: dict[str, _PassedOver]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stored tensor as one of those that a merge takes. `source` is its pattern's place, `number` the expert's."""

    merge: Merge
    targets: tuple[str, ...]
    source: int
    number: int | None
    text: str  # what of its name the pattern matched

    def beside(self, name: str, source: int, number: int | None) -> str | None:
        """How another piece would be called where this one is called `name`; None where its pattern does not tell."""
        text = re.sub(r"\\(.)", r"\1", self.merge.sources[source])
        if self.text not in name or re.search(r"[()\[\]|+?^$]", text):
            return None
        return name.replace(self.text, text.replace("*", str(number)), 1)


@lru_cache(maxsize=1)
def _file() -> _File:
    raw = (Path(__file__).parent / "data" / "renames.json").read_bytes()
    return msgspec.json.decode(raw, type=_File)


class Renames:
    """The rules for models of some types."""

    def __init__(
        self,
        types: Iterable[str],
        names: Iterable[str],
        *,
        model_type: str | None = None,
        class_name: str | None = None,
    ) -> None:
        """`types` are all that a config speaks of, `names` those of its tensors, `model_type` and `class_name` those of
        the whole.
        """
        types = set(types)
        # Some parts have a type of their own, and no config.
        wanted = types.union(*(_file().parts.get(name, ()) for name in types))
        # The rules of the whole see every name first, and those for everyone see it last. Between them come those of
        # parts, which lie at levels that only the names tell.
        whole = _rules_of(model_type, class_name)
        parts = [one for name in sorted(wanted) for one in _file().types.get(name, ()) if one is not whole]
        self._first = [whole] if whole is not None else []
        self._classes = [*parts]
        self._last = _file().types[_EVERYWHERE]
        names = list(names)
        prefixes = _file().prefixes.get(model_type or "")
        prefix = prefixes.get(class_name or "", prefixes[""]) if prefixes is not None else _most_frequent_first(names)
        self._prefix = f"{prefix}." if prefix else ""
        self._passed_over = _file().passed_over.get(class_name or "", _PassedOver())
        self._modules = _modules(names, self._prefix)
        self._proven: dict[_Way, None] = {}
        self._searches = 0

    def missing_untold(self, name: str) -> bool:
        """Whether transformers does not tell that a tensor of its class is missing: it makes it anew."""
        return any(re.search(pattern, name) for pattern in self._passed_over.missing)

    def unexpected_untold(self, name: str) -> bool:
        """Whether transformers does not tell that a tensor of the files is unexpected: it is of use to others."""
        name = self._gone(name, ())  # the rules of the whole come first
        return any(re.search(pattern, name) for pattern in self._passed_over.unexpected)

    def renamed(self, names: Iterable[str], accepts: Callable[[str], bool]) -> dict[str, str]:
        """{stored name: today's} of the names for which that is accepted."""
        self._searches = 0
        found: dict[str, str] = {}
        for members in _alike(names):
            way = next((way for way in self._ways() if self._settled(self._gone(members[0], way), accepts)), None)
            if way is not None:
                self._proven[way] = None
                for name in members:
                    new = self._settled(self._gone(name, way), accepts)
                    if new is not None:
                        found[name] = new
        return found

    def _settled(self, name: str, accepts: Callable[[str], bool]) -> str | None:
        """The name that is accepted, with or without the base model's prefix."""
        return next((other for other in self._with_or_without(name) if accepts(other)), None)

    def _with_or_without(self, name: str) -> tuple[str, ...]:
        if not self._prefix:
            return (name,)
        other = name.removeprefix(self._prefix) if name.startswith(self._prefix) else None
        return (name, self._prefix + name) if other is None else (other, self._prefix + name, name)

    def merged(self, names: Iterable[str], accepts: Callable[[str], bool]) -> dict[str, Piece]:
        """{stored name: what it is a piece of} where the first tensor that it becomes a part of is accepted."""
        self._searches = 0
        merges = [(0, merge) for one in self._first for merge in one.merges]
        merges += [(level, merge) for one in self._classes for level in range(_LEVELS) for merge in one.merges]
        found: dict[str, Piece] = {}
        for members in _alike(names):
            self._searches += 1
            if self._searches > _MOST_SEARCHES:
                break
            how = next(
                (
                    (way, level, merge)
                    for way in ((), *self._proven, *self._steps())
                    for level, merge in merges
                    if self._piece(members[0], way, level, merge, accepts)
                ),
                None,
            )
            if how is not None:
                pieces = ((name, self._piece(name, *how, accepts)) for name in members)
                found |= {name: piece for name, piece in pieces if piece is not None}
        return found

    def _piece(self, name: str, way: _Way, level: int, merge: Merge, accepts: Callable[[str], bool]) -> Piece | None:
        """A name as a merge takes it, below some levels of it."""
        head, last = _cut(self._gone(name, way), level)
        if not self._is_module(head):
            return None
        for source, pattern in enumerate(merge.sources):
            match = _compiled(pattern).search(last)
            if match is None:
                continue
            made = [head + last.replace(match[0], _expanded(match, target), 1) for target in merge.targets]
            settled = self._settled(made[0], accepts)
            if settled is None:
                return None
            change = self._with_or_without(made[0]).index(settled)
            number = match.groupdict().get("number")
            if number is not None and not number.isdigit():
                return None
            return Piece(
                merge=merge,
                targets=tuple(self._with_or_without(one)[change] for one in made),
                source=source,
                number=None if number is None else int(number),
                text=match[0],
            )
        return None

    def _steps(self) -> list[_Way]:
        return [((level, at),) for level in range(_LEVELS) for at in range(len(self._classes))]

    def _ways(self) -> Iterator[_Way]:
        yield ()
        yield from list(self._proven)
        self._searches += 1
        if self._searches > _MOST_SEARCHES:
            return
        steps = self._steps()
        # A part's class has rules of its own, which see the name after those of the whole.
        for first in ((), *list(self._proven), *steps):
            yield from (first + step for step in steps if all(step[0][1] != at for _, at in first))

    def _is_module(self, head: str) -> bool:
        """Whether names begin so below a part of the class, with the base model's prefix or without."""
        return head.removeprefix(self._prefix) in self._modules or head in self._modules

    def _gone(self, name: str, way: _Way) -> str:
        for one in self._first:
            name = _ruled(name, one)
        for level, at in way:
            head, last = _cut(name, level)
            if self._is_module(head):
                name = head + _ruled(last, self._classes[at])
        for one in self._last:
            name = _ruled(name, one)
        return name


def _ruled(name: str, one: _Class) -> str:
    """The name after each rule of a class."""
    for rule in one.rules:
        for pattern, target in rule:
            match = _compiled(pattern).search(name)
            if match is not None:
                name = name.replace(match[0], _expanded(match, target), 1)  # the first place alone
                break
    return name


def _most_frequent_first(names: Iterable[str]) -> str:
    """The word that most names begin with: of a class that transformers does not know, the base model's prefix."""
    firsts = Counter(name.partition(".")[0] for name in names)
    word, count = firsts.most_common(1)[0] if firsts else ("", 0)
    return word if 2 * count > firsts.total() and not word.isdigit() else ""


def _modules(names: Iterable[str], prefix: str) -> set[str]:
    """Where parts may lie: the beginnings of names, with a dot behind, without the base model's prefix."""
    found = {""}
    for name in names:
        words = name.removeprefix(prefix).split(".")
        found.update("".join(f"{word}." for word in words[:level]) for level in range(1, min(_LEVELS, len(words))))
    return found


def _rules_of(model_type: str | None, class_name: str | None) -> _Class | None:
    """The rules of a class: its own, else those of its type."""
    rows = _file().types.get(model_type or "", ())
    own = [row for row in rows if row.of == class_name] or [row for row in rows if row.of is None]
    return own[0] if own else None


def _cut(name: str, level: int) -> tuple[str, str]:
    """(the first words with their dots, the rest)."""
    parts = name.split(".", level)
    if len(parts) <= level:
        return name, ""
    last = parts.pop()
    return "".join(f"{part}." for part in parts), last


def _alike(names: Iterable[str]) -> Iterable[list[str]]:
    """Names that differ in their numbers alone: they go the same way."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[_NUMBER.sub("#", name)].append(name)
    return alike.values()


def _expanded(match: re.Match[str], target: str) -> str:
    return match.expand(target) if "\\" in target else target  # parsing a template takes longer than matching


@lru_cache(maxsize=4096)
def _compiled(source: str) -> re.Pattern[str]:
    pattern = source.replace("*.", r"(?P<number>.*)\.", 1).replace("*.", r".*\.")
    # It ends where a name ends: `weight` is not the beginning of `weight_scale`.
    return re.compile(pattern + r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", pattern) else pattern)
