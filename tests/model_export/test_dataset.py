"""The join of labels and features, through real Feast, on a small generated data set."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import ibis
import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from feature_client.errors import RapportError
from feature_client.offline import aggregates, generator, historical, registry
from feature_client.offline.aggregates import read_schema
from feature_client.offline.cutoffs import split
from feature_client.offline.learners import learners
from feature_client.offline.parity import LeakError, SkewError
from feature_client.offline.spans import spans
from feature_client.offline.views import VIEWS
from feature_client.offline.workspace import Workspace
from model_export import dataset
from model_export.dataset import DatasetError, as_of, build
from model_export.quality import prepare
from model_export.rows import HALF_LIFE_DAYS, Dataset, Rows
from model_export.tasks import engagement_tasks
from tests.feature_client.offline.planted import peeking, shifted

DAY_S = 86_400


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    generator.generate(workspace, customers=200, seed=5, progress=False)
    registry.apply(workspace)
    aggregates.build(workspace, progress=False)
    return workspace


@pytest.fixture(scope="module")
def built(workspace: Workspace) -> Dataset:
    return build(workspace, code="code")


def parts(dataset: Dataset) -> dict[str, Rows]:
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


def test_labels_and_features_of_a_row_are_of_its_customer_and_cutoff(workspace: Workspace, built: Dataset) -> None:
    """Recomputed from raw events, one row at a time."""
    events = pd.read_parquet(workspace.events)
    orders = events[events["type"] == "purchase"]
    names = [feature.name for feature in built.schema.numeric]
    rng = np.random.default_rng(0)
    for rows in parts(built).values():
        for row in rng.choice(len(rows), 20, replace=False):
            own = orders[orders["customer_id"] == rows.customers[row]]
            seconds = own["ts"].map(pd.Timestamp.timestamp).to_numpy()
            amounts = own["amount"].astype(float).to_numpy()
            after = seconds - rows.cutoffs[row]
            within = [(after >= 0) & (after < days * DAY_S) for days in (30, 90)]
            expected = [within[0].any(), not within[1].any(), amounts[within[1]].sum()]
            np.testing.assert_allclose(rows.labels[row], expected, rtol=1e-6)
            if within[1].any():
                assert rows.silence[row] == after[after >= 0].min() / DAY_S
            else:
                assert rows.silence[row] == np.inf

            features = dict(zip(names, rows.numeric[row], strict=True))
            silent_days = (rows.cutoffs[row] - seconds[after < 0].max()) / DAY_S
            assert features["days_since_purchase"] == pytest.approx(silent_days, rel=1e-5)
            assert features["spend_90d"] == pytest.approx(amounts[(after < 0) & (after >= -90 * DAY_S)].sum(), rel=1e-5)


def test_no_database_that_training_opens_may_take_all_memory(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []
    connect = ibis.duckdb.connect

    def asked(*args: Any, **options: Any) -> ibis.BaseBackend:
        connection = connect(*args, **options)
        limits.append(connection.raw_sql("SELECT current_setting('memory_limit')").fetchone()[0])
        return connection

    monkeypatch.setattr(ibis.duckdb, "connect", asked)
    build(workspace, code="limits")

    assert len(limits) >= 4  # the probes, features before and after a planted future, labels
    assert set(limits) == {"1.8 GiB"}  # MEMORY, in DuckDB's words


def test_parts_hold_their_own_cutoffs_and_labels_of_one_end_before_the_next_begins(
    workspace: Workspace, built: Dataset
) -> None:
    planned = split(workspace.dataset())
    for name, rows in parts(built).items():
        assert set(rows.cutoffs) == {cutoff.timestamp() for cutoff in getattr(planned, name)}
    assert built.train.cutoffs.max() + 90 * DAY_S <= built.validation.cutoffs.min()
    assert built.validation.cutoffs.max() + 90 * DAY_S <= built.test.cutoffs.min()


def test_of_a_large_data_set_a_sample_is_trained_on_and_everybody_is_served(
    built: Dataset, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said of those who are in the sample is what is said of them where there is none."""
    for module in (aggregates, dataset):
        monkeypatch.setattr(module, "learners", partial(learners, at_most=80))
    monkeypatch.setattr(aggregates, "spans", partial(spans, size=70))
    large = Workspace(tmp_path / "large")
    generator.generate(large, customers=200, seed=5, progress=False)
    registry.apply(large)
    aggregates.build(large, progress=False)
    sampled = build(large, code="code")

    customers = set(sampled.train.customers)
    assert 40 < len(customers) < 120
    for name, rows in parts(sampled).items():
        whole = parts(built)[name]
        same = np.isin(whole.customers, list(customers))
        of_sample = np.isin(rows.customers, list(customers))
        np.testing.assert_array_equal(rows.customers[of_sample], whole.customers[same])
        np.testing.assert_array_equal(rows.numeric[of_sample], whole.numeric[same])
        np.testing.assert_array_equal(rows.labels[of_sample], whole.labels[same])
    as_of = workspace.dataset().as_of
    served, still_served = (
        rows[rows.event_timestamp == as_of].drop(columns="created_timestamp").reset_index(drop=True)
        for rows in (pd.read_parquet(place.features / "lifetime.parquet") for place in (workspace, large))
    )
    pd.testing.assert_frame_equal(served, still_served)


