"""The Feast registry, compiled into the FeatureSchema that training and serving share.

Also works for a Feast project of the user's own. What its fields do not say then falls back: label = name, group
"other", no max_age, strings and timestamps nullable, sentences from the label. Numbers must say `default` or
`nullable`: a wrong guess would be served in silence.
"""

import math
import re
import runpy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource
from feast.errors import FeatureServiceNotFoundException

from feature_client.offline.collisions import colliding
from feature_client.offline.store import REPO, open_store
from feature_client.offline.texts import FIELD_TEXTS, compile_texts, field_texts, languages
from feature_client.offline.workspace import Workspace
from feature_client.schema import CALENDAR, Feature, FeatureSchema, JoinKey, SchemaError
from feature_client.texts import FeatureTexts

SERVICE = "engagement"
KEY_VERSION = 3
"""The entity_key_serialization_version whose bytes feature_client/online reads."""
DUMMY_KEY = "__dummy_id"
"""What Feast calls the join key of a view that has none."""
OTHER = "other"

NUMBERS = {"Float64": "float64", "Float32": "float32", "Int64": "int64", "Int32": "int32", "Bool": "bool"}
ENTITY_TYPES = {"String": "string", "Int64": "int64", "Int32": "int32"}
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
FIELD_TAGS = {
    *FIELD_TEXTS, "group", "unit", "default", "nullable", "max_age", "on_stale", "elapsed_as", "role", "actionable",
}  # fmt: skip
MARKS = {*FIELD_TEXTS, "group", "default", "elapsed_as", "role", "actionable"}
"""Tags that nobody else's fields have: where one is, the others are ours too."""


def apply(workspace: Workspace, repo: Path = REPO, service: str = SERVICE) -> FeatureSchema:
    """Registers the definitions of a repo with Feast, and writes the compiled schema to workspace.schema_file.

    repo: a folder with feature_store.yaml and definitions.py. Raises SchemaError.
    """
    workspace.root.mkdir(parents=True, exist_ok=True)
    store = open_store(workspace, repo)
    # Run afresh each time: Feast completes the objects it is given, and they belong to one workspace.
    declared = runpy.run_path(str(repo / "definitions.py"))
    objects: list[Any] = [
        value for value in declared.values() if isinstance(value, Entity | FeatureView | FeatureService)
    ]
    for view in (value for value in objects if isinstance(value, FeatureView)):
        source = view.batch_source
        # Feast's DuckDB store reads relative paths from wherever the process happens to stand.
        if isinstance(source, FileSource) and "://" not in source.path:
            source.file_options.uri = str(workspace.root.resolve() / source.path)
    store.apply(objects)
    schema = compile_schema(store, service)
    workspace.schema_file.write_bytes(_json(schema))
    return schema


def declared(workspace: Workspace, repo: Path = REPO, service: str = SERVICE) -> FeatureSchema:
    """What `apply` would write, without registering anything. Raises SchemaError."""
    with tempfile.TemporaryDirectory() as scratch:
        return apply(Workspace(Path(scratch), project=workspace.project), repo, service)


def compile_project(repo: Path, service: str) -> bytes:
    """The schema of a Feast project of the user's own, as it is registered, as JSON. Raises SchemaError."""
    if not (repo / "feature_store.yaml").is_file():
        raise SchemaError(f"{repo} has no feature_store.yaml: it is not a Feast project")
    return _json(compile_schema(FeatureStore(repo_path=str(repo)), service))


def _json(schema: FeatureSchema) -> bytes:
    return msgspec.json.format(msgspec.json.encode(schema), indent=1)


def compile_schema(store: FeatureStore, service: str = SERVICE) -> FeatureSchema:
    """The features of one service, in the order of its views and their fields; vocabularies are left to training.

    Raises SchemaError naming the field whose declaration cannot be served.
    """
    try:
        declared = store.get_feature_service(service)
    except FeatureServiceNotFoundException as exc:
        raise SchemaError(f"no feature service {service!r} in project {store.project!r}") from exc
    if store.config.entity_key_serialization_version != KEY_VERSION:
        raise SchemaError(f"entity_key_serialization_version must be {KEY_VERSION}: other layouts are not read")
    spoken = languages(declared.name, declared.tags)
    features: list[Feature] = []
    texts: dict[str, Mapping[str, FeatureTexts]] = {}
    entity_fields: dict[str, str] = {}
    keys: dict[str, dict[str, JoinKey]] = {}
    for projection in declared.feature_view_projections:
        if projection.name_alias or projection.join_key_map:
            raise SchemaError(f"{projection.name}: renamed views are not served; declare the view under its own name")
        view = store.get_feature_view(projection.name)
        if collision := colliding(store, view, [str(field.name) for field in projection.features]):
            raise SchemaError(collision)
        keys[view.name] = {column.name: _join_key(view.name, column) for column in view.entity_columns}
        for field in projection.features:
            if _tags(view.name, field).get("role") == "entity_id":
                entity_fields[view.name] = _entity_field(view, field)
            else:
                feature = _feature(view.name, field)
                features.append(feature)
                texts[feature.name] = field_texts(f"{view.name}:{field.name}", field.tags, spoken)
    features += _calendar(declared)
    entity = _entity(keys)
    return FeatureSchema(
        project=store.project,
        entity=entity,
        features=tuple(features),
        entity_fields=entity_fields,
        groups=_groups(declared, features),
        join_keys={view: tuple(sorted(found)) for view, found in keys.items() if len(found) < len(entity)},
        texts=compile_texts(declared.name, declared.tags, features, texts),
    )


