"""Which numbers of an estimator are learned: those that its answers depend on and that other data would change."""

import importlib.util
import json
import pickle
import sys
import zipfile
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import lightgbm
import numpy as np
import perturbation
import pytest
import skops.io
import xgboost
from scipy import sparse
from sklearn import (
    calibration,
    ensemble,
    feature_extraction,
    feature_selection,
    impute,
    linear_model,
    model_selection,
    multiclass,
    naive_bayes,
    neighbors,
    pipeline,
    preprocessing,
    svm,
)
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from sklearn.utils import all_estimators
from threadpoolctl import threadpool_limits

import weighbridge
from weighbridge.formats.models import open_model
from weighbridge.ledger.errors import Refused, Unknown, WeighError

ROOT = Path(__file__).parents[2]
X, Y = load_iris(return_X_y=True)


def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_estimators", ROOT / "benchmarks/estimators.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BENCH = _benchmark()
CLASSES = dict(BENCH.classes())


def counted(thing: Any) -> tuple[int, int]:
    """(learned, kept)"""
    said = weighbridge.show(thing).to_dict()
    return said["parameters"]["total"], said["buffers"]["total"]  # type: ignore[index]


def saved(estimator: Any, folder: Path) -> tuple[int, int]:
    """The same, from the file that skops writes."""
    skops.io.dump(estimator, folder / "model.skops")
    return counted(folder / "model.skops")


# The oracle. benchmarks/estimators.py asks it of every class of scikit-learn, on every kind of data. -----------------

ASKED = {
    "classes": (
        "LogisticRegression LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis SVC GaussianNB"
        " MultinomialNB ComplementNB MLPClassifier DecisionTreeClassifier GradientBoostingClassifier"
        " HistGradientBoostingClassifier IsolationForest BisectingKMeans BayesianGaussianMixture"
        " NearestCentroid LocalOutlierFactor StandardScaler SplineTransformer KBinsDiscretizer PCA FastICA"
        " SelectKBest StackingClassifier VotingClassifier OutputCodeClassifier Isomap DummyClassifier Pipeline"
        " ColumnTransformer FeatureUnion LabelPropagation EllipticEnvelope"
    ),
    "two classes": "CalibratedClassifierCV",
    "numbers": "Ridge PLSRegression CCA GaussianProcessRegressor TransformedTargetRegressor RANSACRegressor",
    "labels, one constant": "OneVsRestClassifier",
    "labels": "MultiOutputClassifier ClassifierChain",
    "sparse, classes": "LinearSVC NuSVC",
    "holes": "SimpleImputer IterativeImputer",
    "strings": "TargetEncoder OneHotEncoder",
    "texts": "TfidfVectorizer",
    "one column": "IsotonicRegression",
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ASKED.items() for name in names.split()])
def test_what_answers_depend_on_is_what_is_counted(kind: str, name: str) -> None:
    tried = 0
    with threadpool_limits(1):
        for what, model, other, data, targets in islice(BENCH.cases(name, CLASSES[name], [kind]), 2):
            found = perturbation.sensitivities(model, data, targets, other=other)
            assert perturbation.disagreements(BENCH.counted(model), found) == [], what
            tried += 1
    assert tried


def test_every_public_class_of_scikit_learn_has_a_rule() -> None:
    table = json.loads((ROOT / "src/weighbridge/formats/data/estimators.json").read_text("utf-8"))
    assert {name for name, _ in all_estimators()} - {name for row in table["classes"] for name in row["names"]} == set()


def test_the_oracle_sees_a_number_that_is_not_counted() -> None:
    model = preprocessing.StandardScaler().fit(X)
    found = perturbation.sensitivities(model, X, other=preprocessing.StandardScaler().fit(X[20:]))
    mine = {"mean_": ("parameter", 4)}
    assert perturbation.disagreements(mine, found) == [
        "StandardScaler.scale_: answers depend on its 4 numbers, and it is not counted"
    ]


# What is fitted, and what is not -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        preprocessing.StandardScaler(with_mean=False, with_std=False),
        preprocessing.OneHotEncoder(),
        preprocessing.Normalizer(),
        feature_selection.SequentialFeatureSelector(linear_model.Ridge(), n_features_to_select=2, cv=2),
        feature_selection.SelectKBest(k=2),
        impute.SimpleImputer(strategy="constant", fill_value=7.0),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_fitted_and_learned_nothing_is_counted_as_nothing(estimator: Any, tmp_path: Path) -> None:
    estimator.fit(X, Y)
    assert counted(estimator) == saved(estimator, tmp_path) == (0, 0)
    assert any("nothing is learned" in note for note in weighbridge.show(estimator).to_dict()["notes"])  # type: ignore[union-attr]


