"""Generated events: the same for the same seed, before the anchor, and with effects that can be found again."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import duckdb
import msgspec
import pyarrow.parquet as pq
import pytest

from feature_client.offline import events, generator
from feature_client.offline.events import EVENT_TYPES, EventsError
from feature_client.offline.generator import FIRST_ID, Truth, generate, parts_by_id
from feature_client.offline.simulation import Effects
from feature_client.offline.workspace import Workspace, WorkspaceError


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path: Path) -> None:
    one, same, other = (
        generate(Workspace(tmp_path / name), customers=50, seed=seed, progress=False)
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one == same
    assert (tmp_path / "one" / "events.parquet").read_bytes() == (tmp_path / "same" / "events.parquet").read_bytes()
    assert one.digest != other.digest


def test_parts_leave_no_trace_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several row groups; parts that end within what is simulated at once, and in hardly any memory."""
    generate(Workspace(tmp_path / "whole"), customers=2_500, progress=False)
    monkeypatch.setattr(generator, "parts_by_id", partial(parts_by_id, size=300))
    monkeypatch.setattr(events, "MEMORY", "100MB")
    generate(Workspace(tmp_path / "parts"), customers=2_500, progress=False)

    for name in ("events.parquet", "rejected.parquet", "dataset.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    groups = pq.read_metadata(tmp_path / "whole" / "events.parquet")
    assert groups.num_row_groups == -(-groups.num_rows // events.ROW_GROUP) > 1


@pytest.mark.parametrize("customers", [1, 99, 2_500, 950_000])
def test_parts_hold_everybody_once_and_follow_each_other_as_text(customers: int) -> None:
    """From the 900,001st on ids have one digit more."""
    last, seen = "", 0
    for part in parts_by_id(customers, size=40_000):
        ids = sorted(str(FIRST_ID + number) for numbers in part for number in numbers)
        assert last < ids[0]
        assert len(set(ids)) == len(ids) < 50_000
        last, seen = ids[-1], seen + len(ids)
    assert seen == customers


def test_all_events_are_valid_and_end_before_the_anchor(tmp_path: Path) -> None:
    anchor = datetime(2023, 5, 17, tzinfo=UTC)
    dataset = generate(Workspace(tmp_path), customers=200, seed=3, anchor=anchor, progress=False)
    assert dataset.as_of == anchor
    assert dataset.rejected == {}
    assert dataset.recorded == EVENT_TYPES
    assert rows(tmp_path, "count(*) FILTER (ts >= TIMESTAMPTZ '2023-05-17 00:00:00+00'), count(*)") == [
        (0, dataset.events)
    ]
    assert (anchor - dataset.first_event).days == pytest.approx(727, abs=3)


def test_its_true_effects_lie_beside_the_events(tmp_path: Path) -> None:
    generate(Workspace(tmp_path), customers=20, seed=4, progress=False)
    truth = msgspec.json.decode((tmp_path / "truth.json").read_bytes(), type=Truth)
    assert (truth.customers, truth.seed, truth.effects) == (20, 4, Effects())


def test_a_stronger_effect_shows_in_the_events(tmp_path: Path) -> None:
    def share_returned(name: str, effects: Effects) -> float:
        generate(Workspace(tmp_path / name), customers=400, seed=5, effects=effects, progress=False)
        [(share,)] = rows(tmp_path / name, "count(*) FILTER (type = 'return') / count(DISTINCT order_id)")
        return share

    assert share_returned("few", Effects(returned_order_share=0.03)) == pytest.approx(0.03, abs=0.015)
    assert share_returned("many", Effects(returned_order_share=0.3)) == pytest.approx(0.3, abs=0.07)


def test_what_cannot_be_generated_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EventsError, match=r"^0 customers: at least one is needed$"):
        generate(Workspace(tmp_path), customers=0)
    with pytest.raises(EventsError, match="has no time zone; write it as 2026-01-01T00:00:00Z"):
        generate(Workspace(tmp_path), anchor=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(WorkspaceError, match=r"generating 1,000,000,000,000 customers needs about .* MB in .* free$"):
        generate(Workspace(tmp_path), customers=1_000_000_000_000)


def rows(root: Path, columns: str) -> list[tuple[float, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(f"SELECT {columns} FROM '{root / 'events.parquet'}'").fetchall()
