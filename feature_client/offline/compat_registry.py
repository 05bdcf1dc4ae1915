"""A feature service or a list of references, as Feast resolves them, compiled into a CompatPlan.

Feast itself is asked what it would read (feast.utils, the same function that every online read starts with): aliases,
pinned versions, disabled views and name collisions are then its own to judge. Those functions are not public, so a
Feast that was not verified is refused (offline/verify.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import feast
from feast import FeatureStore, FeatureView
from feast.errors import FeastError, FeatureServiceNotFoundException
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.utils import _get_online_request_context
from feast.value_type import ValueType

from feature_client.offline.collisions import colliding, join_keys
from feature_client.online.compat_plan import CompatColumn, CompatError, CompatPlan, CompatView

VERIFIED_FEAST = ("0.67",)
"""The minors whose bytes, resolution and answers our tests have been held to."""

KEY_VERSION = 3
"""The entity_key_serialization_version that is read."""

KEY_TYPES = {
    ValueType.BYTES: "bytes",
    ValueType.STRING: "string",
    ValueType.INT32: "int32",
    ValueType.INT64: "int64",
    ValueType.UNIX_TIMESTAMP: "timestamp",
}

DECLARED = {
    ValueType.UUID: "uuid",
    ValueType.TIME_UUID: "uuid",
    ValueType.UUID_LIST: "uuid_list",
    ValueType.TIME_UUID_LIST: "uuid_list",
    ValueType.UUID_SET: "uuid_set",
    ValueType.TIME_UUID_SET: "uuid_set",
}


def compile_compat(
    store: FeatureStore,
    features: str | Sequence[str],
    *,
    full_feature_names: bool = False,
    allow_unverified: bool = False,
) -> CompatPlan:
    """features: the name of a feature service, or references (`view:feature`, `view@v2:feature`).

    Raises CompatError in one sentence for what is not read, for what Feast would read wrongly in silence, and for a
    Feast that is not in VERIFIED_FEAST unless `allow_unverified`.
    """
    if not allow_unverified:
        require_verified(feast.__version__)
    if store.config.entity_key_serialization_version != KEY_VERSION:
        raise CompatError(f"entity_key_serialization_version must be {KEY_VERSION}: other layouts are not read")
    wanted = _service(store, features) if isinstance(features, str) else list(features)
    try:
        (
            references,
            on_demand,
            _,
            types,
            join_keys,
            grouped,
            *_,
        ) = _get_online_request_context(store.registry, store.project, wanted, full_feature_names)
    # TypeError: Feast cannot sort a service that has one view both under an alias and without.
    except (FeastError, ValueError, KeyError, TypeError) as exc:
        raise CompatError(f"Feast does not serve this: {exc}") from exc
    if on_demand:
        names = ", ".join(sorted(view.name for view in on_demand))
        raise CompatError(f"on-demand feature views are computed, not read: leave out {names}")
    views = tuple(_view(store, table, fields, references, full=full_feature_names) for table, fields in grouped)
    for (table, _), view in zip(grouped, views, strict=True):
        if collision := colliding(store, table, [column.field for column in view.columns], view.name):
            raise CompatError(collision)
    return CompatPlan(
        project=store.project,
        service=features if isinstance(features, str) else "",
        keys=_keys(views, [table for table, _ in grouped], types, join_keys),
        views=views,
    )


def compile_project(repo: Path, service: str) -> bytes:
    """The plan of a service of a Feast project of the user's own, as it is registered, as JSON. Raises CompatError."""
    if not (repo / "feature_store.yaml").is_file():
        raise CompatError(f"{repo} has no feature_store.yaml: it is not a Feast project")
    return compile_compat(FeatureStore(repo_path=str(repo)), service).to_json()


def require_verified(version: str) -> None:
    """version: of Feast. Raises CompatError."""
    if ".".join(version.split(".")[:2]) not in VERIFIED_FEAST:
        raise CompatError(
            f"Feast {version} has not been verified against ours ({', '.join(VERIFIED_FEAST)} have); "
            "`rapport features verify --allow-unverified` compares all the same"
        )


def _service(store: FeatureStore, name: str) -> Any:
    try:
        service = store.get_feature_service(name)
    except FeatureServiceNotFoundException as exc:
        raise CompatError(f"no feature service {name!r} in project {store.project!r}") from exc
    if service.precompute_online:
        raise CompatError(f"{name}: precomputed vectors are not read; declare a service without precompute_online")
    return service


def _view(
    store: FeatureStore, table: Any, fields: Iterable[str], references: Sequence[str], *, full: bool
) -> CompatView:
    shown = table.projection.name_to_use()
    if not isinstance(table, FeatureView):
        raise CompatError(f"{shown}: only feature views are read, not {type(table).__name__}")
    name = _stored_name(store, table)
    wanted = set(fields)
    # Feast answers in the order of a set of names; ours is the order of the request.
    order = [reference.rpartition(":")[2] for reference in references if reference.rpartition(":")[0] == shown]
    declared = {field.name: DECLARED.get(field.dtype.to_value_type()) for field in table.features}
    return CompatView(
        name=name,
        keys={key: table.projection.join_key_map.get(key, key) for key in join_keys(store, table)},
        columns=tuple(
            CompatColumn(field, f"{shown}__{field}" if full else field, declared.get(field))
            for field in dict.fromkeys([*order, *sorted(wanted)])
            if field in wanted
        ),
    )


def _stored_name(store: FeatureStore, table: FeatureView) -> str:
    versioned = store.config.registry.enable_online_feature_view_versioning
    name = str(compute_versioned_name(table, versioned))
    if table.projection.version_tag is None:
        current = store.registry.get_any_feature_view(table.name, store.project)
        if (written := compute_versioned_name(current, versioned)) != name:
            # Feast forgets the current version where a service projects the view, and then reads nothing but nulls.
            raise CompatError(f"{table.name}: Feast writes it as {written} but reads it as {name}; pin its version")
    return name


def _keys(
    views: Sequence[CompatView], tables: Sequence[FeatureView], types: Mapping[str, ValueType], join_keys: Iterable[str]
) -> dict[str, str | None]:
    keys: dict[str, str | None] = {}
    for view, table in zip(views, tables, strict=True):
        own = {column.name: column.dtype.to_value_type() for column in table.entity_columns}
        for name, key in view.keys.items():
            # Feast knows one type for a request key: that of the last view that has it.
            if own.get(name) not in KEY_TYPES or types.get(key) != own[name]:
                known = ", ".join(KEY_TYPES.values())
                raise CompatError(f"{view.name}: join key {name} needs the same type in all views, one of {known}")
            keys[key] = KEY_TYPES[own[name]]
    for key in sorted(join_keys):
        keys.setdefault(key, None)
    keys.pop(DUMMY_ENTITY_ID, None)
    natural = {name for view in views for name in view.keys}
    return dict(sorted(keys.items(), key=lambda item: (item[0] not in natural, item[0])))
