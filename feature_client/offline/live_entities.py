"""Entities that an online store holds right now, found by SCAN, and the rows of a request that ask for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from feature_client.online import entity_key, wire
from feature_client.online.compat_plan import CompatPlan, CompatView
from feature_client.online.entity_key import DUMMY, EntityValues, ForeignKey, KeyValue

STEP = 1_000
"""Keys that Redis looks at in one SCAN: about a millisecond of its time."""
MAX_STEPS = 1_000
GLOB = b"*?[]\\^"
"""What SCAN's patterns take for more than itself."""

Row = Mapping[str, Any]
"""Request key -> value, as Feast takes it."""
Kind = tuple[str, ...]
"""The join keys of an entity, sorted."""


@dataclass
class LiveRows:
    """rows: one for every entity found. warnings: what was found besides that Feast does not read."""

    rows: list[Row] = field(default_factory=list)
    entities: int = 0
    warnings: list[str] = field(default_factory=list)


async def live_rows(redis: "Redis", plan: CompatPlan, sample: int) -> LiveRows:
    """Rows for up to `sample` live entities: each with its own keys, and with those of others where it lacks some."""
    live = LiveRows()
    kinds = list(dict.fromkeys(_kind(view) for view in plan.views if DUMMY not in view.keys))
    found: dict[Kind, list[Row]] = {}
    for kind in kinds:
        scan = await find(redis, plan.project, kind, max(sample // len(kinds), 1))
        found[kind] = [usable for entity in scan.found if (usable := _row(plan, entity)) is not None]
        live.entities += len(found[kind])
        if others := len(scan.found) - len(found[kind]):
            live.warnings.append(
                f"{others:,} keys by {', '.join(kind)} are of another type than declared: Feast does not find them"
            )
        if not scan.complete:
            live.warnings.append(f"the search for keys by {', '.join(kind)} ended early: the store is large")
    if await redis.exists(entity_key.encode({}, plan.project)):
        live.warnings.append(
            "rows of views without entities were pushed: Feast puts them under a key that it never reads, and "
            "answers null; materialize such views"
        )
    for kind, entities in found.items():
        own_first = sorted(plan.views, key=lambda view: _kind(view) != kind)
        for number in range(len(entities)):
            row: Row = {}
            for shift, view in enumerate(own_first):
                row = {**_asked(view, found, number + shift), **row}
            live.rows.append(_completed(plan, row))
    if not kinds:
        live.rows.append({"(no entity)": 0})  # Feast wants a row, and drops keys that it does not know
    return live


@dataclass(frozen=True)
class Scan:
    """found: entities. complete: whether the store or the sample ended the search, and not MAX_STEPS."""

    found: list[EntityValues]
    complete: bool


async def find(redis: "Redis", project: str, join_keys: Sequence[str], count: int) -> Scan:
    """Up to `count` entities with exactly these join keys, in no order. Looks at about a million keys at most."""
    pattern = _literally(wire.entity_key_head(sorted(join_keys))) + b"*" + _literally(project.encode())
    found: dict[bytes, EntityValues] = {}
    cursor = 0
    for _ in range(MAX_STEPS):
        cursor, keys = await redis.scan(cursor, match=pattern, count=STEP)
        for key in keys:
            try:
                found[key] = entity_key.decode(key, project)
            except ForeignKey:
                continue
        if not cursor or len(found) >= count:
            return Scan(list(found.values())[:count], complete=True)
    return Scan(list(found.values()), complete=False)


def _literally(text: bytes) -> bytes:
    return b"".join(b"\\" + bytes([byte]) if byte in GLOB else bytes([byte]) for byte in text)


def _kind(view: CompatView) -> Kind:
    return tuple(sorted(view.keys))


def _row(plan: CompatPlan, entity: EntityValues) -> Row | None:
    """By join keys; None where a key is of another type than declared, or a time that Feast cannot be asked for."""
    declared = {name: plan.keys.get(key) for view in plan.views for name, key in view.keys.items()}
    if any(declared[name] != dtype for name, (dtype, _) in entity.items()):
        return None
    try:
        return {name: _asked_as(dtype, value) for name, (dtype, value) in entity.items()}
    except (ValueError, OverflowError, OSError):
        return None


def _asked_as(dtype: str, value: KeyValue) -> Any:
    return datetime.fromtimestamp(int(value), UTC) if dtype == "timestamp" else value


def _asked(view: CompatView, found: Mapping[Kind, Sequence[Row]], number: int) -> Row:
    """The request keys of one of the view's live entities; none where none was found."""
    entities = found.get(_kind(view), ())
    entity = entities[number % len(entities)] if entities else {}
    return {view.keys[name]: value for name, value in entity.items()}


def _completed(plan: CompatPlan, row: Row) -> Row:
    """Every key that the views need. Join keys before their aliases: Feast takes the one that stands last."""
    nobody = {"string": "nobody", "bytes": b"nobody", "timestamp": datetime.fromtimestamp(0, UTC)}
    needed = {name: str(dtype) for name, dtype in plan.keys.items() if name in plan.required}
    return {name: row.get(name, nobody.get(dtype, 0)) for name, dtype in needed.items()}
