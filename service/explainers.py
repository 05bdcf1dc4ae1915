"""Which of a release's explanation graphs answers a request: precise enough, within a budget, and the cheapest such."""

from collections.abc import Callable
from dataclasses import replace

from feature_client.contract import EXPLAINERS, Contract
from service.errors import InvalidRequest
from service.reasons import Asked, error_of

LEARNING_RATE = 0.1
"""How much of a new measurement goes into what is expected."""

OUTLIER = 11.0
"""A run that took more times what was expected counts for so many: one that hung must not refuse all others. It may
still double what is expected."""


class Pace:
    """How long a graph takes for one explained entity, as it was seen lately through this backend."""

    def __init__(self, row_s: float) -> None:
        self.row_s = row_s

    def seen(self, rows: int, seconds: float) -> None:
        self.row_s += LEARNING_RATE * (min(seconds / rows, OUTLIER * self.row_s) - self.row_s)

    def expected_s(self, rows: int) -> float:
        return rows * self.row_s


def choose(name: str, contract: Contract, asked: Asked, expected_s: Callable[[str], float]) -> Asked:
    """With its explainer. name: of the release. expected_s: explainer -> how long it would run for this request.

    With a tolerance, the cheapest that keeps it; with a budget alone, the most precise within it. Where none does both,
    the most precise within the budget; where none is within it, the cheapest. The answer says what was not kept.
    Raises InvalidRequest where the release cannot explain in that detail.
    """
    of_detail = {
        name: explainer
        for name, explainer in contract.explanation.explainers.items()
        if explainer.by_feature == (asked.detail == "features")
    }
    if not of_detail:
        raise InvalidRequest(f"detail: {name} explains by groups alone, it has no graph of single features")
    if asked.tolerance is None and asked.budget_s is None:
        return replace(asked, explainer=next(iter(of_detail)))
    by_cost = sorted(of_detail, key=lambda name: of_detail[name].rows)
    within = [name for name in by_cost if asked.budget_s is None or expected_s(name) <= asked.budget_s]
    candidates = within or by_cost[:1]
    tasks = asked.tasks or contract.task_names
    errors = {name: max(error_of(of_detail[name], task, asked.space) for task in tasks) for name in candidates}
    precise = [name for name in candidates if asked.tolerance is not None and errors[name] <= asked.tolerance]
    chosen = precise[0] if precise else min(candidates, key=lambda name: errors[name])
    return replace(asked, explainer=chosen, within_budget=None if asked.budget_s is None else bool(within))


def weight_of(contract: Contract, explainer: str) -> int:
    """What one explained entity counts in the lane of explanations: entities of the default explainer, at least 1."""
    explainers = contract.explanation.explainers
    return max(round(explainers[explainer].rows / max(explainers[EXPLAINERS[0]].rows, 1)), 1)
