"""The model card: what a person should know before trusting a release, generated from its contract."""

from collections.abc import Iterable, Sequence

from feature_client.contract import Contract, Task
from feature_client.release import REPORT
from feature_client.schema import Feature
from model_export.kinds import ESTIMATOR

MADE_BY = {
    "network": "one network with one head a task",
    "lightgbm": "boosted trees (LightGBM), an ensemble a task",
    "logistic": "linear models (scikit-learn), one a task",
}
"""Estimator -> what computes the scores."""

LIMITS = (
    "It knows what the events record and nothing else: no prices of competitors, no intent, no demographics.",
    "Customers without an order in the year before are outside of what it was fitted on; their scores are guesses.",
    "A season that occurs once in the training window is a season seen once.",
    "Reasons say how the model came to its score against typical customers, not what would cause a customer to act.",
    "Attributions of amounts are in currency and can be large for a few customers: the amounts have heavy tails.",
)


def card(contract: Contract, *, reported: bool = False) -> str:
    """Markdown. reported: the report lies beside it."""
    schema, explanation = contract.schema, contract.explanation
    estimator = contract.training.get(ESTIMATOR, "network")
    what = (
        f"{len(contract.tasks)} scores for each customer, from {len(schema.features)} features, by "
        f"{MADE_BY.get(estimator, estimator)}. Each score comes with its reasons."
    )
    reasons = (
        f"Shapley values of {len(schema.groups)} groups of features, in the score's own unit or in its margin, against "
        f"{explanation.background_rows} weighted training rows that stand for all of them. base + the sum of all "
        "reasons = the score. Errors are mean |estimate - exact| over mean |exact| on rows that took no part in the "
        "fit; shuffled: on such with every feature of another customer."
    )
    page = "the same in plain words, with pictures and intervals"
    told = (
        f"[{REPORT}]({REPORT}): {page}."
        if reported
        else f"`rapport report` makes it, {page}, from what training has left."
    )
    sections = {
        "Scores": _table(("score", "means", "unit", "defined for", "segments from"), map(_task_row, contract.tasks)),
        "Data": [
            *_table(("what", "value"), ((key.replace("_", " "), value) for key, value in contract.training.items())),
            "",
            "Features use events before the cutoff, labels events from the cutoff on.",
        ],
        "Measured on the test cutoffs": _table(("score", "metric", "value"), _metric_rows(contract)),
        "Report": [told],
        "Reasons": [
            reasons,
            "",
            *_table(("score", "base"), ((f"`{name}`", _number(base)) for name, base in explanation.base.items())),
            "",
            *_table(("graph", "method", "rows of the model", "score", "error", "shuffled"), _error_rows(contract)),
        ],
        "Features": _table(
            ("feature", "means", "group", "missing in training"),
            (_feature_row(feature, contract) for feature in schema.features),
        ),
        "Limits": [f"* {limit}" for limit in LIMITS],
    }
    lines = [f"# {contract.model}", "", what, ""]
    for title, body in sections.items():
        lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines)


def _task_row(task: Task) -> tuple[str, ...]:
    eligible = f"{task.eligibility.feature} <= {task.eligibility.at_most:g}" if task.eligibility else "everybody"
    named = ", ".join(f"{segment.name} {_number(segment.at_least)}" for segment in task.segments)
    return (f"`{task.name}`", task.label, task.unit, eligible, named)


def _metric_rows(contract: Contract) -> Iterable[tuple[str, str, str]]:
    for task, values in contract.metrics.items():
        for metric, value in values.items():
            yield f"`{task}`", metric, _number(value)


def _error_rows(contract: Contract) -> Iterable[tuple[str, ...]]:
    for name, explainer in contract.explanation.explainers.items():
        for task, error in explainer.error.scores.items():
            shuffled = f"{explainer.error.shifted[task]:.2%}"
            yield name, explainer.method, str(explainer.rows), f"`{task}`", f"{error:.2%}", shuffled


def _feature_row(feature: Feature, contract: Contract) -> tuple[str, ...]:
    missing = contract.reference[feature.name].missing_share
    return (f"`{feature.name}`", feature.label, contract.schema.groups[feature.group], f"{missing:.1%}")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