def test_what_holds_no_tensor_is_not_signed(tmp_path: Path) -> None:
    """Any two of them would have the same digest."""
    skops.io.dump(preprocessing.OneHotEncoder().fit(X), tmp_path / "m.skops")
    with pytest.raises(Refused, match="no digest tells it from others"):
        weighbridge.sign(tmp_path / "m.skops")


def test_weights_of_words_without_idf_are_nothing_learned(tmp_path: Path) -> None:
    texts = ["a truck on a scale", "a scale", "models"]
    without = feature_extraction.text.TfidfVectorizer(use_idf=False).fit(texts)
    assert counted(without) == saved(without, tmp_path) == (0, 0)
    assert counted(feature_extraction.text.TfidfVectorizer().fit(texts)) == (5 - 1, 0)  # "a" is no token


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (preprocessing.StandardScaler(with_mean=False, with_std=False), "StandardScaler is not fitted"),
        (preprocessing.OneHotEncoder(), "OneHotEncoder is not fitted"),
        (pipeline.make_pipeline(preprocessing.Normalizer(), svm.SVC()), "SVC is not fitted"),
        (model_selection.GridSearchCV(svm.SVC(), {"C": [1, 2]}, refit=False, cv=2).fit(X, Y), "refit=True"),
        (svm.SVC, "SVC is a class"),
    ],
)
def test_what_holds_no_fitted_model_is_refused_with_the_reason(estimator: Any, said: str) -> None:
    with pytest.raises(WeighError, match=said):
        weighbridge.show(estimator)


# Live and saved ------------------------------------------------------------------------------------------------------


def test_sparse_arrays_count_the_values_that_they_store_live_and_saved(tmp_path: Path) -> None:
    few = linear_model.SGDClassifier(penalty="l1", alpha=0.05, random_state=0).fit(X, Y)
    values = int(np.count_nonzero(few.coef_)) + few.intercept_.size
    few.sparsify()
    assert counted(few) == saved(few, tmp_path) == (values, 0)
    for kernel in ("linear", "rbf"):
        machine = svm.SVC(kernel=kernel).fit(sparse.csr_matrix(X), Y)
        stored = machine.support_vectors_.nnz + machine._dual_coef_.nnz + machine._intercept_.size
        assert counted(machine) == saved(machine, tmp_path) == (stored, 0)


def test_labels_that_are_texts_do_not_hinder(tmp_path: Path) -> None:
    named = linear_model.LogisticRegression(max_iter=500).fit(X, np.array(["x", "y", "z"])[Y])
    assert counted(named) == saved(named, tmp_path) == (15, 0)


def test_most_frequent_texts_are_labels_and_not_numbers(tmp_path: Path) -> None:
    rows = np.array([["a", 1.0], ["a", 2.0], ["b", 2.0]], dtype=object)
    filler = impute.SimpleImputer(strategy="most_frequent").fit(rows)
    assert counted(filler) == saved(filler, tmp_path) == (1, 0)


def test_an_estimator_that_occurs_twice_counts_once(tmp_path: Path) -> None:
    inner = FrozenEstimator(linear_model.LogisticRegression(max_iter=500).fit(X, Y))
    both = ensemble.VotingClassifier([("a", inner), ("b", naive_bayes.GaussianNB())]).fit(X, Y)
    one = counted(both)[0]
    both.estimators_.append(both.estimators_[0])
    assert counted(both)[0] == one == saved(both, tmp_path)[0]


def test_neighbors_in_a_search_tree_are_data(tmp_path: Path) -> None:
    density = neighbors.KernelDensity().fit(X)
    assert counted(density) == saved(density, tmp_path) == (0, X.size)


# Classes of the user's own -------------------------------------------------------------------------------------------


class Renamed(linear_model.LinearRegression):
    """Learns what its parent learns."""


