"""scikit-learn's estimators: what `weighbridge.show` counts against what changing each fitted number does.

    PYTHONPATH=tests python benchmarks/estimators.py [--elements] [NAME ...]

Every class of `sklearn.utils.all_estimators` is fitted on several kinds of data and with several settings; the oracle
of tests/perturbation.py finds what its answers depend on, which must be what is counted, live and from `.skops`. Exit 1
if anything differs. `--elements` also tries each number of small arrays by itself and says which no answer depends on.
"""

import argparse
import contextlib
import inspect
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import perturbation
import sklearn
import skops
import skops.io
from scipy import sparse
from sklearn import (
    base,
    decomposition,
    feature_selection,
    frozen,
    linear_model,
    naive_bayes,
    preprocessing,
    svm,
    tree,
)
from sklearn.datasets import load_diabetes, load_iris
from sklearn.experimental import enable_halving_search_cv, enable_iterative_imputer  # noqa: F401
from sklearn.gaussian_process import kernels
from sklearn.utils import all_estimators

from weighbridge.ledger.errors import WeighError

_RANDOM = np.random.default_rng(0)
_IRIS, _KINDS = load_iris(return_X_y=True)
_IRIS, _KINDS = _IRIS[::3] + 0.01, _KINDS[::3]
_LINE, _SUGAR = load_diabetes(return_X_y=True)
_LINE, _SUGAR = np.abs(_LINE[:60, :5]) + 0.1, _SUGAR[:60]
_HOLES = np.where(_RANDOM.random(_IRIS.shape) < 0.1, np.nan, _IRIS)
_WORDS = np.array([["a", "x"], ["b", "y"], ["a", "y"], ["c", "x"], ["a", "x"]] * 8, dtype=object)
_TEXTS = ["the scale that a truck drives onto", "a truck", "the scale weighs models", "models learn", "a model"] * 4
_WEIGHTS = _RANDOM.uniform(0.5, 2, len(_KINDS))

# {what: (X, y, fit arguments)}
_DATA: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "classes": (_IRIS, _KINDS, {}),
    "two classes": (_IRIS[_KINDS > 0], _KINDS[_KINDS > 0], {}),
    "named classes": (_IRIS, np.array(["x", "y", "z"])[_KINDS], {}),
    "numbers": (_LINE, _SUGAR, {}),
    "two numbers": (_LINE, np.c_[_SUGAR, _SUGAR[::-1]], {}),
    "labels": (_IRIS, np.c_[_KINDS == 0, _KINDS == 1, _IRIS[:, 0] > 5.8].astype(int), {}),
    "labels, one constant": (_IRIS, np.c_[_KINDS == 0, _KINDS >= 0].astype(int), {}),
    "sparse, classes": (sparse.csr_matrix(_IRIS * (_IRIS > 1)), _KINDS, {}),
    "sparse, numbers": (sparse.csr_array(_LINE * (_LINE > 0.12)), _SUGAR, {}),
    "weighted": (_IRIS, _KINDS, {"sample_weight": _WEIGHTS}),
    "holes": (_HOLES, _KINDS, {}),
    "strings": (_WORDS, np.arange(40) % 3 % 2, {}),
    "texts": (_TEXTS, np.arange(20) % 5 % 2, {}),
    "counts": (np.floor(_IRIS), _KINDS, {}),
    "bits": ((_IRIS.mean(0) < _IRIS).astype(float), _KINDS, {}),
    "distances": (np.abs(_IRIS @ _IRIS.T), _KINDS, {}),
    "one column": (_LINE[:, :1], _SUGAR, {}),
    "dicts": ([{"a": 1.0, "b": 2.0}, {"a": 3.0}, {"c": 1.0}] * 4, None, {}),
    "label column": (_KINDS, None, {}),
    "label sets": ([(1, 2), (3,), (1,)] * 5, None, {}),
}

