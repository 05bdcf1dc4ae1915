"""Training-serving skew: feature vectors in service, recomputed from raw events at the same instants and compared.

A stored value is held against the events before the instant at which its row was computed, and what depends on the
clock against `as_of`. So whatever has happened since is no skew; for how many customers a feature would by now be
another one is counted apart, as `behind`. The recomputation is the oracle's, which shares no code with what computed,
stored, read and encoded the values.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache

import duckdb

from feature_client.declaration import declaration_differences
from feature_client.errors import RapportError
from feature_client.offline.aggregates import read_schema
from feature_client.offline.oracle import History, model_inputs, read_history, stored_fields
from feature_client.offline.skew_report import Difference, Report
from feature_client.offline.workspace import Workspace
from feature_client.schema import Override
from feature_client.served import Served, Source

RTOL, ATOL = 1e-6, 1e-9
"""Within which two float32 are one number: their sums may be added up in another order."""


class SkewCheckError(RapportError):
    """A check that cannot be made; the message says why."""


def choose_customers(workspace: Workspace, number: int, seed: int) -> list[str]:
    """Customers with events, at random: the same ones for the same seed and events."""
    workspace.dataset()
    with duckdb.connect() as connection:
        rows = connection.execute(
            """
            SELECT customer_id FROM (SELECT DISTINCT customer_id FROM read_parquet(?))
            ORDER BY md5(customer_id || ?), customer_id LIMIT ?
            """,
            [str(workspace.events), f"~{seed}", number],
        ).fetchall()
    return [customer for (customer,) in rows]


def check(workspace: Workspace, source: Source, customers: Sequence[str], allowed: Sequence[str] = ()) -> Report:
    """allowed: features that are known to differ. Raises SkewCheckError, and what the source raises."""
    served = source.look_up(customers)
    if not served:
        raise SkewCheckError("no customers to check")
    report = Report(source.name, allowed, customers=len(served))
    declared = read_schema(workspace)
    schemas = {one.version: one.schema for one in served}.values()
    for schema in schemas:
        if unknown := sorted(set(allowed) - schema.by_name.keys() - declared.by_name.keys()):
            raise SkewCheckError(f"not features of this model: {', '.join(unknown)}")
        report.declaration |= declaration_differences(schema, declared)
    history = read_history(workspace.events, customers)
    known = stored_fields(history, served[0].entity, served[0].as_of)
    fields = {str(feature.field) for schema in schemas for feature in schema.features if feature.view is not None}
    if unknown := sorted(fields - known.keys()):
        raise SkewCheckError(f"nobody recomputes {', '.join(unknown)}: they are not features of the built-in model")
    instants = [value.computed_at for one in served for value in one.features.values() if value.computed_at]
    for one in served:
        report.versions.add(one.version)
        report.instants.add(one.as_of)
        _compare(report, one, history, max(instants, default=one.as_of))
    return report


def _compare(report: Report, one: Served, history: History, filled: datetime) -> None:
    """filled: the latest instant for which the store holds anything, at which it would know whoever had events."""
    schema = one.schema

    @cache
    def at(instant: datetime) -> Mapping[str, Override]:
        return model_inputs(schema, stored_fields(history, one.entity, instant), one.as_of)

    if all(value.computed_at is None for value in one.features.values()):
        if any(event.ts < filled for event in history.events.get(one.entity, ())):
            report.absent.append(one.entity)
        else:
            report.new += 1
        return
    for feature in schema.features:
        value = one.features[feature.name]
        if value.is_stale:
            report.stale[feature.name] += 1
            if feature.on_stale == "default":
                continue  # withheld, as it should be
        instant = one.as_of if feature.view is None else value.computed_at or filled
        expected = at(instant)[feature.name]
        report.compared[feature.name] += 1
        if not _same(value.value, expected):
            report.differences[feature.name].append(Difference(one.entity, value.value, expected))
        elif not _same(at(one.as_of)[feature.name], expected):
            report.behind[feature.name] += 1


def _same(served: Override, expected: Override) -> bool:
    if isinstance(served, float) and isinstance(expected, float):
        return math.isclose(served, expected, rel_tol=RTOL, abs_tol=ATOL)
    return served == expected
