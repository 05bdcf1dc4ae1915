"""Whose past is trained on, and whose features are computed at once."""

from datetime import UTC, datetime

import ibis
import ibis.expr.types as ir
import pytest

from feature_client.offline.learners import learners
from feature_client.offline.spans import spans


def events_of(customers: int) -> ir.Table:
    ids = [str(100_000 + number) for number in range(customers) for _ in range(2)]
    return ibis.memtable({"customer_id": ids, "ts": [datetime(2026, 1, 1, tzinfo=UTC)] * len(ids)})


def chosen(events: ir.Table, at_most: int) -> set[str]:
    return set(learners(events, at_most).customer_id.to_pyarrow().to_pylist())


def test_all_customers_of_a_small_data_set_are_trained_on() -> None:
    events = events_of(50)
    assert learners(events, 50) is events


def test_a_large_one_is_sampled_by_customer_and_not_by_event() -> None:
    events = events_of(2_000)
    sampled = learners(events, 500)
    customers = sampled.customer_id.nunique().to_pyarrow().as_py()
    assert customers == pytest.approx(500, rel=0.15)
    assert sampled.count().to_pyarrow().as_py() == 2 * customers


def test_whoever_is_chosen_stays_chosen_when_others_come() -> None:
    assert chosen(events_of(2_000), 500) >= chosen(events_of(1_000), 250)


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    events = events_of(1_000)
    few, many = chosen(events, 100), chosen(events, 300)
    assert few < many


def test_spans_hold_every_event_once_and_all_those_of_a_customer() -> None:
    parts = [part.customer_id.to_pyarrow().to_pylist() for part in spans(events_of(25), size=10)]
    assert [len(set(part)) for part in parts] == [10, 10, 5]
    assert sorted(customer for part in parts for customer in part) == events_of(25).customer_id.to_pyarrow().to_pylist()
    assert max(parts[0]) < min(parts[1]) <= max(parts[1]) < min(parts[2])


def test_a_few_customers_are_one_span() -> None:
    events = events_of(10)
    assert list(spans(events, size=10)) == [events]
