"""Fitted estimators: what they learned, told by class.

`data/estimators.json` says of each scikit-learn class which attributes its predictions are computed with. A fitted
object and the same object saved by skops go through the same rules, so that both count alike. An estimator of another
class is refused by name: what of its attributes is learned cannot be told.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from weighbridge.formats.header import Header
from weighbridge.ledger import DTYPES, DType, Row, Stated, numel
from weighbridge.ledger.errors import Refused, Unknown

_DEEPEST = 24
_MOST = 200_000
_NAMES = {"float": "F", "int": "I", "uint": "U", "complex": "C"}


class Saved:
    """An object of a file: its class and its attributes, which are arrays, plain values, or such objects again."""

    __slots__ = ("attributes", "module", "name")

    def __init__(self, module: str, name: str, attributes: Mapping[str, Any]) -> None:
        self.module, self.name, self.attributes = module, name, attributes


def header_of(estimator: Any) -> Header:
    """What a fitted estimator holds. Parameters: learned values; buffers: training data that it keeps, tree structure.

    A linear regression with two features has three parameters: two coefficients and the intercept. A decision tree has,
    for each split, the feature and the threshold, and for each leaf its values; which child is which is structure. An
    ensemble is the sum of its members. Nearest neighbors learn nothing: they keep the data.

    Raises:
        Unknown: not fitted, or of a class whose learned values cannot be told.
    """
    from weighbridge.formats import boosted

    booster = boosted.of_object(estimator)
    if booster is not None:
        return booster
    found = _Walk()
    found.estimator(estimator, "", 0)
    notes = ["nothing is learned: what it keeps is data"] if found.rows and not found.learned else []
    if not found.rows:
        raise Unknown(
            f"{_class(estimator)[1]} holds no learned values",
            fix="fit it first; a vocabulary or a list of categories is none",
        )
    trained = frozenset(name for name, kind in found.kinds.items() if kind == "parameter")
    stated = Stated(kinds=found.kinds, roles=found.roles, trained=trained)
    return Header(rows=found.rows, stated=stated, notes=notes)


@lru_cache(maxsize=1)
def _rules() -> dict[str, dict[str, Any]]:
    table = json.loads((Path(__file__).parent / "data" / "estimators.json").read_text("utf-8"))
    return {name: row for row in table["classes"] for name in row["names"]}


def _class(thing: Any) -> tuple[str, str]:
    """(module, name) of an object's class."""
    if isinstance(thing, Saved):
        return thing.module, thing.name
    return type(thing).__module__, type(thing).__name__


def _attribute(thing: Any, name: str) -> Any:
    """A stored attribute, never a computed one; None when there is none."""
    return thing.attributes.get(name) if isinstance(thing, Saved) else vars(thing).get(name)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


