"""Replies of a store, in Feast's bytes, become a FeatureBatch.

Whole columns at a time where everything is as it should be. At the first byte that is not, the batch is read again row
by row, which finds out what is wrong and with whom.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from feature_client.online import wire
from feature_client.online.plan import EntityKey, Hash, ReadPlan, ViewColumns
from feature_client.schema import FeatureBatch, FloatArray

Reply = Sequence[bytes | None]
"""What a store holds under `Hash.fields`, None where nothing."""

REMEMBERED = 10_000
"""Values of one type whose decoding is remembered, of at most REMEMBERED_BYTES: counts, names, times of one build."""

REMEMBERED_BYTES = 64


@dataclass(frozen=True)
class Refusal:
    """What a store answers for one entity alone instead of a reply."""

    reason: str


MIX_UP = "a reply belongs to another entity"
"""Why a row is refused whose copy of the id is not the entity's. Of a row without a copy, nothing is known."""


class WrongEntity(Exception):
    """A row says that it belongs to another entity than the one asked for."""


def decode(plan: ReadPlan, keys: Sequence[EntityKey], replies: Sequence[Sequence[Reply | Refusal]]) -> FeatureBatch:
    """replies: for each hash of the plan, one reply a key.

    What cannot be read is missing, and listed as corrupt; a mix-up refuses its row.
    """
    try:
        return _by_column(plan, keys, replies)
    except (wire.WireError, WrongEntity):
        return _by_row(plan, keys, replies)


def empty_batch(plan: ReadPlan, rows: int) -> FeatureBatch:
    """Everything missing."""
    return FeatureBatch(
        numbers=np.full((rows, len(plan.schema.stored_numbers)), np.nan),
        strings=np.full((rows, len(plan.schema.categorical)), None, dtype=object),
        event_times=np.full((rows, len(plan.views)), np.nan),
    )


def _by_column(plan: ReadPlan, keys: Sequence[EntityKey], replies: Sequence[Sequence[Reply | Refusal]]) -> FeatureBatch:
    """Raises WireError and WrongEntity where any row needs a closer look."""
    rows = len(keys)
    numbers: list[FloatArray] = []
    words: list[str | None] = []
    times: list[float] = []
    timeless = []  # views that some entities have no row of
    for position, (hash_, found) in enumerate(zip(plan.hashes, replies, strict=True)):
        if Refusal in set(map(type, found)):
            raise WrongEntity("a reply is missing")
        columns: list[Sequence[bytes | None]] = list(zip(*found, strict=True)) or [()] * len(hash_.fields)
        if hash_.has_copies:
            _check_owners(hash_, columns, tuple([key.owners[position] for key in keys]))
        for block in hash_.blocks:
            values = list(chain.from_iterable(columns[block.at]))
            if block.dtype == "string":
                words += map(WORDS.__getitem__, values)
            else:
                numbers.append(NUMBERS[block.dtype](values))
        for view in hash_.views:
            at = columns[view.time_at]
            times += map(TIMES.__getitem__, at)
            if None in at:
                timeless.append(view)
    # Everything so far is in the order of the replies, column after column.
    batch = FeatureBatch(
        np.concatenate([NO_NUMBERS, *numbers]).reshape(len(plan.numbers_at), rows)[plan.numbers_at].T,
        np.array(words, dtype=object).reshape(len(plan.strings_at), rows)[plan.strings_at].T,
        np.array(times).reshape(len(plan.times_at), rows)[plan.times_at].T,
    )
    for view in timeless:
        _drop_rows_without_time(batch, view)
    return batch


def _check_owners(hash_: Hash, columns: Sequence[Sequence[bytes | None]], owners: Sequence[bytes]) -> None:
    """Raises WrongEntity unless every copy of an id is this entity's or, where there is no row, not there."""
    for view in hash_.views:
        if view.id_at is None or columns[view.id_at] == owners:
            continue
        if any(copy and copy != owner for copy, owner in zip(columns[view.id_at], owners, strict=True)):
            raise WrongEntity("a copy of the id looks different")


def _drop_rows_without_time(batch: FeatureBatch, view: ViewColumns) -> None:
    """Feast writes values and their event time together: without a time there is no row."""
    absent = np.isnan(batch.event_times[:, view.index])
    for column in view.columns:
        matrix = batch.strings if column.feature.kind == "category" else batch.numbers
        matrix[absent, column.index] = None if column.feature.kind == "category" else np.nan


class Remembered(dict[bytes | None, Any]):
    """Serialized value -> decoded value. Counts, names and times come again and again, and are decoded once."""

    def __init__(self, decode_: Callable[[bytes], Any], nulls: Mapping[bytes | None, Any]) -> None:
        super().__init__(nulls)
        self.decode = decode_
        self.nulls = nulls

    def __missing__(self, raw: bytes) -> Any:
        value = self.decode(raw)
        if len(raw) <= REMEMBERED_BYTES:
            if len(self) >= REMEMBERED:
                self.clear()
                self.update(self.nulls)
            self[raw] = value
        return value


def _number_of(dtype: str) -> Callable[[bytes], float]:
    def decode_(raw: bytes) -> float:
        value = wire.decode(raw, dtype)
        return float("nan") if value is None else float(value)

    return decode_


def _remembered(dtype: str) -> Callable[[Sequence[bytes | None]], FloatArray]:
    known = Remembered(_number_of(dtype), dict.fromkeys((None, b""), float("nan")))
    return lambda values: np.array(list(map(known.__getitem__, values)))


