"""Nothing is dropped in silence: every row is an event, or is kept aside with the reason why it is none."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from feature_client.offline.events import EventsError, Source, load_events, own_source, scratch, take_over
from feature_client.offline.workspace import DataSet, Workspace, WorkspaceError

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def event(**values: object) -> dict[str, object]:
    usual = {
        "customer_id": "c1", "ts": NOON, "type": "purchase", "item": "lamp", "category": "lighting",
        "quantity": 1, "amount": 9.99, "order_id": "o1", "country": "France", "channel": "web",
    }  # fmt: skip
    return usual | values


def load(root: Path, rows: list[dict[str, object]], as_of: datetime | None = None) -> DataSet:
    pq.write_table(pa.Table.from_pylist(rows), root / "mine.parquet")
    return load_events(Workspace(root), root / "mine.parquet", as_of)


def test_refused_rows_are_counted_by_reason_and_kept_aside(tmp_path: Path) -> None:
    rows = [
        event(),
        event(),  # delivered twice
        event(customer_id=None),
        event(customer_id=""),
        event(ts=None),
        event(type="refund"),
        event(type=None),
        event(quantity=0),
        event(amount=None),
        event(amount=float("nan")),
        event(amount=-1.0),
        event(type="return", amount=0.0),
        event(type="session", quantity=None, amount=None, item=None),
    ]
    dataset = load(tmp_path, rows)
    assert dataset.rejected == {
        "amount not positive": 1,
        "duplicate": 1,
        "no amount": 2,
        "no customer": 2,
        "no time": 1,
        "quantity not positive": 1,
        "unknown type": 2,
    }
    assert dataset.events == 3
    assert dataset.recorded == ("purchase", "return", "session")
    kept = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert len(kept) + dataset.events == len(rows)
    assert {row["type"] for row in kept if row["reason"] == "unknown type"} == {"refund", None}


def test_parts_of_a_source_give_the_files_of_the_whole(tmp_path: Path) -> None:
    """Duplicates and refused rows in some parts, and nothing wrong in others."""
    parts = [
        [event(), event(), event(ts=None), event(order_id="o2", amount=2.5)],
        [event(customer_id="c2")],
        [
            event(customer_id="c3", item=None),
            event(customer_id="c3", type="refund"),
            event(customer_id="c3", item=None),
        ],
    ]
    schema = pa.Table.from_pylist([event()]).schema

    def taken(name: str, parts: list[list[dict[str, object]]]) -> DataSet:
        workspace = Workspace(tmp_path / name)
        with scratch(workspace) as (connection, directory):

            def sources() -> Iterator[Source]:
                for rows in parts:
                    pq.write_table(pa.Table.from_pylist(rows, schema), directory / "part.parquet")
                    yield own_source("mine", connection.read_parquet(directory / "part.parquet"), "EUR")

            return take_over(workspace, connection, directory, sources(), None, progress=False)

    whole = taken("whole", [[row for rows in parts for row in rows]])

    assert taken("parts", parts) == whole
    assert whole.rejected == {"duplicate": 2, "no time": 1, "unknown type": 1}
    for name in ("events.parquet", "rejected.parquet"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("fault", [WorkspaceError, KeyboardInterrupt])
def test_what_fails_on_the_way_is_raised_as_what_it_is(tmp_path: Path, fault: type[BaseException]) -> None:
    def sources() -> Iterator[Source]:
        yield own_source("mine", connection.read_parquet(tmp_path / "first.parquet"), "EUR")
        raise fault("the second part is not there")

    pq.write_table(pa.Table.from_pylist([event()]), tmp_path / "first.parquet")
    with scratch(Workspace(tmp_path)) as (connection, directory):  # noqa: SIM117  (it is made before what fails)
        with pytest.raises(fault, match=r"^the second part is not there$"):
            take_over(Workspace(tmp_path), connection, directory, sources(), None, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.parquet"]


def test_who_interrupts_the_writing_is_obeyed_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal reaches the main thread, which writes; the thread that makes the next batches ends with it."""

    @contextmanager
    def interrupted(*_: object, **__: object) -> Iterator[SimpleNamespace]:
        def write_batch(_: object) -> None:
            raise KeyboardInterrupt

        yield SimpleNamespace(write_batch=write_batch)

    before = threading.active_count()
    pq.write_table(pa.Table.from_pylist([event()]), tmp_path / "mine.parquet")
    monkeypatch.setattr("feature_client.offline.events.pq.ParquetWriter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_events(Workspace(tmp_path), tmp_path / "mine.parquet", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.parquet"]
    assert threading.active_count() == before