def test_measuring_where_a_model_is_served_leaves_what_it_serves_and_trains_on(
    workspace: Workspace, tmp_path: Path
) -> None:
    served = Workspace(tmp_path / "served")
    shutil.copytree(workspace.root, served.root)
    served.models.mkdir()
    data = served.dataset()
    before = {view: pd.read_parquet(served.features / f"{view}.parquet") for view in VIEWS}
    events = served.events.read_bytes()

    earlier = [cutoff - timedelta(days=14) for cutoff in split(data).test]
    assert set(prepare(served, None, earlier).test.cutoffs) == {cutoff.timestamp() for cutoff in earlier}
    for view, rows in before.items():
        after = pd.read_parquet(served.features / f"{view}.parquet")
        kept = after[after.event_timestamp.isin(rows.event_timestamp)]
        assert data.as_of in set(kept.event_timestamp)
        pd.testing.assert_frame_equal(
            kept.drop(columns="created_timestamp").reset_index(drop=True), rows.drop(columns="created_timestamp")
        )

    with pytest.raises(RapportError, match="served serves a model of the events in it"):
        prepare(served, tmp_path / "other.parquet")
    assert served.events.read_bytes() == events


def test_of_what_is_known_no_label_ends_after_the_first_test_cutoff(built: Dataset) -> None:
    known, first = built.known, built.test.cutoffs.min()
    assert known is not None
    for position, task in enumerate(built.tasks):
        late = known.cutoffs + task.horizon_days * DAY_S > first
        assert late.any() == (task.horizon_days == 90)
        assert not known.eligible[late, position].any()
        assert not known.labels[late, position].any()
    assert built.known_at == first
    assert built.silences == {[task.name for task in built.tasks].index("churn_90d")}
    # What is known includes what was trained on, label for label.
    shared = np.isin(known.cutoffs, built.train.cutoffs)
    np.testing.assert_array_equal(known.labels[shared], built.train.labels)
    np.testing.assert_array_equal(known.numeric[shared], built.train.numeric)


def test_of_silence_is_known_what_came_before_the_first_test_cutoff(workspace: Workspace, built: Dataset) -> None:
    """Recomputed from raw events, one row at a time."""
    known = built.known
    assert known is not None
    events = pd.read_parquet(workspace.events)
    orders = events[events["type"] == "purchase"]
    young = np.flatnonzero(known.cutoffs + 90 * DAY_S > built.known_at)
    ended = 0
    for row in np.random.default_rng(0).choice(young, 100, replace=False):
        seconds = orders["ts"][orders["customer_id"] == known.customers[row]].map(pd.Timestamp.timestamp).to_numpy()
        coming = seconds[(seconds >= known.cutoffs[row]) & (seconds < built.known_at)]
        silence = (coming.min() - known.cutoffs[row]) / DAY_S if len(coming) else np.inf
        assert known.silence[row] == silence
        ended += len(coming) > 0
    assert 10 < ended < 90


def test_a_purchase_at_the_moment_of_knowing_is_not_known(built: Dataset) -> None:
    known, tasks = built.known, engagement_tasks("EUR")
    assert known is not None
    days = (built.known_at - known.cutoffs) / DAY_S
    for silence, is_known in ((days, False), (days - 1 / DAY_S, True), (np.zeros(len(known)), True)):
        found = as_of(replace(known, silence=silence), tasks, datetime.fromtimestamp(built.known_at, UTC))
        assert (np.isfinite(found.silence) == is_known).all()


def test_the_newest_rows_are_those_of_the_last_cutoffs_of_each_task(built: Dataset) -> None:
    known = built.known
    assert known is not None
    newest = known.newest(3)
    for position in range(len(built.tasks)):
        last = np.unique(known.cutoffs[known.eligible[:, position]])[-3:]
        assert np.unique(newest.cutoffs[newest.eligible[:, position]]).tolist() == last.tolist()
        assert newest.eligible[:, position].sum() == (known.eligible[:, position] & np.isin(known.cutoffs, last)).sum()


