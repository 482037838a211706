"""A checkpoint against its own config.json: what the files lack, what the config does not explain, what has another
shape.

The first thing to run on a broken download: files that are missing or damaged do not stop it, they are part of the
answer.

Checkpoints seldom use the very names that the class uses today: prefixes come and go, experts are stored one by one or
stacked, projections apart or fused. Names are matched in this order: as they are; as transformers renames them when it
loads (`renames`); without the words that only say "the model" (`model.`, `language_model.`); and as it merges and
splits them, element for element. What none of these explains is missing here and unexpected there.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from weighbridge.formats.renames import Renames
from weighbridge.ledger import Ledger
from weighbridge.ledger.families import TIED_COPIES
from weighbridge.ledger.report import Block, Line, Report, Table, Title

_PACKED_LEAVES = {"qweight": "weight", "weight_packed": "weight", "W_q": "weight", "_weight_qdata": "weight"}
_OLD_LEAVES = {"gamma": "weight", "beta": "bias"}
# Words that name no place in a model of their own.
_EMPTY_WORDS = frozenset({"model", "language_model", "module", "base_model", "transformer", "text_model", "_orig_mod"})
_NUMBER = re.compile(r"\d+")
_LAYER = re.compile(r"^(.*?\.?\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_COMPUTED = ("inv_freq", "position_ids", "masked_bias")  # by the class itself, from the config
_MOST_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor of the files, as the ledger understands it."""

    name: str
    shape: tuple[int, ...]
    elements: int
    kind: str
    packed: bool


