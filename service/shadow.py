"""Shadows: versions that score the champion's customers too, and answer nobody.

A shadow gets what is left over. It sees a batch once the champion has answered it, one inference at a time, for a
bounded share of the time, and what does not fit into a short queue is dropped and counted. Nothing that it does can
fail, delay or change an answer.

Shadowed are rows that the champion scored because the route said so: not those that asked for a version by number, not
those of a canary, and not those that asked for reasons.
"""

import asyncio
import logging
import math
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feature_client.contract import EXPLAINERS
from feature_client.golden import Tensors
from feature_client.online.plan import ReadPlan
from feature_client.online.reader import EntityError, EntityKey, FeatureReader
from feature_client.online.union import NoUnion, Projection, union
from feature_client.schema import BoolArray, Encoded, FeatureBatch, Override, OverrideError
from service.backends import Infer, check_outputs
from service.metrics import Metrics
from service.releases import Loaded, Releases, Served
from service.shadow_records import DEGRADED, OK, UNKNOWN, Answers, Heading, Line, PairLog, Side

log = logging.getLogger("rapport.shadow")

QUEUED_BATCHES = 8
"""Waiting to be scored; what comes while so many wait is dropped."""

SLICE_ROWS = 64
"""Of one inference: encoding them holds the event loop for a fraction of a millisecond."""

SHARE = 0.2
"""Of the time, at most: whoever worked for 1 ms then rests for 4."""

SETTLE_S = 0.001
"""Before each slice. A timer, so that whatever was ready before, such as the answer to be written, goes first."""

PATIENCE_S, LOOK_EVERY_S = 0.02, 0.002
"""How long a slice waits for a moment without any predict request. Under load there may be none, and the share is all
that it takes."""

TIMEOUT_S = 1.0
"""Of one inference, or of one read of its own."""

REST_FIRST_S, REST_AT_MOST_S = 1.0, 60.0
"""After a failure nothing is tried for a while; after another one, for longer."""

UNION_REST_S = 60.0
"""How long the champion reads alone again after a value was illegible that only a shadow reads: decoding such a batch
takes longer."""

EXPLAINED_EVERY, EXPLAINED_ROWS = 16, 4
"""One customer in so many, always the same ones, and at most so many rows a batch, is explained by both versions."""

EXPLAINING_S = 30.0
"""An explanation takes as long as a hundred scores or more: beyond so much in all, no more time goes into explanations
than into scores."""

TIMED_EVERY = 4
"""One slice in so many is scored once more by both, in the same way, so that their times compare."""


NOT_EXPLAINED: tuple[tuple[bytes, bytes], tuple[int, ...]] = ((b"", b""), ())


@dataclass(frozen=True, eq=False)
class Answered:
    """What the champion answered a batch, and from what.

    stored: what the union read, or the champion's own plan. rows: those that are shadowed. overrides: one a row of the
    batch. scores, eligible: [rows, tasks].
    """

    keys: Sequence[EntityKey]
    overrides: Sequence[Mapping[str, Override]] | None
    stored: FeatureBatch
    as_of: float
    encoded: Encoded
    scores: npt.NDArray[np.float32]
    eligible: BoolArray
    rows: Sequence[int]


@dataclass(eq=False)
class Follower:
    """One shadow. projection: its part of a shared read; None where it reads for itself. log: None: nothing is kept."""

    loaded: Loaded
    projection: Projection | None
    log: PairLog | None
    scoring_s: float = 0.0
    explaining_s: float = 0.0
    slices: int = 0
    explains: bool = True  # last time
    failures: int = 0
    rests_until: float = 0.0  # monotonic

    @property
    def version(self) -> str:
        return self.loaded.release.version


@dataclass(eq=False)
class Following:
    """A champion with its shadows. plan: what is read for all of them. projection: the champion's part; None: all."""

    champion: Loaded
    followers: Sequence[Follower]
    plan: ReadPlan
    projection: Projection | None
    alone_until: float = field(default=0.0)  # monotonic


class Shadowing:
    """One batch of the champion, on its way past the shadows."""

    def __init__(self, shadows: "Shadows", following: Following) -> None:
        self.shadows = shadows
        self.following = following
        self.is_shared = following.projection is not None and time.monotonic() >= following.alone_until
        self.plan = following.plan if self.is_shared else following.champion.plan
        self.stored: FeatureBatch | None = None

    def champions(self, stored: FeatureBatch, keys: Sequence[EntityKey]) -> FeatureBatch:
        """stored: what `plan` read for `keys`. The champion's part, as its own plan would have read it."""
        following = self.following
        self.stored = stored
        if not self.is_shared or following.projection is None:
            return stored
        if stored.corrupt and following.projection.foreign(stored):
            following.alone_until = time.monotonic() + UNION_REST_S
            log.warning(
                "a value that only a shadow reads cannot be read; the champion reads alone for a while",
                extra={"release": following.champion.release.name},
            )
        return following.projection.of(stored, keys)

    def offer(
        self,
        keys: Sequence[EntityKey],
        overrides: Sequence[Mapping[str, Override]] | None,
        as_of: float,
        encoded: Encoded,
        scores: npt.NDArray[np.float32],
        eligible: BoolArray,
        rows: Sequence[int],
    ) -> None:
        """See Answered. Queues the batch and returns at once."""
        if rows and self.stored is not None:
            answered = Answered(keys, overrides, self.stored, as_of, encoded, scores, eligible, rows)
            self.shadows.queue(self, answered)


