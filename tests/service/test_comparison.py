"""The figures of a comparison, against scipy and scikit-learn, and what they say about taking over."""

import math
import warnings
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from scipy.spatial import distance  # type: ignore[import-untyped]

from feature_client.contract import Segment, Task
from service.comparison import (
    MIN_EXPLAINED,
    MIN_TIMED,
    Comparison,
    Thresholds,
    compare,
    ks,
    psi,
    spearman,
    top_overlap,
)
from service.shadow_records import DEGRADED, OK, UNKNOWN, Explained, Heading, Pairs, Side

FloatArray = npt.NDArray[np.float64]

VALUES = st.floats(-100, 100, width=32) | st.sampled_from([0.0, 1.0])
TASKS = (
    Task("buys", "Buys", "probability", "probability", 30, (Segment("high", 0.5), Segment("medium", 0.2))),
    Task("spends", "Spends", "amount", "GBP", 90),
)
GROUPS = ("recency", "spend", "products", "context")
ROWS = 2_000
ENOUGH = replace(Thresholds(), min_rows=100)


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=60), st.lists(VALUES, min_size=1, max_size=60))
def test_ks_is_scipys(one: list[float], other: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # about its p-value
        expected = stats.ks_2samp(one, other, method="asymp").statistic

    assert ks(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=60))
def test_spearman_is_scipys(pairs: list[tuple[float, float]]) -> None:
    one, other = np.array(pairs).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        expected = stats.spearmanr(one, other).statistic

    assert spearman(one, other) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_psi_is_what_its_definition_says() -> None:
    rng = np.random.default_rng(0)
    reference, other = rng.normal(0, 1, 5_000), rng.normal(0.5, 1, 3_000)
    edges = np.quantile(reference, np.arange(1, 10) / 10)
    expected = 0.0
    for low, high in zip([-math.inf, *edges], [*edges, math.inf], strict=True):
        before = (((reference > low) & (reference <= high)).sum() + 0.5) / (5_000 + 5)
        after = (((other > low) & (other <= high)).sum() + 0.5) / (3_000 + 5)
        expected += (after - before) * math.log(after / before)

    assert psi(reference, other) == pytest.approx(expected, rel=1e-9)
    assert psi(reference, other) > 0.2
    # Of two normal distributions, the symmetrised divergence that PSI estimates is the squared difference.
    assert psi(reference, other) == pytest.approx(0.25, abs=0.05)


def test_psi_of_the_same_is_nothing_and_of_another_world_is_finite() -> None:
    values = np.linspace(0, 1, 1_000)

    assert psi(values, values) == 0
    assert 1 < psi(values, values + 10) < 20
    assert psi(np.zeros(1_000), np.zeros(1_000)) == 0
    assert psi(np.zeros(1_000), np.ones(1_000)) > 1


def test_the_top_tenth() -> None:
    values = np.arange(100.0)

    assert top_overlap(values, values) == 1
    assert top_overlap(values, -values) == 0
    assert top_overlap(values, np.where(values >= 95, 0, values)) == 0.5
    # Of a hundred equal values, both take the same ten.
    assert top_overlap(np.zeros(100), np.zeros(100)) == 1


def pairs_of(
    champion: FloatArray,
    shadow: FloatArray,
    *,
    why: tuple[FloatArray, FloatArray] | None = None,
    sides: tuple[Side, Side] | None = None,
    **more: object,
) -> Pairs:
    """One row a customer, the last MIN_EXPLAINED explained alike; both as fast."""
    rows = len(champion)
    alike = np.random.default_rng(1).normal(size=(MIN_EXPLAINED, len(TASKS), len(GROUPS)))
    sides = sides or (Side("1", "a", TASKS, GROUPS), Side("2", "b", TASKS, GROUPS))
    usual: dict[str, object] = {
        "at": np.arange(rows, dtype=float),
        "entities": np.arange(rows, dtype=np.uint64),
        "champion_statuses": np.full(rows, OK, np.uint8),
        "shadow_statuses": np.full(rows, OK, np.uint8),
        "explained": Explained(np.arange(rows - MIN_EXPLAINED, rows), *(why or (alike, alike))),
        "timed": np.tile([1.0, 1e-4, 1e-4], (MIN_TIMED, 1)),
        **dict.fromkeys(("failed", "incomparable", "own_reads", "damaged", "older"), 0),
    }
    return Pairs(heading=Heading("m", *sides), champion=champion, shadow=shadow, **{**usual, **more})  # type: ignore[arg-type]


