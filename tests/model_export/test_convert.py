"""Converted models say what the models themselves say: on real rows, absurd ones, and exactly at every threshold."""

from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

from model_export import boosted, linear
from model_export.columns import Columns
from model_export.convert import INPUT, ConversionError, exact_in_float32, from_boosters, from_sklearn
from model_export.rows import Dataset
from tests.model_export.tiny_release import tiny_dataset

QUIET = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 1, "min_data_in_bin": 1}
LARGEST = np.finfo(np.float32).max

Columns32 = npt.NDArray[np.float32]


def run(model: Any, x: Columns32) -> npt.NDArray[np.float32]:
    [raw] = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {INPUT: x})
    return np.asarray(raw)


def train(x: Columns32, y: npt.NDArray[np.float64], objective: str = "regression", trees: int = 1, **more: Any) -> Any:
    return lgb.train({**QUIET, "objective": objective, **more}, lgb.Dataset(x, y), trees)


@pytest.fixture(scope="module")
def small() -> Dataset:
    return tiny_dataset(rows=600)


def hostile(rows: Columns32, *, missing: bool) -> Columns32:
    """Some real rows with whole rows, and single columns, of extremes."""
    values = [0.0, -0.0, LARGEST, -LARGEST, 1e-38, -1e6] + ([np.nan] if missing else [])
    whole = np.repeat(np.array(values, dtype=np.float32)[:, None], rows.shape[1], axis=1)
    single = np.tile(rows[:1], (len(values) * rows.shape[1], 1))
    places = np.arange(len(single))
    single[places, places // len(values)] = np.array(values, dtype=np.float32)[places % len(values)]
    return np.concatenate([rows, whole, single])


@pytest.mark.parametrize("objective", ["binary", "tweedie", "regression"])
def test_boosters_say_the_same_before_their_link(objective: str, small: Dataset) -> None:
    x = boosted.matrix(small.schema, small.train.numeric, small.train.categorical)
    y = small.train.labels[:, 0 if objective == "binary" else 2].astype(np.float64)
    booster = train(x, y, objective, trees=60, num_leaves=31)
    rows = hostile(x, missing=True)

    found = run(from_boosters([booster, booster]), rows)
    expected = booster.predict(rows, raw_score=True)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    assert np.unique(expected).size > 100
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_a_threshold_between_two_neighbouring_float32_numbers_still_parts_them() -> None:
    """LightGBM puts it in the middle, in float64; rounded to the nearest float32 it is one of the two."""
    rng = np.random.default_rng(0)
    lower = np.sort(rng.lognormal(0, 3, 40)).astype(np.float32)
    for below in (*lower, *-lower):
        above = np.nextafter(below, np.float32(np.inf))
        x = np.repeat(np.array([below, above], dtype=np.float32), 20)[:, None]
        booster = train(x, np.repeat([-1.0, 1.0], 20), learning_rate=1.0)
        [threshold] = [tree["tree_structure"]["threshold"] for tree in booster.dump_model()["tree_info"]]
        assert float(below) < threshold < float(above)

        around = np.array([np.nextafter(below, np.float32(-np.inf)), below, above], dtype=np.float32)[:, None]
        np.testing.assert_allclose(run(from_boosters([booster]), around)[:, 0], [-1, -1, 1], atol=1e-6)


def test_every_value_on_a_threshold_and_its_neighbours_fall_as_they_do_in_lightgbm(small: Dataset) -> None:
    x = boosted.matrix(small.schema, small.train.numeric, small.train.categorical)
    # Steps of at least 0.01, so that no wrong turn is lost in what sums round off.
    booster = train(x, small.train.labels[:, 2].astype(np.float64), trees=30, num_leaves=31)
    rows: list[Columns32] = []
    for tree in booster.dump_model()["tree_info"]:
        waiting = [tree["tree_structure"]]
        while waiting:
            node = waiting.pop()
            if "threshold" in node:
                waiting += [node["left_child"], node["right_child"]]
                at = np.float32(node["threshold"])
                for value in (np.nextafter(at, np.float32(-np.inf)), at, np.nextafter(at, np.float32(np.inf))):
                    rows.append(x[len(rows) % len(x)].copy())
                    rows[-1][node["split_feature"]] = value
    given = np.stack(rows)
    assert len(given) > 1_000
    np.testing.assert_allclose(
        run(from_boosters([booster]), given)[:, 0], booster.predict(given, raw_score=True), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("shift", [-3.0, 3.0])
def test_what_was_never_missing_in_training_is_zero_where_it_is(shift: float) -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(400, 2)) + shift).astype(np.float32)
    booster = train(x, x[:, 0].astype(np.float64), trees=5, min_data_in_leaf=5)
    rows = np.array([[np.nan, np.nan], [0.0, 0.0], [np.nan, shift], [0.0, shift]], dtype=np.float32)
    found = run(from_boosters([booster]), rows)[:, 0]
    np.testing.assert_allclose(found, booster.predict(rows, raw_score=True), rtol=1e-6)
    assert found[0] == found[1]
    assert found[2] == found[3]


def test_a_booster_without_a_single_split_is_its_mean(small: Dataset) -> None:
    x = boosted.matrix(small.schema, small.train.numeric, small.train.categorical)
    booster = train(x, np.full(len(x), 3.0))
    np.testing.assert_allclose(run(from_boosters([booster]), x[:3])[:, 0], 3.0)


def test_what_is_not_expressed_exactly_is_refused_by_name() -> None:
    x = np.random.default_rng(2).integers(0, 9, (500, 2)).astype(np.float32)
    y = (x[:, 0] % 3 == 0).astype(np.float64)
    categories = lgb.train({**QUIET, "objective": "binary"}, lgb.Dataset(x, y, categorical_feature=[0]), 3)
    with pytest.raises(ConversionError, match="categorical split"):
        exact_in_float32(categories)
    with pytest.raises(ConversionError, match="zero_as_missing"):
        exact_in_float32(train(x, y, "binary", zero_as_missing=True))

    class NothingKnown:
        def predict(self, _: object) -> None: ...

    with pytest.raises(ConversionError, match="NothingKnown cannot be converted"):
        from_sklearn([NothingKnown()], 2)


def test_scikit_learn_models_say_the_same(small: Dataset) -> None:
    columns = Columns(small.schema, smooth=True)
    x = columns.of(small.train.numeric, small.train.categorical)
    rows = hostile(x[:50], missing=False)[:-6]  # categories stay within their vocabularies
    rows[:, columns.numbers :] = np.resize(x[:, columns.numbers :], rows[:, columns.numbers :].shape)
    rows = np.clip(rows, -100.0, 100.0)  # what logarithms of float32 are within
    y, amounts = small.train.labels[:, 0], np.log1p(small.train.labels[:, 2])
    trees = [
        GradientBoostingClassifier(n_estimators=20).fit(x, y),
        GradientBoostingRegressor(n_estimators=20).fit(x, amounts),
    ]
    for models in (linear.fit(small, columns), trees):
        found = run(from_sklearn(models, columns.width), rows)
        said = [model.decision_function if hasattr(model, "decision_function") else model.predict for model in models]
        expected = np.column_stack([answer(rows) for answer in said])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)