def test_what_cutoffs_lack_is_no_evidence_but_what_customers_lack_is(built: Dataset) -> None:
    known = built.known
    assert known is not None
    place = [feature.name for feature in built.schema.numeric].index("orders_365d")
    assert known.evidenced()[place]

    def without(missing: npt.NDArray[np.bool_]) -> np.bool_:
        numeric = known.numeric.copy()
        numeric[missing, place] = np.nan
        found: np.bool_ = replace(known, numeric=numeric).evidenced()[place]
        return found

    rng = np.random.default_rng(0)
    assert without(rng.random(len(known)) < 0.9)
    churn = [task.horizon_days for task in built.tasks].index(90)
    middle = np.median(known.cutoffs[known.eligible[:, churn]])
    assert without(known.cutoffs < middle)
    # Most of what is known of purchases comes later: churn has seen too little of it.
    assert not without(known.cutoffs <= middle + DAY_S)
    assert (known.cutoffs[known.eligible[:, 0]] > middle + DAY_S).mean() > 0.5


def test_a_row_counts_half_as_much_a_half_life_earlier(built: Dataset) -> None:
    weights = built.test.recency()
    old, new = (weights[built.test.cutoffs == cutoff] for cutoff in np.unique(built.test.cutoffs))
    days = (built.test.cutoffs.max() - built.test.cutoffs.min()) / DAY_S
    assert old[0] / new[0] == pytest.approx(0.5 ** (days / HALF_LIFE_DAYS))
    assert weights.mean() == pytest.approx(1.0)


def test_vocabularies_come_from_training_rows(built: Dataset) -> None:
    for position, feature in enumerate(built.schema.categorical):
        assert feature.vocabulary
        seen = set(np.unique(built.train.categorical[:, position])) - {0, 1}
        assert seen == set(range(2, len(feature.vocabulary) + 2))


def test_churn_is_defined_for_who_bought_within_180_days(built: Dataset) -> None:
    silent = built.test.numeric[:, [f.name for f in built.schema.numeric].index("days_since_purchase")]
    churn = [task.name for task in built.tasks].index("churn_90d")
    np.testing.assert_array_equal(built.test.eligible[:, churn], silent <= 180)
    assert not built.test.eligible[:, churn].all()


def test_a_second_build_joins_nothing(workspace: Workspace, built: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> pd.DataFrame:
        raise AssertionError("joined again")

    monkeypatch.setattr(historical, "join", refuse)
    again = build(workspace, code="code")
    np.testing.assert_array_equal(again.train.numeric, built.train.numeric)
    np.testing.assert_array_equal(again.test.labels, built.test.labels)
    with pytest.raises(AssertionError, match="joined again"):
        build(workspace, code="other code")


def test_labels_that_are_still_open_are_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = split(workspace.dataset())
    late = replace(planned, test=[workspace.dataset().as_of - timedelta(days=30)])
    monkeypatch.setattr("feature_client.offline.cutoffs.split", lambda data, test: late)
    with pytest.raises(DatasetError, match="but the data ends at"):
        build(workspace, code="code")


def test_a_feature_that_knows_the_next_day_stops_training_and_is_named(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaking = peeking("orders_rolling", "orders_30d", "purchase")
    monkeypatch.setattr(aggregates, "VIEWS", {**VIEWS, "orders_rolling": leaking})
    with pytest.raises(LeakError, match=r": orders_30d \(\d+ x\)"):
        build(workspace, code="code")


def test_a_window_that_is_off_by_an_hour_stops_training_and_is_named(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = shifted("orders_rolling", 30, timedelta(hours=1))
    monkeypatch.setattr(aggregates, "VIEWS", {**VIEWS, "orders_rolling": late})
    with pytest.raises(SkewError, match=r": orders_30d \(\d+ x\), spend_30d \(\d+ x\);"):
        build(workspace, code="code")


@pytest.fixture
def copied(workspace: Workspace, tmp_path: Path) -> Workspace:
    """A workspace to damage."""
    copied = Workspace(Path(shutil.copytree(workspace.root, tmp_path / "copied")))
    registry.apply(copied)
    return copied


def test_feature_files_that_are_not_what_events_say_stop_training_and_are_named(copied: Workspace) -> None:
    path = copied.features / "catalog_mix.parquet"
    mix = pd.read_parquet(path)
    mix["distinct_items_365d"] += 1
    mix.to_parquet(path)
    with pytest.raises(SkewError, match=r"training rows differ .*: distinct_items_365d \(\d+ x\);"):
        build(copied, code="other files")


def test_a_default_that_is_not_the_declared_one_stops_training_and_is_named(copied: Workspace) -> None:
    schema = read_schema(copied)
    features = tuple(replace(one, default=50.0) if one.name == "spend_30d" else one for one in schema.features)
    copied.schema_file.write_bytes(msgspec.json.encode(replace(schema, features=features)))
    with pytest.raises(SkewError, match=r"spend_30d: default is 50\.0 in the model and 0\.0 as declared"):
        build(copied, code="other default")
