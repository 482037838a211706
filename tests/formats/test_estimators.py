"""Fitted estimators and boosted trees: what they learned, against their own fitted arrays, live and saved."""

import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import skops.io
import xgboost
from sklearn import (
    calibration,
    cluster,
    compose,
    covariance,
    cross_decomposition,
    decomposition,
    ensemble,
    kernel_approximation,
    linear_model,
    mixture,
    model_selection,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)
from sklearn.base import BaseEstimator
from sklearn.datasets import load_iris

import weighbridge
from weighbridge.formats.models import open_model
from weighbridge.ledger.errors import Malformed, Refused, Unknown, WeighError

X, Y = load_iris(return_X_y=True)


def counted(thing: Any) -> tuple[int, int]:
    """(learned, kept)"""
    said = weighbridge.show(thing).to_dict()
    return said["parameters"]["total"], said["buffers"]["total"]  # type: ignore[index]


def _trees(*fitted: Any) -> int:
    """Splits have a feature and a threshold, leaves a value for each output."""
    total = 0
    for one in fitted:
        inner = one.tree_
        leaves = int(inner.n_leaves)
        total += 2 * (inner.node_count - leaves) + leaves * int(np.prod(inner.value.shape[1:]))
    return total


ESTIMATORS: list[tuple[Any, Any]] = [
    (linear_model.LinearRegression(), lambda m: m.coef_.size + 1),
    (linear_model.LinearRegression(fit_intercept=False), lambda m: m.coef_.size),
    (linear_model.LogisticRegression(max_iter=500), lambda m: m.coef_.size + m.intercept_.size),
    (linear_model.SGDClassifier(), lambda m: m.coef_.size + m.intercept_.size),
    (svm.LinearSVC(), lambda m: m.coef_.size + m.intercept_.size),
    (svm.SVC(), lambda m: m.support_vectors_.size + m.dual_coef_.size + m.intercept_.size),
    (naive_bayes.GaussianNB(), lambda m: m.theta_.size + m.var_.size + m.class_prior_.size),
    (naive_bayes.MultinomialNB(), lambda m: m.feature_log_prob_.size + m.class_log_prior_.size),
    (neural_network.MLPClassifier((5, 4), max_iter=20), lambda m: sum(a.size for a in m.coefs_ + m.intercepts_)),
    (tree.DecisionTreeClassifier(random_state=0), lambda m: _trees(m)),
    (ensemble.RandomForestClassifier(4, random_state=0), lambda m: _trees(*m.estimators_)),
    (ensemble.ExtraTreesRegressor(3, random_state=0), lambda m: _trees(*m.estimators_)),
    (ensemble.GradientBoostingRegressor(n_estimators=3), lambda m: _trees(*m.estimators_.flat) + 1),
    (ensemble.AdaBoostClassifier(n_estimators=3), lambda m: _trees(*m.estimators_) + m.estimator_weights_.size),
    (cluster.KMeans(3, n_init=1), lambda m: m.cluster_centers_.size),
    (decomposition.PCA(2), lambda m: m.components_.size + m.mean_.size),
    (mixture.GaussianMixture(2), lambda m: m.weights_.size + m.means_.size + m.covariances_.size),
    (preprocessing.StandardScaler(), lambda m: m.mean_.size + m.scale_.size),
    (preprocessing.StandardScaler(with_mean=False), lambda m: m.scale_.size),
    (pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge()), lambda m: 8 + 5),
    (model_selection.GridSearchCV(linear_model.Ridge(), {"alpha": [1, 2]}), lambda m: 5),
    (
        compose.make_column_transformer((preprocessing.StandardScaler(), [0, 1]), remainder="passthrough"),
        lambda m: 4,
    ),
    (calibration.CalibratedClassifierCV(svm.LinearSVC(), cv=2), lambda m: 2 * (15 + 6)),
    (ensemble.VotingClassifier([("a", naive_bayes.GaussianNB())]), lambda m: 27),
    # transform computes with rotations and scales that predict's coefficients hold in another form
    (cross_decomposition.CCA(1), lambda m: (m.coef_.size + 1) + (3 * X.shape[1]) + 2),
    (neighbors.NeighborhoodComponentsAnalysis(max_iter=5), lambda m: m.components_.size),
    (decomposition.KernelPCA(2), lambda m: m.eigenvalues_.size + m.eigenvectors_.size + len(X) + 1),
    (kernel_approximation.Nystroem(n_components=7), lambda m: m.normalization_.size),
    (covariance.LedoitWolf(), lambda m: m.location_.size + m.covariance_.size),
    (linear_model.RANSACRegressor(random_state=0), lambda m: 5),
]


