"""Labels from events: what customers did in the days after a cutoff."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import ibis

from model_export.tasks import POPULATION_DAYS, LabelledTask

DAY_S = 86_400

SILENCE = "silence_days"
"""Column: days from the cutoff to the next purchase; null where there is none within the longest horizon."""


def label_table(events: ibis.Table, instants: Sequence[datetime], tasks: Sequence[LabelledTask]) -> ibis.Table:
    """customer_id, cutoff (epoch seconds), SILENCE and one column a task: everyone in the population at each cutoff.

    events: customer_id, ts, type, amount. Columns of tasks are named `label_<task>`.
    """
    orders = events.filter(events.type == "purchase").select(
        "customer_id",
        second=events.ts.epoch_seconds(),
        # Sums of DECIMALs do not depend on the order in which threads add them.
        amount=events.amount.cast("decimal(18, 4)"),
    )
    starts = ibis.memtable({"cutoff": [int(instant.timestamp()) for instant in instants]})
    horizon = max(labelled.task.horizon_days for labelled in tasks)
    near = orders.join(
        starts,
        [
            orders.second >= starts.cutoff - POPULATION_DAYS * DAY_S,
            orders.second < starts.cutoff + horizon * DAY_S,
        ],
    )
    columns = {label_column(labelled): _label(near, labelled) for labelled in tasks}
    columns[SILENCE] = (near.second.min(where=near.second >= near.cutoff) - near.cutoff.max()).cast("float64") / DAY_S
    grouped = near.group_by("customer_id", "cutoff").agg(known=(near.second < near.cutoff).any(), **columns)
    return grouped.filter(grouped.known).drop("known").order_by("cutoff", "customer_id")


def label_column(labelled: LabelledTask) -> str:
    return f"label_{labelled.task.name}"


def _label(near: ibis.Table, labelled: LabelledTask) -> Any:
    end = near.cutoff + labelled.task.horizon_days * DAY_S
    within = (near.second >= near.cutoff) & (near.second < end)
    if labelled.label == "spent":
        return near.amount.sum(where=within).cast("float64").fill_null(0.0)
    bought = within.any().cast("float64")
    return bought if labelled.label == "bought" else 1.0 - bought