@pytest.fixture
def scores() -> FloatArray:
    rng = np.random.default_rng(0)
    return np.stack([rng.beta(2, 5, ROWS), rng.lognormal(3, 1, ROWS)], axis=1)


def held(found: Comparison) -> list[str]:
    assert found.verdict == ("hold" if found.reasons else "promote")
    return list(found.reasons)


def test_the_same_answers_are_promoted(scores: FloatArray) -> None:
    found = compare(pairs_of(scores, scores.copy()), Thresholds())

    assert held(found) == []
    assert [task.rank for task in found.tasks] == pytest.approx([1, 1])
    assert [task.segment_changes for task in found.tasks] == [0, None]
    assert found.customers == ROWS


def test_so_are_answers_that_hardly_differ(scores: FloatArray) -> None:
    noise = np.random.default_rng(5).normal(1, 0.002, scores.shape)

    assert held(compare(pairs_of(scores, scores * noise), Thresholds())) == []


def test_each_difference_has_a_reason_of_its_own_that_names_the_task(scores: FloatArray) -> None:
    shuffled, shifted = scores.copy(), scores.copy()
    np.random.default_rng(2).shuffle(shuffled[:, 1])
    shifted[:, 0] = np.minimum(shifted[:, 0] * 1.5, 1)

    ranked = held(compare(pairs_of(scores, shuffled), Thresholds()))
    level = held(compare(pairs_of(scores, shifted), Thresholds()))

    assert [reason.split(":")[0] for reason in ranked] == ["spends", "spends"]
    assert "ranked differently" in ranked[0]
    assert "of the top tenth stay" in ranked[1]
    assert {reason.split(":")[0] for reason in level} == {"buys"}
    assert any("PSI" in reason for reason in level)
    assert any("change their segment" in reason for reason in level)
    assert not any("ranked" in reason for reason in level)


def test_frequent_callers_count_once_with_their_last_answer(scores: FloatArray) -> None:
    """One customer is asked for a thousand times, and answered differently each time but the last."""
    rows = np.concatenate([np.full((1_000, 2), 0.01), scores[:200]])
    entities = np.concatenate([np.full(1_000, 7), np.arange(200)]).astype(np.uint64)
    shadow = rows.copy()
    shadow[:1_000] = 0.99

    found = compare(pairs_of(rows, shadow, entities=entities), ENOUGH)

    assert held(found) == []
    assert (found.customers, found.pairs) == (200, 1_200)


def test_too_few_rows_say_nothing_else(scores: FloatArray) -> None:
    found = compare(pairs_of(scores[:999], -scores[:999]), Thresholds())

    assert held(found) == [
        f"{task}: 999 customers with a score of both, fewer than 1,000" for task in ("buys", "spends")
    ]
    assert held(compare(pairs_of(scores[:0], scores[:0], explained=no_reasons()), Thresholds())) != []


def no_reasons() -> Explained:
    empty = np.empty((0, len(TASKS), len(GROUPS)))
    return Explained(np.empty(0, dtype=np.intp), empty, empty)


def test_a_task_that_is_not_defined_is_left_out_for_that_customer_and_counted(scores: FloatArray) -> None:
    champion, shadow = scores.copy(), scores.copy()
    champion[:500, 1] = shadow[:500, 1] = np.nan

    found = compare(pairs_of(champion, shadow), Thresholds())
    shadow[:100, 1] = 3.0
    more = held(compare(pairs_of(champion, shadow), Thresholds()))

    assert held(found) == []
    assert [(task.rows, task.undefined) for task in found.tasks] == [(ROWS, 0), (ROWS - 500, 500)]
    assert more == ["spends: 5.0% of the customers have a score of only one of the two, more than 1.0%"]