@pytest.mark.parametrize(("estimator", "expected"), ESTIMATORS, ids=lambda v: str(v)[:28] if hasattr(v, "fit") else "")
def test_an_estimator_is_counted_by_its_fitted_arrays_and_saved_alike(
    estimator: Any, expected: Any, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(X, Y)
    assert counted(estimator)[0] == expected(estimator)
    skops.io.dump(estimator, tmp_path / "model.skops")
    assert counted(tmp_path / "model.skops") == counted(estimator)


def test_a_linear_regression_with_two_features_has_three_values() -> None:
    assert counted(linear_model.LinearRegression().fit(X[:, :2], X[:, 2])) == (3, 0)


def test_nearest_neighbors_learn_nothing_and_keep_the_data() -> None:
    model = neighbors.KNeighborsClassifier().fit(X, Y)
    assert counted(model) == (0, X.size + Y.size)
    assert any("nothing is learned" in note for note in weighbridge.show(model).to_dict()["notes"])  # type: ignore[union-attr]


def test_hist_gradient_boosting_counts_its_predictors_nodes() -> None:
    model = ensemble.HistGradientBoostingClassifier(max_iter=3).fit(X, Y)
    nodes = [p.nodes for stage in model._predictors for p in stage]
    leaves = [int(n["is_leaf"].sum()) for n in nodes]
    expected = sum(2 * (len(n) - leaf) + leaf for n, leaf in zip(nodes, leaves, strict=True)) + 3
    assert counted(model)[0] == expected


def test_what_is_not_fitted_or_not_known_is_refused_by_name() -> None:
    with pytest.raises(Unknown, match="LinearRegression is not fitted"):
        weighbridge.show(linear_model.LinearRegression())

    class Mine(BaseEstimator):
        def fit(self, X: Any, y: Any) -> "Mine":
            self.coef_ = np.ones(3)
            return self

    with pytest.raises(Unknown, match="Mine"):
        weighbridge.show(Mine().fit(X, Y))


# Boosted trees -------------------------------------------------------------------------------------------------------


def _dumped(booster: xgboost.Booster) -> int:
    """Splits twice, leaves once, by XGBoost's own text dump."""
    total = 0
    for text in booster.get_dump():
        leaves = text.count("leaf=")
        total += leaves + 2 * (len(text.strip().splitlines()) - leaves)
    return total


@pytest.mark.parametrize("ending", ["json", "ubj"])
def test_an_xgboost_model_is_its_own_dump(ending: str, tmp_path: Path) -> None:
    model = xgboost.XGBClassifier(n_estimators=5, max_depth=3).fit(X, Y)
    model.save_model(tmp_path / f"m.{ending}")
    base = len(
        np.atleast_1d(
            json.loads(model.get_booster().save_config())["learner"]["learner_model_param"]["base_score"]
            .strip("[]")
            .split(",")
        )
    )
    expected = _dumped(model.get_booster()) + base
    assert counted(tmp_path / f"m.{ending}")[0] == counted(model)[0] == counted(model.get_booster())[0] == expected
    assert weighbridge.show(tmp_path / f"m.{ending}").to_dict()["format"] == "xgboost"


def test_a_linear_booster_has_a_weight_a_feature() -> None:
    model = xgboost.XGBRegressor(n_estimators=2, booster="gblinear").fit(X, Y)
    assert counted(model)[0] == X.shape[1] + 1 + 1  # weights, intercept, base score


def test_a_lightgbm_model_is_its_own_dump(tmp_path: Path) -> None:
    model = lightgbm.LGBMClassifier(n_estimators=4, verbose=-1).fit(X, Y)
    model.booster_.save_model(tmp_path / "m.txt")
    leaves = [t["num_leaves"] for t in model.booster_.dump_model()["tree_info"]]
    expected = sum(2 * (n - 1) + n for n in leaves)
    assert counted(tmp_path / "m.txt")[0] == counted(model)[0] == counted(model.booster_)[0] == expected


# Files of strangers --------------------------------------------------------------------------------------------------


def test_pickled_estimators_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(linear_model.LinearRegression().fit(X, Y)))
    with pytest.raises(WeighError, match="skops"):
        open_model(str(tmp_path / "m.pkl"))
    (tmp_path / "m.joblib").write_bytes(pickle.dumps(3))
    with pytest.raises(Refused, match="skops"):
        open_model(str(tmp_path / "m.joblib"))