def _entity(keys: dict[str, dict[str, JoinKey]]) -> tuple[JoinKey, ...]:
    """The join keys of all views together. keys: view -> its join keys."""
    if not keys:
        raise SchemaError("the feature service has no views")
    entity: dict[str, tuple[str, JoinKey]] = {}
    for view, found in keys.items():
        if not found or DUMMY_KEY in found:
            raise SchemaError(f"{view}: a view without an entity is not read")
        for name, key in found.items():
            first, expected = entity.setdefault(name, (view, key))
            if key != expected:
                raise SchemaError(f"{first} and {view} store the join key {name} as different types")
    return tuple(entity[name][1] for name in sorted(entity))


def _feature(view: str, field: Field) -> Feature:
    name, tags, dtype = f"{view}:{field.name}", _tags(view, field), str(field.dtype)
    if dtype not in NUMBERS and dtype not in ("String", "UnixTimestamp"):
        raise SchemaError(f"{name}: {dtype} is no model input; use a number, String or UnixTimestamp")
    number = dtype in NUMBERS
    if not number and dtype != "UnixTimestamp" and "default" in tags:
        raise SchemaError(f"{name}: only numbers have a default")
    if "elapsed_as" in tags and dtype != "UnixTimestamp":
        raise SchemaError(f"{name}: elapsed_as is for UnixTimestamp fields")
    nullable = _flag(name, tags, "nullable", otherwise=not number and "default" not in tags)
    on_stale = tags.get("on_stale", "use")
    if on_stale not in ("use", "default"):
        raise SchemaError(f"{name}: on_stale is {on_stale!r}; write use or default")
    default = _number(name, tags["default"]) if "default" in tags else None
    if number and default is None and not nullable:
        raise SchemaError(f"{name}: a number needs a `default` tag, or nullable = true")
    return Feature(
        name=tags.get("elapsed_as", field.name),
        kind="numeric" if number else "category" if dtype == "String" else "elapsed",
        group=tags.get("group", OTHER),
        label=tags.get("label", field.name),
        unit=tags.get("unit", "") or ("days" if dtype == "UnixTimestamp" else ""),
        view=view,
        field=field.name,
        dtype=NUMBERS.get(dtype, "string" if dtype == "String" else "timestamp"),
        default=default,
        nullable=nullable,
        max_age_s=_seconds(name, tags["max_age"]) if "max_age" in tags else None,
        on_stale=cast("Any", on_stale),
        actionable=_flag(name, tags, "actionable", otherwise=False),
    )


def _tags(view: str, field: Field) -> dict[str, str]:
    """Raises SchemaError where a tag of ours is misspelt into one that nobody reads; foreign tags have a dot."""
    tags = dict(field.tags)
    if MARKS & set(tags) and (unknown := sorted(tag for tag in tags if tag not in FIELD_TAGS and "." not in tag)):
        raise SchemaError(f"{view}:{field.name}: unknown tag {', '.join(unknown)}")
    return tags


def _entity_field(view: FeatureView, field: Field) -> str:
    if str(field.dtype) != "String" or len(view.entity_columns) != 1:
        raise SchemaError(f"{view.name}:{field.name}: a copy of the entity id is a String, in a view with one join key")
    return str(field.name)


def _join_key(view: str, column: Field) -> JoinKey:
    dtype = str(column.dtype)
    if dtype not in ENTITY_TYPES:
        raise SchemaError(f"{view}: join key {column.name} is {dtype}; use {', '.join(ENTITY_TYPES)}")
    return JoinKey(column.name, cast("Any", ENTITY_TYPES[dtype]))


def _calendar(service: FeatureService) -> list[Feature]:
    names = [name.strip() for name in service.tags.get("calendar", "").split(",") if name.strip()]
    if unknown := sorted(set(names) - set(CALENDAR)):
        raise SchemaError(f"{service.name}: no calendar feature {', '.join(unknown)}; there are {', '.join(CALENDAR)}")
    group, label = service.tags.get("calendar_group", OTHER), service.tags.get("calendar_label", "Season")
    return [Feature(name, "calendar", group, label) for name in names]


def _groups(service: FeatureService, features: list[Feature]) -> dict[str, str]:
    """Labels of the groups in use, in the order of the service's tags; Feast sorts neither tags nor fields."""
    prefix = "group."
    labels = {tag.removeprefix(prefix): label for tag, label in service.tags.items() if tag.startswith(prefix)}
    used = dict.fromkeys(feature.group for feature in features)
    if unlabelled := sorted(set(used) - set(labels) - {OTHER}):
        raise SchemaError(f"{service.name}: no tag {', '.join(prefix + group for group in unlabelled)}")
    labels.setdefault(OTHER, "Other")
    return {group: labels[group] for group in used}


def _flag(name: str, tags: Mapping[str, str], tag: str, *, otherwise: bool) -> bool:
    text = tags.get(tag, str(otherwise).lower())
    if text not in ("true", "false"):
        raise SchemaError(f"{name}: {tag} is {text!r}; write true or false")
    return text == "true"


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError as exc:
        raise SchemaError(f"{name}: default {text!r} is not a number") from exc
    if not math.isfinite(number):
        raise SchemaError(f"{name}: default {text!r} is not finite")
    return number


def _seconds(name: str, text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", text)
    if match is None or float(match[1]) == 0:
        raise SchemaError(f"{name}: max_age {text!r} is no time; write 36h or 3d")
    return float(match[1]) * SECONDS[match[2]]
