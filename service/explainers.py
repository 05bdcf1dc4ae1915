"""Which of a release's explanation graphs answers a request: precise enough, within a budget, and the cheapest such."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from feature_client.contract import EXPLAINERS, Contract, Explainer
from feature_client.texts import ENGLISH
from service.errors import InvalidRequest

LEARNING_RATE = 0.1
"""How much of a new measurement goes into what is expected."""


class Pace:
    """How long a graph takes for one explained entity, as it was seen lately through this backend."""

    def __init__(self, row_s: float) -> None:
        self.row_s = row_s

    def seen(self, rows: int, seconds: float) -> None:
        self.row_s += LEARNING_RATE * (seconds / rows - self.row_s)

    def expected_s(self, rows: int) -> float:
        return rows * self.row_s


@dataclass(frozen=True)
class Wish:
    """What a request says of how it wants to be explained. tasks: None for all. top: reasons of each; None for all.

    tolerance: largest relative error of the attributions. budget_s: longest that the graph may be expected to run.
    """

    tasks: Sequence[str] | None = None
    top: int | None = None
    by_feature: bool = False
    margins: bool = False
    tolerance: float | None = None
    budget_s: float | None = None
    language: str = ENGLISH


class Choice(NamedTuple):
    """within_budget: None where the request has no budget."""

    explainer: str
    within_budget: bool | None


DEFAULT = Choice(EXPLAINERS[0], None)


def choose(contract: Contract, wish: Wish, expected_s: Callable[[str], float]) -> Choice:
    """expected_s: explainer -> how long it would run for this request.

    With a tolerance, the cheapest that keeps it; with a budget alone, the most precise within it. Where none does both,
    the most precise within the budget; where none is within it, the cheapest. The answer says what was not kept.
    Raises InvalidRequest where the release cannot explain in that detail.
    """
    of_detail = {
        name: explainer
        for name, explainer in contract.explanation.explainers.items()
        if explainer.by_feature == wish.by_feature
    }
    if not of_detail:
        raise InvalidRequest("detail: this release explains by groups alone")
    by_cost = sorted(of_detail, key=lambda name: of_detail[name].rows)
    if wish.tolerance is None and wish.budget_s is None:
        return Choice(next(iter(of_detail)), None)
    within = by_cost if wish.budget_s is None else [name for name in by_cost if expected_s(name) <= wish.budget_s]
    candidates = within or by_cost[:1]
    tasks = wish.tasks or contract.task_names
    errors = {name: max(error_of(of_detail[name], task, margins=wish.margins) for task in tasks) for name in candidates}
    precise = [name for name in candidates if wish.tolerance is not None and errors[name] <= wish.tolerance]
    chosen = precise[0] if precise else min(candidates, key=lambda name: errors[name])
    return Choice(chosen, None if wish.budget_s is None else bool(within))


def error_of(explainer: Explainer, task: str, *, margins: bool) -> float:
    """Expected relative error of its attributions of a task, in the score's unit or in margins."""
    return (explainer.error.margins if margins else explainer.error.scores)[task]


def weight_of(contract: Contract, explainer: str) -> int:
    """What one explained entity counts in the lane of explanations: entities of the default explainer, at least 1."""
    explainers = contract.explanation.explainers
    return max(round(explainers[explainer].rows / max(explainers[EXPLAINERS[0]].rows, 1)), 1)