class Shadows:
    """All shadows of a gateway process. Belongs to its event loop.

    reader: for shadows that cannot share the champion's read, on a connection of their own. infer: a backend's, best
    where it takes no turn from the champion. directory: where pairs are kept; None: nowhere. is_busy: whether anybody
    waits for an answer.
    """

    def __init__(
        self,
        releases: Releases,
        reader: FeatureReader,
        infer: Infer,
        metrics: Metrics,
        directory: Path | None,
        is_busy: Callable[[], bool],
    ) -> None:
        self.releases = releases
        self.reader = reader
        self.infer = infer
        self.metrics = metrics
        self.directory = directory
        self.is_busy = is_busy
        self._served: Mapping[str, Served] = {}
        self._following: dict[str, Following] = {}  # release of the champion -> with its shadows
        self._queue: deque[tuple[Follower, Shadowing, Answered]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._free_at = 0.0  # monotonic
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shadow-pairs")
        self._unwritten: str | None = None  # why the last line could not be written

    def of(self, loaded: Loaded) -> Shadowing | None:
        """For a batch that `loaded` is about to score; None where it has no shadows."""
        if self.releases.served is not self._served:
            self._follow(self.releases.served)
        following = self._following.get(loaded.release.name)
        return None if following is None else Shadowing(self, following)

    def queue(self, shadowing: Shadowing, answered: Answered) -> None:
        now = time.monotonic()
        for follower in shadowing.following.followers:
            has_read = follower.projection is None or shadowing.plan is shadowing.following.plan
            if len(self._queue) >= QUEUED_BATCHES or now < follower.rests_until or not has_read:
                self._count(follower, "dropped", len(answered.rows))
                continue
            self._queue.append((follower, shadowing, answered))
        if self._queue and (self._worker is None or self._worker.done()):
            self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Drops what waits."""
        self._queue.clear()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker], timeout=TIMEOUT_S)
        for following in self._following.values():
            self._close_logs(following.followers)
        # A disk that hangs must not keep the process from ending.
        self._writer.shutdown(wait=False)

    def _follow(self, served: Mapping[str, Served]) -> None:
        before, self._served = self._following, served
        self._following = {}
        for model in served.values():
            name = model.champion.release.name
            if not model.shadows:
                continue
            known = before.get(name)
            now = [model.champion, *model.shadows]
            if known is not None and [known.champion, *(f.loaded for f in known.followers)] == now:
                self._following[name] = known
                continue
            try:
                self._following[name] = self._followed(model.champion, model.shadows)
            except Exception:  # the champion is about to answer somebody
                log.exception("shadows are left out", extra={"release": name})
                continue
            if self.directory is None:
                log.warning("shadows are scored and counted, but nothing is kept: set RAPPORT_SHADOW_DIR")
        for name, known in before.items():
            if self._following.get(name) is not known:
                self._close_logs(known.followers)

    def _followed(self, champion: Loaded, shadows: Sequence[Loaded]) -> Following:
        own = champion.release.contract.schema
        sharing = [own]
        for shadow in shadows:
            try:
                union([*sharing, shadow.release.contract.schema])
            except NoUnion as exc:
                log.warning("a shadow reads for itself", extra={"release": shadow.release.name, "reason": str(exc)})
            else:
                sharing.append(shadow.release.contract.schema)
        together = union(sharing)
        return Following(
            champion,
            [
                Follower(
                    shadow,
                    Projection(together, schema) if (schema := shadow.release.contract.schema) in sharing[1:] else None,
                    self._log(champion, shadow),
                )
                for shadow in shadows
            ],
            ReadPlan(together),
            Projection(together, own),
        )

    def _log(self, champion: Loaded, shadow: Loaded) -> PairLog | None:
        if self.directory is None:
            return None
        one, other = (Side.of(loaded.release.version, loaded.release.contract) for loaded in (champion, shadow))
        return PairLog(self.directory, Heading(champion.release.contract.model, one, other))

    def _close_logs(self, followers: Sequence[Follower]) -> None:
        for follower in followers:
            if follower.log is not None:
                self._writer.submit(follower.log.close)

    async def _work(self) -> None:
        while self._queue:
            follower, shadowing, answered = self._queue.popleft()
            following = shadowing.following
            explained = _to_explain(answered)
            for start in range(0, len(answered.rows), SLICE_ROWS):
                # It may have failed, or be no shadow any more (and its log closed), since the batch was queued.
                is_followed = self._following.get(following.champion.release.name) is following
                if not is_followed or time.monotonic() < follower.rests_until:
                    self._count(follower, "dropped", len(answered.rows) - start)
                    break
                await self._turn()
                await self._slice(follower, following, answered, answered.rows[start : start + SLICE_ROWS], explained)

    async def _slice(
        self,
        follower: Follower,
        following: Following,
        answered: Answered,
        rows: Sequence[int],
        explained: frozenset[int],
    ) -> None:
        started = time.monotonic()
        try:
            line, kept = await self._score(follower, following, answered, rows, explained)
        except Exception as exc:  # noqa: BLE001  (whatever a shadow does, it does to itself alone)
            line, kept = self._failed(follower, exc, len(rows)), []
        # Waiting counts as work: it mostly is that of a thread beside the event loop, on the same cores.
        spent = time.monotonic() - started
        self._free_at = time.monotonic() + spent * (1 / SHARE - 1)
        await self._keep(follower, line, [answered.keys[row].values for row in kept])
        for outcome, count in (("scored", line.rows), ("incomparable", line.incomparable), ("failed", line.failed)):
            self._count(follower, outcome, count)

    async def _turn(self) -> None:
        """Until it may work."""
        await asyncio.sleep(max(self._free_at - time.monotonic(), SETTLE_S))
        until = time.monotonic() + PATIENCE_S
        # Asked now and then, for an event would have to be set on the path of every request.
        while self.is_busy() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY_S)

    async def _score(
        self,
        follower: Follower,
        following: Following,
        answered: Answered,
        rows: Sequence[int],
        explained: frozenset[int],
    ) -> tuple[Line, Sequence[int]]:
        """What is kept of these rows, and which of them it is of. Raises anything."""
        contract = follower.loaded.release.contract
        stored, rows_left = await self._stored(follower, answered, rows)
        line = Line(time.time(), answered.as_of, incomparable=len(rows) - len(rows_left))
        if not rows_left:
            return line, []
        overrides = None if answered.overrides is None else [answered.overrides[row] for row in rows_left]
        encoded = contract.schema.encode(stored, answered.as_of, overrides)
        champions = answered.encoded.rows(rows_left)
        outputs = await self._scores(follower, encoded.tensors)
        seconds = await self._times(follower, following.champion, encoded.tensors, champions.tensors)
        scores = np.where(contract.eligible(encoded), outputs["scores"], np.nan)
        whys, places = await self._explanations(
            follower,
            following.champion,
            encoded,
            champions,
            [place for place, row in enumerate(rows_left) if row in explained],
        )
        follower.failures = 0
        return Line(
            line.at,
            answered.as_of,
            len(rows_left),
            champion=Answers(
                _bytes(np.where(answered.eligible[rows_left], answered.scores[rows_left], np.nan)),
                _statuses(champions),
                whys[0],
                seconds[0],
            ),
            shadow=Answers(_bytes(scores), _statuses(encoded), whys[1], seconds[1]),
            explained=places,
            own_read=follower.projection is None,
            incomparable=line.incomparable,
        ), rows_left

    async def _stored(
        self, follower: Follower, answered: Answered, rows: Sequence[int]
    ) -> tuple[FeatureBatch, list[int]]:
        """What the store holds for the shadow, and of which rows: those that asked it the same as the champion."""
        loaded = follower.loaded
        schema = loaded.release.contract.schema
        left = [row for row in rows if answered.overrides is None or _knows(loaded, answered.overrides[row])]
        keys = [answered.keys[row] for row in left]
        if follower.projection is None:
            names = [key.name for key in sorted(schema.entity, key=lambda key: key.name)]
            try:
                own = loaded.plan.keys([dict(zip(names, map(str, key.values), strict=True)) for key in keys])
            except (EntityError, ValueError):  # another entity than the champion's
                return answered.stored.take([]), []
            stored = await self.reader.fetch(loaded.plan, own, TIMEOUT_S)
        else:
            stored = follower.projection.of(answered.stored.take(left), keys)
        whole = [place for place in range(len(left)) if place not in stored.refused]
        return stored.take(whole) if stored.refused else stored, [left[place] for place in whole]

    async def _scores(self, follower: Follower, tensors: Tensors) -> Tensors:
        started = time.monotonic()
        outputs = await self._infer(follower.loaded, tensors)
        follower.scoring_s += time.monotonic() - started
        return outputs

    async def _times(
        self, follower: Follower, champion: Loaded, tensors: Tensors, champions: Tensors
    ) -> tuple[float | None, float | None]:
        """Seconds of one inference of each; None where it is not their turn, or one of them fails.

        In turns, and the faster of two: whoever comes first after a rest pays for a thread and caches gone cold, which
        is more than most inferences take.
        """
        follower.slices += 1
        if follower.slices % TIMED_EVERY:
            return None, None
        taken: dict[Loaded, float] = {}
        try:
            for loaded, inputs in ((champion, champions), (follower.loaded, tensors)) * 2:
                started = time.perf_counter()
                await self._infer(loaded, inputs)
                taken[loaded] = min(taken.get(loaded, math.inf), time.perf_counter() - started)
        except Exception:  # noqa: BLE001  (a champion that fails here is no fault of the shadow)
            return None, None
        return taken[champion], taken[follower.loaded]

    async def _explanations(
        self, follower: Follower, champion: Loaded, encoded: Encoded, champions: Encoded, places: Sequence[int]
    ) -> tuple[tuple[bytes, bytes], tuple[int, ...]]:
        """Attributions of both, and of which rows. Without them the scores still say something."""
        if not places or follower.explaining_s > EXPLAINING_S + follower.scoring_s:
            return NOT_EXPLAINED
        started = time.monotonic()
        found = []
        try:
            for loaded, inputs in ((champion, champions), (follower.loaded, encoded)):
                outputs = await self._infer(loaded, inputs.rows(places).tensors, EXPLAINERS[0])
                found.append(_bytes(outputs["attributions"]))
        except Exception as exc:  # noqa: BLE001  (as for scores)
            if follower.explains:
                reason = str(exc) or type(exc).__name__
                log.warning(
                    "no explanation to compare", extra={"release": follower.loaded.release.name, "reason": reason}
                )
            follower.explains = False
            return NOT_EXPLAINED
        finally:
            follower.explaining_s += time.monotonic() - started
        follower.explains = True
        return (found[0], found[1]), tuple(places)

    async def _infer(self, loaded: Loaded, tensors: Tensors, explainer: str | None = None) -> Tensors:
        name = loaded.release.graph_name(explainer)
        # A backend that keeps to its timeout needs no other; a shadow may have one that does not.
        async with asyncio.timeout(2 * TIMEOUT_S):
            outputs = await self.infer(name, tensors, TIMEOUT_S)
        check_outputs(name, outputs, loaded.release.contract.outputs(len(tensors["numeric"]), explainer))
        return outputs

    async def _keep(self, follower: Follower, line: Line, entities: Sequence[Sequence[str | int]]) -> None:
        if follower.log is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, follower.log.append, line, entities)
        except Exception as exc:  # noqa: BLE001  (a full disk is nobody's answer)
            reason = (exc.strerror if isinstance(exc, OSError) else None) or type(exc).__name__
            self.metrics.shadow_unwritten(follower.loaded.release, line.rows)
            if reason != self._unwritten:
                log.error(  # noqa: TRY400  (a sentence, not a defect)
                    "pairs of a shadow are not kept", extra={"directory": str(self.directory), "reason": reason}
                )
            self._unwritten = reason
        else:
            self._unwritten = None

    def _failed(self, follower: Follower, error: Exception, rows: int) -> Line:
        if follower.failures == 0:
            reason = str(error) or type(error).__name__
            log.warning("a shadow failed", extra={"release": follower.loaded.release.name, "reason": reason})
        rest = min(REST_FIRST_S * 2**follower.failures, REST_AT_MOST_S)
        follower.failures = min(follower.failures + 1, 10)
        follower.rests_until = time.monotonic() + rest
        return Line(time.time(), 0.0, failed=rows)

    def _count(self, follower: Follower, outcome: str, rows: int) -> None:
        if rows:
            self.metrics.shadow(follower.loaded.release, outcome, rows)


def _to_explain(answered: Answered) -> frozenset[int]:
    sampled = [
        row for row in answered.rows if zlib.crc32(repr(answered.keys[row].values).encode()) % EXPLAINED_EVERY == 0
    ]
    return frozenset(sampled[:EXPLAINED_ROWS])


def _knows(loaded: Loaded, overrides: Mapping[str, Override]) -> bool:
    if overrides:
        try:
            loaded.release.contract.schema.check_overrides([overrides])
        except OverrideError:
            return False
    return True


def _statuses(encoded: Encoded) -> bytes:
    degraded = (encoded.defaulted | encoded.stale).any(axis=1)
    codes = np.where(encoded.unknown, UNKNOWN, np.where(degraded, DEGRADED, OK))
    return codes.astype(np.uint8).tobytes()


def _bytes(values: npt.NDArray[np.floating[npt.NBitBase]]) -> bytes:
    return values.astype(np.dtype("<f4")).tobytes()
