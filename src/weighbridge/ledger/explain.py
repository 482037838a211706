"""A count as arithmetic: the formula with the numbers put in."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod

from weighbridge.ledger.families import Family
from weighbridge.ledger.ledger import Ledger


def total(ledger: Ledger) -> str:
    """The total as a sum over layers: `embedding 32,000 x 4,096 + 32 layers x (4 x 4,096 x 4,096 + ...) = ...`.

    Families that occur once per layer stand inside the bracket of that many layers, the others by themselves.
    """
    return f"{_sum(ledger.parameters, ledger.architecture.layers)} = {ledger.total:,}"


def closed(ledger: Ledger) -> str | None:
    """The total in terms of the config's fields, where a blueprint built the model."""
    formula = ledger.metadata.get("closed_form")
    return formula(ledger) if callable(formula) else None


def by_role(ledger: Ledger) -> dict[str, str]:
    """The formula of each role's count."""
    layers = ledger.architecture.layers
    return {
        role: f"{_sum([f for f in ledger.parameters if f.role == role], layers, named=False)} = {count:,}"
        for role, count in ledger.by_role().items()
    }


def active(ledger: Ledger) -> str:
    """The formula of the active count."""
    routed = ledger.by_role().get("expert", 0)
    if not routed:
        return f"all parameters are used for every token = {ledger.active:,}"
    without = f"without the input embedding of {ledger.input_embedding:,}: {ledger.active_excluding_input_embedding:,}"
    mixtures = {(router.experts, router.top_k) for router in ledger.architecture.routers}
    if len(mixtures) > 1:
        said = " and ".join(f"{used} of {experts}" for experts, used in sorted(mixtures, key=str))
        return (
            f"{ledger.total:,} - the experts that a layer leaves out ({said} are used) = {ledger.active:,}; {without}"
        )
    used, experts = ledger.architecture.experts_per_token, ledger.experts
    if mixtures:
        ((experts, used),) = mixtures
    return f"{ledger.total:,} - {routed:,} routed x ({experts} - {used}) / {experts} = {ledger.active:,}; {without}"


def _sum(families: Sequence[Family], layers: int | None, *, named: bool = True) -> str:
    """Embeddings first, then the layers, then the rest: the order in which a token meets them."""
    times = _usual(families)
    first: list[str] = []
    last: list[str] = []
    inside: Counter[tuple[tuple[int, ...], int]] = Counter()
    for family in families:
        count = family.count
        if times and count % times == 0:
            inside[family.shape, family.elements] += count // times
        else:
            term = _term(count, family.shape, family.elements)
            (first if family.role == "embedding" else last).append(f"{family.role} {term}" if named else term)
    if inside:
        body = " + ".join(_term(n, shape, elements) for (shape, elements), n in inside.items())
        first.append(f"{times:,}{' layers' if times == layers else ''} x ({body})")
    return " + ".join(first + last) or "0"


def _usual(families: Iterable[Family]) -> int:
    """How many times the most usual block occurs: the count that most families share."""
    counts = Counter(family.count for family in families if family.count > 1)
    return counts.most_common(1)[0][0] if counts else 0


def _term(times: int, shape: tuple[int, ...], elements: int) -> str:
    # A packed tensor's stored shape is not what it counts for.
    size = " x ".join(f"{n:,}" for n in shape) if shape and prod(shape) == elements else f"{elements:,}"
    return f"{times:,} x {size}" if times != 1 else size
