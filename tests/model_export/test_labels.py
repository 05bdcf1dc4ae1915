from datetime import UTC, datetime, timedelta
from decimal import Decimal

import ibis

from model_export.labels import SILENCE, label_table
from model_export.tasks import engagement_tasks

CUTOFF = datetime(2026, 3, 1, tzinfo=UTC)
AT = CUTOFF.timestamp()
TASKS = engagement_tasks("GBP")


Label = tuple[float, float, float]
"""purchase_30d, churn_90d, spend_90d."""


def labels(
    *events: tuple[str, datetime, str, str], cutoffs: tuple[datetime, ...] = (CUTOFF,)
) -> dict[tuple[str, float], Label]:
    """events: customer, time, type, amount -> (customer, cutoff) -> labels."""
    columns = dict(zip(("customer_id", "ts", "type", "amount"), map(list, zip(*events, strict=True)), strict=True))
    columns["amount"] = [Decimal(amount) for amount in columns["amount"]]
    table = label_table(ibis.memtable(columns), cutoffs, TASKS)
    rows = ibis.duckdb.connect().to_pyarrow(table).to_pylist()
    names = [f"label_{labelled.task.name}" for labelled in TASKS]
    return {(row["customer_id"], row["cutoff"]): tuple(row[name] for name in names) for row in rows}


def day(days: float) -> datetime:
    return CUTOFF + timedelta(days=days)


def test_the_cutoff_itself_belongs_to_the_labels_and_their_end_does_not() -> None:
    found = labels(
        ("known", day(-10), "purchase", "1"),
        ("known", day(0), "purchase", "5"),
        ("known", day(90), "purchase", "100"),
        ("later", day(-10), "purchase", "1"),
        ("later", day(30), "purchase", "7"),
    )
    assert found == {("known", AT): (1, 0, 5), ("later", AT): (0, 0, 7)}


def test_the_population_bought_in_the_year_before_the_cutoff() -> None:
    found = labels(
        ("first day", day(-365), "purchase", "1"),
        ("a second too early", day(-365) - timedelta(seconds=1), "purchase", "1"),
        ("only later", day(3), "purchase", "1"),
        ("only returned", day(-5), "return", "1"),
    )
    assert found == {("first day", AT): (0, 1, 0)}


def test_returns_are_no_purchases() -> None:
    assert labels(("c", day(-5), "purchase", "10"), ("c", day(5), "return", "10")) == {("c", AT): (0, 1, 0)}


def test_silence_lasts_until_the_next_purchase() -> None:
    columns = {
        "customer_id": ["soon", "soon", "soon", "late", "late", "returned", "returned"],
        "ts": [day(-1), day(2.5), day(4), day(-1), day(90), day(-1), day(1)],
        "type": ["purchase"] * 6 + ["return"],
        "amount": [Decimal(1)] * 7,
    }
    rows = ibis.duckdb.connect().to_pyarrow(label_table(ibis.memtable(columns), [CUTOFF], TASKS)).to_pylist()
    assert {row["customer_id"]: row[SILENCE] for row in rows} == {"soon": 2.5, "late": None, "returned": None}


def test_every_cutoff_has_its_own_row() -> None:
    found = labels(("c", day(-5), "purchase", "10"), ("c", day(50), "purchase", "2.50"), cutoffs=(CUTOFF, day(28)))
    assert found == {("c", AT): (0, 0, 2.5), ("c", day(28).timestamp()): (1, 0, 2.5)}


def test_labels_do_not_see_their_own_features_nor_other_customers() -> None:
    found = labels(("a", day(-1), "purchase", "99"), ("b", day(-1), "purchase", "1"), ("b", day(1), "purchase", "2"))
    assert found == {("a", AT): (0, 1, 0), ("b", AT): (1, 0, 2)}
