"""The tasks of the built-in model `engagement`: what each score means and how its label is read from events."""

from dataclasses import dataclass
from typing import Literal

from feature_client.contract import Eligibility, Task

POPULATION_DAYS = 365
"""Customers are scored, and trained on, who bought in this many days before the cutoff."""

LabelKind = Literal["bought", "silent", "spent"]
"""bought: at least one order within the horizon. silent: none. spent: the sum of its orders."""


@dataclass(frozen=True)
class LabelledTask:
    task: Task
    label: LabelKind


def engagement_tasks(currency: str) -> tuple[LabelledTask, ...]:
    """The columns of `scores`, in order. currency: the code of the data set's amounts."""
    return (
        LabelledTask(Task("purchase_30d", "Buys within 30 days", "probability", "probability", 30), "bought"),
        LabelledTask(
            Task(
                "churn_90d",
                "Does not buy for 90 days",
                "probability",
                "probability",
                90,
                eligibility=Eligibility("days_since_purchase", 180.0),
            ),
            "silent",
        ),
        LabelledTask(Task("spend_90d", "Spends within 90 days", "amount", currency, 90), "spent"),
    )
