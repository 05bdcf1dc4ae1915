from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit  # type: ignore[import-untyped]

from feature_client.contract import eligible_rows
from feature_client.schema import DAY_S
from model_export.baselines import Forecast, best_feature, linear, trees
from model_export.calibration import platt
from model_export.nowcast import calibrating, chances, slope_and_shift
from model_export.rows import CALIBRATING, Dataset, Rows
from model_export.train import predict, train
from tests.model_export.tiny_release import tiny_schema

PURCHASE, CHURN = 0, 1
CUTOFFS = 8
UNKNOWN = 3
"""Of the cutoffs, the last, at which nobody's 90 days are over."""


@pytest.fixture(scope="module")
def censored(dataset: Dataset) -> Dataset:
    """The training rows as if of eight cutoffs, each four weeks after the other, and as they are known 30 days after
    the last; labels of the last three stand there, but are not known."""
    train = dataset.train
    month = np.arange(len(train)) % CUTOFFS
    eligible = train.eligible.copy()
    eligible[month >= CUTOFFS - UNKNOWN, CHURN:] = False
    cutoffs = train.cutoffs + 28 * DAY_S * month
    known_at = float(cutoffs.max()) + 30 * DAY_S
    silence = np.where(cutoffs + train.silence * DAY_S < known_at, train.silence, np.inf)
    known = replace(train, cutoffs=cutoffs, eligible=eligible, silence=silence)
    return replace(dataset, known=known, known_at=known_at, silences=frozenset({CHURN}))


def known(dataset: Dataset) -> Rows:
    assert dataset.known is not None
    return dataset.known


def logits(rows: Rows) -> npt.NDArray[np.float64]:
    """A model's: who has been silent for long stays silent."""
    silent = rows.numeric[:, [feature.name for feature in tiny_schema().numeric].index("days_since_purchase")]
    return np.log1p(silent.astype(np.float64)) - 4


def test_scores_are_made_to_meet_the_newest_and_those_that_are_half_known(censored: Dataset) -> None:
    rows, before = calibrating(censored), known(censored)
    newest = np.unique(before.cutoffs)
    assert np.unique(rows.cutoffs[rows.eligible[:, PURCHASE]]).tolist() == newest[-CALIBRATING:].tolist()
    full, half = newest[-CALIBRATING - UNKNOWN : -UNKNOWN], newest[-CALIBRATING:]
    assert np.unique(rows.cutoffs[rows.eligible[:, CHURN]]).tolist() == [*full, *half]
    assert np.unique(rows.cutoffs[rows.eligible[:, 2]]).tolist() == full.tolist()

    defined = eligible_rows(censored.schema, censored.tasks, rows.numeric)[:, CHURN]
    np.testing.assert_array_equal(rows.eligible[:, CHURN], defined)
    begun, bought = rows.eligible[:, CHURN] & np.isin(rows.cutoffs, half), np.isfinite(rows.silence)
    assert (bought & (rows.silence > 30))[begun].any()  # not within the 30 days of the other task
    assert not rows.labels[begun & bought, CHURN].any()
    assert np.isnan(rows.labels[begun & ~bought, CHURN]).all()
    assert np.isin(rows.labels[defined & ~begun, CHURN], (0, 1)).all()


def test_half_known_labels_give_the_level_that_full_ones_would_have_given(censored: Dataset) -> None:
    """Also when customers have changed since the newest label: of the last cutoffs, half of the buyers are gone."""
    before = known(censored)
    late = ~before.eligible[:, CHURN] & (np.unique(before.cutoffs)[-UNKNOWN] <= before.cutoffs)
    gone = late & (before.labels[:, PURCHASE] == 1) & (np.arange(len(before)) % 2 == 0)
    changed = replace(censored, known=before.take(~gone))
    rows = calibrating(changed)
    slope, shift = slope_and_shift(changed, rows, CHURN, logits(rows))

    told = before.take(late & ~gone)
    told = told.take(eligible_rows(censored.schema, censored.tasks, told.numeric)[:, CHURN])
    came = float(told.labels[:, CHURN].mean())
    said = float(expit(slope * logits(told) + shift).mean())
    old = replace(changed, silences=frozenset())
    rows = calibrating(old)
    slope, shift = slope_and_shift(old, rows, CHURN, logits(rows))
    without = float(expit(slope * logits(told) + shift).mean())
    assert said == pytest.approx(came, abs=0.02)
    assert without < came - 0.03


def test_what_is_not_known_yet_changes_nothing(censored: Dataset) -> None:
    before = known(censored)
    labels = before.labels.copy()
    labels[~before.eligible] = 1 - labels[~before.eligible]
    rows, others = (calibrating(replace(censored, known=of)) for of in (before, replace(before, labels=labels)))
    for task in range(len(censored.tasks)):
        kept = rows.eligible[:, task]
        np.testing.assert_array_equal(rows.labels[kept, task], others.labels[kept, task])


@pytest.mark.parametrize("why", ["no task of silence", "none known", "all known"])
def test_where_nothing_can_be_told_the_newest_labels_are_met(censored: Dataset, why: str) -> None:
    rows, dataset = known(censored), censored
    if why == "no task of silence":
        dataset = replace(dataset, silences=frozenset())
    elif why == "none known":
        rows = replace(rows, eligible=rows.eligible & (np.arange(3) != CHURN))
    else:
        rows = rows.take(rows.eligible[:, CHURN])
    after, newest = calibrating(replace(dataset, known=rows)), rows.newest(CALIBRATING)
    np.testing.assert_array_equal(after.labels, newest.labels)
    np.testing.assert_array_equal(after.eligible, newest.eligible)


def test_the_chance_of_those_still_silent_is_told_from_rows_with_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=4_000)
    labels = (rng.random(4_000) < expit(0.7 * logits - 0.4)).astype(np.float64)
    at = np.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(chances(logits, labels, at), expit(0.7 * at - 0.4), atol=0.04)


@pytest.mark.parametrize("share", [0.75, 1.0])
def test_where_the_model_says_nothing_of_those_still_silent_their_share_counts(share: float) -> None:
    logits = np.linspace(-2, 2, 400)
    labels = (np.arange(400) < 400 * share).astype(np.float64)  # the higher the logit, the rarer
    np.testing.assert_allclose(chances(logits, labels, np.array([-3.0, 3.0])), share)


@pytest.mark.parametrize("of", [trees, linear, lambda dataset: best_feature(dataset)[0]])
def test_rivals_are_fitted_beside_half_known_labels(censored: Dataset, of: Callable[[Dataset], Forecast]) -> None:
    scores = of(censored).scores
    assert np.isfinite(scores).all()
    assert not np.array_equal(scores[:, CHURN], of(replace(censored, silences=frozenset())).scores[:, CHURN])


def test_so_is_the_network(censored: Dataset) -> None:
    assert np.isfinite(predict(train(censored, seed=0, epochs=1), censored.test)).all()


def test_a_chance_counts_as_that_many_ones() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=2_000)
    labels = expit(0.7 * logits - 0.4)
    slope, shift = platt(logits, labels)
    assert (slope, shift) == pytest.approx((0.7, -0.4), abs=1e-3)
