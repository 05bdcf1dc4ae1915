from dataclasses import replace

import numpy as np
import pytest
import torch

from feature_client.schema import DAY_S, MISSING, UNSEEN, YEAR_S
from model_export.evaluate import evaluate, expected_calibration_error
from model_export.inputs import Inputs
from model_export.network import Network
from model_export.pipeline import Run, train_run
from model_export.rows import Dataset, Rows
from model_export.train import (
    ANY_SEASON,
    Targets,
    Tensors,
    TrainingError,
    in_any_season,
    predict,
    train,
)
from model_export.verify import hostile_rows
from tests.model_export.tiny_release import LIGHT


def test_a_planted_effect_is_learned_and_a_constant_is_not_better_than_chance(run: Run, dataset: Dataset) -> None:
    metrics = run.contract.metrics
    assert metrics["purchase_30d"]["auc"] > 0.75
    assert metrics["churn_90d"]["auc"] > 0.75
    assert metrics["spend_90d"]["spearman"] > 0.5
    assert 0.8 < metrics["spend_90d"]["sum_ratio"] < 1.25
    assert metrics["purchase_30d"]["ece"] < 0.06

    constant = np.full_like(dataset.test.labels, 0.5)
    baseline = evaluate(constant, dataset.test, run.contract.tasks)
    assert baseline["purchase_30d"]["auc"] == 0.5


def test_labels_of_rows_for_which_a_task_is_not_defined_change_nothing(dataset: Dataset) -> None:
    few = replace(dataset, train=dataset.validation)
    churn = [task.name for task in dataset.tasks].index("churn_90d")
    lies = few.train.labels.copy()
    outside = ~few.train.eligible[:, churn]
    assert outside.any()
    lies[outside, churn] = 1 - lies[outside, churn]

    honest = train(few, seed=3, epochs=1)
    told = train(replace(few, train=replace(few.train, labels=lies)), seed=3, epochs=1)
    np.testing.assert_array_equal(predict(honest, dataset.test), predict(told, dataset.test))


def test_a_loss_that_is_never_finite_is_no_model(dataset: Dataset) -> None:
    def spoiled(rows: Rows) -> Rows:
        return replace(rows, labels=np.where(np.arange(len(rows))[:, None] == 0, np.nan, rows.labels))

    with pytest.raises(TrainingError, match="never reached a finite loss"):
        train(replace(dataset, train=spoiled(dataset.train), validation=spoiled(dataset.validation)), seed=0, epochs=1)


def test_a_feature_that_most_cutoffs_lack_has_no_influence(dataset: Dataset) -> None:
    place = [feature.name for feature in dataset.schema.numeric].index("mean_gap_days")
    known, lacking = dataset.train.take(np.arange(len(dataset.train)) < 600), np.arange(600) < 400
    numeric = known.numeric.copy()
    numeric[lacking, place] = np.nan
    cutoffs = np.where(lacking, known.cutoffs - DAY_S, known.cutoffs)
    trained = train(replace(dataset, known=replace(known, numeric=numeric, cutoffs=cutoffs)), seed=0, epochs=1)
    numeric = dataset.test.numeric.copy()
    numeric[:, place] = 1.0
    np.testing.assert_array_equal(
        predict(trained, dataset.test), predict(trained, replace(dataset.test, numeric=numeric))
    )


@pytest.mark.parametrize(("years", "share"), [(0.5, ANY_SEASON), (1.5, ANY_SEASON / 2), (2.5, 0.0)])
def test_the_more_of_the_year_has_been_seen_twice_the_fewer_rows_are_shown_in_another_season(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, years: float, share: float
) -> None:
    shares = []

    def shown(_: object, rows: Tensors, share: float) -> Tensors:
        shares.append(share)
        return rows

    monkeypatch.setattr("model_export.train.in_any_season", shown)
    rows = dataset.validation
    cutoffs = rows.cutoffs - np.where(np.arange(len(rows)) % 2, 0.0, years * YEAR_S)
    train(replace(dataset, train=replace(rows, cutoffs=cutoffs)), seed=0, epochs=1)
    assert shares
    assert shares == pytest.approx([share] * len(shares))


def test_a_model_that_leaves_features_out_says_which(dataset: Dataset) -> None:
    place = [feature.name for feature in dataset.schema.numeric].index("mean_gap_days")
    numeric, cutoffs = dataset.train.numeric.copy(), dataset.train.cutoffs.copy()
    early = np.arange(len(numeric)) % 3 > 0
    numeric[early, place] = np.nan
    cutoffs[early] -= DAY_S
    rows = replace(dataset.train, numeric=numeric, cutoffs=cutoffs)
    assert train_run(replace(dataset, train=rows), epochs=1, settings=LIGHT).contract.training["without_evidence"] == (
        "mean_gap_days"
    )


