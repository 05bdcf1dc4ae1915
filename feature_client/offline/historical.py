"""Training rows: stored features at past instants through Feast's point-in-time join, and as a FeatureBatch."""

from typing import cast

import numpy as np
import pandas as pd
from tqdm import tqdm

from feature_client.errors import RapportError
from feature_client.offline.registry import SERVICE
from feature_client.offline.store import open_store, reading
from feature_client.offline.workspace import Workspace
from feature_client.schema import FeatureBatch, FeatureSchema, FloatArray

KEYS = ("customer_id", "event_timestamp")
CHUNK = 50_000
"""Rows joined at once: bounds memory, and lets progress be seen."""


class JoinError(RapportError):
    """A join that cannot be made; the message says what is missing."""


def join(
    workspace: Workspace, entities: pd.DataFrame, service: str = SERVICE, *, progress: bool = True
) -> pd.DataFrame:
    """Every row of `entities` with the stored fields of a service as they were known at its event_timestamp.

    entities: customer_id (str), event_timestamp (UTC), one row a pair, and any label columns. Rows keep their order;
    fields of customers or instants without features are null. Raises JoinError.
    """
    if absent := [key for key in KEYS if key not in entities]:
        raise JoinError(f"entities have no column {', '.join(absent)}")
    if entities.empty:
        raise JoinError("no entities to join features to")
    if not workspace.features.is_dir():
        raise JoinError(f"no features in {workspace.root}: run `rapport features build` first")
    store = open_store(workspace)
    features = store.get_feature_service(service)
    keys = entities[list(KEYS)].reset_index(drop=True)
    parts = []
    with reading(workspace), tqdm(total=len(keys), desc="join", unit=" rows", disable=not progress) as bar:
        for first in range(0, len(keys), CHUNK):
            # A copy: Feast writes into the frame that it is given.
            chunk = keys[first : first + CHUNK].copy()
            parts.append(store.get_historical_features(entity_df=chunk, features=features).to_df())
            bar.update(len(chunk))
    found = pd.concat(parts, ignore_index=True)
    found["event_timestamp"] = pd.to_datetime(found["event_timestamp"], utc=True)
    # Feast's join keeps neither order nor index.
    wanted = pd.MultiIndex.from_arrays([keys["customer_id"], pd.to_datetime(keys["event_timestamp"], utc=True)])
    found = found.set_index(list(KEYS))
    if not (wanted.is_unique and found.index.is_unique):
        raise JoinError("entities hold a customer twice at one event_timestamp")
    aligned = found.reindex(wanted).reset_index(drop=True).set_axis(entities.index)
    return pd.concat([entities, aligned], axis=1)


def to_batch(schema: FeatureSchema, frame: pd.DataFrame) -> tuple[FeatureBatch, FloatArray]:
    """What `join` returned, as FeatureSchema.encode takes it, with its `as_of` (epoch seconds, [rows]).

    Feast's join does not say which row of a view it found. Where it found one, it counts as computed at the
    event_timestamp: what is trained on is never stale.
    """
    as_of = epoch_seconds(frame["event_timestamp"])
    columns: dict[str, object] = {}
    for feature in schema.features:
        if feature.field is None:
            continue
        column = frame[feature.field]
        if feature.kind == "elapsed":
            columns[feature.field] = epoch_seconds(column)
        elif feature.kind == "category":
            columns[feature.field] = column.astype(object).where(column.notna(), None).to_numpy()
        else:
            columns[feature.field] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    event_times = np.full((len(frame), len(schema.views)), np.nan)
    for position, view in enumerate(schema.views):
        fields = [str(feature.field) for feature in schema.features if feature.view == view]
        fields += [schema.entity_fields[view]] if schema.entity_fields.get(view) in frame else []
        found = frame[fields].notna().any(axis=1).to_numpy()
        event_times[found, position] = as_of[found]
    return schema.batch(columns, event_times), as_of


def epoch_seconds(column: "pd.Series[pd.Timestamp]") -> FloatArray:
    """Timestamps -> float64, NaN where there is none."""
    instants = pd.to_datetime(column, utc=True)
    seconds = (instants - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    return cast("FloatArray", seconds.to_numpy(dtype=np.float64))