def _fixed(number: str, tag: int, dtype: str) -> Callable[[Sequence[bytes | None]], FloatArray]:
    """For numbers of a fixed width, read where they lie: one tag, then the number."""
    layout = np.dtype([("tag", "u1"), ("value", number)])
    null = np.array((tag, np.nan), layout).tobytes()

    def decode_(values: Sequence[bytes | None]) -> FloatArray:
        raw = [value or null for value in values]
        if set(map(len, raw)) - {layout.itemsize}:
            return np.array([_number_of(dtype)(value) for value in raw])
        found = np.frombuffer(b"".join(raw), layout)
        if not (found["tag"] == tag).all():
            raise wire.WireError("of another type")
        if number == "<f8":
            return cast("FloatArray", found["value"])
        with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN like any other
            return cast("FloatArray", found["value"].astype(np.float64))

    return decode_


def _timestamps(values: Sequence[bytes | None]) -> FloatArray:
    """Epoch seconds. Those from 1978 to 3058 take a tag and five bytes of seven bits each, read where they lie."""
    raw = [EPOCH if not value or value == NULL_TIME else value for value in values]
    if len(raw) < FEW or set(map(len, raw)) - {len(EPOCH)}:
        return np.array([float("nan") if not value else _number_of("timestamp")(value) for value in values])
    found = np.frombuffer(b"".join(raw), np.uint8).reshape(-1, len(EPOCH))
    if not (((found ^ EPOCH_BITS) & EPOCH_MASK) == 0).all():
        raise wire.WireError("of another type")
    seconds: FloatArray = (found & 0x7F).astype(np.float64) @ SEVEN_BITS
    if EPOCH in raw:
        seconds[[position for position, value in enumerate(raw) if value is EPOCH]] = np.nan
    return seconds


EPOCH = b"\x40\x80\x80\x80\x80\x00"
"""Zero, stretched to the five bytes of today's timestamps: in place of nulls."""

EPOCH_BITS = np.frombuffer(EPOCH, np.uint8)
EPOCH_MASK = np.array([0xFF, 0x80, 0x80, 0x80, 0x80, 0x80], np.uint8)
NULL_TIME = b"\x40\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"
"""How Feast stores a null in a column of timestamps: pandas' NaT."""

NO_NUMBERS = np.empty(0)

FEW = 10
"""Timestamps that are decoded faster one by one."""

SEVEN_BITS = np.array([0.0, *(2.0 ** (7 * place) for place in range(5))])

NUMBERS: dict[str, Callable[[Sequence[bytes | None]], npt.NDArray[np.float64]]] = {
    "float64": _fixed("<f8", wire.DOUBLE, "float64"),
    "float32": _fixed("<f4", wire.FLOAT, "float32"),
    "int64": _remembered("int64"),
    "int32": _remembered("int32"),
    "bool": _remembered("bool"),
    "timestamp": _timestamps,
}
WORDS = Remembered(lambda raw: wire.decode(raw, "string"), {None: None, b"": None})
TIMES = Remembered(wire.decode_event_time, {None: float("nan")})


def _by_row(plan: ReadPlan, keys: Sequence[EntityKey], replies: Sequence[Sequence[Reply | Refusal]]) -> FeatureBatch:
    batch = empty_batch(plan, len(keys))
    corrupt: set[tuple[int, str]] = set()
    refused: dict[int, str] = {}
    for row, key in enumerate(keys):
        found = zip(plan.hashes, key.owners, [rows[row] for rows in replies], strict=True)
        try:
            for hash_, owner, reply in found:
                corrupt.update((row, name) for name in _fill_row(batch, hash_, row, owner, reply))
        except WrongEntity as exc:
            # Of a reply that is somebody else's, no view can be trusted.
            batch.numbers[row], batch.strings[row], batch.event_times[row] = np.nan, None, np.nan
            refused[row] = str(exc)
    return FeatureBatch(batch.numbers, batch.strings, batch.event_times, frozenset(corrupt), refused)


def _fill_row(batch: FeatureBatch, hash_: Hash, row: int, owner: bytes, reply: Reply | Refusal) -> list[str]:
    """Puts all views into the batch's row, and returns the features that cannot be read. Raises WrongEntity."""
    if isinstance(reply, Refusal):
        raise WrongEntity(reply.reason)
    corrupt: list[str] = []
    for view in hash_.views:
        # Feast writes values and their event time together: without a time there is no row.
        if reply[view.time_at] is None:
            continue
        try:
            event_time = _event_time(view, owner, reply)
        except wire.WireError:
            # Of a row without a legible time or owner nothing can be trusted.
            corrupt += [column.feature.name for column in view.columns]
            continue
        batch.event_times[row, view.index] = event_time
        corrupt += _fill(batch, row, view, reply)
    return corrupt


def _event_time(view: ViewColumns, owner: bytes, reply: Reply) -> float:
    """When the view's row was computed. Raises WireError, and WrongEntity where the row is somebody else's."""
    if view.id_at is not None:
        found = wire.decode(reply[view.id_at] or b"", "string")
        if found is not None and found != wire.decode(owner, "string"):
            raise WrongEntity(MIX_UP)
    return wire.decode_event_time(reply[view.time_at] or b"")


def _fill(batch: FeatureBatch, row: int, view: ViewColumns, reply: Reply) -> list[str]:
    """Puts the view's values into the batch's row, and returns the features that cannot be read."""
    corrupt = []
    for column in view.columns:
        try:
            value = wire.decode(reply[column.at] or b"", str(column.feature.dtype))
        except wire.WireError:
            corrupt.append(column.feature.name)
            continue
        if value is not None:
            matrix = batch.strings if column.feature.kind == "category" else batch.numbers
            matrix[row, column.index] = value
    return corrupt
