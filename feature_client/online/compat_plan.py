"""What to read for a Feast feature service, and under which names to answer: compiled once, where Feast is installed.

As JSON it is all that the serving process needs of the registry (offline/compat_registry.py makes it).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from feature_client.errors import RapportError
from feature_client.online import entity_key
from feature_client.online.entity_key import DUMMY, KeyValue
from feature_client.online.reader import EntityError

RANGES = {
    "int32": range(-(1 << 31), 1 << 31),
    "int64": range(-(1 << 63), 1 << 63),
    "timestamp": range(-(1 << 63), 1 << 63),
}

Row = Mapping[str, Any]
"""A row of the request: request key -> value, as Feast takes it."""


class CompatError(RapportError):
    """A feature service, or a plan of one, that compat mode does not read. The message names the part."""


@dataclass(frozen=True)
class CompatColumn:
    """field: its name in the view. name: its name in the answer. declared: see online/value.py."""

    field: str
    name: str
    declared: str | None = None


@dataclass(frozen=True)
class CompatView:
    """name: as the store has it, with its version where versions are kept apart. keys: join key -> request key."""

    name: str
    keys: dict[str, str]
    columns: tuple[CompatColumn, ...]


@dataclass(frozen=True)
class CompatPlan:
    """keys: request key -> type (entity_key.TYPES); None where no view is read by it and Feast only repeats it.

    Join keys before their aliases: rows whose keys stand in this order are rows that Feast itself reads right.
    """

    project: str
    service: str
    keys: dict[str, str | None]
    views: tuple[CompatView, ...]

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @staticmethod
    def from_json(text: bytes) -> "CompatPlan":
        """Raises CompatError."""
        try:
            return msgspec.json.decode(text, type=CompatPlan)
        except msgspec.MsgspecError as exc:
            raise CompatError(f"not a compat plan ({exc}): compile it again") from exc

    @property
    def required(self) -> set[str]:
        """The request keys that some view is read by."""
        return {key for view in self.views for key in view.keys.values() if key != DUMMY}

    def request(self, rows: Sequence[Row]) -> dict[str, list[Any]]:
        """The columns that Feast repeats in its answer, coerced as Feast coerces them. Raises EntityError.

        Stricter than Feast, which reads somebody else or nobody where a key is missing, and drops what it
        does not know: here every row has the same keys, and every key of every view.
        """
        if not rows:
            raise EntityError("there are no entity rows", 0)
        for row, entity in enumerate(rows):
            if entity.keys() != rows[0].keys():
                raise EntityError("all entity rows must have the same keys", row)
        if missing := sorted(self.required - rows[0].keys()):
            raise EntityError(f"an entity row lacks {', '.join(missing)}", 0)
        self._require_order(list(rows[0]))
        return {
            name: _column(name, self.keys[name], [row[name] for row in rows]) for name in rows[0] if name in self.keys
        }

    def redis_keys(self, view: CompatView, columns: Mapping[str, Sequence[Any]], rows: int) -> list[bytes]:
        """Where the view's rows are. columns: of `request`."""
        sources = {name: self._source(key, columns, rows) for name, key in view.keys.items()}
        return [
            entity_key.encode({name: (dtype, values[row]) for name, (dtype, values) in sources.items()}, self.project)
            for row in range(rows)
        ]

    def _source(self, key: str, columns: Mapping[str, Sequence[Any]], rows: int) -> tuple[str, Sequence[KeyValue]]:
        if key == DUMMY:
            return "string", [""] * rows
        dtype = str(self.keys[key])
        values = columns[key]
        return dtype, [int(at.timestamp()) for at in values] if dtype == "timestamp" else values

    def _require_order(self, names: Sequence[str]) -> None:
        """Feast reads an aliased view by whichever of join key and alias stands last in the request."""
        for view in self.views:
            aliases = {alias: name for name, alias in view.keys.items() if alias != name}
            for name, key in view.keys.items():
                last = [asked for asked in names if aliases.get(asked, asked) == name][-1:]
                if last and last != [key] and key != DUMMY:
                    raise EntityError(
                        f"{key} must stand behind {last[0]}: Feast would read {view.name} by the latter", 0
                    )


def _column(name: str, dtype: str | None, values: Sequence[Any]) -> list[Any]:
    if dtype is None:  # only repeated: no key is made of it, so it may be null
        kind = _inferred(name, values)
        return [None if _is_null(value) else _coerced(name, kind, value, row) for row, value in enumerate(values)]
    return [_coerced(name, dtype, value, row) for row, value in enumerate(values)]


def _inferred(name: str, values: Sequence[Any]) -> str:
    """The type that Feast gives to a join key of which it knows none."""
    for value in values:
        if type(value) in INFERRED:
            return INFERRED[type(value)]
        if value is not None:
            raise EntityError(f"{name} takes text, whole numbers, numbers, true or false, bytes or times", 0)
    return "string"


INFERRED = {str: "string", int: "int64", float: "float64", bool: "bool", bytes: "bytes", datetime: "timestamp"}


def _coerced(name: str, dtype: str, value: Any, row: int) -> Any:
    """As Feast stores it in a Value and shows it again. Feast has no null join key: it fails for the whole batch."""
    if _is_null(value):
        raise EntityError(f"{name} is null or a collection", row)
    try:
        coerced = COERCE[dtype](value)
    except (ValueError, TypeError, OverflowError) as exc:
        raise EntityError(f"{name} takes {dtype}", row) from exc
    if dtype in RANGES and (int(coerced.timestamp()) if dtype == "timestamp" else coerced) not in RANGES[dtype]:
        raise EntityError(f"{name} is out of the range of {dtype}", row)
    return coerced


def _is_null(value: Any) -> bool:
    """As Feast sees it: None, NaN, and whatever holds other values."""
    if value is None or (hasattr(value, "__len__") and not isinstance(value, str | bytes)):
        return True
    try:
        return bool(value != value)  # noqa: PLR0124  (NaN, NaT and their kin)
    except TypeError:  # pandas.NA
        return True


def _text(value: Any) -> str:
    text = str(value)
    text.encode()  # a lone surrogate is no key
    return text


def _whole(value: Any) -> int:
    # pandas.Timestamp, which we do not import: Feast takes its seconds.
    return int(value.timestamp()) if isinstance(value, datetime) and hasattr(value, "nanosecond") else int(value)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool | int):
        raise TypeError
    return bool(value)


def _time(value: Any) -> datetime:
    """To the second."""
    if isinstance(value, datetime):
        aware = value if value.utcoffset() is not None else value.replace(tzinfo=UTC)
        value = int(aware.timestamp())
    return datetime.fromtimestamp(int(value), UTC)


COERCE: Mapping[str, Callable[[Any], Any]] = {
    "string": _text,
    "int32": _whole,
    "int64": _whole,
    "bytes": _bytes,
    "timestamp": _time,
    "float64": float,
    "bool": _bool,
}
