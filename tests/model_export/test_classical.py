"""Boosted trees and linear models through all that the network goes through: columns, explanations, graphs, runs."""

import typing
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from feature_client.contract import attribution_scale, discrepancy
from feature_client.golden import SPLIT_UP
from feature_client.release import Release, graph_file
from feature_client.schema import DAY_S, FloatArray
from model_export import boosted, graph_costs, kinds, linear
from model_export.card import MADE_BY, card
from model_export.classical import Classical
from model_export.columns import Columns
from model_export.detail import Differences, draw_places
from model_export.evaluate import evaluate
from model_export.explanation import Sample
from model_export.export import EXPLAIN_OUTPUTS, SCORE_OUTPUTS, export
from model_export.game import Game, every_coalition, outcomes
from model_export.owen import FeatureGame
from model_export.pipeline import Run, read_run, write_run
from model_export.rows import HALF_LIFE_DAYS, Dataset
from model_export.scorer import Scorer
from model_export.train import TrainingError, predict
from model_export.verify import Session, hostile_rows
from service.cli import Estimator
from tests.model_export.tiny_release import LIGHT, tiny_dataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore", PendingDeprecationWarning)  # its colours, where Matplotlib is a new one
    import shap

EXPLAINERS = ("fast", "precise", "exact", "features")


@pytest.fixture(scope="module")
def small() -> Dataset:
    return tiny_dataset(rows=1_500)


@pytest.fixture(scope="module")
def trees(trees_run: Run) -> Scorer:
    return kinds.restore(trees_run.contract.schema, trees_run.contract.tasks, trees_run.weights)


@pytest.fixture(scope="module")
def logistic(small: Dataset) -> Scorer:
    return kinds.fit("logistic", small, seed=0)


def session(release: Release, explainer: str) -> Session:
    return Session(graph_file(release.root / release.graph_name(explainer)), EXPLAIN_OUTPUTS)


def test_columns_are_those_that_trees_are_fitted_to_bit_for_bit(small: Dataset, trees: Scorer) -> None:
    assert isinstance(trees, Classical)
    strange = hostile_rows(trees, small.test.numeric.shape[1])
    for numeric, categorical in ((small.test.numeric, small.test.categorical), strange):
        expected = boosted.matrix(small.schema, numeric, categorical)
        np.testing.assert_array_equal(trees.inputs.of(numeric, categorical).view(np.int32), expected.view(np.int32))


def test_what_explanations_mix_is_finite_and_each_column_one_feature_s(small: Dataset, trees: Scorer) -> None:
    numeric, categorical = hostile_rows(trees, small.test.numeric.shape[1])
    lifted = Sample(numeric, categorical).lifted(trees)
    assert np.isfinite(lifted).all()
    names = [feature.name for feature in small.schema.numeric]
    for position, name in enumerate(names):
        changed = numeric.copy()
        changed[:, position] = 7.5
        moved = Sample(changed, categorical).lifted(trees) != lifted
        assert {trees.inputs.owners[column] for column in np.flatnonzero(moved.any(axis=0))} == {name}


@pytest.mark.parametrize("estimator", ["lightgbm", "logistic"])
def test_they_learn_the_planted_effects_and_the_same_ones_again(
    estimator: kinds.Estimator, small: Dataset, trees: Scorer, logistic: Scorer
) -> None:
    fitted = trees if estimator == "lightgbm" else logistic
    metrics = evaluate(predict(fitted, small.test), small.test, small.tasks)
    assert metrics["purchase_30d"]["auc"] > 0.8
    assert metrics["churn_90d"]["auc"] > 0.8
    assert metrics["spend_90d"]["spearman"] > 0.65
    for task in ("purchase_30d", "churn_90d"):
        assert metrics[task]["mean_score"] == pytest.approx(metrics[task]["base_rate"], abs=0.08)
    assert 0.8 < metrics["spend_90d"]["sum_ratio"] < 1.25

    again = kinds.fit(estimator, small, seed=0).state_dict()
    assert again.keys() == fitted.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in fitted.state_dict().items())


