"""Requests of one tick become one batch: whatever arrived while earlier batches were in flight forms the next.

Nobody waits for a timer: with few requests a batch has one member, with many it grows by itself. A batch passes two
stages, it reads and it infers: one reads at a time, so that what comes meanwhile grows together, and the next one reads
while those before it infer.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, Self, TypeVar

from service.asker import Asker
from service.errors import ClientGone, DeadlineExceeded

ASK_EVERY_S = 0.1
"""A member older than this is asked whether its client has gone. Most are answered sooner and cost no question."""


SETTLING_TICKS = 8
"""Turns of the event loop that a batch waits for those who still come; a batch of one waits for a single one."""


class Rows(Protocol):
    """What a request brings: some rows, of which a part may be taken."""

    def __len__(self) -> int: ...

    def part(self, rows: slice) -> Self: ...


Item = TypeVar("Item", bound=Rows)
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class Member(Generic[Item, Result]):
    """taken: rows of it that are in batches. results: slice -> its result."""

    item: Item
    rows: int
    asker: Asker
    ask_at: float
    answer: asyncio.Future[Sequence[Result]]
    taken: int = 0
    results: dict[int, Result] = field(default_factory=dict)


Batch = list[tuple[Member[Item, Result], int]]
"""Members, and the first row of each one's slice."""

Run = Callable[[Sequence[Item], float, Callable[[], None]], Awaitable[Sequence[Result | Exception]]]
"""Answers a batch of items in their order, within the seconds it is given; an error among the answers is for that item
alone. Calls the third argument when it has read, so that the next batch may."""


