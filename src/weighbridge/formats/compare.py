"""A checkpoint against its own config.json: what the files lack, what the config does not explain, what has another
shape.

The first thing to run on a broken download: files that are missing or damaged do not stop it, they are part of the
answer.

Checkpoints seldom use the very names that the class uses today: the base model's prefix comes and goes, experts are
stored one by one or stacked, projections apart or fused. Names are matched in this order: as they are; as transformers
renames them when it loads (`renames`); and as it merges and splits them (`pieces`). What none of these explains is
missing here and unexpected there, unless one wrong prefix explains it (`prefixes`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from weighbridge.formats import prefixes
from weighbridge.formats.comparison import Comparison
from weighbridge.formats.pieces import Stored, is_one, put_together
from weighbridge.formats.renames import Renames
from weighbridge.ledger import Ledger
from weighbridge.ledger.families import TIED_COPIES, pattern_of

_PACKED_LEAVES = {"qweight": "weight", "weight_packed": "weight", "W_q": "weight", "_weight_qdata": "weight"}
_COMPUTED = ("inv_freq", "position_ids", "masked_bias")  # by the class itself, from the config
_MOST_PREFIXES = 3
_FEW = 10  # one in so many names that nothing explains makes one think of a prefix


def compare(
    expected: Ledger, stored: Ledger | None, problems: Sequence[str], *, types: Iterable[str] = ()
) -> Comparison:
    """What the files hold against what the config describes. `problems` are files that could not be read, `types` the
    model types that the config speaks of.
    """
    built = expected.metadata.get("built")
    class_name = built.get("class") if isinstance(built, Mapping) else None
    names = set(expected.rows.names)
    renames = Renames(types, names, model_type=expected.architecture.model_type, class_name=class_name)
    found = _compared(expected, stored, problems, renames)
    for _ in range(_MOST_PREFIXES if stored is not None else 0):
        loose = {*found.unexpected, *found.unexpected_untold, *found.buffers_unexpected}
        if stored is None or len(loose) < max(2, len(stored) / _FEW):
            break
        tried: list[tuple[int, int, prefixes.Prefix, Ledger, Comparison]] = []
        for prefix in prefixes.candidates(loose, found.missing.keys() | set(found.missing_untold)):
            mended = prefixes.without(stored, prefix, loose)
            other = _compared(expected, mended, problems, renames)
            # Of several that explain as much, the one that leaves the class's very names.
            others = sum(name not in names for name in mended.rows.names)
            tried.append((other.unexplained, others, prefix, mended, other))
            if not other.unexplained + others:
                break
        best = min(tried, key=lambda one: one[:2], default=None)
        if best is None or 2 * best[0] > found.unexplained:
            break
        _, _, prefix, stored, other = best
        other.prefixes = [*found.prefixes, prefix]
        found = other
    return found


def _compared(expected: Ledger, stored: Ledger | None, problems: Sequence[str], renames: Renames) -> Comparison:
    found = Comparison(problems=list(problems))
    state = {t.name: t for t in expected.tensors if t.kind == "buffer"}
    wanted = {t.name: t.shape for t in expected.tensors if t.kind == "parameter"}
    # Running statistics and codebooks are not learned, and cannot be made anew either: a model needs them as they are.
    wanted |= {name: t.shape for name, t in state.items() if t.dtype.kind == "float" and not name.endswith(_COMPUTED)}
    buffers = {name: t.shape for name, t in state.items() if name not in wanted}
    ties = expected.ties
    shapes = {**wanted, **buffers, **{copy: wanted[original] for copy, original in ties.items() if original in wanted}}
    held = _stored(stored, found) if stored is not None else []
    method = expected.architecture.quantization
    matched = _matched(shapes, held, renames)
    # Any of the names of a tied tensor stands for it, once.
    seen = {ties.get(name, name) for name in matched.values()}
    stands = {name for name in matched.values() if name not in ties}
    kept = {pattern_of(name) for name in state}
    loose: list[Stored] = []
    whole: list[str] = []
    misfits: dict[str, Stored] = {}
    for one in held:
        name = matched.get(one.name)
        if name is None:
            # A buffer that the class computes by now is no fault; one more of those that it keeps is.
            if one.kind == "buffer" and pattern_of(one.name) not in kept:
                found.buffers_unexpected.append(one.name)
            else:
                loose.append(one)
            continue
        if not is_one(one, shapes[name], method):
            misfits[name] = one
            continue
        if name in buffers or (name in ties and ties[name] in stands):
            continue
        stands.add(ties.get(name, name))
        found.matched += 1
        whole += [one.name] if one.kind == "buffer" and name not in state else []
    if whole:
        found.problems.append(f"{len(whole):,} weights hold whole numbers that are no codes, {whole[0]} first")
    # Some are stored by the class's own name and in another shape: what transformers does to them may make them fit.
    turned = renames.merged([one.weight for one in misfits.values()], lambda name: name in misfits)
    for name, one in misfits.items():
        if one.weight in turned and name in wanted:
            seen.discard(name)
            loose.append(one)
        else:
            found.wrong_shape[name] = (shapes[name], one.shape)
    found.buffers_missing = [name for name in buffers if name not in seen]
    left = {name: shape for name, shape in wanted.items() if name not in seen}
    loose = put_together(left, loose, found, renames, method)
    found.missing_untold = [name for name in left if renames.missing_untold(name)]
    found.missing |= {name: shape for name, shape in left.items() if not renames.missing_untold(name)}
    for one in loose:
        if renames.unexpected_untold(one.name):
            found.unexpected_untold.append(one.name)
        else:
            found.unexpected[one.name] = one.shape
    return found


def _stored(ledger: Ledger, found: Comparison) -> list[Stored]:
    held = []
    found.extras = ledger.extras
    found.problems += _oddities(ledger)
    for family in ledger.families:
        # What looks like a copy of an embedding may be a head of the class's own, and has a shape in any case.
        if family.extra not in (None, TIED_COPIES):
            continue
        packed = family.elements != prod(family.shape) or family.dtype.kind not in ("float", "complex")
        held += [
            Stored(
                name=name,
                weight=_weight(name) if packed else name,
                shape=family.shape,
                elements=family.elements,
                kind=family.kind,
                packed=packed and family.kind != "buffer",
            )
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


def _weight(name: str) -> str:
    """The name of the weight that a leaf of codes stands for."""
    head, dot, leaf = name.rpartition(".")
    return head + dot + _PACKED_LEAVES.get(leaf, leaf).removesuffix("_blocks")


def _matched(wanted: Mapping[str, object], held: Sequence[Stored], renames: Renames) -> dict[str, str]:
    """{stored name: the config's name}, one to one."""
    found = {one.name: one.name for one in held if one.name in wanted}
    taken = set(found)
    by_weight: defaultdict[str, list[str]] = defaultdict(list)
    for one in held:
        if one.name not in found:
            by_weight[one.weight].append(one.name)
    for weight, new in renames.renamed(by_weight, lambda new: new in wanted and new not in taken).items():
        if new not in taken:
            found[by_weight[weight][0]] = new
            taken.add(new)
    return found
