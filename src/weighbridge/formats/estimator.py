"""Fitted estimators: what they learned, told by class.

`data/estimators.json` says of each scikit-learn class which attributes its predictions are computed with. A fitted
object and the same object saved by skops go through the same rules, so that both count alike. An estimator of another
class is refused by name: what of its attributes is learned cannot be told.
"""

from typing import Any

from weighbridge.formats.estimator_rules import Rule, Saved, attributes_of, class_of, is_array, rule_of
from weighbridge.formats.header import Header
from weighbridge.ledger import DTYPES, DType, Row, Stated, numel
from weighbridge.ledger.errors import Refused, Unknown

_DEEPEST = 24
_MOST = 200_000
_NAMES = {"float": "F", "int": "I", "uint": "U", "complex": "C"}
_TREES = ("Tree", "TreePredictor")
_SEARCH_TREES = ("KDTree", "KDTree64", "KDTree32", "BallTree", "BallTree64", "BallTree32")
_SPARSE = ("csr", "csc", "coo", "bsr", "dia")


def header_of(estimator: Any) -> Header:
    """What a fitted estimator holds. Parameters: learned values; buffers: training data that it keeps, tree structure.

    A linear regression with two features has three parameters: two coefficients and the intercept. A decision tree has,
    for each split, the feature and the threshold, and for each leaf its values; which child is which is structure. An
    ensemble is the sum of its members. Nearest neighbors learn nothing: they keep the data. What is fitted and learned
    nothing at all has no tensor, and a note says so.

    Raises:
        Unknown: not fitted, or of a class whose learned values cannot be told.
        Refused: a class, not an object of it; one that answers for no data but what it was fitted on.
    """
    from weighbridge.formats import boosted

    if isinstance(estimator, type):
        raise Refused(f"{estimator.__name__} is a class", fix="give an object of it, fitted")
    booster = boosted.of_object(estimator)
    if booster is not None:
        return booster
    found = _Walk()
    found.estimator(estimator, "", 0)
    notes = list(found.notes)
    if not found.learned:
        kept = "what it keeps is data" if found.rows else "a vocabulary, categories or chosen columns are no parameters"
        notes.append(f"nothing is learned: {kept}")
    trained = frozenset(name for name, kind in found.kinds.items() if kind == "parameter")
    stated = Stated(kinds=found.kinds, roles=found.roles, trained=trained)
    return Header(rows=found.rows, stated=stated, notes=notes)


