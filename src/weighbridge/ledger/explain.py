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
    return f"{_sum(ledger.parameters)} = {ledger.total:,}"


def by_role(ledger: Ledger) -> dict[str, str]:
    """The formula of each role's count."""
    counts = ledger.by_role()
    return {
        role: f"{_sum([f for f in ledger.parameters if f.role == role])} = {count:,}" for role, count in counts.items()
    }


def active(ledger: Ledger) -> str:
    """The formula of the active count."""
    routed = ledger.by_role().get("expert", 0)
    if not routed:
        return f"all parameters are used for every token = {ledger.active:,}"
    used = ledger.architecture.experts_per_token
    experts = ledger.experts
    return (
        f"{ledger.total:,} - {routed:,} routed x ({experts} - {used}) / {experts} = {ledger.active:,};"
        f" without the input embedding of {ledger.input_embedding:,}: {ledger.active_excluding_input_embedding:,}"
    )


def _sum(families: Sequence[Family]) -> str:
    layers = _layers(families)
    once: Counter[tuple[str, int, tuple[int, ...], int]] = Counter()
    inside: Counter[tuple[tuple[int, ...], int]] = Counter()
    for family in families:
        count = len(family.rows)
        if layers and count % layers == 0:
            inside[family.shape, family.elements] += count // layers
        else:
            once[family.role, count, family.shape, family.elements] += 1
    terms = [f"{role} {_term(n * count, shape, elements)}" for (role, count, shape, elements), n in once.items()]
    if inside:
        body = " + ".join(_term(n, shape, elements) for (shape, elements), n in inside.items())
        terms.append(f"{layers:,} layers x ({body})")
    return " + ".join(terms) or "0"


def _layers(families: Iterable[Family]) -> int:
    """How many times the most usual layer occurs: the count that most families share."""
    counts = Counter(len(family.rows) for family in families if len(family.rows) > 1)
    return counts.most_common(1)[0][0] if counts else 0


def _term(times: int, shape: tuple[int, ...], elements: int) -> str:
    # A packed tensor's stored shape is not what it counts for.
    size = " x ".join(f"{n:,}" for n in shape) if shape and prod(shape) == elements else f"{elements:,}"
    return f"{times:,} x {size}" if times != 1 else size