def test_customers_that_no_store_knows_are_left_out(scores: FloatArray) -> None:
    statuses = np.full(ROWS, OK, np.uint8)
    statuses[:1_500] = UNKNOWN

    found = compare(pairs_of(scores, scores, champion_statuses=statuses, shadow_statuses=statuses), ENOUGH)

    assert (found.customers, found.unknown) == (500, 1_500)


def test_scores_without_a_ranking_are_held(scores: FloatArray) -> None:
    constant = np.full_like(scores, 0.25)

    assert any("ranked" in reason for reason in held(compare(pairs_of(constant, constant), Thresholds())))


def test_other_tasks_and_units_are_named(scores: FloatArray) -> None:
    other = (replace(TASKS[1], unit="EUR"), Task("stays", "Stays", "probability", "probability", 30))
    sides = Side("1", "a", TASKS, GROUPS), Side("2", "b", other, GROUPS)

    reasons = held(compare(pairs_of(scores, scores[:, ::-1], sides=sides), Thresholds()))

    assert "buys: the shadow has no such task" in reasons
    assert "spends: GBP over 90 days to the champion, EUR over 90 days to the shadow" in reasons


def test_other_reasons_are_a_reason_to_hold(scores: FloatArray) -> None:
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(2, MIN_EXPLAINED, len(TASKS), len(GROUPS)))
    other[:, 1] = one[:, 1]

    found = compare(pairs_of(scores, scores, why=(one, other)), Thresholds())

    assert [reason.split(":")[0] for reason in held(found)] == ["buys"]
    assert "the reasons differ" in found.reasons[0]
    assert found.tasks[0].cosine == pytest.approx(
        np.mean([1 - distance.cosine(a, b) for a, b in zip(one[:, 0], other[:, 0], strict=True)])
    )
    assert (found.tasks[1].cosine, found.tasks[1].top_overlap, found.tasks[1].same_sign) == pytest.approx((1, 1, 1))


def test_groups_are_compared_by_name(scores: FloatArray) -> None:
    one = np.random.default_rng(4).normal(size=(MIN_EXPLAINED, len(TASKS), len(GROUPS)))
    sides = Side("1", "a", TASKS, GROUPS), Side("2", "b", TASKS, GROUPS[::-1])

    found = compare(pairs_of(scores, scores, why=(one, one[:, :, ::-1]), sides=sides), Thresholds())

    assert held(found) == []
    assert found.tasks[0].cosine == pytest.approx(1)


def test_too_few_explanations_are_held(scores: FloatArray) -> None:
    reasons = held(compare(pairs_of(scores, scores, explained=no_reasons()), Thresholds()))

    assert reasons == [
        f"{task}: 0 customers with attributions of both, fewer than {MIN_EXPLAINED}" for task in ("buys", "spends")
    ]


def test_a_slower_shadow_is_held_at_the_size_where_it_is_slower(scores: FloatArray) -> None:
    single = [(1, 100e-6, 110e-6)] * MIN_TIMED
    some = [(40, 400e-6, 1_000e-6)] * MIN_TIMED
    rare = [(500, 1e-3, 1.0)] * (MIN_TIMED - 1)

    found = compare(pairs_of(scores, scores, timed=np.array(single + some + rare)), Thresholds())

    assert held(found) == ["32-63 rows take the shadow 2.50 times as long, more than 1.5"]
    assert [(one.rows, one.batches, round(one.champion_us), round(one.shadow_us)) for one in found.latency] == [
        ("1", MIN_TIMED, 100, 110),
        ("32-63", MIN_TIMED, 10, 25),
    ]


def test_failures_and_missing_features_of_the_shadow_are_held(scores: FloatArray) -> None:
    statuses = np.full(ROWS, OK, np.uint8)
    statuses[:100] = DEGRADED

    both = compare(pairs_of(scores, scores, champion_statuses=statuses, shadow_statuses=statuses), Thresholds())
    one = compare(pairs_of(scores, scores, shadow_statuses=statuses, failed=10), Thresholds())

    assert held(both) == []
    assert held(one) == [
        "the shadow had no answer for 0.50% of the rows, more than 0.10%",
        "5.0% of the customers are degraded with the shadow, 0.0% with the champion",
    ]
