"""Gradient-boosted trees: XGBoost and LightGBM, from their own text formats or from live objects' own dumps.

A tree is counted as scikit-learn's are: for each split the feature and the threshold, or where it parts categories the
set of them, for each leaf its value; which child is which is structure. Sources: XGBoost 3.2 model schema (JSON and
UBJSON), LightGBM 4.7 `GBDT::SaveModelToString`.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from weighbridge.formats import ubjson
from weighbridge.formats.header import Header
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import DTYPES, NOWHERE, File, Row, Stated, numel, read_exactly
from weighbridge.ledger.errors import Malformed, Refused, Unknown

LARGEST = 128 << 20
_MOST_VALUES = 30_000_000
_MOST_TREES = 60_000
LIGHTGBM = b"tree\nversion="
_INTEGER = re.compile(rb"-?\d{1,9}")


def of_object(thing: Any) -> Header | None:
    """The trees of a live `Booster` or of the estimator around one; None for anything else.

    Raises:
        Unknown: not fitted.
    """
    for package in ("xgboost", "lightgbm"):
        module = sys.modules.get(package)
        booster_class = getattr(module, "Booster", None) if module is not None else None
        if booster_class is None:
            continue
        if isinstance(thing, booster_class):
            return _of_booster(package, thing)
        lineage = {one.__module__.partition(".")[0] for one in type(thing).__mro__}
        if package in lineage and hasattr(thing, "fit"):
            try:
                booster = thing.get_booster() if package == "xgboost" else thing.booster_
            except Exception as error:
                raise Unknown(f"this {type(thing).__name__} is not fitted", fix="fit it first") from error
            return _of_booster(package, booster)
    return None


def _of_booster(package: str, booster: Any) -> Header:
    if package == "lightgbm":
        return parse_lightgbm(booster.model_to_string().encode(), "booster", 0)
    return parse_xgboost(ubjson.parse(bytes(booster.save_raw("ubj")), "booster"), "booster", 0)


def read_xgboost(file: File, *, index: int = 0) -> Header:
    """The trees, or linear weights, of an XGBoost model saved as `.json` or `.ubj`.

    Raises:
        Malformed: not such a file.
        Refused: larger than 128 MB.
    """
    if file.size > LARGEST:
        raise Refused(f"{file.name} has {file.size:,} bytes: XGBoost models are read up to {LARGEST:,}")
    raw = read_exactly(file, 0, file.size)
    # Both begin with a brace; in JSON a quotation mark follows, in UBJSON the type of the first key's length.
    is_text = raw[1:].lstrip()[:1] == b'"'
    model = parse_json(raw, file.name, most=_MOST_VALUES) if is_text else ubjson.parse(raw, file.name)
    return parse_xgboost(model, file.name, index)


def read_other(file: File, *, index: int = 0) -> Header | None:
    """The trees of an XGBoost model under a name that does not tell, as `.model` and `.bst`; None for anything else.

    Raises:
        Refused: in the binary format that XGBoost wrote before version 3.
    """
    start = file.read(0, 512)
    if start[:1] == b"{" and b"learner" in start[:64]:
        return read_xgboost(file, index=index)
    # Source: XGBoost 2 `LearnerIO::Load`: 136 bytes of parameters, then the objective's and the booster's names.
    if start.startswith(b"binf") or any(
        name in start[136:] for name in (b"\0\0\0\0\0gbtree", b"\0\0\0\0\0gblinear", b"\0\0\0\0\0dart")
    ):
        raise Refused(
            f"{file.name} is in XGBoost's old binary format",
            fix="load it with the XGBoost that wrote it and save_model it as .json or .ubj",
        )
    return None


def parse_xgboost(model: Mapping[str, Any], name: str, index: int) -> Header:
    """The trees in a decoded XGBoost model.

    Raises:
        Malformed: not such a model.
        Unknown: a booster of another kind.
    """
    try:
        learner = model["learner"]
        booster = learner["gradient_booster"]
        kind = booster["name"]
        rows = _Rows(index)
        if kind == "dart":
            drop = booster["weight_drop"]
            rows.add("weight_drop", "F32", (len(drop),), "parameter")
            booster = booster["gbtree"]
        if kind == "gblinear":
            rows.add("weights", "F32", (len(booster["model"]["weights"]),), "parameter")
        elif kind in ("gbtree", "dart"):
            trees = booster["model"]["trees"]
            if len(trees) > _MOST_TREES:
                raise Refused(f"{name} has {len(trees):,} trees, more than {_MOST_TREES:,}")
            for at, tree in enumerate(trees):
                parameters = tree["tree_param"]
                nodes = int(parameters["num_nodes"]) - int(parameters.get("num_deleted", 0))
                outputs = max(int(parameters.get("size_leaf_vector", 1)), 1)
                rows.tree(f"trees.{at}", nodes, outputs, "F32", name, len(tree.get("categories_nodes", ())))
                chosen = len(tree.get("categories", ()))
                if chosen:
                    rows.add(f"trees.{at}.categories", "I32", (chosen,), "parameter")
        else:
            raise Unknown(f"{name} is an XGBoost booster of kind {str(kind)[:40]!r}")
        stated = learner["learner_model_param"]
        base = stated.get("base_score")
        # Before version 2, and where a person gave it, it is a hyperparameter.
        if base is not None and str(stated.get("boost_from_average", "0")) != "0":
            rows.add("base_score", "F32", (str(base).count(",") + 1,), "parameter")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Malformed(
            f"{name} is no model of XGBoost: its fields are not those of one", fix="save it with Booster.save_model"
        ) from None
    return rows.header("xgboost")


def read_lightgbm(file: File, *, index: int = 0) -> Header:
    """The trees of a LightGBM model saved as text.

    Raises:
        Malformed: not such a file.
        Refused: larger than 128 MB.
    """
    if file.size > LARGEST:
        raise Refused(f"{file.name} has {file.size:,} bytes: LightGBM models are read up to {LARGEST:,}")
    return parse_lightgbm(read_exactly(file, 0, file.size), file.name, index)


def parse_lightgbm(raw: bytes, name: str, index: int) -> Header:
    """The trees in a LightGBM model's text.

    Raises:
        Malformed: not such a text, or one that is cut short.
    """
    if not raw.startswith(LIGHTGBM):
        raise Malformed(f"{name} is no model of LightGBM", fix="save it with Booster.save_model")
    if b"\nend of trees" not in raw:
        raise Malformed(f"{name} is cut short: its end is missing", fix="download it again")
    rows = _Rows(index)
    for at, tree in enumerate(_blocks(raw)):
        leaves = _number(tree, b"num_leaves", name)
        sets = _number(tree, b"num_cat", name) if b"num_cat" in tree else 0
        rows.tree(f"trees.{at}", 2 * leaves - 1, 1, "F64", name, sets)
        categories = len(tree.get(b"cat_threshold", b"").split())
        if categories:
            rows.add(f"trees.{at}.categories", "I32", (categories,), "parameter")
        if tree.get(b"is_linear", b"0") == b"1":
            coefficients = len(tree.get(b"leaf_coeff", b"").split())
            rows.add(f"trees.{at}.leaf_coefficients", "F64", (coefficients,), "parameter")
            rows.add(f"trees.{at}.leaf_constants", "F64", (leaves,), "parameter")
    return rows.header("lightgbm")


def _blocks(raw: bytes) -> Iterator[dict[bytes, bytes]]:
    """{key: value} of each tree. Values are kept as they are: most are never looked at."""
    for at, block in enumerate(raw.partition(b"\nend of trees")[0].split(b"\nTree=")[1:]):
        if at >= _MOST_TREES:
            raise Refused(f"more than {_MOST_TREES:,} trees")
        pairs = (line.partition(b"=") for line in block.split(b"\n")[1:])
        yield {key: value for key, _, value in pairs}


def _number(tree: Mapping[bytes, bytes], key: bytes, name: str) -> int:
    value = tree.get(key, b"")
    if not _INTEGER.fullmatch(value):
        raise Malformed(f"{name}: a tree whose {key.decode()} is {value[:20]!r}")
    return int(value)


class _Rows:
    """Trees as rows: the same four for each."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.rows: list[Row] = []
        self.kinds: dict[str, str] = {}

    def add(self, name: str, dtype: str, shape: tuple[int, ...], kind: str) -> None:
        element = DTYPES[dtype]
        self.rows.append(Row(name, element, shape, self.index, NOWHERE, element.nbytes(numel(shape))))
        self.kinds[name] = kind

    def tree(self, path: str, nodes: int, outputs: int, dtype: str, name: str, sets: int) -> None:
        """`sets` is how many of its splits part categories, and so have no threshold."""
        if nodes < 1 or not nodes % 2:
            raise Malformed(f"{name}: {path} has {nodes} nodes, which no binary tree has")
        splits, leaves = nodes // 2, nodes // 2 + 1
        if not 0 <= sets <= splits:
            raise Malformed(f"{name}: {path} has {splits} splits, of which {sets} part categories")
        self.add(f"{path}.feature", "I32", (splits,), "parameter")
        self.add(f"{path}.threshold", dtype, (splits - sets,), "parameter")
        self.add(f"{path}.value", dtype, (leaves, outputs) if outputs > 1 else (leaves,), "parameter")
        self.add(f"{path}.children", "I32", (splits, 2), "buffer")

    def header(self, format: str) -> Header:
        if not self.rows:
            raise Unknown("a model without a tree has learned nothing", fix="train it for a round")
        trained = frozenset(name for name, kind in self.kinds.items() if kind == "parameter")
        roles = dict.fromkeys(self.kinds, "other")  # no name of theirs is one of a network's
        return Header(rows=self.rows, format=format, stated=Stated(kinds=self.kinds, roles=roles, trained=trained))
