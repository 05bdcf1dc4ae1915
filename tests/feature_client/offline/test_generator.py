"""Generated events: the same for the same seed, before the anchor, and with effects that can be found again."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import msgspec
import pytest

from feature_client.offline.events import EVENT_TYPES, EventsError
from feature_client.offline.generator import Truth, generate
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
