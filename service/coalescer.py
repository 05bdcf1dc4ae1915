"""Requests of one tick become one batch: whatever arrived while earlier batches were in flight forms the next.

Nobody waits for a timer: with few requests a batch has one member, with many it grows by itself.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.admission import Deadline

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Member(Generic[Item, Result]):
    item: Item
    rows: int
    deadline: Deadline
    answer: asyncio.Future[Result]


class Coalescer(Generic[Item, Result]):
    """One queue and its batches. `run` answers a batch of items in their order, within the seconds it is given; an
    error among the answers is for that item alone.

    A batch never has more than `max_rows` rows, and at most `in_flight` batches run at once. A member whose client has
    gone or whose deadline has passed is left out before its batch starts; later it leaves alone and the batch goes on.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item], float], Awaitable[Sequence[Result | Exception]]],
        *,
        max_rows: int,
        in_flight: int,
    ) -> None:
        self.run = run
        self.max_rows = max_rows
        self.in_flight = in_flight
        self.waiting: deque[_Member[Item, Result]] = deque()
        self.running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item, rows: int, deadline: Deadline) -> Result:
        """Raises what `run` raised for the batch or answered for this item.

        Raises TimeoutError or DeadlineExceeded when the deadline passes first.
        """
        left_s = deadline.left_s()
        loop = asyncio.get_running_loop()
        member = _Member[Item, Result](item, rows, deadline, loop.create_future())
        self.waiting.append(member)
        # One tick later, so that everything the loop has read by now joins the same batch.
        loop.call_soon(self._start)
        try:
            async with asyncio.timeout(left_s):
                return await member.answer
        except (TimeoutError, asyncio.CancelledError):
            # Whoever leaves early leaves the queue as well: what waits stays bounded by what is admitted.
            with contextlib.suppress(ValueError):
                self.waiting.remove(member)
            raise

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.in_flight:
            if batch := self._next():
                task = asyncio.create_task(self._answer(batch))
                self.running.add(task)
                task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        self._start()

    def _next(self) -> list[_Member[Item, Result]]:
        batch: list[_Member[Item, Result]] = []
        rows = 0
        while self.waiting and (not batch or rows + self.waiting[0].rows <= self.max_rows):
            member = self.waiting.popleft()
            if not member.answer.done():
                batch.append(member)
                rows += member.rows
        return batch

    async def _answer(self, batch: list[_Member[Item, Result]]) -> None:
        # The most patient member decides how long the batch may take; the others leave on their own.
        seconds = max(member.deadline.at for member in batch) - time.monotonic()
        try:
            results = await self.run([member.item for member in batch], seconds)
        except Exception as exc:  # noqa: BLE001  (whatever it is, it belongs to those who wait, not to this task)
            for member in batch:
                if not member.answer.done():
                    member.answer.set_exception(exc)
            return
        for member, result in zip(batch, results, strict=True):
            if member.answer.done():
                continue
            if isinstance(result, Exception):
                member.answer.set_exception(result)
            else:
                member.answer.set_result(result)
