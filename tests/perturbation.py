"""What a fitted estimator computes with, found out by changing it: an oracle that knows no class.

Used by tests and benchmarks alike. Every number that a fitted object holds is changed in place, one array at a time,
and what the estimator answers is compared. `weighbridge.show` has to count as parameters what changes answers and would
be another after fitting on other data, but for what `CONVENTION` names with its reason.
"""

import fnmatch
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

# Numbers that answers depend on and that are not parameters. {pattern of "Class.attribute": why}
CONVENTION = {
    # labels and vocabularies
    "*.classes_": "labels are given, not learned",
    "_CalibratedClassifier.classes": "labels are given, not learned",
    "*.categories_": "a list of categories is a vocabulary",
    "*.vocabulary_": "a vocabulary",
    "*.n_classes_": "labels are given, not learned",
    # structure: what belongs to what
    "*.estimators_features_": "which columns a member looks at",
    "*.feat_idx": "which columns a member looks at",
    "IterativeImputer.imputation_sequence_": "which columns a member looks at",
    "*.order_": "the order of a chain",
    "*._n_support": "which class a support vector belongs to",
    "*.support_": "which rows, or columns, were chosen",
    "*.features_": "which columns had holes",
    "*.subcluster_labels_": "which cluster a subcluster belongs to",
    # hyperparameters that fit worked out
    "*._gamma": "gamma='scale' put in numbers",
    "*.gamma_": "gamma=None put in numbers",
    "*._max_components": "n_components put in numbers",
    "QuantileTransformer.references_": "an even grid of n_quantiles",
    "KernelCenterer.K_fit_all_": "a mean, against which centered eigenvectors are blind",
    "_BinMapper.bin_thresholds_": "the categories of a column of such; of others no answer depends on them",
    "BSpline.c": "every coefficient of a basis is one or zero",
    "IterativeImputer._min_value": "min_value for each column",
    "IterativeImputer._max_value": "max_value for each column",
    # what columns were chosen by: choosing is structure
    "*.scores_": "what columns were chosen by",
    "*.pvalues_": "what columns were chosen by",
    "VarianceThreshold.variances_": "what columns were chosen by",
    # the same in another form, counted once
    "*.precision_": "covariance_ in another form",
    "*.precisions_cholesky_": "covariances_ in another form",
    "*.covariance_": "precision_ is what answers are computed with where it is stored",
    "*.covariances_": "precisions_cholesky_ is what answers are computed with",
    "IsotonicRegression.X_min_": "the first of X_thresholds_",
    "IsotonicRegression.X_max_": "the last of X_thresholds_",
    "WhiteKernel.noise_level": "fitted with the others; shows in the standard deviations that predict gives if asked",
    # weights and biases of neural networks, all of them: the visible biases are for what it draws
    "BernoulliRBM.intercept_visible_": "a bias",
    "KNNImputer._mask_fit_X": "where _fit_X has holes",
    "IsolationForest._average_path_length_per_tree": "a leaf's answer, which is counted as its value",
    "IsolationForest._decision_path_lengths": "a leaf's answer, which is counted as its value",
    "Birch._subcluster_norms": "of subcluster_centers_",
    "LatentDirichletAllocation.exp_dirichlet_component_": "components_ in another form",
    "LatentDirichletAllocation.components_": "exp_dirichlet_component_ is what answers are computed with",
}


@dataclass(slots=True, kw_only=True)
class Found:
    """Numbers that a fitted object holds at one place."""

    owner: str  # its class
    name: str  # its attribute
    size: int
    change: Callable[[np.random.Generator], Callable[[], None]]  # changes in place; returns what restores
    held: bytes  # what it holds, to compare with another fit
    sensitive: bool = False
    constant: bool = False  # another fit, on other data, left the same numbers
    elements: list[Callable[[], Callable[[], None]]] = field(default_factory=list)

    @property
    def reason(self) -> str | None:
        said = f"{self.owner}.{self.name}"
        return next((why for pattern, why in CONVENTION.items() if fnmatch.fnmatchcase(said, pattern)), None)


_HELD_BY_ARGUMENT = {"Pipeline": ("steps",), "FeatureUnion": ("transformer_list",), "FrozenEstimator": ("estimator",)}
_OPAQUE = ("KDTree", "BallTree", "RandomState", "Generator", "interp1d", "_CFNode", "_CFSubcluster")


