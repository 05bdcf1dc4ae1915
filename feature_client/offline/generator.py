"""Made-up engagement events with known effects: what `make up` runs on, and what models can be checked with."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from feature_client.offline.ahead import ahead
from feature_client.offline.events import EventsError, Source, own_source, scratch, take_over
from feature_client.offline.simulation import (
    ABOUT_EFFECTS,
    CATEGORIES,
    CHANNELS,
    COUNTRY_SHARES,
    WEEK_S,
    WEEKS,
    YEAR_S,
    Behaviour,
    Effects,
    Floats,
    Ints,
    simulate,
)
from feature_client.offline.workspace import DataSet, Workspace

ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
CURRENCY = "EUR"
CHUNK = 2_000
"""Customers simulated at once: bounds memory, whatever their number."""

PART = 20_000
"""Customers checked at once, about so many: bounds memory too."""

BYTES_A_CUSTOMER = 1_000
"""On disk, rounded up."""

FIRST_ID = 100_000
HEADS = range(1_000, 10_000, 2)
"""What ids begin with, ascending as text as well. By two: ids of seven digits then begin and end with a chunk."""

ORDERS_A_CUSTOMER = 10_000
ITEMS = 1_200
SERVICES = ("advice", "delivery tracking", "gift wrapping", "loyalty club", "repair")
CHRISTMAS = CATEGORIES.index("christmas")
DAY_US = 86_400_000_000

_WORD = pa.dictionary(pa.int32(), pa.string())
FILE_SCHEMA = pa.schema(
    {
        "customer_id": pa.int64(),
        "ts": pa.timestamp("us", tz="UTC"),
        "type": _WORD,
        "item": _WORD,
        "category": _WORD,
        "quantity": pa.int64(),
        "amount": pa.float64(),
        "order_id": pa.int64(),
        "country": _WORD,
        "channel": _WORD,
    }
)


@dataclass(frozen=True)
class Truth:
    """What truth.json holds."""

    about: str
    customers: int
    seed: int
    anchor: datetime
    effects: Effects


@dataclass(frozen=True)
class Catalogue:
    """What can be bought. categories, cents (a piece): [items]; popularity within a category follows a power law."""

    categories: Ints
    cents: Ints

    @classmethod
    def make(cls, seed: int) -> "Catalogue":
        rng = np.random.default_rng([seed, ITEMS])
        return cls(rng.integers(0, len(CATEGORIES), ITEMS), np.exp(rng.normal(6.4, 0.9, ITEMS)).astype(np.int64) + 49)

    def draw(self, rng: np.random.Generator, categories: Ints) -> Ints:
        """An item of each of these categories."""
        items = np.zeros(len(categories), dtype=np.int64)
        for category in range(len(CATEGORIES)):
            wanted = categories == category
            offered = np.flatnonzero(self.categories == category)
            popularity = 1.0 / np.arange(1, len(offered) + 1) ** 0.8
            items[wanted] = rng.choice(offered, wanted.sum(), p=popularity / popularity.sum())
        return items


def generate(
    workspace: Workspace,
    customers: int = 20_000,
    seed: int = 0,
    anchor: datetime = ANCHOR,
    *,
    effects: Effects | None = None,
    progress: bool = True,
) -> DataSet:
    """Two years of events that end before `anchor`, checked and taken over like any others; truth.json beside them.

    The same arguments give the same bytes. Raises EventsError, or WorkspaceError where the disk is too small.
    """
    if customers < 1:
        raise EventsError(f"{customers} customers: at least one is needed")
    if anchor.tzinfo is None:
        raise EventsError(f"anchor {anchor.isoformat()} has no time zone; write it as {anchor.isoformat()}Z")
    effects = effects or Effects()
    workspace.require_space(customers * BYTES_A_CUSTOMER + 50_000_000, f"generating {customers:,} customers")
    generation = _Generation(seed, customers, anchor, effects, Catalogue.make(seed))
    with scratch(workspace) as (connection, directory):
        bar = tqdm(total=customers, desc="events", unit=" customers", disable=not progress)
        with bar, closing(ahead(generation.files(directory))) as files:

            def sources() -> Iterator[Source]:
                for path, size in files:
                    yield own_source("generated", connection.read_parquet(path), CURRENCY)
                    path.unlink()
                    bar.update(size)

            dataset = take_over(workspace, connection, directory, sources(), anchor, progress=False)
    truth = Truth(ABOUT_EFFECTS, customers, seed, anchor, effects)
    workspace.truth.write_bytes(msgspec.json.format(msgspec.json.encode(truth), indent=1))
    return dataset


@dataclass(frozen=True)
class _Generation:
    """The customers of one data set, from 0 on."""

    seed: int
    customers: int
    anchor: datetime
    effects: Effects
    catalogue: Catalogue

    def files(self, directory: Path) -> Iterator[tuple[Path, int]]:
        """Files with the events of some customers each, and how many they are; ids ascend as text from file to file."""
        for number, part in enumerate(parts_by_id(self.customers)):
            path = directory / f"generated-{number}.parquet"
            with pq.ParquetWriter(path, FILE_SCHEMA, compression="none") as writer:  # it does not live long
                for customers in part:
                    for first in range(customers.start // CHUNK * CHUNK, customers.stop, CHUNK):
                        writer.write_table(self._of(first, customers))
            yield path, sum(map(len, part))

    def _of(self, first: int, wanted: range) -> pa.Table:
        """Events of those of the chunk from `first` on who are wanted."""
        size = min(CHUNK, self.customers - first)
        # A stream of its own for each chunk: a larger data set begins with the same full chunks.
        rng = np.random.default_rng([self.seed, first])
        behaviour = simulate(rng, size, self.anchor.timestamp(), self.effects)
        events = _events(rng, behaviour, first, self.anchor, self.catalogue)
        if wanted.start <= first and first + size <= wanted.stop:
            return events
        customer = pc.subtract(events["customer_id"], FIRST_ID)
        return events.filter(pc.and_(pc.greater_equal(customer, wanted.start), pc.less(customer, wanted.stop)))


def parts_by_id(customers: int, size: int = PART) -> Iterator[list[range]]:
    """All customers, about `size` at once: whoever comes in a later part has an id that comes later as text.

    As text 1000000 comes before 100001: a part is one range of customers for every number of digits.
    """
    begin = HEADS.start
    for end in range(begin + HEADS.step, HEADS.stop + 1, HEADS.step):
        part = list(_beginning_with(range(begin, end), customers))
        if part and (end == HEADS.stop or sum(map(len, part)) >= size):
            yield part
            begin = end


def _beginning_with(heads: range, customers: int) -> Iterator[range]:
    """The customers whose ids begin with these digits: one range for every number of digits."""
    scale = FIRST_ID // HEADS.start
    while (first := heads.start * scale - FIRST_ID) < customers:
        yield range(first, min(heads.stop * scale - FIRST_ID, customers))
        scale *= 10


def _events(
    rng: np.random.Generator, behaviour: Behaviour, first: int, anchor: datetime, catalogue: Catalogue
) -> pa.Table:
    """All events of the customers FIRST_ID + first, ..."""
    end_us = int(anchor.timestamp()) * 1_000_000
    tables = [
        *_trade(rng, behaviour, first, end_us, catalogue),
        _visits(rng, behaviour, behaviour.sessions, first, end_us, "session"),
        _visits(rng, behaviour, behaviour.services, first, end_us, "service_use", SERVICES),
        _visits(rng, behaviour, behaviour.opens, first, end_us, "campaign_open"),
    ]
    return pa.concat_tables(tables)


def _trade(
    rng: np.random.Generator, behaviour: Behaviour, first: int, end_us: int, catalogue: Catalogue
) -> list[pa.Table]:
    """Purchases line by line, their returns, and the sessions in which they were made."""
    customer, week = _spread(behaviour.orders)
    moment = _moments(rng, week, end_us)
    channel = _channels(rng, behaviour, customer)
    position = np.arange(len(customer)) - np.searchsorted(customer, customer)  # of the order, within its customer
    order_id = (FIRST_ID + first + customer) * ORDERS_A_CUSTOMER + position

    line = np.repeat(np.arange(len(customer)), 1 + rng.poisson(rng.gamma(1.2, 1.8, len(customer))))  # -> its order
    item = catalogue.draw(rng, _categories(rng, behaviour, customer[line], moment[line]))
    _, distinct = np.unique(line * ITEMS + item, return_index=True)
    line, item = line[distinct], item[distinct]
    buyer = customer[line]
    quantity = 1 + rng.poisson(np.maximum(behaviour.pieces[buyer, week[line]] - 1, 0.05))

    # The first orders of a week are as good as any others to be sent back; of each, one line is.
    in_week = np.arange(len(customer)) - np.searchsorted(customer * WEEKS + week, customer * WEEKS + week)
    sent_back = (in_week < behaviour.returned[customer, week])[line] & np.r_[True, line[1:] != line[:-1]]
    back_at = moment[line] + (rng.exponential(8.0, len(line)) * DAY_US).astype(np.int64) + DAY_US
    sent_back &= back_at < end_us
    in_session = channel < CHANNELS.index("store")
    before = (rng.exponential(10.0, len(customer)) * 60e6).astype(np.int64) + 60_000_000

    def lines(kind: str, rows: npt.NDArray[np.bool_], ts: Ints) -> pa.Table:
        return _table(
            behaviour, first, kind, buyer[rows], ts[rows], channel[line][rows],
            item=_words([f"item-{number:04d}" for number in range(ITEMS)], item[rows]),
            category=_words(CATEGORIES, catalogue.categories[item[rows]]),
            quantity=quantity[rows],
            amount=quantity[rows] * catalogue.cents[item[rows]] / 100,
            order_id=order_id[line][rows],
        )  # fmt: skip

    sessions = _table(
        behaviour, first, "session", customer[in_session], (moment - before)[in_session], channel[in_session]
    )
    return [
        lines("purchase", np.ones(len(line), dtype=bool), moment[line]),
        lines("return", sent_back, back_at),
        sessions,
    ]


def _visits(
    rng: np.random.Generator,
    behaviour: Behaviour,
    weekly: Ints,
    first: int,
    end_us: int,
    kind: str,
    items: tuple[str, ...] = (),
) -> pa.Table:
    """Events without goods. items: what they are about, if anything."""
    customer, week = _spread(weekly)
    moment, channel = _moments(rng, week, end_us), _channels(rng, behaviour, customer)
    if not items:
        return _table(behaviour, first, kind, customer, moment, channel)
    about = _words(items, rng.integers(0, len(items), len(customer)))
    return _table(behaviour, first, kind, customer, moment, channel, item=about)


def _table(
    behaviour: Behaviour, first: int, kind: str, customer: Ints, moment: Ints, channel: Ints, **columns: object
) -> pa.Table:
    """customer: [rows], from 0 within the chunk. moment: epoch microseconds. Other columns are null unless given."""
    given = {
        "customer_id": customer + FIRST_ID + first,
        "ts": pa.array(moment, pa.timestamp("us", tz="UTC")),
        "type": _words((kind,), np.zeros(len(customer), dtype=np.int64)),
        "country": _words(tuple(COUNTRY_SHARES), behaviour.country[customer]),
        "channel": _words(CHANNELS, channel),
        **columns,
    }
    arrays = [given.get(field.name, pa.nulls(len(customer), field.type)) for field in FILE_SCHEMA]
    return pa.Table.from_arrays(
        [pa.array(array) if isinstance(array, np.ndarray) else array for array in arrays], schema=FILE_SCHEMA
    )


def _spread(weekly: Ints) -> tuple[Ints, Ints]:
    """Counts [customers, weeks] -> customer and week of every single event, ordered by both."""
    customer, week = np.nonzero(weekly)
    times = weekly[customer, week]
    return np.repeat(customer, times), np.repeat(week, times)


def _moments(rng: np.random.Generator, week: Ints, end_us: int) -> Ints:
    """Epoch microseconds: mostly in the afternoon, a little more at weekends. Always within the week."""
    day = rng.choice(7, len(week), p=[0.15, 0.13, 0.12, 0.13, 0.14, 0.16, 0.17])
    hour = rng.normal(15.0, 3.5, len(week))
    # Not clipped: many events at one instant would look like duplicates.
    hour = np.where((hour > 0) & (hour < 24), hour, rng.uniform(0, 24, len(week)))
    return end_us - (WEEKS - week) * WEEK_S * 1_000_000 + day * DAY_US + (hour * 3_600e6).astype(np.int64)


def _channels(rng: np.random.Generator, behaviour: Behaviour, customer: Ints) -> Ints:
    """Mostly the preferred one."""
    other = rng.random(len(customer)) < 0.2
    return np.where(other, rng.integers(0, len(CHANNELS), len(customer)), behaviour.channel[customer])


def _categories(rng: np.random.Generator, behaviour: Behaviour, customer: Ints, moment: Ints) -> Ints:
    """By taste, and for Christmas in season: a wave that is high from October to December."""
    by_taste = (rng.random(len(customer))[:, None] > behaviour.taste[customer]).sum(axis=1)
    season: Floats = np.cos(2 * np.pi * (moment / 1e6 / YEAR_S - 0.89))
    festive = rng.random(len(customer)) < 0.35 * np.maximum(season, 0) ** 3
    return np.where(festive, CHRISTMAS, np.minimum(by_taste, len(CATEGORIES) - 1))


def _words(vocabulary: tuple[str, ...] | list[str], index: Ints) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(index.astype(np.int32), pa.array(vocabulary))
