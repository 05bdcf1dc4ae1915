"""A cost is only told of reads that are equal: what counts as a difference. The rest is in tests/e2e/test_bench.py."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from feature_client.offline.read_cost import Different, compare
from feature_client.schema import Feature, FeatureBatch, FeatureSchema, JoinKey

SCHEMA = FeatureSchema(
    "shop",
    (JoinKey("customer_id"),),
    (
        Feature("spend", "numeric", "all", "Spend", "", "orders", "spend", "float64", nullable=True),
        Feature("recency", "elapsed", "all", "Recency", "days", "orders", "last_at", "timestamp", nullable=True),
        Feature("country", "category", "all", "Country", "", "orders", "country", "string"),
    ),
    {},
    {"all": "All"},
)
AT = datetime(2026, 1, 1, tzinfo=UTC)
NEXT = float(np.nextafter(0.1, 1))
Feast = dict[str, list[Any]]


def ours() -> FeatureBatch:
    return FeatureBatch(
        numbers=np.array([[0.1, AT.timestamp()], [np.nan, np.nan]]),
        strings=np.array([["France"], [None]], dtype=object),
        event_times=np.array([[AT.timestamp()]] * 2),
    )


def feast() -> Feast:
    return {"orders__spend": [0.1, None], "orders__last_at": [AT, None], "orders__country": ["France", None]}


def test_equal_reads_are_equal() -> None:
    compare(SCHEMA, ours(), feast())
    # Feast's times have no zone in some versions; they are UTC.
    compare(SCHEMA, ours(), feast() | {"orders__last_at": [AT.replace(tzinfo=None), None]})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda feast: feast["orders__spend"].__setitem__(0, 0.1 + 2e-18), None),
        (
            lambda feast: feast["orders__spend"].__setitem__(0, float(np.nextafter(0.1, 1))),
            "spend of customer 1 is 0.1",
        ),
        (lambda feast: feast["orders__spend"].__setitem__(1, 0.0), "spend of customer 2 is nan, and 0.0"),
        (lambda feast: feast["orders__last_at"].__setitem__(0, AT.replace(hour=1)), "recency of customer 1"),
        (lambda feast: feast["orders__country"].reverse(), "country of customer 1 is 'France', and None"),
    ],
    ids=["same float", "last bit", "null", "hour", "swapped"],
)
def test_the_smallest_difference_is_one(change: Callable[[Feast], object], told: str | None) -> None:
    theirs = feast()
    change(theirs)

    if told is None:
        compare(SCHEMA, ours(), theirs)
    else:
        with pytest.raises(Different, match=told):
            compare(SCHEMA, ours(), theirs)


def test_customers_that_are_not_there_prove_nothing() -> None:
    nothing = FeatureBatch(np.full((1, 2), np.nan), np.full((1, 1), None, dtype=object), np.full((1, 1), np.nan))
    absent: Feast = {name: [None] for name in feast()}

    with pytest.raises(Different, match="does not know one"):
        compare(SCHEMA, nothing, absent)
    with pytest.raises(Different, match="refused"):
        compare(SCHEMA, replace(ours(), refused={0: "why"}), feast())