_INNER = linear_model.LogisticRegression()
_BARE = linear_model.LogisticRegression(fit_intercept=False)
_LINEAR = linear_model.Ridge()
_STUMP = tree.DecisionTreeClassifier(max_depth=2, random_state=0)
_PAIR = [("a", naive_bayes.GaussianNB()), ("b", _INNER)]
_PAIR_OF_NUMBERS = [("a", _LINEAR), ("b", linear_model.LinearRegression())]
_SMALL = {"n_estimators": 3}


def _each(**choices: list[Any]) -> list[dict[str, Any]]:
    """One setting at a time, and the defaults."""
    return [{}, *({name: value} for name, values in choices.items() for value in values)]


# Settings that change what a class learns. {class: [constructor arguments]}
_SETTINGS: dict[str, list[dict[str, Any]]] = {
    "AdaBoostClassifier": [
        _SMALL,
        {"estimator": _INNER, **_SMALL},
        {"estimator": tree.DecisionTreeClassifier(max_depth=6), **_SMALL},
    ],
    "AdaBoostRegressor": [_SMALL],
    "BaggingClassifier": [_SMALL, {"estimator": svm.SVC(), "max_features": 0.5, **_SMALL}],
    "BaggingRegressor": [_SMALL],
    "BayesianGaussianMixture": [
        {"n_components": 3, **more}
        for more in _each(
            covariance_type=["tied", "diag", "spherical"], weight_concentration_prior_type=["dirichlet_distribution"]
        )
    ],
    "GaussianMixture": [{"n_components": 3, **more} for more in _each(covariance_type=["tied", "diag", "spherical"])],
    "BisectingKMeans": [{"n_clusters": 4}],
    "KMeans": [{"n_clusters": 3}],
    "MiniBatchKMeans": [{"n_clusters": 3}],
    "Birch": _each(n_clusters=[None, 2]),
    "AffinityPropagation": _each(affinity=["precomputed"]),
    "CalibratedClassifierCV": [
        {"estimator": inner, "method": method, "cv": 2, "ensemble": together}
        for inner in (_INNER, svm.LinearSVC(), tree.DecisionTreeClassifier(max_depth=2))
        for method in ("sigmoid", "isotonic", "temperature")
        for together in (True, False)
    ],
    "CategoricalNB": _each(fit_prior=[False]),
    "BernoulliNB": _each(fit_prior=[False], class_prior=[[0.2, 0.3, 0.5]]),
    "MultinomialNB": _each(fit_prior=[False], class_prior=[[0.2, 0.3, 0.5]]),
    "ComplementNB": _each(fit_prior=[False], norm=[True]),
    "GaussianNB": _each(priors=[[0.2, 0.3, 0.5]]),
    "ColumnTransformer": [
        {"transformers": [("s", preprocessing.StandardScaler(), [0, 1])], "remainder": remainder}
        for remainder in ("drop", "passthrough", preprocessing.MinMaxScaler())
    ],
    "DictionaryLearning": [{"n_components": 3, "max_iter": 5}],
    "MiniBatchDictionaryLearning": [{"n_components": 3, "max_iter": 5}],
    "DummyClassifier": [
        *_each(strategy=["most_frequent", "stratified", "uniform"]),
        {"strategy": "constant", "constant": 1},
    ],
    "DummyRegressor": [
        *_each(strategy=["median"]),
        {"strategy": "constant", "constant": 4.0},
        {"strategy": "quantile", "quantile": 0.3},
    ],
    "EmpiricalCovariance": _each(store_precision=[False], assume_centered=[True]),
    "EllipticEnvelope": _each(assume_centered=[True], store_precision=[False]),
    "MinCovDet": _each(assume_centered=[True]),
    "GraphicalLasso": _each(assume_centered=[True]),
    "FactorAnalysis": [{"n_components": 2}],
    "FastICA": _each(whiten=[False, "arbitrary-variance"], n_components=[2]),
    "FeatureUnion": [{"transformer_list": [("p", decomposition.PCA(2)), ("s", preprocessing.StandardScaler())]}],
    "FixedThresholdClassifier": [{"estimator": _INNER, "threshold": 0.3}],
    "TunedThresholdClassifierCV": [{"estimator": _INNER, "cv": 2}, {"estimator": naive_bayes.GaussianNB()}],
    "FrozenEstimator": [],
    "GaussianProcessClassifier": _each(
        kernel=[kernels.RBF() * 2.0, kernels.DotProduct() + kernels.WhiteKernel()],
        optimizer=[None],
        multi_class=["one_vs_one"],
    ),
    "GaussianProcessRegressor": _each(
        kernel=[
            kernels.RBF(2.0) + kernels.ConstantKernel(),
            kernels.Matern(1.0, (0.5, 2)) * kernels.RationalQuadratic(1.0, 1.0, (0.5, 2), (0.5, 2)),
            kernels.RBF(length_scale_bounds="fixed") + 1.0,
            kernels.DotProduct() ** 2,
            kernels.ExpSineSquared(1.0, 2.0, (0.5, 2), (1.5, 3)) + kernels.WhiteKernel(),
        ],
        normalize_y=[True],
        optimizer=[None],
        alpha=[0.1],
    ),
    "GaussianRandomProjection": [{"n_components": 2}],
    "SparseRandomProjection": [{"n_components": 2}],
    "GradientBoostingClassifier": [
        _SMALL,
        {"init": "zero", **_SMALL},
        {"init": _INNER, **_SMALL},
        {"loss": "exponential", **_SMALL},
    ],
    "GradientBoostingRegressor": [_SMALL, {"init": "zero", **_SMALL}, {"loss": "quantile", **_SMALL}],
    "GridSearchCV": [{"estimator": _INNER, "param_grid": {"C": [1, 2]}}],
    "HalvingGridSearchCV": [{"estimator": _INNER, "param_grid": {"C": [1, 2]}}],
    "RandomizedSearchCV": [{"estimator": _INNER, "param_distributions": {"C": [1, 2]}, "n_iter": 2}],
    "HalvingRandomSearchCV": [{"estimator": _INNER, "param_distributions": {"C": [1, 2]}}],
    "HistGradientBoostingClassifier": [
        {"max_iter": 3, "min_samples_leaf": 4},
        {"max_iter": 3, "categorical_features": [0], "min_samples_leaf": 2},
    ],
    "HistGradientBoostingRegressor": [
        {"max_iter": 3, "min_samples_leaf": 4},
        {"max_iter": 3, "loss": "quantile", "quantile": 0.3, "min_samples_leaf": 4},
    ],
    "IsolationForest": [_SMALL, {"contamination": 0.1, **_SMALL}, {"max_features": 0.5, **_SMALL}],
    "IsotonicRegression": _each(out_of_bounds=["clip"], increasing=["auto"]),
    "IterativeImputer": [{"max_iter": 1}, {"max_iter": 1, "add_indicator": True}],
    "KBinsDiscretizer": _each(encode=["ordinal"], strategy=["uniform", "kmeans"]),
    "KernelPCA": [*_each(kernel=["rbf", "precomputed"]), {"fit_inverse_transform": True, "n_components": 2}],
    "KernelDensity": _each(kernel=["tophat"]),
    "KernelRidge": _each(kernel=["rbf", "precomputed"]),
    "KNNImputer": _each(add_indicator=[True]),
    "KNeighborsClassifier": _each(algorithm=["brute", "kd_tree"], weights=["distance"], metric=["precomputed"]),
    "KNeighborsRegressor": _each(algorithm=["brute"]),
    "LabelPropagation": _each(kernel=["knn"]),
    "LabelSpreading": _each(kernel=["knn"]),
    "LinearDiscriminantAnalysis": _each(solver=["lsqr", "eigen"], n_components=[1]),
    "LinearRegression": _each(fit_intercept=[False], positive=[True]),
    "LinearSVC": _each(fit_intercept=[False], multi_class=["crammer_singer"]),
    "LinearSVR": _each(fit_intercept=[False]),
    "LocalOutlierFactor": [*_each(novelty=[True]), {"novelty": True, "contamination": 0.1}],
    "LocallyLinearEmbedding": _each(method=["ltsa"]),
    "LogisticRegression": _each(fit_intercept=[False]),
    "MLPClassifier": [{"hidden_layer_sizes": (3,), "max_iter": 20}, {"hidden_layer_sizes": (), "max_iter": 20}],
    "MLPRegressor": [{"hidden_layer_sizes": (3, 2), "max_iter": 20}],
    "MissingIndicator": _each(),
    "MultiOutputClassifier": [{"estimator": _INNER}],
    "MultiOutputRegressor": [{"estimator": _LINEAR}],
    "ClassifierChain": [{"estimator": _INNER}, {"estimator": _INNER, "order": "random", "random_state": 1}],
    "RegressorChain": [{"estimator": _LINEAR}],
    "NearestCentroid": _each(shrink_threshold=[0.2], metric=["manhattan"], priors=["empirical", [0.2, 0.3, 0.5]]),
    "NearestNeighbors": _each(algorithm=["brute", "ball_tree"]),
    "Nystroem": [{"n_components": 5}],
    "NMF": [{"n_components": 2}],
    "MiniBatchNMF": [{"n_components": 2}],
    "OneVsOneClassifier": [{"estimator": _INNER}],
    "OneVsRestClassifier": [{"estimator": _INNER}, {"estimator": svm.LinearSVC()}],
    "OutputCodeClassifier": [{"estimator": _INNER, "code_size": 2, "random_state": 3}],
    "OneClassSVM": _each(kernel=["linear"]),
    "PCA": _each(whiten=[True], n_components=[2], svd_solver=["arpack"]),
    "IncrementalPCA": _each(whiten=[True]),
    "PLSRegression": _each(scale=[False]),
    "PLSCanonical": _each(scale=[False]),
    "PLSSVD": [{"n_components": 1}, {"n_components": 1, "scale": False}],
    "CCA": [{"n_components": 1}, {"n_components": 1, "scale": False}],
    "Pipeline": [
        {"steps": [("s", preprocessing.StandardScaler()), ("m", _INNER)]},
        {"steps": [("s", "passthrough"), ("p", decomposition.PCA(2)), ("m", svm.SVC())]},
        {"steps": [("f", feature_selection.SelectKBest(k=2)), ("m", _LINEAR)]},
    ],
    "PowerTransformer": _each(standardize=[False], method=["box-cox"]),
    "QuadraticDiscriminantAnalysis": _each(solver=["eigen"], priors=[[0.2, 0.3, 0.5]], store_covariance=[True]),
    "QuantileTransformer": _each(n_quantiles=[7], output_distribution=["normal"]),
    "QuantileRegressor": [{"alpha": 0.0}],
    "RANSACRegressor": _each(estimator=[_LINEAR]),
    "RFE": [{"estimator": _INNER, "n_features_to_select": 2}],
    "RFECV": [{"estimator": _INNER, "cv": 2}],
    "RandomForestClassifier": [{"max_depth": 3, **_SMALL}],
    "RandomForestRegressor": [{"max_depth": 3, **_SMALL}],
    "ExtraTreesClassifier": [{"max_depth": 3, **_SMALL}],
    "ExtraTreesRegressor": [{"max_depth": 3, **_SMALL}],
    "RandomTreesEmbedding": [_SMALL],
    "RidgeClassifier": _each(fit_intercept=[False]),
    "RobustScaler": _each(with_centering=[False], with_scaling=[False]),
    "SGDClassifier": _each(fit_intercept=[False], loss=["log_loss"], average=[True]),
    "SGDOneClassSVM": _each(fit_intercept=[False]),
    "SGDRegressor": _each(average=[True]),
    "SVC": _each(
        kernel=["linear", "precomputed", lambda a, b: a @ b.T], probability=[True], decision_function_shape=["ovo"]
    ),
    "NuSVC": _each(probability=[True], nu=[0.2]),
    "SVR": _each(kernel=["linear"]),
    "SelectFromModel": [  # which computes with coefficients alone; an intercept counts with its estimator
        {"estimator": _BARE},
        {"estimator": _BARE, "threshold": 0.1, "max_features": 2},
    ],
    "SelfTrainingClassifier": [{"estimator": _INNER}],
    "SequentialFeatureSelector": [{"estimator": _INNER, "n_features_to_select": 2, "cv": 2}],
    "SimpleImputer": _each(strategy=["median", "most_frequent", "constant"], add_indicator=[True]),
    "SparseCoder": [{"dictionary": np.eye(4)}],
    "SparsePCA": [{"n_components": 2, "max_iter": 5}],
    "MiniBatchSparsePCA": [{"n_components": 2, "max_iter": 5}],
    "SplineTransformer": _each(
        knots=["quantile", np.tile(np.linspace(0, 9, 4)[:, None], (1, 4))], extrapolation=["periodic", "linear"]
    ),
    "StackingClassifier": [
        {"estimators": _PAIR},
        {"estimators": _PAIR, "final_estimator": _STUMP, "passthrough": True, "cv": 2},
        {"estimators": [("a", "drop"), ("b", _INNER)]},
    ],
    "StackingRegressor": [{"estimators": _PAIR_OF_NUMBERS}],
    "StandardScaler": [*_each(with_mean=[False], with_std=[False]), {"with_mean": False, "with_std": False}],
    "TargetEncoder": _each(smooth=[2.0], target_type=["continuous"]),
    "TfidfTransformer": _each(use_idf=[False]),
    "TfidfVectorizer": _each(use_idf=[False]),
    "TransformedTargetRegressor": [
        {"regressor": _LINEAR},
        {"regressor": _LINEAR, "transformer": preprocessing.StandardScaler()},
        {"regressor": _LINEAR, "func": np.log1p, "inverse_func": np.expm1},
    ],
    "TruncatedSVD": [{"n_components": 2}],
    "VotingClassifier": [{"estimators": _PAIR}, {"estimators": _PAIR, "voting": "soft", "weights": [1, 2]}],
    "VotingRegressor": [{"estimators": _PAIR_OF_NUMBERS}],
    "BernoulliRBM": [{"n_components": 3, "n_iter": 3}],
    "LatentDirichletAllocation": [{"n_components": 2, "max_iter": 3}],
    "RBFSampler": [{"n_components": 5}],
    "SkewedChi2Sampler": [{"n_components": 5}],
    "PolynomialCountSketch": [{"n_components": 6}],
    "ExtraTreeRegressor": [{"max_depth": 3}],
    "ExtraTreeClassifier": [{"max_depth": 3}],
    "DecisionTreeRegressor": [{"max_depth": 3}],
    "DecisionTreeClassifier": _each(max_depth=[2]),
    "MDS": [{"max_iter": 5, "n_init": 1}],
    "TSNE": [{"max_iter": 250, "perplexity": 5}],
    "FunctionTransformer": _each(func=[np.sqrt]),
}