class Coalescer(Generic[Item, Result]):
    """One queue and its batches.

    A member adds at most `slice_rows` rows to a batch and queues again with the rest, so that nobody waits for all of a
    large one. A batch never has more than `max_rows` rows, and at most `in_flight` batches run at once. A member whose
    client has gone or whose deadline has passed leaves at once and alone: what is left of it is not started. A batch
    that all of its members have left is cancelled, and with it what others do for it.
    """

    def __init__(
        self,
        run: Run[Item, Result],
        *,
        max_rows: int,
        slice_rows: int,
        in_flight: int,
    ) -> None:
        self.run = run
        self.max_rows = max_rows
        self.slice_rows = min(slice_rows, max_rows)
        self.in_flight = in_flight
        self.waiting: deque[Member[Item, Result]] = deque()
        self.unanswered: set[Member[Item, Result]] = set()
        self.running: dict[asyncio.Task[None], Batch[Item, Result]] = {}
        self.reading: object = None  # the batch that does
        self.starts_soon = False
        self.sweeps_at = math.inf  # monotonic
        self.sweep_timer: asyncio.TimerHandle | None = None

    async def submit(self, item: Item, asker: Asker) -> Sequence[Result]:
        """The results of its slices, in their order.

        Raises what `run` raised for the batch or answered for this item, DeadlineExceeded, ClientGone.
        """
        member = self.enter(item, asker)
        try:
            return await member.answer
        except asyncio.CancelledError:
            self.unanswered.discard(member)
            with contextlib.suppress(ValueError):
                self.waiting.remove(member)
            self._cancel_deserted()
            raise

    def enter(self, item: Item, asker: Asker) -> Member[Item, Result]:
        """Takes a place in the queue; the future `answer` of the member will have what `submit` returns or raises.

        Raises DeadlineExceeded.
        """
        now = time.monotonic()
        if asker.deadline <= now:
            raise DeadlineExceeded
        answer = asyncio.get_running_loop().create_future()
        member: Member[Item, Result] = Member(item, len(item), asker, now + ASK_EVERY_S, answer)
        self.waiting.append(member)
        self.unanswered.add(member)
        self._start_soon()
        if (sweep_at := min(asker.deadline, member.ask_at)) < self.sweeps_at:
            self._sweep_by(sweep_at)
        return member

    def close(self) -> None:
        """Whoever still waits gets DeadlineExceeded: the time to drain is over."""
        self.waiting.clear()
        for member in self.unanswered:
            if not member.answer.done():
                member.answer.set_exception(DeadlineExceeded())
        self.unanswered.clear()
        self._cancel_deserted()

    def _start_soon(self) -> None:
        if not self.starts_soon:
            self.starts_soon = True
            asyncio.get_running_loop().call_soon(self._settle, len(self.waiting), SETTLING_TICKS)

    def _settle(self, seen: int, ticks: int) -> None:
        """Starts once a tick of the event loop brought nobody: all that the loop reads in one go joins one batch."""
        if len(self.waiting) > seen and ticks > 0:
            asyncio.get_running_loop().call_soon(self._settle, len(self.waiting), ticks - 1)
        else:
            self._start()

    def _start(self) -> None:
        self.starts_soon = False
        while self.waiting and self.reading is None and len(self.running) < self.in_flight:
            if batch := self._next():
                self.reading = batch
                task = asyncio.create_task(self._answer(batch))
                self.running[task] = batch
                task.add_done_callback(self._finished)

    def _has_read(self, batch: object) -> None:
        if self.reading is batch:
            self.reading = None
            self._start_soon()

    def _finished(self, task: asyncio.Task[None]) -> None:
        batch = self.running.pop(task)
        if task.cancelled():
            # Before its first step, it has not even said that it reads no more.
            self._has_read(batch)
            for member, _ in batch:
                if not member.answer.done():
                    member.answer.set_exception(DeadlineExceeded())
        self._start()

    def _cancel_deserted(self) -> None:
        for task, batch in self.running.items():
            if all(member.answer.done() for member, _ in batch):
                task.cancel()

    def _next(self) -> Batch[Item, Result]:
        batch: Batch[Item, Result] = []
        unfinished = []
        room, now = self.max_rows, time.monotonic()
        while self.waiting:
            member = self.waiting[0]
            rows = min(member.rows - member.taken, self.slice_rows)
            if rows > room:
                break
            self.waiting.popleft()
            if _has_left(member, now):
                self.unanswered.discard(member)
                continue
            batch.append((member, member.taken))
            room -= rows
            member.taken += rows
            if member.taken < member.rows:
                unfinished.append(member)
        self.waiting.extend(unfinished)
        return batch

    async def _answer(self, batch: Batch[Item, Result]) -> None:
        # The most patient member decides how long the batch may take; the others leave on their own.
        seconds = max([member.asker.deadline for member, _ in batch]) - time.monotonic()
        items = [
            member.item if member.rows <= self.slice_rows else member.item.part(slice(first, first + self.slice_rows))
            for member, first in batch
        ]
        try:
            results = await self.run(items, seconds, partial(self._has_read, batch))
        except Exception as exc:  # noqa: BLE001  (whatever it is, it belongs to those who wait, not to this task)
            results = [exc] * len(batch)
        finally:
            self._has_read(batch)
        for (member, first), result in zip(batch, results, strict=True):
            if not member.answer.done():
                _give(member, first, result, self.slice_rows)
            if member.answer.done():
                self.unanswered.discard(member)

    def _sweep_by(self, at: float) -> None:
        if self.sweep_timer is not None:
            self.sweep_timer.cancel()
        self.sweeps_at = at
        # Event loops count in milliseconds: a timer that is early by one must not spin.
        wait = max(at - time.monotonic(), 0.001)
        self.sweep_timer = asyncio.get_running_loop().call_later(wait, self._sweep)

    def _sweep(self) -> None:
        """Lets go whoever's deadline has passed or whose client has gone: one timer for all members."""
        self.sweeps_at, self.sweep_timer = math.inf, None
        now = time.monotonic()
        staying = [member for member in self.unanswered if not _has_left(member, now)]
        self.unanswered = set(staying)
        self.waiting = deque([member for member in self.waiting if not member.answer.done()])
        self._cancel_deserted()
        if staying:
            self._sweep_by(min([min(member.asker.deadline, member.ask_at) for member in staying]))


def _give(member: Member[Item, Result], first: int, result: Result | Exception, slice_rows: int) -> None:
    """The result of the slice that begins at row `first`; the last one that was missing, or an error, is the answer."""
    if isinstance(result, Exception):
        member.answer.set_exception(result)
        return
    member.results[first] = result
    if len(member.results) * slice_rows >= member.rows:
        member.answer.set_result([member.results[first] for first in sorted(member.results)])


def _has_left(member: Member[Item, Result], now: float) -> bool:
    """Asks it whether it is still waiting, and answers it where it is not."""
    if not member.answer.done():
        if member.asker.deadline <= now:
            member.answer.set_exception(DeadlineExceeded())
        elif member.ask_at <= now:
            member.ask_at = now + ASK_EVERY_S
            if member.asker.gone():
                member.answer.set_exception(ClientGone())
    return member.answer.done()


async def every(answers: Iterable[Awaitable[Sequence[Result]]]) -> list[Sequence[Result]]:
    """Raises the first error, once all have an answer: nothing of a request goes on behind its back."""
    found = await asyncio.gather(*answers, return_exceptions=True)
    if errors := [one for one in found if isinstance(one, BaseException)]:
        raise errors[0]
    return [one for one in found if not isinstance(one, BaseException)]