def numbers(
    thing: Any, path: str = "", seen: dict[int, Any] | None = None, depth: int = 0
) -> Iterator[tuple[str, Found]]:
    """(path, numbers) of everything that fitting left in an estimator. Constructor arguments are hyperparameters."""
    seen = {} if seen is None else seen
    if id(thing) in seen or depth > 14 or type(thing).__name__ in _OPAQUE:
        return
    seen[id(thing)] = thing
    arguments: set[str] = set()
    if hasattr(thing, "get_params"):
        arguments = set(thing.get_params(deep=False)) - set(_HELD_BY_ARGUMENT.get(type(thing).__name__, ()))
    if type(thing).__module__.startswith("sklearn.gaussian_process.kernels"):
        arguments = {name for name in arguments if name.endswith("_bounds")}
    for name, value in list(vars(thing).items()):
        if name not in arguments:
            yield from _value(value, f"{path}{name}", thing, name, seen, depth)


def _value(
    value: Any, path: str, owner: Any, name: str, seen: dict[int, Any], depth: int
) -> Iterator[tuple[str, Found]]:
    kind = type(owner).__name__
    if isinstance(value, (bool, np.bool_, int, str, bytes, np.integer)) or value is None:
        return
    if isinstance(value, (type, FunctionType, BuiltinFunctionType, MethodType)):
        return
    if isinstance(value, (float, np.floating)):
        if name in vars(owner):

            def change(random: np.random.Generator) -> Callable[[], None]:
                setattr(owner, name, type(value)(value * 1.3 + 0.2 + random.random()))
                return lambda: setattr(owner, name, value)

            yield path, Found(owner=kind, name=name, size=1, change=change, held=repr(float(value)).encode())
    elif sparse.issparse(value):
        yield path, _array(value.data, kind, name)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        for at, part in enumerate(value.flat):
            if isinstance(part, (float, np.floating)):

                def set_one(random: np.random.Generator, at: int = at, part: Any = part) -> Callable[[], None]:
                    value.flat[at] = part * 1.3 + 0.2 + random.random()
                    return lambda: value.flat.__setitem__(at, part)

                yield f"{path}.{at}", Found(owner=kind, name=name, size=1, change=set_one, held=repr(part).encode())
            else:
                yield from _value(part, f"{path}.{at}", owner, name, seen, depth + 1)
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "fiucb":  # one array under two names, or seen in two shapes, is the same numbers
            place = hash((value.__array_interface__["data"][0], value.nbytes)) if value.size else id(value)
            yield path, seen.setdefault(place, _array(value, kind, name))
    elif type(value).__name__ == "Tree":
        yield from _tree(value, path)
    elif type(value).__name__ == "TreePredictor":
        yield from _histogram_tree(value, path)
    elif isinstance(value, (list, tuple)):
        for at, part in enumerate(value):
            named = isinstance(part, tuple) and len(part) >= 2 and isinstance(part[0], str) and hasattr(part[1], "fit")
            if named:
                yield from numbers(part[1], f"{path}.{part[0]}.", seen, depth + 1)
            elif isinstance(part, float) and isinstance(value, list):

                def set_part(random: np.random.Generator, at: int = at, part: float = part) -> Callable[[], None]:
                    value[at] = part * 1.3 + 0.2 + random.random()
                    return lambda: value.__setitem__(at, part)

                yield f"{path}.{at}", Found(owner=kind, name=name, size=1, change=set_part, held=repr(part).encode())
            else:
                yield from _value(part, f"{path}.{at}", owner, name, seen, depth + 1)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _value(part, f"{path}.{key}", owner, name, seen, depth + 1)
    elif hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in ("builtins", "numpy"):
        yield from numbers(value, f"{path}.", seen, depth + 1)


