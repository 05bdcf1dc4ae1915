"""Some customers out of a file that would not fit into memory."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_client.offline import lookup

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """400,000 events of 4,000 customers, sorted, in row groups of 4,096."""
    rows = 400_000
    columns = {
        "customer_id": [f"c{number // 100:04d}" for number in range(rows)],
        "ts": [START + timedelta(seconds=number) for number in range(rows)],
        "type": ["return" if number > 150 and number % 100 == 7 else "purchase" for number in range(rows)],
        "item": ["a long description that takes its place in memory " * 3] * rows,
    }
    schema = {"ts": pa.timestamp("us", "UTC")}
    table = pa.table({name: pa.array(values, schema.get(name)) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "events.parquet", row_group_size=4_096)
    return tmp_path / "events.parquet"


def test_events_of_some_customers_come_whole_and_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MEMORY", "40MB")
    found = lookup.events_of(path, ["c3999", "c0000", "c0041", "c0041", "nobody"])

    everything = pq.read_table(path)
    expected = pa.concat_tables([everything.slice(0, 100), everything.slice(4_100, 100), everything.slice(399_900)])
    assert found.equals(expected)
    assert found.schema.field("ts").type == pa.timestamp("us", "UTC")


def test_nobody_has_no_events(path: Path) -> None:
    assert len(lookup.events_of(path, [])) == 0


def test_types_begin_with_their_first_event(path: Path) -> None:
    assert lookup.begun(path) == {"purchase": START, "return": START + timedelta(seconds=207)}