def test_some_rows_are_shown_on_any_day_of_the_year_and_otherwise_as_they_are(dataset: Dataset) -> None:
    rows = Tensors.of(dataset.train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shown = in_any_season(dataset.schema, rows, ANY_SEASON)
    names = [feature.name for feature in dataset.schema.numeric]
    sine, cosine = (shown.numeric[:, names.index(name)] for name in ("season_sin", "season_cos"))
    torch.testing.assert_close(sine**2 + cosine**2, torch.ones(len(rows)))
    moved = sine != rows.numeric[:, names.index("season_sin")]
    assert float(moved.float().mean()) == pytest.approx(ANY_SEASON, abs=0.03)
    assert min(sine.min(), cosine.min()) < -0.95
    assert max(sine.max(), cosine.max()) > 0.95
    rest = [place for place, name in enumerate(names) if not name.startswith("season_")]
    torch.testing.assert_close(shown.numeric[:, rest], rows.numeric[:, rest], rtol=0, atol=0, equal_nan=True)
    assert shown.labels is rows.labels


def test_the_mean_forecast_of_two_is_the_target_of_a_third(dataset: Dataset) -> None:
    rows = Tensors.of(dataset.test)
    teachers = [train(dataset, seed=seed, epochs=1) for seed in (0, 1)]
    targets = Targets.taught(teachers, rows)
    with torch.no_grad():
        raws = [teacher.raw(teacher.inputs.lift(rows.numeric, rows.categorical)) for teacher in teachers]
    for task in (0, 1):
        mean = sum(torch.sigmoid(raw[task][:, 0]) for raw in raws) / 2
        torch.testing.assert_close(targets.chance[:, task], mean)
    rng = np.random.default_rng(0)
    parts = [
        [part.numpy()[0, 0] for part in teacher.ziln(2, raw[2])] for teacher, raw in zip(teachers, raws, strict=True)
    ]
    drawn = [rng.normal(mu, sigma, int(400_000 / (1 + np.exp(-logit)))) for logit, mu, sigma in parts]
    assert float(targets.log_mean[0, 2]) == pytest.approx(np.concatenate(drawn).mean(), abs=0.02)
    assert float(targets.log_variance[0, 2]) == pytest.approx(np.concatenate(drawn).var(), rel=0.02)


def test_seeds_agree_better_once_each_has_learned_a_mean_forecast(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(dataset, known=dataset.validation)

    def disagreement() -> float:
        first, second = (predict(train(known, seed=seed, epochs=4), dataset.test)[:, :2] for seed in (0, 1))
        return float(np.abs(first - second).mean())

    distilled = disagreement()
    monkeypatch.setattr("model_export.train.DISTILLED_ROWS", 0)
    assert distilled < 0.8 * disagreement()


def test_training_repeats_for_a_seed(dataset: Dataset) -> None:
    few = replace(dataset, train=dataset.validation)
    first, second, other = (predict(train(few, seed=seed, epochs=1), dataset.test) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_scores_are_finite_whatever_the_inputs(network: Network, run: Run) -> None:
    numeric, categorical = hostile_rows(network, len(run.contract.schema.numeric))
    with torch.no_grad():
        scores = network(torch.from_numpy(numeric), torch.from_numpy(categorical)).numpy()
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert (scores[:, :2] <= 1).all()


def test_a_missing_number_is_its_default_and_a_nullable_one_is_a_value_of_its_own(network: Network, run: Run) -> None:
    schema = run.contract.schema
    names = [feature.name for feature in schema.numeric]
    numeric, categorical = (torch.from_numpy(array[:1]) for array in run.rows)

    def score(name: str, value: float) -> torch.Tensor:
        changed = numeric.clone()
        changed[0, names.index(name)] = value
        with torch.no_grad():
            scores: torch.Tensor = network(changed, categorical)
        return scores

    default = schema.by_name["days_since_purchase"].default
    assert default is not None
    assert torch.equal(score("days_since_purchase", float("nan")), score("days_since_purchase", default))
    fill = float(network.inputs.fill[names.index("mean_gap_days")])
    assert not torch.equal(score("mean_gap_days", float("nan")), score("mean_gap_days", fill))


def test_a_number_that_never_varied_in_training_has_no_influence(dataset: Dataset) -> None:
    inputs = Inputs(dataset.schema)
    numeric = dataset.train.numeric.copy()
    column = [feature.name for feature in dataset.schema.numeric].index("sessions_30d")
    numeric[:, column] = np.nan
    inputs.fit(numeric)
    rows = torch.from_numpy(numeric[:2])
    rows[1] = rows[0]
    rows[1, column] = 50.0
    categorical = torch.zeros(2, len(dataset.schema.categorical), dtype=torch.int64)
    lifted = inputs.lift(rows, categorical)
    assert torch.equal(lifted[0], lifted[1])


def test_categories_never_met_in_training_get_the_mean_embedding(dataset: Dataset) -> None:
    inputs = Inputs(dataset.schema)
    categorical = dataset.train.categorical
    column = [feature.name for feature in dataset.schema.categorical].index("country")
    assert (categorical[:, column] != UNSEEN).all()
    assert (categorical[:, column] == MISSING).any()
    before = inputs.embedding.weight.detach().clone()
    inputs.fit_unseen(categorical)
    start = int(inputs.table_at[column])
    counts = torch.bincount(torch.from_numpy(categorical[:, column]), minlength=inputs.table_sizes[column]).float()
    mean = counts @ before[start : start + len(counts)] / counts.sum()
    torch.testing.assert_close(inputs.embedding.weight[start + UNSEEN], mean)
    assert torch.equal(inputs.embedding.weight[start + MISSING], before[start + MISSING])


def test_calibration_error_of_a_calibrated_score_is_small_and_of_a_shifted_one_is_the_shift() -> None:
    rng = np.random.default_rng(0)
    score = rng.uniform(0.1, 0.7, 50_000)
    label = (rng.random(len(score)) < score).astype(np.float64)
    assert expected_calibration_error(score, label) < 0.02
    assert abs(expected_calibration_error(score + 0.2, label) - 0.2) < 0.02


def test_segments_hold_the_declared_shares_of_the_validation_rows(run: Run, dataset: Dataset, network: Network) -> None:
    scores = predict(network, dataset.validation)
    for position, task in enumerate(run.contract.tasks):
        own = scores[dataset.validation.eligible[:, position], position]
        named = [task.segment(float(score)) for score in own]
        assert abs(named.count("high") / len(own) - 0.1) < 0.02
        assert abs(named.count("medium") / len(own) - 0.3) < 0.02
        assert None not in named
