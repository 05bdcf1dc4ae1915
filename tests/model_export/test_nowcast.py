from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit  # type: ignore[import-untyped]

from feature_client.contract import eligible_rows
from feature_client.schema import DAY_S
from model_export.calibration import platt
from model_export.nowcast import calibrating, nowcast
from model_export.rows import CALIBRATING, Dataset, Rows
from model_export.tasks import engagement_tasks, settled_by

PURCHASE, CHURN = 0, 1
CUTOFFS = 8
UNKNOWN = 3
"""Of the cutoffs, the last, at which nobody's 90 days are over."""


@pytest.fixture(scope="module")
def censored(dataset: Dataset) -> Dataset:
    """The training rows as if of eight fortnights; labels of the last three stand there, but are not known."""
    train = dataset.train
    fortnight = np.arange(len(train)) % CUTOFFS
    eligible = train.eligible.copy()
    eligible[fortnight >= CUTOFFS - UNKNOWN, CHURN:] = False
    cutoffs = train.cutoffs + 14 * DAY_S * fortnight
    return replace(dataset, known=replace(train, cutoffs=cutoffs, eligible=eligible), settled_by={CHURN: PURCHASE})


def known(dataset: Dataset) -> Rows:
    assert dataset.known is not None
    return dataset.known


def test_who_buys_soon_is_settled_and_of_the_others_the_chance_is_told(censored: Dataset) -> None:
    before = known(censored)
    after = nowcast(censored, before)
    defined = eligible_rows(censored.schema, censored.tasks, before.numeric)[:, CHURN]
    new = after.eligible[:, CHURN] & ~before.eligible[:, CHURN]
    np.testing.assert_array_equal(after.eligible[:, CHURN], defined)
    assert new.any()
    assert not defined.all()

    said, came, bought = after.labels[new, CHURN], before.labels[new, CHURN], before.labels[new, PURCHASE] == 1
    assert not said[bought].any()
    assert ((said[~bought] > 0) & (said[~bought] < 1)).all()
    assert float(said.mean()) == pytest.approx(came.mean(), abs=0.03)
    # Of the quiet, too, those who are gone are told from those who are late.
    left = came[~bought] == 1
    assert said[~bought][left].mean() > said[~bought][~left].mean() + 0.05

    same = ~new
    np.testing.assert_array_equal(after.labels[same], before.labels[same])
    others = [place for place in range(len(censored.tasks)) if place != CHURN]
    np.testing.assert_array_equal(after.labels[:, others], before.labels[:, others])
    np.testing.assert_array_equal(after.eligible[:, others], before.eligible[:, others])


def test_scores_are_made_to_meet_the_newest_of_it(censored: Dataset) -> None:
    rows = calibrating(censored)
    newest = np.unique(known(censored).cutoffs)[-CALIBRATING:]
    for task in (PURCHASE, CHURN):
        assert np.unique(rows.cutoffs[rows.eligible[:, task]]).tolist() == newest.tolist()
    spend = np.unique(rows.cutoffs[rows.eligible[:, 2]])
    assert spend.max() < newest.min()


def test_what_is_not_known_yet_changes_nothing(censored: Dataset) -> None:
    before = known(censored)
    labels = before.labels.copy()
    labels[~before.eligible] = 1 - labels[~before.eligible]
    np.testing.assert_array_equal(
        nowcast(censored, before).labels[:, CHURN][nowcast(censored, before).eligible[:, CHURN]],
        nowcast(censored, replace(before, labels=labels)).labels[:, CHURN][
            nowcast(censored, before).eligible[:, CHURN]
        ],
    )


@pytest.mark.parametrize("why", ["no other task", "one class", "all known"])
def test_where_nothing_can_be_told_rows_stay_as_they_are(censored: Dataset, why: str) -> None:
    rows, dataset = known(censored), censored
    if why == "no other task":
        dataset = replace(dataset, settled_by={})
    elif why == "one class":
        rows = replace(rows, labels=np.where(np.arange(3) == CHURN, np.float32(1), rows.labels))
    else:
        rows = rows.take(rows.eligible[:, CHURN])
    after = nowcast(dataset, rows)
    np.testing.assert_array_equal(after.labels, rows.labels)
    np.testing.assert_array_equal(after.eligible, rows.eligible)


def test_silence_is_settled_by_the_purchase_with_the_longest_shorter_horizon() -> None:
    purchase, churn, spend = engagement_tasks("GBP")
    week = replace(purchase, task=replace(purchase.task, horizon_days=7))
    quarter = replace(purchase, task=replace(purchase.task, horizon_days=90))
    assert settled_by((purchase, churn, spend)) == {1: 0}
    assert settled_by((week, purchase, quarter, churn)) == {3: 1}
    assert settled_by((quarter, churn, spend)) == settled_by((spend, churn)) == {}


def test_a_chance_counts_as_that_many_ones() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=2_000)
    labels = expit(0.7 * logits - 0.4)
    slope, shift = platt(logits, labels)
    assert (slope, shift) == pytest.approx((0.7, -0.4), abs=1e-3)