@pytest.mark.parametrize("ts", ["1969-12-31T23:59:59.999999", "1970-01-01T00:00:00.000001", "2011-03-01T12:00:00.999"])
def test_times_are_the_second_that_has_begun(tmp_path: Path, ts: str) -> None:
    moment = datetime.fromisoformat(ts).replace(tzinfo=UTC)
    load(tmp_path, [event(ts=moment)])
    assert pq.read_table(tmp_path / "events.parquet")["ts"].to_pylist() == [moment.replace(microsecond=0)]


@pytest.mark.parametrize("name", ["reason", "Reason", "why_refused", "WHY_REFUSED"])
def test_a_column_of_the_file_is_compared_whatever_its_name(tmp_path: Path, name: str) -> None:
    rows = [event(**{name: said}) for said in ("gift", "gift", "own use")]

    dataset = load(tmp_path, [*rows, event(**{name: "broken"}, amount=None)])

    assert (dataset.events, dataset.rejected) == (2, {"duplicate": 1, "no amount": 1})
    kept = pq.read_table(tmp_path / "rejected.parquet")
    theirs = f"{name}_" if name.lower() == "reason" else name
    assert kept.column_names[-2:] == [theirs, "reason"]
    assert {(row["reason"], row[theirs]) for row in kept.to_pylist()} == {
        ("duplicate", "gift"),
        ("no amount", "broken"),
    }


def test_the_real_data_is_cleaned_by_its_rules_and_every_line_is_accounted_for(
    retail_file: Path, tmp_path: Path
) -> None:
    dataset = load_events(Workspace(tmp_path), retail_file)
    assert dataset.as_of == datetime(2011, 9, 1, tzinfo=UTC)
    assert (dataset.name, dataset.currency, dataset.recorded) == ("online_retail_ii", "GBP", ("purchase", "return"))
    assert dataset.rejected["no customer"] == 188_859
    assert set(dataset.rejected) == {"no customer", "duplicate", "not a product", "price not positive"}
    assert dataset.events + sum(dataset.rejected.values()) == pq.read_metadata(retail_file).num_rows
    assert pq.read_metadata(tmp_path / "rejected.parquet").num_rows == sum(dataset.rejected.values())
    events = pq.read_table(tmp_path / "events.parquet")
    assert pa.compute.count_distinct(events["category"]).as_py() == 11
    assert pa.compute.min(events["quantity"]).as_py() == 1
    assert not pa.compute.any(pa.compute.match_substring(events["customer_id"], ".")).as_py()


def test_ids_that_went_through_a_float_column_are_strings_again(tmp_path: Path) -> None:
    load(tmp_path, [event(customer_id=17850.0, order_id=536365.0), event(customer_id=1.5, order_id=1.0)])
    rows = pq.read_table(tmp_path / "events.parquet").to_pylist()
    assert [(row["customer_id"], row["order_id"]) for row in rows] == [("1.5", "1"), ("17850", "536365")]


def test_purchases_without_an_order_id_are_one_order_where_they_share_the_instant(tmp_path: Path) -> None:
    later = NOON + timedelta(minutes=1)
    load(tmp_path, [event(order_id=None, item=item, ts=ts) for item, ts in (("a", NOON), ("b", NOON), ("c", later))])
    orders = pq.read_table(tmp_path / "events.parquet")["order_id"].to_pylist()
    assert len(set(orders)) == 2


def test_as_of_is_the_midnight_after_the_last_event_and_later_events_are_refused(tmp_path: Path) -> None:
    rows = [event(), event(order_id="o2", ts=NOON + timedelta(days=3))]
    assert load(tmp_path, rows).as_of == datetime(2025, 3, 5, tzinfo=UTC)

    dataset = load(tmp_path, rows, as_of=NOON + timedelta(days=3))
    assert (dataset.events, dataset.rejected) == (1, {"at or after as_of": 1})


