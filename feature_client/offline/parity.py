"""What stands before training: no feature knows the future, and every feature is what its raw events say.

In seconds, on a sample. `check_views` asks the code that builds features, with customers at the edges of its windows
(probes.py): do features of a cutoff change when events at or after it do? They must not by a single byte. And are they
what the oracle makes of the same events? `check_rows` asks rows of the training set, and `check_declaration` the
feature repository.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_client.clock import to_iso
from feature_client.declaration import declaration_differences
from feature_client.errors import RapportError
from feature_client.offline import aggregates, registry
from feature_client.offline.events import MEMORY
from feature_client.offline.oracle import History, Value, differences, history_of, read_history, stored_fields
from feature_client.offline.probes import absurd_future, at_the_edges
from feature_client.offline.store import REPO
from feature_client.offline.workspace import Workspace
from feature_client.schema import FeatureSchema

ROWS = 300
"""Training rows that are recomputed."""

CREATED = datetime(1970, 1, 1, tzinfo=UTC)
"""The same for whatever is compared."""


class LeakError(RapportError):
    """Features that know what was to happen; the message names them."""


class SkewError(RapportError):
    """Features that are not what raw events say, or what was declared; the message names them."""


@dataclass(frozen=True)
class Wrong:
    """A stored value that is not what it should be."""

    customer: str
    cutoff: datetime
    found: object
    expected: object

    def __str__(self) -> str:
        at = to_iso(self.cutoff.timestamp())
        return f"{self.found} in place of {self.expected} for customer {self.customer} at {at}"


def check(workspace: Workspace, schema: FeatureSchema, frame: pd.DataFrame) -> None:
    """frame: the training rows. Raises LeakError, SkewError and what building features raises."""
    check_declaration(workspace, schema)
    check_views(workspace, schema)
    check_rows(workspace, schema, frame)


def check_declaration(workspace: Workspace, schema: FeatureSchema, repo: Path = REPO) -> None:
    """schema: what is trained on. Raises SkewError where it is not what the feature repository declares."""
    if different := declaration_differences(schema, registry.declared(workspace, repo)):
        said = "; ".join(f"{name}: {what}" for name, what in different.items())
        raise SkewError(f"skew: the feature repository has changed, apply and build features again: {said}")


def check_views(workspace: Workspace, schema: FeatureSchema) -> None:
    """Asks the code that builds features. Raises LeakError, SkewError, BuildError."""
    cutoff = workspace.dataset().as_of
    events = at_the_edges(workspace, cutoff)
    past = events.filter(pc.less(events["ts"], pa.scalar(cutoff, events.schema.field("ts").type)))
    crowd = pa.concat_tables([events, absurd_future(past, cutoff)])
    then, later = _views(past, schema, cutoff), _views(crowd, schema, cutoff)
    if leaking := _changed(then, later, cutoff):
        raise LeakError(f"leak: features change with events at or after their cutoff: {_named(schema, leaking)}")
    found, history = _rows(later), history_of(crowd)
    customers = past["customer_id"].unique().to_pylist()
    if unlike := sorted(found.keys() ^ set(customers)):
        raise SkewError(f"skew: {len(unlike)} customers have events and no features, or the other way, as {unlike[0]}")
    if wrong := _wrong(history, ((customer, cutoff, found[customer]) for customer in customers)):
        raise SkewError(f"skew: features differ from a recomputation from events: {_named(schema, wrong)}")


def check_rows(workspace: Workspace, schema: FeatureSchema, frame: pd.DataFrame) -> None:
    """Asks the training set. frame: customer_id, event_timestamp, stored fields. Raises SkewError."""
    rows = frame.sample(min(ROWS, len(frame)), random_state=0)
    history = read_history(workspace.events, rows["customer_id"])
    fields = rows[[str(feature.field) for feature in schema.features if feature.field is not None]]
    found: list[tuple[str, datetime, Mapping[str, object]]] = [
        (str(customer), pd.Timestamp(cutoff).to_pydatetime(), {str(name): value for name, value in own.items()})
        for customer, cutoff, own in zip(
            rows["customer_id"],
            rows["event_timestamp"],
            fields.astype(object).where(fields.notna(), None).to_dict("records"),
            strict=True,
        )
    ]
    if wrong := _wrong(history, found):
        raise SkewError(f"skew: training rows differ from a recomputation from events: {_named(schema, wrong)}")


def _wrong(
    history: History, rows: Iterable[tuple[str, datetime, Mapping[str, object]]]
) -> Mapping[str, Sequence[Wrong]]:
    """Field -> where it is not what the oracle says. rows: customer, cutoff, and stored fields. Raises SkewError."""
    wrong: dict[str, list[Wrong]] = defaultdict(list)
    for customer, cutoff, found in rows:
        recomputed = stored_fields(history, customer, cutoff)
        if unknown := sorted(found.keys() - recomputed.keys()):
            raise SkewError(f"nobody recomputes {', '.join(unknown)}: say in oracle.py what they are")
        expected = {name: recomputed[name] for name in found}
        actual = {name: _as_stored(found[name], value) for name, value in expected.items()}
        for name, (value, right) in differences(actual, expected).items():
            wrong[name].append(Wrong(customer, cutoff, value, right))
    return wrong


def _as_stored(found: object, expected: Value) -> object:
    """Whole numbers beside nulls are floats in pandas."""
    whole = isinstance(expected, int) and isinstance(found, float) and found.is_integer()
    return int(found) if whole and isinstance(found, float) else found


def _named(schema: FeatureSchema, wrong: Mapping[str, Sequence[Wrong]]) -> str:
    """By the names that the model has for them, with an example of the first."""
    names = {feature.field: feature.name for feature in schema.features}
    said = [f"{names.get(field, field)} ({len(found)} x)" for field, found in wrong.items()]
    first, found = next(iter(wrong.items()))
    return f"{', '.join(said)}; {names.get(first, first)} is {found[0]}"


def _views(events: pa.Table, schema: FeatureSchema, cutoff: datetime) -> Mapping[str, pa.Table]:
    connection, declared = ibis.duckdb.connect(memory_limit=MEMORY), aggregates.declared_fields(schema)
    try:
        crowd = connection.create_table("events", ibis.memtable(events))
        views = aggregates.views_at(connection, crowd, aggregates.first_events(crowd), declared, cutoff, CREATED)
        return {view: table.to_pyarrow() for view, table in views}
    finally:
        connection.disconnect()


def _changed(
    then: Mapping[str, pa.Table], later: Mapping[str, pa.Table], cutoff: datetime
) -> Mapping[str, Sequence[Wrong]]:
    """Field -> where it is another later than then."""
    changed: dict[str, list[Wrong]] = defaultdict(list)
    strangers: set[str] = set()
    for view in then:
        ids, other_ids = then[view]["customer_id"], later[view]["customer_id"]
        strangers |= set(ids.to_pylist()) ^ set(other_ids.to_pylist())
        # Of the customers of both, whose rows are in the same order.
        old = then[view].filter(pc.is_in(ids, other_ids))
        new = later[view].filter(pc.is_in(other_ids, ids))
        customers = old["customer_id"].to_pylist()
        for name in old.column_names:
            if not old[name].equals(new[name]):
                pairs = zip(customers, new[name].to_pylist(), old[name].to_pylist(), strict=True)
                changed[name] += [Wrong(who, cutoff, value, before) for who, value, before in pairs if value != before]
    if strangers:
        changed["customers known"] = [Wrong(who, cutoff, "there", "absent") for who in sorted(strangers)]
    return changed


def _rows(views: Mapping[str, pa.Table]) -> Mapping[str, Mapping[str, object]]:
    """Customer -> stored fields of all views."""
    rows: dict[str, dict[str, object]] = defaultdict(dict)
    for table in views.values():
        for row in table.drop(["event_timestamp", "created_timestamp"]).to_pylist():
            rows[row.pop("customer_id")] |= row
    return rows
