"""Which explainer answers: the cheapest that is precise enough, or the most precise that is in time."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from feature_client.contract import Contract, Errors, Explainer, Explanation
from feature_client.release import Release
from service.errors import InvalidRequest
from service.explainers import Pace, choose, weight_of
from service.reasons import Asked, error_of

TASKS = ("purchase_30d", "churn_90d", "spend_90d")


def explainer(rows: int, scores: tuple[float, ...], margin: float = 0.0, *, by_feature: bool = False) -> Explainer:
    """scores: an error for each task. margin: that of all of them."""
    by_task = dict(zip(TASKS, scores, strict=True))
    return Explainer("shapley", rows, Errors(by_task, dict.fromkeys(TASKS, margin), by_task), by_feature)


FAST = explainer(64, (0.04, 0.05, 0.06), 0.02)
PRECISE = explainer(512, (0.01, 0.02, 0.03), 0.04)
EXACT = explainer(4_096, (0.0, 0.0, 0.0))
FEATURES = explainer(1_024, (0.07, 0.07, 0.07), 0.07, by_feature=True)
ALL = {"fast": FAST, "precise": PRECISE, "exact": EXACT, "features": FEATURES}

SECONDS = {"fast": 0.001, "precise": 0.008, "exact": 0.064, "features": 0.016}
"""What each takes, in these tests."""


@pytest.fixture(scope="session")
def contract(release: Release) -> Contract:
    assert release.contract.task_names == TASKS
    return release.contract


def explained_by(contract: Contract, explainers: Mapping[str, Explainer]) -> Contract:
    old = contract.explanation
    new = Explanation(old.background_rows, old.base, old.margin_base, explainers, old.importance)
    return replace(contract, explanation=new)


@pytest.mark.parametrize(
    ("asked", "explainer", "within_budget"),
    [
        # Nothing said: the first of that detail, whatever it takes.
        (Asked(), "fast", None),
        (Asked(tasks=("spend_90d",), space="margin"), "fast", None),
        (Asked(detail="features"), "features", None),
        # A tolerance alone: the cheapest that keeps it, for every task that is asked for.
        (Asked(tolerance=1.0), "fast", None),
        (Asked(tolerance=0.06), "fast", None),  # as much is allowed
        (Asked(tolerance=0.05), "precise", None),
        (Asked(tasks=("purchase_30d", "churn_90d"), tolerance=0.05), "fast", None),
        (Asked(tasks=("purchase_30d",), tolerance=0.01), "precise", None),
        (Asked(tolerance=0.02), "exact", None),
        (Asked(tolerance=0.0), "exact", None),
        # In margins the errors are others: there the fast one is better than the precise one.
        (Asked(space="margin", tolerance=0.02), "fast", None),
        (Asked(space="margin", tolerance=0.01), "exact", None),
        # Of features there is one alone, which may not keep it.
        (Asked(detail="features", tolerance=0.01), "features", None),
        # A budget alone: the most precise within it; the cheapest where none is.
        (Asked(budget_s=1.0), "exact", True),
        (Asked(budget_s=0.064), "exact", True),  # as much is allowed
        (Asked(budget_s=0.063), "precise", True),
        (Asked(space="margin", budget_s=0.063), "fast", True),
        (Asked(budget_s=0.007), "fast", True),
        (Asked(budget_s=0.0001), "fast", False),
        (Asked(detail="features", budget_s=0.016), "features", True),
        (Asked(detail="features", budget_s=0.015), "features", False),
        # Both: the cheapest within both; else the budget counts, and the tolerance as far as it goes.
        (Asked(tolerance=0.06, budget_s=1.0), "fast", True),
        (Asked(tolerance=0.03, budget_s=1.0), "precise", True),
        (Asked(tolerance=0.0, budget_s=1.0), "exact", True),
        (Asked(tolerance=0.0, budget_s=0.063), "precise", True),
        (Asked(tolerance=0.0, budget_s=0.007), "fast", True),
        (Asked(tolerance=0.0, budget_s=0.0001), "fast", False),
        (Asked(tolerance=1.0, budget_s=0.0001), "fast", False),
    ],
)
def test_an_explainer_is_chosen_by_tolerance_and_budget(
    contract: Contract, asked: Asked, explainer: str, *, within_budget: bool | None
) -> None:
    chosen = choose("engagement.3", explained_by(contract, ALL), asked, SECONDS.__getitem__)

    assert chosen == replace(asked, explainer=explainer, within_budget=within_budget)


def test_the_cheapest_is_by_rows_of_the_network_and_not_by_place(contract: Contract) -> None:
    """A contract has them in any order but for the first."""
    shuffled = explained_by(contract, {"fast": FAST, "exact": EXACT, "precise": PRECISE})

    assert choose("engagement.3", shuffled, Asked(tolerance=0.05), SECONDS.__getitem__).explainer == "precise"
    assert choose("engagement.3", shuffled, Asked(budget_s=0.01), SECONDS.__getitem__).explainer == "precise"


def test_among_equals_the_default_is_chosen(contract: Contract) -> None:
    """As in a release whose fast explainer is exact itself."""
    same = explained_by(contract, {"fast": EXACT, "exact": EXACT})

    for asked in (
        Asked(),
        Asked(tolerance=0.0),
        Asked(budget_s=9.0),
        Asked(budget_s=0.0001),
        Asked(None, tolerance=0.5),
    ):
        assert choose("engagement.3", same, asked, lambda name: 0.064).explainer == "fast"


def test_a_detail_that_a_release_does_not_explain_in_is_an_invalid_request(contract: Contract) -> None:
    by_groups = explained_by(contract, {"fast": FAST})

    for asked in (
        Asked(detail="features"),
        Asked(detail="features", tolerance=1.0),
        Asked(detail="features", budget_s=1.0),
    ):
        with pytest.raises(InvalidRequest, match=r"engagement\.3 explains by groups alone"):
            choose("engagement.3", by_groups, asked, SECONDS.__getitem__)


def test_time_is_asked_for_only_where_there_is_a_budget(contract: Contract) -> None:
    def unknown(name: str) -> float:
        raise AssertionError(name)

    for asked in (Asked(), Asked(tolerance=0.0), Asked(detail="features", tolerance=0.0)):
        choose("engagement.3", explained_by(contract, ALL), asked, unknown)


def test_an_error_is_of_a_task_and_of_a_space() -> None:
    assert [error_of(PRECISE, task, "score") for task in TASKS] == [0.01, 0.02, 0.03]
    assert [error_of(PRECISE, task, "margin") for task in TASKS] == [0.04] * 3


@pytest.mark.parametrize(("fast", "exact", "weight"), [(64, 4_096, 64), (60, 4_096, 68), (4_096, 4_096, 1), (0, 7, 7)])
def test_an_explained_entity_weighs_what_it_costs_more_than_one_of_the_default(
    contract: Contract, fast: int, exact: int, weight: int
) -> None:
    explainers = {"fast": replace(FAST, rows=fast), "exact": replace(EXACT, rows=exact)}
    of = explained_by(contract, {**explainers, "precise": replace(PRECISE, rows=1)})

    assert weight_of(of, "fast") == 1
    assert weight_of(of, "exact") == weight
    assert weight_of(of, "precise") == 1  # nobody weighs nothing


def test_a_pace_follows_what_is_seen_and_not_an_outlier() -> None:
    pace = Pace(0.002)
    assert pace.expected_s(1) == 0.002
    assert pace.expected_s(8) == pytest.approx(0.016)

    pace.seen(4, 4 * 0.02)  # ten times as long, once
    assert 0.002 < pace.expected_s(1) < 2 * 0.002
    for _ in range(100):
        pace.seen(32, 32 * 0.006)
    assert pace.expected_s(1) == pytest.approx(0.006, rel=1e-3)
    for _ in range(100):
        pace.seen(1, 0.001)
    assert pace.expected_s(10) == pytest.approx(0.01, rel=1e-2)