def test_linear_models_are_fitted_in_the_end_to_what_is_known_newer_rows_counting_more(small: Dataset) -> None:
    """Where what is known says otherwise than the training rows did, and the more the newer it is."""

    def level(cutoffs: FloatArray) -> FloatArray:
        labels = np.zeros_like(small.train.labels)
        old = cutoffs < np.median(cutoffs)
        labels[old] = [1, 1, 100.0]
        known = replace(small.train, labels=labels, cutoffs=cutoffs)
        columns = Columns(small.schema, smooth=True)
        columns.fit(known.numeric, known.categorical)
        found = linear.fit(replace(small, known=known), columns)
        x = columns.of(known.numeric, known.categorical)
        odds = found[0].decision_function(x).mean()
        return np.array([odds, found[2].predict(x).mean()])

    half = np.asarray(np.arange(len(small.train)) % 2 * DAY_S, np.float64)
    near, far = level(half), level(half * HALF_LIFE_DAYS * 4)
    assert abs(near[0]) < 0.3
    assert (far < near - 1.0).all()


def test_a_task_of_one_class_cannot_be_fitted_by_linear_models(small: Dataset) -> None:
    labels = small.train.labels.copy()
    small.train.labels[:, 0] = 1.0
    try:
        with pytest.raises(TrainingError, match="purchase_30d: all training rows have the same label"):
            kinds.fit("logistic", small, seed=0)
    finally:
        small.train.labels[:] = labels


def test_a_run_reads_back_the_very_model_and_says_its_kind(trees: Scorer, trees_run: Run, tmp_path: Path) -> None:
    write_run(trees_run, tmp_path / "run")
    again = read_run(tmp_path / "run")
    restored = kinds.restore(again.contract.schema, again.contract.tasks, again.weights)

    numeric, categorical = (torch.from_numpy(part) for part in again.rows)
    with torch.no_grad():
        assert torch.equal(restored(numeric, categorical), trees(numeric, categorical))
    assert again.contract.training[kinds.ESTIMATOR] == "lightgbm"
    assert "boosted trees (LightGBM)" in card(again.contract)
    assert again.explained.arrays().keys() == trees_run.explained.arrays().keys()


def test_every_kind_can_be_asked_for_and_is_described() -> None:
    every = typing.get_args(kinds.Estimator)
    assert {estimator.value for estimator in Estimator} == set(every) == set(MADE_BY)


@pytest.mark.parametrize("explainer", [None, *EXPLAINERS])
def test_graphs_are_of_standard_operators_with_the_trees_in_them_once(
    explainer: str | None, trees_release: Release
) -> None:
    model = onnx.load(graph_file(trees_release.root / trees_release.graph_name(explainer)))
    assert not model.functions
    assert {opset.domain for opset in model.opset_import} == {"", "ai.onnx.ml"}
    operators = [node.op_type for node in model.graph.node if node.domain == "ai.onnx.ml"]
    assert operators == ["TreeEnsembleRegressor"] * 3
    assert not [tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.UINT8]


def test_the_score_graph_of_linear_models_says_what_they_say(
    logistic: Scorer, small: Dataset, trees_run: Run, tmp_path: Path
) -> None:
    export(logistic, trees_run.contract, tmp_path / "linear.onnx")
    graph = Session(tmp_path / "linear.onnx", SCORE_OUTPUTS)
    strange = hostile_rows(logistic, small.test.numeric.shape[1])
    for numeric, categorical in ((small.test.numeric[:64], small.test.categorical[:64]), strange):
        found = graph.run(numeric, categorical)["scores"]
        with torch.no_grad():
            expected = logistic(torch.from_numpy(numeric), torch.from_numpy(categorical)).numpy()
        assert np.isfinite(found).all()
        assert (discrepancy(found, expected) <= 1).all()
    # Explanations split margins up: the ends of float32 must not take them further than real rows might go.
    margins = outcomes(logistic, torch.from_numpy(Sample(*strange).lifted(logistic)))[:, len(small.tasks) :]
    assert (np.abs(margins) < 50).all()