def test_a_quantity_that_is_no_number_is_refused_not_taken_for_one(tmp_path: Path) -> None:
    rows = [event(quantity=quantity, order_id=str(n)) for n, quantity in enumerate(["2", "abc", None])]
    dataset = load(tmp_path, rows)

    assert dataset.rejected == {"quantity not a whole number": 1}
    assert dataset.events == 2


@pytest.mark.parametrize("kind", [pa.int32(), pa.null(), pa.string()])
def test_a_file_without_any_known_type_is_refused_in_a_sentence(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"customer_id": ["c1"], "ts": [NOON], "type": pa.array([None], kind)})
    pq.write_table(table, tmp_path / "mine.parquet")

    with pytest.raises(EventsError, match="no valid purchase"):
        load_events(Workspace(tmp_path), tmp_path / "mine.parquet")


def test_ids_that_could_never_be_asked_for_are_refused(tmp_path: Path) -> None:
    dataset = load(tmp_path, [event(), event(customer_id="  "), event(customer_id="x" * 129)])

    assert dataset.rejected == {"customer id too long": 1, "no customer": 1}


def test_a_mistyped_year_does_not_move_everybody_into_the_future(tmp_path: Path) -> None:
    dataset = load(tmp_path, [event(), event(ts=datetime(2999, 1, 1, tzinfo=UTC))])

    assert dataset.rejected == {"in the future": 1}
    assert dataset.as_of == datetime(2025, 3, 2, tzinfo=UTC)


def test_a_directory_of_files_is_one_data_set(tmp_path: Path) -> None:
    (tmp_path / "days").mkdir()
    for number in range(3):
        pq.write_table(pa.Table.from_pylist([event(order_id=f"o{number}")]), tmp_path / "days" / f"{number}.parquet")
    assert load_events(Workspace(tmp_path / "workspace"), tmp_path / "days").events == 3


def test_only_customer_time_and_type_are_needed(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"customer_id": 7, "ts": NOON, "type": "purchase", "amount": 5}]
    assert load(tmp_path, rows).events == 1
    [stored] = pq.read_table(tmp_path / "events.parquet").to_pylist()
    assert (stored["customer_id"], stored["quantity"], stored["amount"]) == ("7", 1, Decimal("5.0000"))


def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    with pytest.raises(EventsError, match=r"missing\.parquet does not exist"):
        load_events(workspace, tmp_path / "missing.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EventsError, match=r"holds no \.parquet file"):
        load_events(workspace, tmp_path / "empty")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(EventsError, match=r"^broken.parquet cannot be taken over: .+"):
        load_events(workspace, tmp_path / "broken.parquet")
    pq.write_table(pa.Table.from_pylist([event()]).slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(EventsError, match=r"\(no rows at all\)"):
        load_events(workspace, tmp_path / "none.parquet")
    with pytest.raises(WorkspaceError, match=r"no events in .*: generate or load some first"):
        workspace.dataset()
    assert list(workspace.root.iterdir()) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"customer_id": "c1"}, "^mine has no column ts, type; events need customer_id, ts and type"),
        (event(ts=1_740_000_000), "mine: ts holds numbers; it must hold timestamps"),
        (event(customer_id=None), r"mine has no valid purchase to learn from \(1 x no customer\)"),
    ],
)
def test_files_that_hold_no_usable_events_are_refused(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(EventsError, match=message):
        load(tmp_path, [row])


def test_an_instant_without_a_time_zone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EventsError, match="has no time zone; write it as 2025-03-05T00:00:00Z"):
        load(tmp_path, [event()], as_of=datetime(2025, 3, 5))  # noqa: DTZ001


def test_too_little_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000))
    with pytest.raises(WorkspaceError, match=r"loading mine\.parquet needs about 50 MB in .*, only 3 free"):
        load(tmp_path, [event()])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.parquet"]


def test_a_workbook_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "online_retail_II.xlsx").write_bytes(b"no workbook")
    with pytest.raises(EventsError, match=r"openpyxl: pip install openpyxl|is not a readable workbook"):
        load_events(Workspace(tmp_path), tmp_path / "online_retail_II.xlsx")


def test_what_was_loaded_before_survives_a_failed_load(tmp_path: Path) -> None:
    before = load(tmp_path, [event()])
    with pytest.raises(EventsError):
        load(tmp_path, [event(type="refund")])
    assert Workspace(tmp_path).dataset() == before
    assert pq.read_metadata(tmp_path / "events.parquet").num_rows == 1
