"""Features from Feast's Redis: one round trip a batch, decoded strictly."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import chain
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import hiredis

from feature_client.online.connection import connect, parse
from feature_client.online.decoding import MIX_UP, Refusal, Reply, decode
from feature_client.online.multiplexer import GARBAGE, Multiplexer, reply_error
from feature_client.online.plan import EntityKey, Hash, ReadPlan
from feature_client.online.reader import FeatureStoreUnavailable, StoreDenied
from feature_client.schema import FeatureBatch

TIMEOUT_S = 0.05
CHUNK = 200
"""Entities of one round trip: between two of them other reads and requests get their turn on the event loop."""

PING = b"*1\r\n$4\r\nPING\r\n"
SAMPLED = 3
"""Keys that are asked how they are encoded, with the first read of a plan and every SAMPLE_EVERY_S."""

SAMPLE_EVERY_S, SAMPLE_AGAIN_S = 60.0, 1.0
"""The second where none of the keys was there."""

MAX_LAYOUTS = 64

MAX_WRONG, WRONG_S = 1_000, 60.0
"""Rows of another entity that stay so on a new connection are remembered: they cost nobody a connection again."""

WHOLE_FROM = 0.4
"""Share of a small hash from which reading all of it is cheaper for Redis than looking fields up one by one: in a
listpack (ziplist before Redis 7) every look-up walks through it. Never in a hash table, which finds a field at once."""


class _Layouts:
    """Where the fields of a hash are in replies that hold all of it: rows that were written alike have one layout."""

    def __init__(self) -> None:
        self.known: dict[tuple[bytes, ...], Picker] = {}

    def picker(self, hash_: Hash, names: tuple[bytes, ...]) -> "Picker":
        """Picks the values of `hash_.fields` from a reply of names and values in turns."""
        found = self.known.get(names)
        if found is None:
            if not all(type(name) is bytes and (len(name) == NAME_BYTES or name[:4] == b"_ts:") for name in names):
                raise _NoReply
            if len(self.known) >= MAX_LAYOUTS:
                self.known.clear()
            found = self.known[names] = _picker(names, hash_.fields)
        return found


Picker = Callable[[Sequence[bytes]], Sequence[bytes | None]]


def _picker(names: Sequence[bytes], fields: Sequence[bytes]) -> Picker:
    at = {name: 2 * position + 1 for position, name in enumerate(names)}
    if len(fields) > 1 and all(field in at for field in fields):
        return itemgetter(*(at[field] for field in fields))
    places = [at.get(field) for field in fields]
    return lambda reply: [None if place is None else reply[place] for place in places]


@dataclass
class _Style:
    """How a hash is read, and when that is looked at again (monotonic)."""

    whole: bool = False
    sample_at: float = 0.0
    layouts: _Layouts = dataclass_field(default_factory=_Layouts)


class RedisReader:
    """Keeps the FeatureReader protocol (reader.py) on one Redis server. Belongs to the event loop that uses it.

    timeout_s: the longest wait for the replies of one round trip (up to CHUNK entities).
    """

    def __init__(self, multiplexer: Multiplexer, timeout_s: float = TIMEOUT_S) -> None:
        self.multiplexer = multiplexer
        self.timeout_s = timeout_s
        self._wrong_until: dict[EntityKey, float] = {}  # rows that are wrong on every connection (monotonic)
        self._samples: set[asyncio.Task[None]] = set()
        self._styles: WeakKeyDictionary[Hash, _Style] = WeakKeyDictionary()

    @classmethod
    def from_connection_string(cls, text: str, timeout_s: float = TIMEOUT_S) -> "RedisReader":
        """text: as in Feast's feature_store.yaml, or `unix:/path`. timeout_s: of connecting too.

        Raises ConnectionStringError. Connects when first used.
        """
        return cls(Multiplexer(connect(parse(text), timeout_s).connection_pool.make_connection, timeout_s), timeout_s)

    async def fetch(self, plan: ReadPlan, keys: Sequence[EntityKey], timeout_s: float) -> FeatureBatch:
        """See FeatureReader."""
        ends = time.monotonic() + timeout_s
        starts = range(0, max(len(keys), 1), CHUNK)
        parts = [await self._fetch(plan, keys[start : start + CHUNK], ends) for start in starts]
        return FeatureBatch.join(parts) if len(parts) > 1 else parts[0]

    async def ping(self, timeout_s: float) -> None:
        """See FeatureReader."""
        [reply] = await self._ask([PING], time.monotonic() + timeout_s)
        if isinstance(reply, hiredis.ReplyError):
            raise reply_error(str(reply))
        if reply != b"PONG":
            self.multiplexer.drop()
            raise FeatureStoreUnavailable(GARBAGE)

    async def close(self) -> None:
        for sample in self._samples:
            sample.cancel()
        await self.multiplexer.close()

    async def _fetch(self, plan: ReadPlan, keys: Sequence[EntityKey], ends: float) -> FeatureBatch:
        batch = decode(plan, keys, await self._read(plan, keys, ends))
        wrong = {keys[row] for row, reason in batch.refused.items() if reason == MIX_UP}
        now = time.monotonic()
        if all(self._wrong_until.get(key, 0.0) > now for key in wrong):
            return batch
        # Were it the connection, then rows without a copy of the id could be somebody else's, too. On a new one, the
        # same rows are refused again where it is they that are wrong.
        self.multiplexer.drop()
        again = decode(plan, keys, await self._read(plan, keys, ends))
        if again.refused != batch.refused:
            self.multiplexer.drop()
            raise FeatureStoreUnavailable("replies of Redis are mixed up")
        if len(self._wrong_until) + len(wrong) > MAX_WRONG:
            self._wrong_until.clear()
        self._wrong_until.update(dict.fromkeys(wrong, now + WRONG_S))
        return again

    async def _ask(self, commands: Sequence[bytes], ends: float) -> list[Any]:
        return await self.multiplexer.ask(commands, min(ends - time.monotonic(), self.timeout_s))

    async def _read(self, plan: ReadPlan, keys: Sequence[EntityKey], ends: float) -> list[list[Reply | Refusal]]:
        """For each hash of the plan, one reply a key: all in one round trip, what is asked for twice read once."""
        if not keys:
            return [[] for _ in plan.hashes]
        reads = []
        for position, hash_ in enumerate(plan.hashes):
            redis_keys = [key.redis_keys[position] for key in keys]
            style = self._style(hash_)
            reads.append(_Read(hash_, redis_keys, list(dict.fromkeys(redis_keys)), style, style.whole))
        replies = iter(await self._ask([command for read in reads for command in read.commands()], ends))
        rows = []
        for read in reads:
            try:
                rows.append(read.rows([next(replies) for _ in read.distinct]))
            except _NoReply as exc:
                self.multiplexer.drop()
                raise FeatureStoreUnavailable(GARBAGE) from exc
            except StoreDenied:
                # Some may look fields up but not read all of a hash.
                read.style.whole, read.style.sample_at = False, math.inf
                raise
        for read in reads:
            if time.monotonic() >= read.style.sample_at:
                read.style.sample_at = time.monotonic() + SAMPLE_EVERY_S
                # Beside the reads, which do not wait for it.
                sample = asyncio.create_task(self._sample(read.hash, read.style, read.distinct[:SAMPLED]))
                self._samples.add(sample)
                sample.add_done_callback(self._samples.discard)
        return rows

    def _style(self, hash_: Hash) -> "_Style":
        style = self._styles.get(hash_)
        if style is None:
            style = self._styles[hash_] = _Style()
        return style

    async def _sample(self, hash_: Hash, style: "_Style", redis_keys: Sequence[bytes]) -> None:
        """Decides how the hash is read from now on, by how some of its keys are stored. Changes nothing if it fails."""
        commands = [command for key in redis_keys for command in (encoding_of(key), length_of(key))]
        try:
            replies = await self.multiplexer.ask(commands, self.timeout_s)
        except FeatureStoreUnavailable:
            return
        answers = zip(replies[::2], replies[1::2], strict=True)
        stored = [(kind, length) for kind, length in answers if isinstance(kind, bytes) and isinstance(length, int)]
        if not stored:
            style.sample_at = time.monotonic() + SAMPLE_AGAIN_S
            return
        small = [length for encoding, length in stored if encoding in (b"listpack", b"ziplist")]
        style.whole = len(small) == len(stored) and len(hash_.fields) >= WHOLE_FROM * max(small)


@dataclass(frozen=True)
class _Read:
    """One hash of the plan for some entities. redis_keys: one an entity. distinct: the same, each once."""

    hash: Hash
    redis_keys: Sequence[bytes]
    distinct: Sequence[bytes]
    style: _Style
    whole: bool  # the style may change while the reply is on its way

    def commands(self) -> Iterable[bytes]:
        return map(self.hash.hgetall if self.whole else self.hash.hmget, self.distinct)

    def rows(self, replies: Sequence[Any]) -> list[Reply | Refusal]:
        """A reply for every entity. Raises what an error reply means, and _NoReply."""
        rows: list[Reply | Refusal] = [self._row(reply) for reply in replies]
        if not set(map(type, chain.from_iterable(row for row in rows if type(row) is not Refusal))) <= USUAL:  # type: ignore[misc]
            raise _NoReply
        if len(rows) == len(self.redis_keys):
            return rows
        of = dict(zip(self.distinct, rows, strict=True))
        return [of[key] for key in self.redis_keys]

    def _row(self, reply: Any) -> Reply | Refusal:
        if type(reply) is not list:
            if not isinstance(reply, hiredis.ReplyError):
                raise _NoReply
            if not str(reply).startswith("WRONGTYPE"):
                raise reply_error(str(reply))
            # A key of another type is its own fault and no other's.
            return Refusal("Redis refused: WRONGTYPE")
        if self.whole:
            if len(reply) % 2:
                raise _NoReply
            try:
                reply = self.style.layouts.picker(self.hash, tuple(reply[::2]))(reply)
            except TypeError as exc:  # names that cannot be looked up
                raise _NoReply from exc
        if len(reply) != len(self.hash.fields):
            raise _NoReply
        row: Reply = reply
        return row


class _NoReply(Exception):
    """Something that is not a reply to what was asked."""


NAME_BYTES = 4
"""Of a value's name in Feast's layout; event times have names of their own."""

USUAL = {bytes, type(None)}
"""What a reply may hold."""


def encoding_of(key: bytes) -> bytes:
    return b"*3\r\n$6\r\nOBJECT\r\n$8\r\nENCODING\r\n$%d\r\n%b\r\n" % (len(key), key)


def length_of(key: bytes) -> bytes:
    return b"*2\r\n$4\r\nHLEN\r\n$%d\r\n%b\r\n" % (len(key), key)
