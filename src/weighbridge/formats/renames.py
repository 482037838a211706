"""Names of tensors in checkpoints, turned into those of today's classes: by the rules that transformers itself applies
when it loads them (data/renames.json).

A rule is scoped to the part of a model whose class it is of. Here it is tried at each level of a name, and believed
where it leads to a name that is looked for.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

_EVERYWHERE = "legacy"
_LEVELS = 6
_MOST_SEARCHES = 400  # a real model has fewer kinds of names
_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")  # of a layer or an expert, not the one in w1

_Way = tuple[tuple[int, int], ...]  # steps: (level of the name, which class's rules)


class _Class(msgspec.Struct):
    """Of a rule's (pattern, replacement) pairs the first that matches counts. A merge has the patterns of what is
    stored, and the names of what that becomes.
    """

    rules: list[list[tuple[str, str]]] = []
    merges: list[tuple[list[str], list[str]]] = []


class _File(msgspec.Struct):
    types: dict[str, list[_Class]]


@lru_cache(maxsize=1)
def _file() -> _File:
    raw = (Path(__file__).parent / "data" / "renames.json").read_bytes()
    return msgspec.json.decode(raw, type=_File)


class Renames:
    """The rules for models of some types."""

    def __init__(self, types: Iterable[str]) -> None:
        types = set(types)
        starts = tuple(f"{name}_" for name in types)  # parts that have a type of their own, and no config
        wanted = {name for name in _file().types if name.startswith(starts)}.union(types)
        self._classes = [one for name in [*sorted(wanted), _EVERYWHERE] for one in _file().types.get(name, ())]
        self._proven: dict[_Way, None] = {}
        self._searches = 0

    def renamed(self, names: Iterable[str], accepts: Callable[[str], bool]) -> dict[str, str]:
        """{stored name: today's} of the names for which that is accepted."""
        found: dict[str, str] = {}
        for members in _alike(names):
            way = next((way for way in self._ways() if accepts(self._gone(members[0], way))), None)
            if way is not None:
                self._proven[way] = None
                found |= {name: new for name in members if accepts(new := self._gone(name, way))}
        return found

    def merged(self, names: Iterable[str], accepts: Callable[[str], bool]) -> dict[str, tuple[str, ...]]:
        """{stored name: the tensors that it becomes a part of, or is cut into} where the first of these is accepted."""
        merges = [merge for one in self._classes for merge in one.merges]
        found: dict[str, tuple[str, ...]] = {}
        for members in _alike(names):
            self._searches += 1
            if self._searches > _MOST_SEARCHES:
                break
            how = next(
                (
                    (way, level, merge)
                    for way in ((), *self._proven, *self._steps())
                    for level in range(_LEVELS)
                    for merge in merges
                    if any(map(accepts, _merged(self._gone(members[0], way), level, merge)[:1]))
                ),
                None,
            )
            if how is not None:
                for name in members:
                    made = _merged(self._gone(name, how[0]), how[1], how[2])
                    if made and accepts(made[0]):
                        found[name] = made
        return found

    def _steps(self) -> list[_Way]:
        return [((level, at),) for level in range(_LEVELS) for at in range(len(self._classes))]

    def _ways(self) -> Iterator[_Way]:
        yield from list(self._proven)
        self._searches += 1
        if self._searches > _MOST_SEARCHES:
            return
        steps = self._steps()
        # A part's class has rules of its own, which see the name after those of the whole.
        for first in ((), *list(self._proven), *steps):
            yield from (first + step for step in steps if all(step[0][1] != at for _, at in first))

    def _gone(self, name: str, way: _Way) -> str:
        for level, at in way:
            head, last = _cut(name, level)
            for rule in self._classes[at].rules:
                for pattern, target in rule:
                    match = _compiled(pattern).search(last)
                    if match is not None:
                        last = last.replace(match[0], match.expand(target), 1)  # the first place alone
                        break
            name = head + last
        return name


def _merged(name: str, level: int, merge: tuple[list[str], list[str]]) -> tuple[str, ...]:
    """What a merge makes of a name, below some levels of it; nothing where it does not match."""
    head, last = _cut(name, level)
    for pattern in merge[0]:
        match = _compiled(pattern).search(last)
        if match is not None:
            return tuple(head + last.replace(match[0], match.expand(target), 1) for target in merge[1])
    return ()


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


@lru_cache(maxsize=4096)
def _compiled(source: str) -> re.Pattern[str]:
    pattern = source.replace("*.", r".*\.")
    # It ends where a name ends: `weight` is not the beginning of `weight_scale`.
    return re.compile(pattern + r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", pattern) else pattern)
