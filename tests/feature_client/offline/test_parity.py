"""Leaks and skews that are planted into the code, the files and the declarations are found, and named."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from feature_client.declaration import declaration_differences
from feature_client.offline import aggregates, parity
from feature_client.offline.oracle import History, Value, stored_fields
from feature_client.offline.parity import LeakError, SkewError
from feature_client.offline.store import REPO
from feature_client.offline.views import VIEWS
from feature_client.offline.workspace import Workspace
from feature_client.schema import FeatureSchema
from tests.feature_client.offline.planted import View, closed, peeking, shifted
from tests.feature_client.offline.test_features import read_features

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def frame(generated: Workspace) -> pd.DataFrame:
    return read_features(generated)


def plant(monkeypatch: pytest.MonkeyPatch, view: str, define: View) -> None:
    monkeypatch.setattr(aggregates, "VIEWS", {**VIEWS, view: define})


def test_features_as_they_are_pass(
    generated: Workspace, sample: Workspace, schema: FeatureSchema, frame: pd.DataFrame
) -> None:
    parity.check(generated, schema, frame)
    parity.check(sample, schema, read_features(sample))


@pytest.mark.parametrize(
    ("view", "feature", "kind"),
    [("orders_rolling", "orders_30d", "purchase"), ("engagement", "sessions_30d", "session")],
)
def test_a_feature_that_knows_the_next_day_is_named(
    generated: Workspace, schema: FeatureSchema, monkeypatch: pytest.MonkeyPatch, view: str, feature: str, kind: str
) -> None:
    plant(monkeypatch, view, peeking(view, feature, kind))
    with pytest.raises(LeakError, match=rf"^leak: features change [a-z ]+: {feature} \(\d+ x\); {feature} is"):
        parity.check_views(generated, schema)


def test_a_past_that_holds_its_end_is_a_leak(
    sample: Workspace, schema: FeatureSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregates, "_past", closed)
    with pytest.raises(LeakError, match=r"orders_30d .*days_since_purchase"):
        parity.check_views(sample, schema)


@pytest.mark.parametrize(
    ("view", "days", "late", "named"),
    [
        ("orders_rolling", 30, HOUR, ["orders_30d", "spend_30d"]),
        ("orders_rolling", 335, HOUR, ["orders_next30_year_ago"]),
        ("returns_rolling", 90, timedelta(seconds=-1), ["returns_90d"]),
    ],
)
def test_a_window_that_is_off_is_named(
    sample: Workspace,
    schema: FeatureSchema,
    monkeypatch: pytest.MonkeyPatch,
    view: str,
    days: int,
    late: timedelta,
    named: list[str],
) -> None:
    """On real purchases and returns: none of the others is named."""
    plant(monkeypatch, view, shifted(view, days, late))
    with pytest.raises(SkewError, match=r"^skew: features differ from a recomputation") as caught:
        parity.check_views(sample, schema)
    assert [name for name in schema.by_name if f"{name} (" in str(caught.value)] == named


def test_a_window_of_sessions_that_is_off_is_named(
    generated: Workspace, schema: FeatureSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "engagement", shifted("engagement", 7, -HOUR))
    with pytest.raises(SkewError, match=r": sessions_7d \(\d+ x\);"):
        parity.check_views(generated, schema)


def test_customers_who_are_left_out_are_noticed(
    sample: Workspace, schema: FeatureSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(view: View) -> View:
        return lambda past: view(past).filter(lambda rows: rows.customer_id > "14")

    monkeypatch.setattr(aggregates, "VIEWS", {name: without(view) for name, view in VIEWS.items()})
    with pytest.raises(SkewError, match="customers have events and no features"):
        parity.check_views(sample, schema)


def test_training_rows_that_are_not_what_events_say_are_named(
    generated: Workspace, schema: FeatureSchema, frame: pd.DataFrame
) -> None:
    peeked = frame.merge(
        frame.assign(event_timestamp=frame["event_timestamp"] - timedelta(days=14))[
            ["customer_id", "event_timestamp", "last_purchase_at"]
        ],
        on=["customer_id", "event_timestamp"],
        suffixes=("_then", ""),
    )
    parity.check_rows(generated, schema, frame)
    with pytest.raises(SkewError, match=r": days_since_purchase \(\d+ x\);"):
        parity.check_rows(generated, schema, peeked)
    dearer = frame.assign(spend_90d=frame["spend_90d"] * 1.001)
    with pytest.raises(SkewError, match=r": spend_90d \(\d+ x\);"):
        parity.check_rows(generated, schema, dearer)
    filled = frame.assign(gap_std_days=frame["gap_std_days"].fillna(0.0))
    with pytest.raises(SkewError, match=r"; gap_std_days is 0\.0 in place of None"):
        parity.check_rows(generated, schema, filled)


def test_a_feature_that_nobody_recomputes_is_refused(
    generated: Workspace, schema: FeatureSchema, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(history: History, customer: str, cutoff: datetime) -> dict[str, Value]:
        known = stored_fields(history, customer, cutoff)
        return {name: value for name, value in known.items() if name != "orders_365d"}

    monkeypatch.setattr("feature_client.offline.parity.stored_fields", forgetful)
    with pytest.raises(SkewError, match="nobody recomputes orders_365d"):
        parity.check_rows(generated, schema, frame)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPO, tmp_path / "repo"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'count("orders_30d", "Orders in 30 days", "frequency", "orders",',
            'count("orders_30d", "Orders in 30 days", "frequency", "orders", default="1",',
            "orders_30d: default is 0.0 in the model and 1.0 as declared",
        ),
        (
            'elapsed_as="tenure_days", nullable="true", max_age="3d"',
            'elapsed_as="tenure_days", nullable="true", max_age="36h", on_stale="default"',
            "max_age_s is 259200.0 in the model and 129600.0 as declared, on_stale is use in the model and default",
        ),
        (
            'count("returns_90d"',
            'count("refunds_90d"',
            "returns_90d: no longer declared; refunds_90d: declared, and not",
        ),
    ],
)
def test_a_changed_declaration_is_named(
    generated: Workspace, schema: FeatureSchema, repo: Path, old: str, new: str, said: str
) -> None:
    text = (repo / "definitions.py").read_text()
    assert old in text
    (repo / "definitions.py").write_text(text.replace(old, new))
    before = generated.schema_file.read_bytes()

    with pytest.raises(SkewError, match=r"^skew: the feature repository has changed") as caught:
        parity.check_declaration(generated, schema, repo)
    assert said in str(caught.value)
    assert generated.schema_file.read_bytes() == before


def test_words_for_people_and_vocabularies_may_change(schema: FeatureSchema) -> None:
    trained = schema.with_vocabularies({"country": ["France"]})
    assert declaration_differences(trained, schema) == {}