@dataclass(slots=True, kw_only=True)
class Comparison:
    """What came of it. Names are the config's where both have one."""

    matched: int = 0
    missing: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unexpected: dict[str, tuple[int, ...]] = field(default_factory=dict)
    wrong_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    otherwise: list[tuple[str, int, int, int]] = field(default_factory=list)  # (layer, expected, stored, elements)
    missing_experts: dict[str, list[int]] = field(default_factory=dict)
    buffers_missing: list[str] = field(default_factory=list)
    buffers_unexpected: list[str] = field(default_factory=list)
    extras: Mapping[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the files hold just what the config describes."""
        return not (self.missing or self.unexpected or self.wrong_shape or self.missing_experts or self.problems)


def compare(
    expected: Ledger, stored: Ledger | None, problems: Sequence[str], *, types: Iterable[str] = ()
) -> Comparison:
    """What the files hold against what the config describes. `problems` are files that could not be read, `types` the
    model types that the config speaks of.
    """
    found = Comparison(problems=list(problems))
    state = {t.name: t for t in expected.tensors if t.kind == "buffer"}
    wanted = {t.name: t.shape for t in expected.tensors if t.kind == "parameter"}
    # Running statistics and codebooks are not learned, and cannot be made anew either: a model needs them as they are.
    wanted |= {name: t.shape for name, t in state.items() if t.dtype.kind == "float" and not name.endswith(_COMPUTED)}
    buffers = {name: t.shape for name, t in state.items() if name not in wanted}
    held = _stored(stored, found, wanted) if stored is not None else []
    words = _EMPTY_WORDS | _top_words(wanted)
    # A checkpoint may hold the base model under its prefix, where the class at hand has none, or the other way round.
    words |= _top_words(one.name for one in held)
    found.buffers_missing = _without(buffers, {one.name for one in held}, words)
    renames = Renames(types)
    ties = expected.ties
    matched = _matched({**wanted, **buffers, **dict.fromkeys(ties)}, held, words, renames)
    # Any of the names of a tied tensor stands for it, once.
    hit = set(matched.values())
    for name, copy in matched.items():
        original = ties.get(copy)
        if original is not None and original not in hit:
            matched[name] = original
            hit.add(original)
    loose: list[Stored] = []
    whole: list[str] = []
    seen = set()
    for one in held:
        name = matched.get(one.name)
        if name in ties:
            continue
        if name is None:
            if one.kind == "buffer":
                found.buffers_unexpected.append(one.name)
            else:
                loose.append(one)
            continue
        seen.add(name)
        shape = wanted.get(name, buffers.get(name, ()))
        if name in buffers:
            continue
        if (one.shape != shape and not one.packed) or one.elements != prod(shape):
            found.wrong_shape[name] = (shape, one.shape)
        else:
            found.matched += 1
            whole += [one.name] if one.kind == "buffer" and name not in state else []
    if whole:
        found.problems.append(f"{len(whole):,} weights hold whole numbers that are no codes, {whole[0]} first")
    left = {name: shape for name, shape in wanted.items() if name not in seen}
    loose = _merged(left, loose, found, renames)
    found.missing |= left
    found.unexpected |= {one.name: one.shape for one in loose}
    return found


def _stored(ledger: Ledger, found: Comparison, wanted: Mapping[str, object]) -> list[Stored]:
    held = []
    found.extras = ledger.extras
    found.problems += _oddities(ledger)
    for family in ledger.families:
        # What looks like a copy of an embedding may be a head of the class's own.
        if family.extra is not None and not (family.extra == TIED_COPIES and family.first.name in wanted):
            continue
        packed = family.elements != prod(family.shape) or family.dtype.kind not in ("float", "complex")
        held += [
            Stored(name=name, shape=family.shape, elements=family.elements, kind=family.kind, packed=packed)
            for name in family.names
        ]
    return held


def _oddities(ledger: Ledger) -> Iterator[str]:
    """What no name or shape shows: tensors that lie there twice, codes without scales."""
    twice = [name for name, count in Counter(ledger.rows.names).items() if count > 1]
    if twice:
        yield f"{len(twice):,} tensors lie in several files, {twice[0]} first"
    method = ledger.architecture.quantization
    weights = [family for family in ledger.parameters if not family.bias]
    if method == "fp8":
        scaled = {name.rpartition(".")[0] for family in ledger.families if family.extra for name in family.names}
        codes = [name for family in weights if family.dtype.name.startswith("F8") for name in family.names]
        bare = [name for name in codes if name.rpartition(".")[0] not in scaled]
        if bare:
            yield f"{len(bare):,} weights in FP8 have no scale beside them, {bare[0]} first"


def _top_words(names: Iterable[str]) -> frozenset[str]:
    """The base model's own prefix (`bert.`, `vit.`): the first word of nearly every name."""
    firsts: defaultdict[str, int] = defaultdict(int)
    total = 0
    for name in names:
        firsts[name.partition(".")[0]] += 1
        total += 1
    return frozenset(word for word, count in firsts.items() if count * 2 > total and not word.isdigit())


def _bare(name: str, words: frozenset[str]) -> str:
    """The name without words that only say "the model", and with today's leaf names."""
    return ".".join(part for part in _packed(name).split(".") if part not in words)


def _packed(name: str) -> str:
    """The name of the weight that a leaf of codes stands for."""
    head, dot, leaf = name.rpartition(".")
    return head + dot + _PACKED_LEAVES.get(leaf, _OLD_LEAVES.get(leaf, leaf)).removesuffix("_blocks")


def _matched(
    wanted: Mapping[str, object], held: Sequence[Stored], words: frozenset[str], renames: Renames
) -> dict[str, str]:
    """{stored name: the config's name}, one to one."""
    found = {one.name: one.name for one in held if one.name in wanted}
    taken = set(found)
    loose = [one.name for one in held if one.name not in found]
    for name, new in renames.renamed(loose, lambda new: new in wanted and new not in taken).items():
        if new not in taken:
            found[name] = new
            taken.add(new)
    by_bare: defaultdict[str, list[str]] = defaultdict(list)
    for name in wanted:
        if name not in taken:
            by_bare[_bare(name, words)].append(name)
    mine: defaultdict[str, list[str]] = defaultdict(list)
    for one in held:
        if one.name not in found:
            mine[_bare(one.name, words)].append(one.name)
    for bare, names in mine.items():
        others = by_bare.get(bare, [])
        if len(names) == len(others) == 1:
            found[names[0]] = others[0]
    return found


def _without(buffers: Mapping[str, object], held: set[str], words: frozenset[str]) -> list[str]:
    bare = {_bare(name, words) for name in held}
    return [name for name in buffers if name not in held and _bare(name, words) not in bare]


def _merged(
    left: dict[str, tuple[int, ...]], loose: Sequence[Stored], found: Comparison, renames: Renames
) -> list[Stored]:
    """What is stored in other pieces: fused, split or stacked. What that does not explain comes back."""
    bare = {one.name: _packed(one.name) for one in loose}
    goes = renames.merged(bare.values(), lambda name: name in left)
    groups: defaultdict[tuple[str, ...], list[Stored]] = defaultdict(list)
    for one in loose:
        if bare[one.name] in goes:
            groups[goes[bare[one.name]]].append(one)
    taken: set[str] = set()
    for targets, ours in groups.items():
        expected = {name: left[name] for name in targets if name in left}
        elements = sum(map(prod, expected.values()))
        if elements == sum(one.elements for one in ours):
            found.otherwise.append((_layer(targets[0]), len(expected), len(ours), elements))
        elif gaps := _gaps(expected, ours):
            layer = _layer(targets[0])
            found.missing_experts[layer] = sorted({*gaps, *found.missing_experts.get(layer, [])})
        else:
            continue
        taken.update(one.name for one in ours)
        for name in expected:
            del left[name]
    return [one for one in loose if one.name not in taken]


def _layer(name: str) -> str:
    match = _LAYER.match(name)
    return match[1] if match else ""


def _gaps(expected: Mapping[str, tuple[int, ...]], ours: Sequence[Stored]) -> list[int]:
    """Experts that the files lack, where they store them one by one and the config stacks them."""
    counts = {shape[0] for name, shape in expected.items() if ".experts." in name and len(shape) >= 3}
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for one in ours:
        match = _EXPERT.search(one.name)
        if match is not None:
            numbers[one.name[match.end() :]].add(int(match[1]))
    if len(counts) != 1 or not numbers:
        return []
    every = set(range(counts.pop()))
    return sorted({number for found in numbers.values() for number in every - found})


def report(found: Comparison, *, signature: str, source: str, built: object) -> Report:
    """The comparison as a report; its data is under `compare`."""
    data = {
        "complete": found.complete,
        "matched": found.matched,
        "missing": {name: list(shape) for name, shape in found.missing.items()},
        "unexpected": {name: list(shape) for name, shape in found.unexpected.items()},
        "wrong_shape": {name: {"config": list(a), "files": list(b)} for name, (a, b) in found.wrong_shape.items()},
        "missing_experts": found.missing_experts,
        "stored_otherwise": [
            {"layer": layer, "config_tensors": a, "stored_tensors": b, "elements": n}
            for layer, a, b, n in found.otherwise
        ],
        "buffers": {"missing": found.buffers_missing, "unexpected": found.buffers_unexpected},
        "extras": dict(found.extras),
        "files": found.problems,
    }
    verdict = (
        "the files hold what config.json describes"
        if found.complete
        else "the files do NOT hold what config.json describes"
    )
    rows = [("matched", f"{found.matched:,}", "tensors with the config's name and shape")]
    if found.otherwise:
        a, b = sum(row[1] for row in found.otherwise), sum(row[2] for row in found.otherwise)
        rows.append(
            ("stored otherwise", f"{b:,}", f"for {a:,} of the config's: fused, split or stacked, element for element")
        )
    counts = (
        ("missing", len(found.missing), "in the config, not in the files"),
        ("missing experts", sum(map(len, found.missing_experts.values())), "of those stored one by one"),
        ("unexpected", len(found.unexpected), "in the files, not in the config"),
        ("wrong shape", len(found.wrong_shape), "another shape than the config gives them"),
        ("faulty files", len(found.problems), ""),
        ("buffers missing", len(found.buffers_missing), "not learned: computed anew or left at their start"),
        ("buffers unexpected", len(found.buffers_unexpected), "not learned: today's class computes them"),
    )
    rows += [(name, f"{count:,}", what) for name, count, what in counts if count]
    rows += [
        (name.replace("_", " "), f"{count:,}", "elements beside the model's own")
        for name, count in found.extras.items()
    ]
    blocks: list[Block] = [
        Title(text=verdict, detail=f"{source} · {signature}"),
        Table(columns=("", ">", ""), rows=rows),
    ]
    blocks += [Line(text=f"file: {problem}") for problem in found.problems[:_MOST_LISTED]]
    listed = [(name, _shape(shape), "missing") for name, shape in found.missing.items()]
    listed += [
        (layer, ", ".join(map(str, gaps[:12])), "experts missing") for layer, gaps in found.missing_experts.items()
    ]
    listed += [(name, _shape(shape), "unexpected") for name, shape in found.unexpected.items()]
    listed += [(name, f"{_shape(a)}, stored {_shape(b)}", "wrong shape") for name, (a, b) in found.wrong_shape.items()]
    if listed:
        shown = listed[:_MOST_LISTED]
        if len(listed) > len(shown):
            shown.append((f"and {len(listed) - len(shown):,} more", "(--json lists them)", ""))
        blocks.append(Table(columns=("tensor", "shape", "what"), rows=shown))
    return Report(
        verb="show",
        data={"signature": signature, "source": source, "built": built, "compare": data},
        blocks=blocks,
        summary=verdict,
        passed=found.complete,
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