class _Walk:
    """Collects the arrays of an estimator and of those inside it."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.kinds: dict[str, str] = {}
        self.roles: dict[str, str] = {}
        self.learned = 0

    def estimator(self, thing: Any, path: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise Refused("estimators nested deeper than any real one")
        from weighbridge.formats import boosted

        inner = None if isinstance(thing, Saved) else boosted.of_object(thing)
        if inner is not None:
            for row in inner.rows:
                self._add(path + row.name, row.dtype, row.shape, inner.stated.kinds[row.name])
            return
        module, name = _class(thing)
        rule = _rules().get(name)
        if rule is None or module.partition(".")[0] != "sklearn":
            raise Unknown(
                f"what a {module}.{name} has learned cannot be told",
                fix="its class is in no table of Weighbridge; scikit-learn's own estimators are",
            )
        before = len(self.rows)
        for attribute in rule.get("learned", ()):
            hyper = rule.get("when", {}).get(attribute)
            if hyper is None or _attribute(thing, hyper):
                self.value(_attribute(thing, attribute), path + attribute.lstrip("_"), "parameter", depth)
        for attribute in rule.get("kept", ()):
            self.value(_attribute(thing, attribute), path + attribute.lstrip("_"), "buffer", depth)
        for attribute in rule.get("parts", ()):
            self.parts(_attribute(thing, attribute), path + attribute.strip("_"), depth)
        wanted = [*rule.get("learned", ()), *rule.get("parts", ())]
        if len(self.rows) == before and wanted and all(_attribute(thing, one) is None for one in wanted):
            raise Unknown(f"this {name} is not fitted", fix="fit it first")

    def parts(self, value: Any, path: str, depth: int) -> None:
        """Estimators: one, a list or array of them, or (name, estimator, ...) pairs."""
        if depth > _DEEPEST:
            raise Refused("estimators nested deeper than any real one")
        if value is None or isinstance(value, str):
            return  # "passthrough", "drop", "zero"
        if _is_array(value) and not isinstance(value, Saved):
            value = list(value.flat) if hasattr(value, "flat") else value
        if isinstance(value, (list, tuple)):
            for at, part in enumerate(value):
                named = isinstance(part, tuple) and len(part) >= 2 and isinstance(part[0], str)
                self.parts(part[1] if named else part, f"{path}.{part[0] if named else at}", depth + 1)
            return
        self.estimator(value, f"{path}.", depth + 1)

    def value(self, value: Any, path: str, kind: str, depth: int) -> None:
        """An array, a number, a tree, or a list of them."""
        if value is None:
            return
        if depth > _DEEPEST:
            raise Refused("values nested deeper than any real ones")
        if _class(value)[1] in ("Tree", "TreePredictor"):
            self.tree(value, path.removesuffix("tree_"))
        elif _is_array(value):
            self.array(value, path, kind, depth)
        elif isinstance(value, (list, tuple)):
            for at, part in enumerate(value):
                self.value(part, f"{path}.{at}", kind, depth + 1)
        elif isinstance(value, (bool, int, float)):
            self._add(path, DTYPES["F64"], (), kind)
        else:
            raise Unknown(f"{path} is a {_class(value)[1]}, which cannot be counted")

    def array(self, value: Any, path: str, kind: str, depth: int) -> None:
        name = getattr(value.dtype, "name", str(value.dtype))
        if name == "object":
            for at, part in enumerate(value.flat):
                self.value(part, f"{path}.{at}", kind, depth + 1)
            return
        values = getattr(value, "data", None)
        if hasattr(value, "nnz") and hasattr(values, "shape"):  # sparse: its zeros are not stored
            self._add(path, _dtype(name, path), tuple(values.shape), kind)
        else:
            self._add(path, _dtype(name, path), tuple(int(n) for n in value.shape), kind)

    def tree(self, tree: Any, path: str) -> None:
        """A binary tree: every split has two children, so n nodes are (n - 1) / 2 splits and (n + 1) / 2 leaves."""
        if isinstance(tree, Saved):
            get = tree.attributes.get
            nodes, values = get("nodes"), get("values")
        else:
            nodes, values = getattr(tree, "nodes", None), getattr(tree, "value", None)
        count = int(nodes.shape[0]) if nodes is not None else int(tree.node_count)
        if not count % 2:
            raise Unknown(f"{path}tree has {count} nodes, which no binary tree has")
        splits, leaves = count // 2, count // 2 + 1
        outputs = tuple(int(n) for n in values.shape[1:]) if values is not None else ()
        self._add(f"{path}tree.feature", DTYPES["I64"], (splits,), "parameter")
        self._add(f"{path}tree.threshold", DTYPES["F64"], (splits,), "parameter")
        self._add(f"{path}tree.value", DTYPES["F64"], (leaves, *outputs), "parameter")
        self._add(f"{path}tree.children", DTYPES["I64"], (splits, 2), "buffer")

    def _add(self, name: str, dtype: DType, shape: tuple[int, ...], kind: str) -> None:
        if len(self.rows) >= _MOST:
            raise Refused(f"an estimator of more than {_MOST:,} arrays")
        self.rows.append(Row(name, dtype, shape, 0, len(self.rows), dtype.nbytes(numel(shape))))
        self.kinds[name] = kind
        self.learned += kind == "parameter"
        self.roles[name] = _role(name)


def _role(name: str) -> str:
    """Coefficients and the weights of a neural net multiply as dense layers do; all else has no role of its own."""
    return "ffn" if any(word in name for word in ("coef", "intercept", "components")) else "other"


def _dtype(name: str, path: str) -> DType:
    stem = name.rstrip("0123456789")
    found = "BOOL" if name == "bool" else f"{_NAMES.get(stem, '?')}{name.removeprefix(stem)}"
    if found not in DTYPES:
        raise Unknown(f"{path} is of type {name}")
    return DTYPES[found]