class Calibrated(linear_model.LinearRegression):
    """Learns one value more, under a name that no table has."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Calibrated":
        super().fit(X, y, sample_weight)
        self.shift_ = float(np.mean(y))
        return self


class Hidden(linear_model.LinearRegression):
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Hidden":
        super().fit(X, y, sample_weight)
        self._extra = np.zeros(3)
        return self


class Boosted(xgboost.XGBRegressor):
    """Learns what its parent learns."""


class Pipe(pipeline.Pipeline):
    """As other libraries extend it."""


def test_a_class_that_extends_a_known_one_counts_as_that() -> None:
    assert counted(Renamed().fit(X, Y)) == (5, 0)
    trees = {"n_estimators": 2, "max_depth": 2}
    assert counted(Boosted(**trees).fit(X, Y)) == counted(xgboost.XGBRegressor(**trees).fit(X, Y))
    assert counted(Pipe([("s", preprocessing.StandardScaler()), ("m", Renamed())]).fit(X, Y)) == (13, 0)
    with pytest.raises(Unknown, match="Renamed is not fitted"):
        weighbridge.show(Renamed())


@pytest.mark.parametrize(("made", "attribute"), [(Calibrated, "shift_"), (Hidden, "_extra")])
def test_what_such_a_class_adds_is_refused_by_name(made: Any, attribute: str) -> None:
    with pytest.raises(Unknown, match=attribute):
        weighbridge.show(made().fit(X, Y))


def test_a_saved_class_that_is_not_scikit_learns_is_refused(tmp_path: Path) -> None:
    skops.io.dump(Renamed().fit(X, Y), tmp_path / "m.skops")
    with pytest.raises(Unknown, match="Renamed"):
        open_model(str(tmp_path / "m.skops"))


# What the oracle finds, as sizes of fitted arrays --------------------------------------------------------------------


def test_thresholds_that_were_tuned_are_learned_and_those_that_were_given_are_not() -> None:
    inner = linear_model.LogisticRegression(max_iter=500)
    two = Y[50:] == 2
    assert counted(model_selection.TunedThresholdClassifierCV(inner, cv=2).fit(X[50:], two)) == (5 + 1, 0)
    assert counted(model_selection.FixedThresholdClassifier(inner, threshold=0.3).fit(X[50:], two)) == (5, 0)
    auto = counted(ensemble.IsolationForest(n_estimators=3, random_state=0).fit(X))[0]
    assert counted(ensemble.IsolationForest(n_estimators=3, random_state=0, contamination=0.1).fit(X))[0] == auto + 1


def test_probabilities_of_a_support_vector_machine_take_two_more_values_for_each_pair(tmp_path: Path) -> None:
    plain = svm.SVC().fit(X, Y)
    with pytest.warns(FutureWarning, match="probability"):
        likely = svm.SVC(probability=True, random_state=0).fit(X, Y)
    assert counted(likely)[0] == counted(plain)[0] + 2 * 3 == saved(likely, tmp_path)[0]


def test_a_temperature_is_one_value(tmp_path: Path) -> None:
    warm = calibration.CalibratedClassifierCV(
        linear_model.LogisticRegression(max_iter=500), method="temperature", cv=2, ensemble=False
    ).fit(X, Y)
    assert counted(warm) == saved(warm, tmp_path) == (15 + 1, 0)


def test_a_class_that_never_varies_is_one_value(tmp_path: Path) -> None:
    labels = np.c_[Y == 0, np.ones_like(Y)]
    with pytest.warns(UserWarning, match="is present in all"):
        rest = multiclass.OneVsRestClassifier(linear_model.LogisticRegression()).fit(X, labels)
    assert counted(rest) == saved(rest, tmp_path) == (5 + 1, 0)


def test_categorical_splits_have_a_set_and_no_threshold(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = np.c_[random.integers(0, 8, 300), random.normal(size=300)]
    target = (rows[:, 0] % 3) + rows[:, 1]
    model = ensemble.HistGradientBoostingRegressor(max_iter=2, categorical_features=[0]).fit(rows, target)
    expected = 1  # the baseline
    for (one,) in model._predictors:
        leaf, sets = one.nodes["is_leaf"].astype(bool), one.nodes["is_categorical"].astype(bool)
        expected += int(leaf.sum()) + int((~leaf).sum()) + int((~leaf & ~sets).sum()) + one.raw_left_cat_bitsets.size
    assert counted(model)[0] == expected == saved(model, tmp_path)[0]

    boosted = xgboost.XGBRegressor(
        n_estimators=2, feature_types=["c", "q"], enable_categorical=True, max_cat_to_onehot=2
    ).fit(rows, target)
    lines = [line for text in boosted.get_booster().get_dump() for line in text.strip().splitlines()]
    sets = [line for line in lines if ":{" in line]
    leaves = sum("leaf=" in line for line in lines)
    named = sum(line[line.index("{") : line.index("}")].count(",") + 1 for line in sets)
    assert sets
    assert counted(boosted)[0] == leaves + 2 * (len(lines) - leaves) - len(sets) + named + 1

    light = lightgbm.LGBMRegressor(n_estimators=2, min_data_per_group=5, max_cat_to_onehot=1, cat_smooth=1, verbose=-1)
    light.fit(rows, target, categorical_feature=[0])
    text = light.booster_.model_to_string()
    words = sum(len(line.split("=")[1].split()) for line in text.splitlines() if line.startswith("cat_threshold="))
    thresholds = leaves = splits = 0
    for tree in light.booster_.dump_model()["tree_info"]:
        leaves += tree["num_leaves"]
        splits += tree["num_leaves"] - 1
        thresholds += str(tree).count("'decision_type': '<='")
    assert words
    assert counted(light)[0] == leaves + splits + thresholds + words


def test_the_values_that_a_gaussian_process_fits_are_those_of_its_kernel_that_are_not_fixed(tmp_path: Path) -> None:
    kernel = (
        kernels.RBF([1.0] * 4, length_scale_bounds=(1e-9, 1e9))
        + kernels.ConstantKernel(constant_value_bounds="fixed") * kernels.WhiteKernel()
    )
    model = GaussianProcessRegressor(kernel, normalize_y=True).fit(X[::5], Y[::5])
    expected = model.alpha_.size + model.kernel_.theta.size + 2
    assert counted(model) == saved(model, tmp_path) == (expected, X[::5].size)


def test_a_saved_tree_that_lacks_its_arrays_is_refused(tmp_path: Path) -> None:
    skops.io.dump(ensemble.RandomForestClassifier(n_estimators=1).fit(X, Y), tmp_path / "m.skops")
    with zipfile.ZipFile(tmp_path / "m.skops") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in ("nodes", "values"):
        schema = members["schema.json"].replace(f'"{name}": '.encode(), b'"other": ')
        assert schema != members["schema.json"]
        with zipfile.ZipFile(tmp_path / "forged.skops", "w") as forged:
            for member, raw in {**members, "schema.json": schema}.items():
                forged.writestr(member, raw)
        with pytest.raises(Unknown, match="tree is not as scikit-learn keeps one"):
            open_model(str(tmp_path / "forged.skops"))


# Boosters under other names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.model", "m.bst", "m"])
@pytest.mark.parametrize("ending", ["json", "ubj"])
def test_an_xgboost_model_is_read_whatever_it_is_called(name: str, ending: str, tmp_path: Path) -> None:
    model = xgboost.XGBClassifier(n_estimators=3).fit(X, Y)
    model.save_model(tmp_path / f"m.{ending}")
    (tmp_path / f"m.{ending}").rename(tmp_path / name)
    assert counted(tmp_path / name) == counted(model)


def test_xgboosts_old_binary_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """As XGBoost 2 wrote it: 136 bytes of parameters, then the names of the objective and of the booster."""
    old = (
        bytes(136) + (14).to_bytes(8, "little") + b"multi:softprob" + (6).to_bytes(8, "little") + b"gbtree" + bytes(300)
    )
    for at, raw in enumerate((old, b"binf" + old)):
        (tmp_path / f"{at}.model").write_bytes(raw)
        with pytest.raises(Refused, match=r"\.json or \.ubj"):
            open_model(str(tmp_path / f"{at}.model"))


def test_a_base_score_that_was_given_is_no_parameter() -> None:
    given = xgboost.XGBRegressor(n_estimators=2, max_depth=1, base_score=0.5).fit(X, Y)
    estimated = xgboost.XGBRegressor(n_estimators=2, max_depth=1).fit(X, Y)
    assert counted(given)[0] + 1 == counted(estimated)[0] == 2 * (2 + 2) + 1


def test_pickled_boosters_are_refused_with_their_own_way_to_save(tmp_path: Path) -> None:
    light = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(X, Y)
    for at, thing in enumerate((light, light.booster_)):
        (tmp_path / f"{at}.pkl").write_bytes(pickle.dumps(thing))
        with pytest.raises(Refused, match=r"as text with save_model"):
            open_model(str(tmp_path / f"{at}.pkl"))