class _Walk:
    """Collects the arrays of an estimator and of those inside it. An object that occurs twice counts once."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.kinds: dict[str, str] = {}
        self.roles: dict[str, str] = {}
        self.notes: dict[str, None] = {}
        self.learned = 0
        self.seen: dict[int, Any] = {}  # by identity; the objects are held, so that no other takes theirs

    def met(self, thing: Any) -> bool:
        """Whether this very object has been met before."""
        before = len(self.seen)
        self.seen.setdefault(id(thing), thing)
        return len(self.seen) == before

    def estimator(self, thing: Any, path: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise Refused("estimators nested deeper than any real one")
        if self.met(thing):
            return
        from weighbridge.formats import boosted

        inner = None if isinstance(thing, Saved) else boosted.of_object(thing)
        if inner is not None:
            for row in inner.rows:
                self._add(path + row.name, row.dtype, row.shape, inner.stated.kinds[row.name])
            return
        rule = rule_of(thing)
        held = attributes_of(thing)
        if not rule.stateless and not any(name.endswith("_") and not name.startswith("_") for name in held):
            raise Unknown(f"this {class_of(thing)[1]} is not fitted", fix="fit it first")
        for attribute in rule.learned:
            if self.present(thing, rule, attribute):
                self.value(held[attribute], path + attribute.lstrip("_"), "parameter", depth)
        for attribute in rule.kept:
            if self.present(thing, rule, attribute):
                self.value(held[attribute], path + attribute.lstrip("_"), "buffer", depth)
        for attribute in rule.parts:
            if self.present(thing, rule, attribute):
                self.parts(held[attribute], path + attribute.strip("_"), depth)

    def present(self, thing: Any, rule: Rule, attribute: str) -> bool:
        """Whether the object has the attribute and its hyperparameters make it what the rule says.

        Raises:
            Unknown: it should have the attribute, and does not.
        """
        if not rule.has(thing, attribute):
            return False
        if attributes_of(thing).get(attribute) is not None:
            return True
        if attribute in rule.optional:
            return False
        name = class_of(thing)[1]
        if attribute in rule.missing:
            raise Unknown(f"this {name} keeps no {attribute}", fix=rule.missing[attribute])
        raise Unknown(
            f"this {name} has no {attribute}, which its class has once fitted",
            fix="fit it, and save it with a current scikit-learn",
        )

    def parts(self, value: Any, path: str, depth: int) -> None:
        """Estimators: one, a list or array of them, (name, estimator, ...) pairs, or tuples with indices of columns."""
        if depth > _DEEPEST:
            raise Refused("estimators nested deeper than any real one")
        if value is None or isinstance(value, (str, slice)):
            return  # "passthrough", "drop", "zero"
        if is_array(value) and not isinstance(value, Saved):
            if _type_of(value) != "object":
                return  # which columns the estimator beside it looks at
            value = list(value.flat)
        if isinstance(value, (list, tuple)):
            for at, part in enumerate(value):
                named = isinstance(part, tuple) and len(part) >= 2 and isinstance(part[0], str)
                self.parts(part[1] if named else part, f"{path}.{part[0] if named else at}", depth + 1)
            return
        self.estimator(value, f"{path}.", depth + 1)

    def value(self, value: Any, path: str, kind: str, depth: int) -> None:
        """An array, a number, a tree, or a list of them. Texts are labels and stand for no number."""
        if value is None or isinstance(value, str):
            return
        if depth > _DEEPEST:
            raise Refused("values nested deeper than any real ones")
        name = class_of(value)[1]
        if name in _TREES:
            stem = path.removesuffix("tree_")
            self.tree(value, stem if not stem or stem.endswith(".") else f"{stem}.")
        elif name in _SEARCH_TREES:
            self.value(_points(value), f"{path}.data", kind, depth + 1)
        elif name == "BSpline":
            self.needed(value, ("_t", "t"), f"{path}.t", kind)
        elif name == "_BisectingTree":
            self.bisected(value, path, depth)
        elif is_array(value):
            self.array(value, path, kind, depth)
        elif isinstance(value, (list, tuple)):
            for at, part in enumerate(value):
                self.value(part, f"{path}.{at}", kind, depth + 1)
        elif isinstance(value, (bool, int, float)):
            self._add(path, DTYPES["F64"], (), kind)
        else:
            raise Unknown(f"{path} is a {name}, which cannot be counted")

    def array(self, value: Any, path: str, kind: str, depth: int) -> None:
        name = _type_of(value)
        if name == "object":
            for at, part in enumerate(value.flat):
                self.value(part, f"{path}.{at}", kind, depth + 1)
            return
        if value.shape and self.met(value):
            return
        if hasattr(value, "nnz"):
            stored = getattr(value, "data", None)
            if stored is None or getattr(value, "format", "") not in _SPARSE or not is_array(stored):
                raise Unknown(f"{path} is a sparse array whose values cannot be told", fix="convert it with .tocsr()")
            self.notes["sparse arrays count the values that they store"] = None
            self._add(path, _dtype(name, path), tuple(int(n) for n in stored.shape), kind)
        else:
            self._add(path, _dtype(name, path), tuple(int(n) for n in value.shape), kind)

    def tree(self, tree: Any, path: str) -> None:
        """A binary tree: every split has two children, so n nodes are (n - 1) / 2 splits and (n + 1) / 2 leaves.

        Where a split parts categories it has a set of them and no threshold; a set is eight words of 32 bits.
        """
        histogram = class_of(tree)[1] == "TreePredictor"
        nodes: Any
        values: Any
        sets: Any
        if isinstance(tree, Saved):
            nodes, values = tree.attributes.get("nodes"), tree.attributes.get("values")
            sets = tree.attributes.get("raw_left_cat_bitsets")
        elif histogram:
            nodes, values, sets = tree.nodes, None, tree.raw_left_cat_bitsets
        else:
            nodes, values, sets = tree.feature, tree.value, None
        needed = (nodes, sets) if histogram else (nodes, values)
        if not all(is_array(one) and one.shape for one in needed):
            raise Unknown(f"{path}tree is not as scikit-learn keeps one", fix="save it with a current scikit-learn")
        count = int(nodes.shape[0])
        splits, leaves = count // 2, count // 2 + 1
        outputs = () if histogram else tuple(int(n) for n in values.shape[1:])
        shape = tuple(int(n) for n in sets.shape) if histogram else (0,)
        if not count % 2 or shape[0] > splits:
            raise Unknown(f"{path}tree has {count} nodes, {shape[0]} of which part categories: it is no binary tree")
        self._add(f"{path}tree.feature", DTYPES["I64"], (splits,), "parameter")
        self._add(f"{path}tree.threshold", DTYPES["F64"], (splits - shape[0],), "parameter")
        if shape[0]:
            self._add(f"{path}tree.categories", DTYPES["U32"], shape, "parameter")
        self._add(f"{path}tree.value", DTYPES["F64"], (leaves, *outputs), "parameter")
        self._add(f"{path}tree.children", DTYPES["I64"], (splits, 2), "buffer")

    def bisected(self, node: Any, path: str, depth: int) -> None:
        """The centers that a point is compared with on its way down: those of all nodes but the root."""
        if depth > 400:
            raise Refused("a bisection deeper than any real one")
        for side in ("left", "right"):
            below = attributes_of(node).get(side)
            if below is not None:
                self.needed(below, ("center",), f"{path}.{side}.center", "parameter")
                self.bisected(below, f"{path}.{side}", depth + 1)

    def needed(self, thing: Any, names: tuple[str, ...], path: str, kind: str) -> None:
        """The array under the first of the names that an object has.

        Raises:
            Unknown: it has none of them.
        """
        held = attributes_of(thing)
        found = next((held[name] for name in names if is_array(held.get(name))), None)
        if found is None:
            raise Unknown(f"{path} is not there", fix="save it with a current scikit-learn and SciPy")
        self.array(found, path, kind, 0)

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


def _type_of(array: Any) -> str:
    return str(getattr(array.dtype, "name", array.dtype))


def _points(tree: Any) -> Any:
    """The data of a search tree, which is the first of what it saves."""
    state = tree.attributes.get("state") if isinstance(tree, Saved) else tree.__getstate__()
    if not isinstance(state, tuple) or not state or not is_array(state[0]):
        raise Unknown("a search tree that does not tell its data")
    return state[0]


def _dtype(name: str, path: str) -> DType:
    stem = name.rstrip("0123456789")
    found = "BOOL" if name == "bool" else f"{_NAMES.get(stem, '?')}{name.removeprefix(stem)}"
    if found not in DTYPES:
        raise Unknown(f"{path} is of type {name}")
    return DTYPES[found]
