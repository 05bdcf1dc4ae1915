"""Training rows: labels from events, features through Feast's point-in-time join, a split by time.

For a cutoff t, features use events before t and labels use events in [t, t + horizon): nothing is seen twice.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from feature_client.clock import to_iso
from feature_client.errors import RapportError
from feature_client.offline import cutoffs, historical, parity
from feature_client.offline.aggregates import read_schema
from feature_client.offline.events import scratch
from feature_client.offline.learners import LEARNERS, learners
from feature_client.offline.workspace import DataSet, Workspace
from feature_client.schema import DAY_S, FeatureSchema
from model_export.labels import SILENCE, label_column, label_table
from model_export.rows import Dataset, Rows, fit_vocabularies, make_rows
from model_export.tasks import POPULATION_DAYS, LabelledTask, engagement_tasks


class DatasetError(RapportError):
    """Training rows that cannot be built from this data; the message says what is missing."""


def build(workspace: Workspace, code: str, test: Sequence[datetime] | None = None) -> Dataset:
    """The dataset of a workspace whose features are built. code: digest of the sources, part of the cache's key.

    test: its cutoffs, by default the last that can be; features must be built at all cutoffs that follow from them.
    """
    data = workspace.dataset()
    tasks = engagement_tasks(data.currency)
    split = cutoffs.split(data, test)
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    instants = [instant for part in parts.values() for instant in part]
    _check_matured(instants, tasks, data)
    schema = read_schema(workspace)
    parts["known"] = split.known
    frame = _joined(workspace, data, schema, tasks, sorted({*instants, *split.known}), code)
    parity.check(workspace, schema, frame)
    moments = frame["event_timestamp"]
    frames = {name: frame[moments.isin([pd.Timestamp(t) for t in part])] for name, part in parts.items()}
    if empty := [name for name, part in frames.items() if part.empty]:
        raise DatasetError(f"no customer bought in the year before the {', '.join(empty)} cutoffs: too little data")

    schema = fit_vocabularies(schema, historical.to_batch(schema, frames["train"])[0])
    rows = {
        name: make_rows(
            schema,
            [labelled.task for labelled in tasks],
            *historical.to_batch(schema, part),
            labels=part[[label_column(labelled) for labelled in tasks]].to_numpy(dtype=np.float32),
            customers=part["customer_id"].to_numpy(dtype=object),
            silence=part[SILENCE].fillna(np.inf).to_numpy(dtype=np.float64),
        )
        for name, part in frames.items()
    }
    rows["known"] = as_of(rows["known"], tasks, split.test[0])
    about = {
        "data": data.name,
        "events": str(data.events),
        "population": f"an order in the last {POPULATION_DAYS} days",
        "customers": f"{frame.customer_id.nunique():,} with such an order, of at most about {LEARNERS:,} trained on",
    }
    for name, part in parts.items():
        about[f"{name}_cutoffs"] = f"{min(part):%Y-%m-%d} to {max(part):%Y-%m-%d} ({len(part)})"
        about[f"{name}_rows"] = str(len(rows[name]))
    return Dataset(
        schema,
        tuple(labelled.task for labelled in tasks),
        **rows,
        about=about,
        digest=data.digest,
        known_at=split.test[0].timestamp(),
        silences=frozenset(place for place, labelled in enumerate(tasks) if labelled.label == "silent"),
    )


def as_of(rows: Rows, tasks: Sequence[LabelledTask], moment: datetime) -> Rows:
    """What is known at that moment: a task is not defined where its label ends later, and no later purchase is."""
    ends = rows.cutoffs[:, None] + np.array([labelled.task.horizon_days * DAY_S for labelled in tasks])
    known = ends <= moment.timestamp()
    return replace(
        rows,
        labels=np.where(known, rows.labels, np.float32(0)),
        eligible=rows.eligible & known,
        silence=np.where(rows.cutoffs + rows.silence * DAY_S < moment.timestamp(), rows.silence, np.inf),
    )


def _check_matured(instants: Sequence[datetime], tasks: Sequence[LabelledTask], data: DataSet) -> None:
    horizon = timedelta(days=max(labelled.task.horizon_days for labelled in tasks))
    if late := [instant for instant in instants if instant + horizon > data.as_of]:
        raise DatasetError(
            f"labels at {to_iso(late[0].timestamp())} need events until {to_iso((late[0] + horizon).timestamp())}, "
            f"but the data ends at {to_iso(data.as_of.timestamp())}"
        )


def _joined(
    workspace: Workspace,
    data: DataSet,
    schema: FeatureSchema,
    tasks: Sequence[LabelledTask],
    instants: Sequence[datetime],
    code: str,
) -> pd.DataFrame:
    """Labels and features of every customer at every cutoff, from the cache where nothing has changed."""
    what = [data.digest, schema.digest, code, *(str(instant.timestamp()) for instant in instants)]
    path = workspace.training / f"{hashlib.sha256(' '.join(what).encode()).hexdigest()[:24]}.parquet"
    if path.exists():
        return pd.read_parquet(path)
    with scratch(workspace) as (connection, _):
        events = learners(connection.read_parquet(workspace.events))
        labels: pd.DataFrame = connection.to_pandas(label_table(events, instants, tasks))
    labels["event_timestamp"] = pd.to_datetime(labels.pop("cutoff"), unit="s", utc=True)
    joined = historical.join(workspace, labels)
    workspace.training.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    joined.to_parquet(unfinished)
    unfinished.replace(path)
    return joined