def test_exact_explanations_of_trees_equal_shap_s(trees: Scorer, trees_release: Release, trees_run: Run) -> None:
    schema, background = trees_run.contract.schema, trees_run.explained.background
    groups = list(schema.groups)
    member = np.array([groups.index(schema.by_name[name].group) for name in trees.inputs.owners])
    rows = Sample(*trees_run.rows)[:2]
    found = session(trees_release, "exact").run(rows.numeric, rows.categorical)
    for row, customer in enumerate(rows.lifted(trees)):

        def game(taken: npt.NDArray[np.float64], customer: npt.NDArray[np.float32] = customer) -> object:
            mixed = [np.where(coalition[member], customer, background.rows) for coalition in taken.astype(bool)]
            every = outcomes(trees, torch.from_numpy(np.concatenate(mixed)))
            return np.average(every.reshape(len(taken), -1, every.shape[1]), axis=1, weights=background.weights)

        expected = shap.ExactExplainer(game, np.zeros((1, len(groups))))(np.ones((1, len(groups)))).values[0].T
        for (parts, base), part in zip(SPLIT_UP.items(), np.split(expected, 2), strict=True):
            scale = attribution_scale(part, found[base][row])
            assert (discrepancy(found[parts][row], part, scale) <= 1).all(), parts


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_base_and_reasons_add_up_on_ordinary_and_on_absurd_rows(
    explainer: str, trees: Scorer, trees_release: Release, trees_run: Run
) -> None:
    graph = session(trees_release, explainer)
    strange = hostile_rows(trees, trees_run.rows[0].shape[1])
    for numeric, categorical in ((trees_run.rows[0][:16], trees_run.rows[1][:16]), strange):
        found = graph.run(numeric, categorical)
        for (parts, base), whole in zip(SPLIT_UP.items(), ("scores", "margins"), strict=True):
            total = found[base] + found[parts].sum(axis=-1, dtype=np.float64)
            scale = attribution_scale(found[parts], found[base])[..., 0]
            assert (discrepancy(total, found[whole], scale) <= 1).all()


def test_what_a_feature_does_at_a_masked_row_is_a_difference_of_two_rows(trees: Scorer, trees_run: Run) -> None:
    game = FeatureGame.of(trees, trees_run.contract.schema, trees_run.explained.background)
    places = draw_places(game, 3, np.random.default_rng(0))
    customers = Sample(*trees_run.rows)[:4].lifted(trees)
    own, effects = Differences(trees, places, game.owners).explain(torch.from_numpy(customers))

    np.testing.assert_array_equal(own.numpy(), outcomes(trees, torch.from_numpy(customers)))
    tasks = len(trees.kinds)
    for customer, found in zip(customers, effects.numpy(), strict=True):  # found [T, CHANNELS * R, F]
        for place, (taken, reference) in enumerate(zip(places.taken, places.references, strict=True)):
            for feature in range(len(game.groups)):
                mine = game.owners == feature
                rows = [np.where(taken | mine, customer, reference), np.where(taken & ~mine, customer, reference)]
                [[gain]] = [b - a for b, a in pairwise(outcomes(trees, torch.from_numpy(np.stack(rows)))[:, None])]
                np.testing.assert_allclose(found[:, place, feature], gain[tasks:], atol=1e-5)
                np.testing.assert_allclose(found[:, len(places) + place, feature], gain[:tasks], rtol=1e-5, atol=1e-5)


def test_errors_are_stated_of_every_explainer_and_hold_on_fresh_rows(
    trees: Scorer, trees_release: Release, trees_run: Run
) -> None:
    contract = trees_run.contract
    explainers = contract.explanation.explainers
    assert tuple(explainers) == EXPLAINERS
    assert explainers["features"].method == f"owen-differences-{LIGHT.differences_rows}"
    assert explainers["features"].rows == 1 + LIGHT.differences_rows * (1 + len(contract.schema.features))

    fresh = Sample(*trees_run.rows)[LIGHT.held_out : LIGHT.held_out + 60]
    game = Game.of_groups(trees, contract.schema, trees_run.explained.background, every_coalition(8))
    exact = game.attributions(fresh.lifted(trees), "fresh rows")[:, : len(contract.tasks)]
    found = session(trees_release, "fast").run(fresh.numeric, fresh.categorical)["attributions"]
    missed = np.abs(found - exact).mean(axis=(0, 2)) / np.abs(exact).mean(axis=(0, 2))
    stated = np.array([explainers["fast"].error.scores[task.name] for task in contract.tasks])
    assert (missed <= 1.5 * stated).all()
    assert (missed >= stated / 3).all()


def test_costs_are_told_of_every_graph(
    trees_release: Release, pristine: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_costs, "SECONDS", 0.0)
    monkeypatch.setattr(graph_costs, "ROUNDS", 1)
    head, _, *lines = graph_costs.table([pristine, trees_release])
    assert head == f"| graph | customers | {pristine.name} | {trees_release.name} |"
    graphs = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert list(dict.fromkeys(graphs)) == ["scores", *EXPLAINERS]
    assert all(float(cell.removesuffix(" ms")) > 0 for line in lines for cell in line.strip("| ").split(" | ")[2:])
