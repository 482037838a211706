"""Prefixes that a wrapper leaves before every name (`module.`, `_orig_mod.`, `base_model.model.`), and those that are
lost.

A checkpoint under such a prefix holds the whole model, and transformers loads nothing of it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from weighbridge.ledger import Ledger

_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
_MOST_WORDS = 4
_MOST_TRIED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """How the names of so many tensors begin, and how the class's begin."""

    stored: str
    config: str
    tensors: int

    def __str__(self) -> str:
        """What is wrong and how to mend it."""
        names = f"the names of {self.tensors:,} tensors"
        if not self.stored:
            return f"{names} lack {self.config!r} before them: from_pretrained does not add it, so rename them"
        if not self.config:
            return f"{names} begin with {self.stored!r}: from_pretrained does not take it off, so rename them without"
        return f"{names} begin with {self.stored!r} where the class has {self.config!r}: rename them"

    def gone(self, name: str) -> str:
        """The name as the class would have it."""
        return self.config + name.removeprefix(self.stored) if name.startswith(self.stored) else name


def candidates(loose: Collection[str], left: Collection[str]) -> list[Prefix]:
    """The changes of beginnings that explain most of the tensors that nothing explains, the likeliest first.

    `loose` are names of the files, `left` of the class.
    """
    by_end: defaultdict[str, set[str]] = defaultdict(set)
    for name in {_NUMBER.sub("#", name) for name in left}:
        for head, end in _cuts(name):
            by_end[end].add(head)
    found: Counter[tuple[str, str]] = Counter()
    for name, count in Counter(_NUMBER.sub("#", name) for name in loose).items():
        pairs = {(head, other) for head, end in _cuts(name) for other in by_end.get(end, ()) if head != other}
        found.update(dict.fromkeys(pairs, count))
    # Names that the class has merged or renamed have no counterpart: what begins them all is a prefix too.
    begins = [(head, "") for head in _common(loose)] + [("", head) for head in _common(left)]
    ranked = sorted(found, key=lambda pair: (-found[pair], len(pair[0]) + len(pair[1])))[:_MOST_TRIED]
    return [
        Prefix(stored=stored, config=config, tensors=sum(name.startswith(stored) for name in loose))
        for stored, config in dict.fromkeys(begins + ranked)
    ]


def without(ledger: Ledger, prefix: Prefix, loose: Collection[str]) -> Ledger:
    """The ledger with those names as the class would have them, and with them what serves them: scales of codes."""
    modules = {name.rpartition(".")[0] for name in loose}
    return ledger.renamed(
        {name: prefix.gone(name) for name in ledger.rows.names if name in loose or name.rpartition(".")[0] in modules}
    )


def _common(names: Collection[str]) -> list[str]:
    """The beginnings, of one word or of several, that all names share."""
    first = _cuts(_NUMBER.sub("#", next(iter(names)))) if names else []
    return [head for head, _ in first if head and all(name.startswith(head) for name in names)]


def _cuts(name: str) -> list[tuple[str, str]]:
    """(beginning, end) at each of the first words: no number stands in a prefix."""
    words = name.split(".")
    found = []
    for at in range(min(_MOST_WORDS, len(words) - 1) + 1):
        if "#" in words[:at]:
            break
        found.append(("".join(f"{word}." for word in words[:at]), ".".join(words[at:])))
    return found
