"""What each class of estimator learns, as `data/estimators.json` has it, and the rule that an object falls under."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from weighbridge.ledger.errors import Refused, Unknown

_BOOSTERS = ("xgboost", "lightgbm")
_ABSENT = object()
_GIVEN = object()  # stands for whatever a person gave that is no plain value: an array, a function


class Saved:
    """An object of a file: its class and its attributes, which are arrays, plain values, or such objects again."""

    __slots__ = ("attributes", "module", "name")

    def __init__(self, module: str, name: str, attributes: Mapping[str, Any]) -> None:
        self.module, self.name, self.attributes = module, name, attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the attributes of a class are. The words are the table's, which says what they mean."""

    name: str
    learned: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    reports: frozenset[str] = frozenset()
    when: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    stateless: bool = False
    refused: str = ""

    def has(self, thing: Any, attribute: str) -> bool:
        """Whether the attribute is what the table says, under the object's hyperparameters.

        Raises:
            Unknown: an object without a hyperparameter that decides.
        """
        for hyperparameter, condition in self.when.get(attribute, {}).items():
            value = attributes_of(thing).get(hyperparameter, _ABSENT)
            if value is _ABSENT:
                raise Unknown(
                    f"this {class_of(thing)[1]} does not say its {hyperparameter}, which decides whether {attribute} is"
                    " learned",
                    fix="fit and save it with a current scikit-learn",
                )
            if not _meets(value, condition):
                return False
        return True


def _meets(value: Any, condition: Any) -> bool:
    """True and false ask for truth; a list for one of its values; {"not": [...]} for none of them."""
    if isinstance(condition, bool):
        return bool(value) is condition
    plain = value if value is None or isinstance(value, (str, bool, int, float)) else _GIVEN
    if isinstance(condition, Mapping):
        return plain not in condition["not"]
    return plain in condition


@lru_cache(maxsize=1)
def _table() -> tuple[dict[str, Rule], frozenset[str]]:
    table = json.loads((Path(__file__).parent / "data" / "estimators.json").read_text("utf-8"))
    rules = {}
    for row in table["classes"]:
        for name in row["names"]:
            rules[name] = Rule(
                name=name,
                learned=tuple(row.get("learned", ())),
                kept=tuple(row.get("kept", ())),
                parts=tuple(row.get("parts", ())),
                optional=frozenset(row.get("optional", ())),
                reports=frozenset(row.get("reports", ())),
                when=row.get("when", {}),
                missing=row.get("missing", {}),
                stateless=row.get("stateless", False),
                refused=row.get("refused", ""),
            )
    return rules, frozenset(table["reports"])


def class_of(thing: Any) -> tuple[str, str]:
    """(module, name) of an object's class."""
    if isinstance(thing, Saved):
        return thing.module, thing.name
    return type(thing).__module__, type(thing).__name__


def attributes_of(thing: Any) -> Mapping[str, Any]:
    """Its stored attributes, never computed ones."""
    return thing.attributes if isinstance(thing, Saved) else getattr(thing, "__dict__", {})


def is_array(value: Any) -> bool:
    """Whether it has a shape and a type of elements."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def rule_of(thing: Any) -> Rule:
    """The rule of an object's class, or of the class of scikit-learn that a live one's class extends.

    Raises:
        Unknown: no rule, or an object that holds fitted numbers of which its rule says nothing.
        Refused: a class of which nothing that it learned is used on new data.
    """
    module, name = class_of(thing)
    lineage = [(module, name)]
    if not isinstance(thing, Saved):
        lineage = [(one.__module__, one.__name__) for one in type(thing).__mro__]
    rules, reports = _table()
    rule = next((rules[n] for m, n in lineage if m.partition(".")[0] == "sklearn" and n in rules), None)
    # A class of scikit-learn's own that the table lacks extends others in ways of its own.
    if rule is None or (rule.name != name and module.partition(".")[0] == "sklearn"):
        fix = "its class is in no table of Weighbridge; scikit-learn's own estimators are"
        if module.partition(".")[0] in _BOOSTERS:
            fix = "save it by itself, with its own save_model"
        raise Unknown(f"what a {module}.{name} has learned cannot be told", fix=fix)
    if rule.refused:
        raise Refused(f"{name}: {rule.refused}")
    _admit(thing, rule, reports)
    return rule


def _admit(thing: Any, rule: Rule, reports: frozenset[str]) -> None:
    """Lets no fitted numbers pass that the rule does not name: they may be learned.

    Of scikit-learn's own classes these are what fitting makes public, by its convention of a trailing underscore; a
    class that extends one may keep what it learns under any name but those of its constructor's arguments.
    """
    module, name = class_of(thing)
    known = {*rule.learned, *rule.kept, *rule.parts, *rule.reports, *reports}
    own = name == rule.name and module.partition(".")[0] == "sklearn"
    given = set() if own or not hasattr(thing, "get_params") else set(thing.get_params(deep=False))
    for attribute, value in attributes_of(thing).items():
        if attribute in known or attribute in given or not _may_be_learned(value, 0):
            continue
        if attribute.startswith("_") if own else attribute.startswith("_sklearn"):
            continue
        if attribute.endswith("_") or not own:
            raise Unknown(
                f"{attribute} of this {module}.{name} may be learned or not",
                fix="it is in no table of Weighbridge; give what it holds by itself",
            )


def _may_be_learned(value: Any, depth: int) -> bool:
    """Whether it is, or holds, an array of numbers, a fraction, or an estimator."""
    if isinstance(value, float):
        return True
    if is_array(value) and not isinstance(value, Saved):
        kind = getattr(value.dtype, "name", str(value.dtype))
        if kind == "object":
            return any(_may_be_learned(part, depth + 1) for part in list(getattr(value, "flat", ()))[:8])
        return kind.startswith(("float", "int", "uint", "complex")) and kind != "unread"
    if isinstance(value, (list, tuple)) and depth < 4:
        return any(_may_be_learned(part, depth + 1) for part in value[:8])
    if isinstance(value, Mapping) and depth < 4:
        return any(_may_be_learned(part, depth + 1) for part in list(value.values())[:8])
    return hasattr(value, "fit") or (isinstance(value, Saved) and value.module.partition(".")[0] == "sklearn")