# Classes that take long to fit, with fewer kinds of data.
_FEW = ("classes", "two classes", "numbers", "two numbers")
_KINDS_OF = {
    "GaussianProcessClassifier": _FEW[:2],
    "GaussianProcessRegressor": ("classes", "two numbers"),
    "AdaBoostClassifier": _FEW,
    "BaggingClassifier": (*_FEW, "named classes", "sparse, classes", "weighted"),
    "CalibratedClassifierCV": ("classes", "two classes", "named classes"),
    "BayesianGaussianMixture": ("classes", "numbers"),
    "GaussianMixture": ("classes", "numbers"),
    "PLSSVD": ("two numbers",),
    "AffinityPropagation": ("classes", "sparse, classes", "distances"),
}
# What those that learn without labels see no difference between.
_OF_LABELS = ("two classes", "named classes", "two numbers", "labels", "labels, one constant", "weighted")


def classes() -> list[tuple[str, type]]:
    """(name, class) of every public estimator, the experimental ones among them."""
    return all_estimators()


def _fit(model: Any, data: Any, targets: Any, more: dict[str, Any]) -> Any:
    alone = len(inspect.signature(model.fit).parameters) == 1  # encoders of labels
    return model.fit(data) if alone else model.fit(data, targets, **more)


def _other(kind: str, data: Any, targets: Any, more: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Other data of the kind: four fifths of the rows, and where they are plain numbers, larger ones."""
    few = (len(targets) if targets is not None else len(data)) * 4 // 5
    data = data[:few, :few] if kind == "distances" else data[:few]
    if kind in ("classes", "two classes", "numbers", "two numbers", "weighted", "holes", "one column"):
        data = data * np.linspace(1.1, 1.3, data.shape[1])
    return data, None if targets is None else targets[:few], {key: value[:few] for key, value in more.items()}


def _kinds(made: type) -> list[str]:
    if issubclass(made, base.ClassifierMixin):
        return [kind for kind in _DATA if "numbers" not in kind and kind != "one column"]
    if issubclass(made, base.RegressorMixin):
        return [kind for kind in _DATA if kind != "named classes"]
    return [kind for kind in _DATA if kind not in _OF_LABELS]


def cases(name: str, made: type, kinds: Sequence[str] | None = None) -> Iterator[tuple[str, Any, Any, Any, Any]]:
    """(what, fitted estimator, the same fitted on other data, data, targets) of a class: every setting with every kind
    of data that it takes.
    """
    if name == "FrozenEstimator":
        other = frozen.FrozenEstimator(base.clone(_INNER).fit(_IRIS[10:], _KINDS[10:]))
        yield "over a regression", frozen.FrozenEstimator(_INNER.fit(_IRIS, _KINDS)), other, _IRIS, _KINDS
    for arguments in _SETTINGS.get(name, [{}]):
        for kind, (data, targets, more) in _DATA.items():
            if kind not in (kinds or _KINDS_OF.get(name) or _kinds(made)):
                continue
            if (kind == "distances") != ("precomputed" in map(str, arguments.values()) or name == "KernelCenterer"):
                continue
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    model = made(**arguments)
                    if "random_state" in model.get_params() and arguments.get("random_state") is None:
                        model.set_params(random_state=0)
                    fitted = _fit(base.clone(model), data, targets, more)
            except Exception:
                continue
            other = None
            with contextlib.suppress(Exception), warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                less, fewer, lighter = _other(kind, data, targets, more)
                other = _fit(base.clone(model), less, fewer, lighter)
            said = ", ".join(f"{key}={str(value)[:30]}" for key, value in arguments.items())
            if name == "TargetEncoder":
                data = np.vstack([data, [["unseen"] * data.shape[1]]]) if kind == "strings" else data
            yield f"{said or 'defaults'}; {kind}", fitted, other, data, targets
            if hasattr(fitted, "sparsify") and kind in ("classes", "numbers"):
                sparser = other.sparsify() if other is not None else None
                yield f"{said or 'defaults'}, sparsified; {kind}", fitted.sparsify(), sparser, data, targets


def counted(thing: Any) -> dict[str, tuple[str, int]]:
    """{name: (kind, elements)} as Weighbridge has it."""
    from weighbridge.formats import live
    from weighbridge.formats.models import open_model

    ledger = open_model(str(thing)) if isinstance(thing, Path) else live.ledger_of(thing)
    return {row.name: (row.kind, int(np.prod(row.shape))) for row in ledger.tensors}


_PUBLIC = frozenset(name for name, _ in classes())
_PARTS: dict[str, bool] = {}  # of classes that are not public: whether no answer of any composite depends on them


@dataclass(slots=True)
class Outcome:
    """What came of the cases of one class."""

    fits: int = 0
    saved: int = 0
    wrong: set[str] = field(default_factory=set)
    refusals: dict[str, str] = field(default_factory=dict)
    idle: dict[str, bool] = field(default_factory=dict)

    def add(self, what: str, case: tuple[Any, Any, Any, Any], *, elements: bool) -> None:
        model, other, data, targets = case
        self.fits += 1
        try:
            mine = counted(model)
        except WeighError as error:
            self.refusals[what] = str(error)
            return
        found = perturbation.sensitivities(model, data, targets, other=other)
        self.wrong |= {f"{what}: {said}" for said in perturbation.disagreements(mine, found)}
        for attribute, unmoved in perturbation.unmoved(mine, found).items():
            # A part is asked about where its own class is, and a class that is only ever a part, wherever it is.
            owner = attribute.partition(".")[0]
            if owner not in _PUBLIC:
                _PARTS[attribute] = _PARTS.get(attribute, True) and unmoved
            elif owner == type(model).__name__:
                key = f"{what.partition(';')[0]}; {attribute}"
                self.idle[key] = self.idle.get(key, True) and unmoved
        for one in found.values() if elements else ():
            if one.sensitive and one.elements and (count := perturbation.dead(one, model, data, targets)):
                self.wrong.add(f"{what}: {one.owner}.{one.name}: {count} of {one.size} matter to no answer")
        theirs = _saved(model)
        self.saved += theirs == mine
        if theirs is not None and theirs != mine:
            self.wrong.add(f"{what}: from .skops {str(theirs)[:200]}")

    @property
    def verdict(self) -> str:
        idle = (what for what, is_idle in self.idle.items() if is_idle)
        self.wrong |= {f"{what}: a parameter that no answer depends on" for what in idle}
        if not self.fits:
            return "not fitted by any case"
        if self.wrong:
            return "differ"
        return "refused" if len(self.refusals) == self.fits else "exact"


def _saved(model: Any) -> dict[str, tuple[str, int]] | str | None:
    """What is counted once saved, or why it is refused; None where skops cannot save it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.skops"
        try:
            skops.io.dump(model, path)
        except Exception:  # what it cannot save is its own affair: functions, mostly
            return None
        try:
            return counted(path)
        except WeighError as error:
            return str(error)


def main() -> int:
    """Prints what differs, and which classes are exact or refused; exit 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--elements", action="store_true")
    options = parser.parse_args()
    verdicts: dict[str, list[str]] = defaultdict(list)
    fits = saved = 0
    for name, made in classes():
        if options.names and name not in options.names:
            continue
        outcome = Outcome()
        for what, *case in cases(name, made):
            outcome.add(what, tuple(case), elements=options.elements)
        fits, saved = fits + outcome.fits, saved + outcome.saved
        verdicts[outcome.verdict].append(name)
        for line in sorted(outcome.wrong):
            print(f"{name}: {line}", flush=True)
        for said in sorted(set(outcome.refusals.values())):
            print(f"{name}: refused in {len(outcome.refusals)} of {outcome.fits} fits: {said}", flush=True)
    for part in [part for part, is_idle in _PARTS.items() if is_idle and not options.names]:
        print(f"{part}: a parameter that no answer depends on")
        verdicts["differ"].append(part)
    print(f"scikit-learn {sklearn.__version__}, skops {skops.__version__}: {fits} fits, {saved} equal from .skops too")
    for verdict, names in verdicts.items():
        print(f"{verdict}: {len(names)}: {', '.join(names)}")
    return 1 if verdicts["differ"] or verdicts["not fitted by any case"] else 0


if __name__ == "__main__":
    sys.exit(main())
