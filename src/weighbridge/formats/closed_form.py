"""The total of a model that a config describes, as a formula over the config's own fields."""

import re
from collections import Counter
from collections.abc import Mapping

from weighbridge.formats.blueprints import Built, build
from weighbridge.ledger import Ledger
from weighbridge.ledger.errors import Unknown

_NUMBERED = re.compile(r"^(.*?)\.\d+\.")
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_MOST_TERMS = 400


def closed_form(ledger: Ledger, config: Mapping[str, object], model_type: str, class_name: str) -> str:
    """`vocab_size x hidden_size + num_hidden_layers x (...) + ... where hidden_size = 4,096, ...`.

    Terms stand inside the bracket of the list of modules that they repeat in. A dimension that hangs on a choice is
    given as its number.
    """
    built = build(config, model_type=model_type, class_name=class_name, forms=True)
    outside: list[str] = []
    lists: dict[tuple[str, int], Counter[str]] = {}
    for family in ledger.parameters:
        name = family.first.name
        product = " x ".join(_factor(size) for size in sorted(built.forms[name], key=_order)) or "1"
        match = _NUMBERED.match(name)
        if match is None or family.count == 1:
            outside.append(product if family.count == 1 else f"{family.count:,} x {product}")
            continue
        lists.setdefault((match[1], family.count), Counter())[product] += 1
    terms = _merged(outside)
    for (place, count), products in lists.items():
        times = built.counts.get(place)
        times = _factor(times[0]) if times and times[1] == count else f"{count:,}"
        terms.append(f"{times} x ({' + '.join(_times(n, product) for product, n in products.items())})")
    if len(terms) > _MOST_TERMS:
        return f"a sum of {len(terms):,} terms, too many to read"
    text = " + ".join(terms)
    return f"{text} = {ledger.total:,}{_where(text, built)}"


def _order(size: str) -> tuple[bool, str]:
    return size.isdigit(), size


def _factor(size: str) -> str:
    return f"({size})" if "+" in size or "-" in size or "//" in size else size.replace(" * ", " x ")


def _merged(products: list[str]) -> list[str]:
    return [_times(n, product) for product, n in Counter(products).items()]


def _times(n: int, product: str) -> str:
    return product if n == 1 else f"{n} x {product}"


def _where(text: str, built: Built) -> str:
    values = []
    for name in dict.fromkeys(_NAME.findall(text)):
        try:
            value = built.settings
            for step in name.split("."):
                value = value.read(step)
        except (Unknown, AttributeError, KeyError):
            continue
        if isinstance(value, int):
            values.append(f"{name} = {value:,}")
    return f", where {', '.join(values)}" if values else ""