def _changed(array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    array = np.asarray(array)  # of a matrix, * is another product
    if array.dtype.kind in "fc":
        near = array * random.uniform(0.6, 1.7, array.shape) + random.uniform(0.05, 0.6, array.shape)
        far = random.normal(size=array.shape) * 3 * (np.nanmax(np.abs(array), initial=1.0))
        with np.errstate(all="ignore"):
            return (far if random.random() < 0.4 else near).astype(array.dtype)
    if array.dtype.kind == "b":
        return ~array
    if array.size > 1 and (array != array.flat[0]).any():
        return np.roll(array, 1)
    return array + 1


def _array(array: np.ndarray, owner: str, name: str) -> Found:
    def change(random: np.random.Generator) -> Callable[[], None]:
        before, locked = array.copy(), not array.flags.writeable
        if locked:
            array.flags.writeable = True
        array[...] = _changed(array, random)
        return lambda: array.__setitem__(..., before)

    def element(at: int) -> Callable[[], Callable[[], None]]:
        def change_one() -> Callable[[], None]:
            before = array.flat[at]
            if array.dtype.kind == "f":
                array.flat[at] = before * 1.7 + 0.9
            else:
                array.flat[at] = before + 1
            return lambda: array.flat.__setitem__(at, before)

        return change_one

    return Found(
        owner=owner,
        name=name,
        size=int(array.size),
        change=change,
        held=array.tobytes(),
        elements=[element(at) for at in range(min(array.size, 60))],
    )


def _tree(tree: Any, path: str) -> Iterator[tuple[str, Found]]:
    """Splits are the nodes with children, leaves those without; what is split goes by `tree.children`."""
    split = tree.children_left != -1
    stem = path.removesuffix("tree_")
    for name, values, chosen in (
        ("feature", tree.feature, split),
        ("threshold", tree.threshold, split),
        ("value", tree.value, ~split),
    ):
        yield f"{stem}tree.{name}", _chosen(values, chosen, "Tree", name, tree.n_features if name == "feature" else 0)


def _histogram_tree(predictor: Any, path: str) -> Iterator[tuple[str, Found]]:
    nodes = predictor.nodes
    leaf, categorical = nodes["is_leaf"] == 1, nodes["is_categorical"] == 1
    features = int(nodes["feature_idx"].max()) + 1
    for name, field_name, chosen in (
        ("feature", "feature_idx", ~leaf),
        ("threshold", "num_threshold", ~leaf & ~categorical),
        ("value", "value", leaf),
    ):
        count = features if name == "feature" else 0
        yield f"{path}.tree.{name}", _chosen(nodes[field_name], chosen, "TreePredictor", name, count)
    if categorical.any():
        yield (
            f"{path}.tree.categories",
            _array(predictor.raw_left_cat_bitsets, "TreePredictor", "raw_left_cat_bitsets"),
        )
        yield (
            f"{path}.binned_left_cat_bitsets",
            _array(predictor.binned_left_cat_bitsets, "TreePredictor", "binned_left_cat_bitsets"),
        )


def _chosen(values: np.ndarray, chosen: np.ndarray, owner: str, name: str, modulus: int) -> Found:
    def change(random: np.random.Generator) -> Callable[[], None]:
        before = values.copy()
        part = before[chosen]
        values[chosen] = (part + 1) % modulus if modulus else _changed(part, random)
        return lambda: values.__setitem__(..., before)

    return Found(owner=owner, name=name, size=int(values[chosen].size), change=change, held=values[chosen].tobytes())


def answers(model: Any, data: Any, targets: Any = None) -> list[Any]:
    """What a fitted estimator says of new data, by every method with its default arguments."""
    said: list[Any] = []
    methods = [m for m in ("predict_proba", "decision_function", "predict", "transform") if hasattr(model, m)]
    for method in methods or ["mahalanobis", "score_samples", "kneighbors"]:
        if hasattr(model, method):
            said.append(_call(lambda method=method: getattr(model, method)(data)))
    if hasattr(model, "predict_proba") and hasattr(model, "score_samples"):
        said.append(_call(lambda: model.score_samples(data)))  # a mixture's densities
    if targets is not None and hasattr(model, "y_weights_"):
        said.append(_call(lambda: model.transform(data, targets)))
    return said


def _call(answer: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return _plain(answer())
    except Exception as error:
        return f"{type(error).__name__}"


def _plain(value: Any) -> Any:
    if sparse.issparse(value):
        return value.toarray()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "to_numpy"):
        return value.to_numpy()
    return np.array(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) and isinstance(other, str) and one == other
    if one.shape != other.shape or one.dtype.kind in "OUS":
        return one.shape == other.shape and bool((one == other).all())
    return bool(np.allclose(one, other, rtol=1e-9, atol=1e-12, equal_nan=True))


def sensitivities(model: Any, data: Any, targets: Any = None, *, other: Any = None, tries: int = 4) -> dict[str, Found]:
    """{path: numbers}, each with whether answers depend on it and whether `other`, fitted on other data, has it too."""
    found = dict(numbers(model))
    elsewhere = {path: one.held for path, one in numbers(other)} if other is not None else {}
    before = answers(model, data, targets)
    with threadpool_limits(1):  # threads that wait for one another take longer than such small data
        for path, one in found.items():
            one.constant = elsewhere.get(path) == one.held
            for seed in range(tries):
                change = partial(one.change, np.random.default_rng(seed))
                if _moves(change, model, data, targets, before):
                    one.sensitive = True
                    break
    assert all(map(_same, before, answers(model, data, targets))), "the oracle did not put everything back"
    return found


def dead(one: Found, model: Any, data: Any, targets: Any = None) -> int:
    """How many of its numbers no answer depends on, each changed by itself."""
    before = answers(model, data, targets)
    return sum(not _moves(change, model, data, targets, before) for change in one.elements)


def _moves(change: Callable[[], Callable[[], None]], model: Any, data: Any, targets: Any, before: list[Any]) -> bool:
    restore = change()
    _rebuild(model)
    try:
        return not all(map(_same, before, answers(model, data, targets)))
    finally:
        restore()
        _rebuild(model)


def _rebuild(model: Any) -> None:
    """Isotonic regressions keep an interpolating function over their thresholds, which pickles leave out."""
    for one in _isotonic(model, set(), 0):
        one._build_f(one.X_thresholds_, one.y_thresholds_)


def _isotonic(thing: Any, seen: set[int], depth: int) -> Iterator[Any]:
    if id(thing) in seen or depth > 8:
        return
    seen.add(id(thing))
    if type(thing).__name__ == "IsotonicRegression" and hasattr(thing, "X_thresholds_"):
        yield thing
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            yield from _isotonic(part, seen, depth + 1)
    elif type(thing).__module__.startswith("sklearn") and hasattr(thing, "__dict__"):
        for part in vars(thing).values():
            yield from _isotonic(part, seen, depth + 1)


def disagreements(counted: dict[str, tuple[str, int]], found: dict[str, Found]) -> list[str]:
    """Where a count and the oracle part, in words; `counted` is {path: (kind, elements)}."""
    told: list[str] = []
    mine = {_key(path): (path, kind, size) for path, (kind, size) in counted.items()}
    theirs: dict[str, list[Found]] = {}
    for path, one in found.items():
        theirs.setdefault(_key(path), []).append(one)
    held = {id(one) for key, ones in theirs.items() if key in mine for one in ones}
    for key, ones in theirs.items():
        path, kind, size = mine.get(key, ("", "", 0))
        if not kind and any(id(one) in held for one in ones):
            continue
        learned = [one for one in ones if one.sensitive and not one.constant and one.reason is None and one.size]
        if learned and not kind:
            name = f"{learned[0].owner}.{learned[0].name}"
            told.append(f"{name}: answers depend on its {learned[0].size} numbers, and it is not counted")
        elif kind and size != ones[0].size:
            told.append(f"{path}: {size} counted, {ones[0].size} held")
    told.extend(
        f"{path}: counted, and the oracle finds no such numbers"
        for key, (path, kind, size) in mine.items()
        if key not in theirs and size and kind == "parameter"
    )
    return told


def unmoved(counted: dict[str, tuple[str, int]], found: dict[str, Found]) -> dict[str, bool]:
    """{Class.attribute: whether no answer depends on it, or no data changes it} of what is counted as parameters.

    In an ensemble that votes, or on one set of data, a learned number may move nothing: ask over many. Trees are left
    out: their splits and leaves are parameters by convention, used or not.
    """
    kinds = {_key(path): kind for path, (kind, size) in counted.items() if size}
    said: dict[str, bool] = {}
    for path, one in found.items():
        if kinds.get(_key(path)) == "parameter" and one.owner not in ("Tree", "TreePredictor") and one.reason is None:
            name = f"{one.owner}.{one.name.strip('_')}"
            idle = not one.sensitive or (one.constant and "." not in path)  # parts may fit alike by chance
            said[name] = said.get(name, True) and idle
    return said


def _key(path: str) -> str:
    return ".".join(part.strip("_") for part in path.split("."))