def _cut(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for at in {*range(0, len(whole), max(len(whole) // 60, 1)), len(whole) - 1}:
        part = tmp_path / f"cut{path.suffix}"
        part.write_bytes(whole[:at])
        try:
            open_model(str(part))
        except WeighError as error:
            assert "\n" not in str(error)
        else:
            raise AssertionError(f"{path.name} cut at {at} was read")


def test_files_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    forest = ensemble.RandomForestClassifier(2).fit(X, Y)
    skops.io.dump(forest, tmp_path / "m.skops")
    boosted = xgboost.XGBClassifier(n_estimators=2).fit(X, Y)
    boosted.save_model(tmp_path / "m.json")
    boosted.save_model(tmp_path / "m.ubj")
    np.savez_compressed(tmp_path / "m.npz", a=np.zeros((3, 4)), b=np.zeros(5))
    for name in ("m.skops", "m.ubj", "m.npz"):
        _cut(tmp_path / name, tmp_path)


def test_a_schema_may_not_nest_without_end(tmp_path: Path) -> None:
    node: Any = {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode", "content": []}
    for _ in range(300):
        node = {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode", "content": [node]}
    with zipfile.ZipFile(tmp_path / "deep.skops", "w") as archive:
        archive.writestr("schema.json", json.dumps(node))
    with pytest.raises(WeighError):
        open_model(str(tmp_path / "deep.skops"))


def test_a_forged_length_in_ubjson_is_refused(tmp_path: Path) -> None:
    forged = b"{L" + struct.pack(">q", 1 << 60) + b"learner"
    (tmp_path / "m.ubj").write_bytes(forged)
    with pytest.raises(Malformed):
        open_model(str(tmp_path / "m.ubj"))


# NumPy ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_arrays_of_an_npz_are_listed_with_their_shapes(save: Any, tmp_path: Path) -> None:
    arrays = {"w": np.zeros((3, 4), np.float16), "b": np.zeros(4), "steps": np.arange(3), "e": np.zeros((0, 2))}
    save(tmp_path / "m.npz", **arrays)
    ledger = open_model(str(tmp_path / "m.npz"))
    assert {t.name: (t.shape, t.nbytes) for t in ledger.tensors} == {n: (a.shape, a.nbytes) for n, a in arrays.items()}
    assert (ledger.total, ledger.buffers) == (16, 3)
    if save is np.savez:  # stored values lie where the ledger says
        row = next(t for t in ledger.tensors if t.name == "steps")
        raw = (tmp_path / "m.npz").read_bytes()[row.offset : row.offset + row.nbytes]
        assert np.frombuffer(raw, np.int64).tolist() == [0, 1, 2]


def test_an_npy_file_is_one_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 6), np.float32))
    assert open_model(str(tmp_path / "a.npy")).total == 30


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.array([{}, 1], dtype=object))
    with pytest.raises(Refused, match="objects"):
        open_model(str(tmp_path / "m.npz"))


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': 3, }",
        b"{'descr': '<q9', 'shape': (1,)}",
        b"__import__('os')",
        b"(" * 5000,
    ],
)
def test_a_forged_npy_header_is_refused(header: bytes, tmp_path: Path) -> None:
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (tmp_path / "a.npy").write_bytes(raw)
    with pytest.raises(WeighError):
        open_model(str(tmp_path / "a.npy"))


def test_values_that_do_not_lie_in_the_file_are_not_signed(tmp_path: Path) -> None:
    """A digest of whatever bytes stand at offset 0 would be a lie."""
    np.savez_compressed(tmp_path / "packed.npz", a=np.arange(12.0))
    fitted = linear_model.LinearRegression().fit([[0.0, 1.0], [1.0, 0.0]], [0.0, 1.0])
    skops.io.dump(fitted, tmp_path / "linear.skops")
    for name in ("packed.npz", "linear.skops"):
        with pytest.raises(WeighError, match="do not lie in the file as they are"):
            weighbridge.sign(tmp_path / name)
    np.savez(tmp_path / "plain.npz", a=np.arange(12.0))
    assert weighbridge.sign(tmp_path / "plain.npz").digest


def test_an_npz_of_endless_headers_is_refused(tmp_path: Path) -> None:
    import struct
    import zipfile

    said = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }".ljust(59_999) + b"\n"
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for at in range(700):
            archive.writestr(f"a{at}.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 60_000) + said + bytes(4))
    with pytest.raises(Refused, match="more headers than any model"):
        open_model(str(tmp_path / "m.npz"))
