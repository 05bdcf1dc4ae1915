"""Work on the event loop that gives way: in small pieces, one a turn of the loop, and predictions first."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

from service.asker import Asker
from service.errors import DeadlineExceeded

SHARE = 0.03
"""Of the event loop's time that such work gets while there is always somebody who goes first. What it does elsewhere
comes on top: its graphs, and its answers on their way out."""

LONGEST_REST_S = 0.05
"""However much was done before, the next piece waits no longer than that."""

STEP_S = 0.0005

T = TypeVar("T")


class Turns:
    """First come, first served, over all who have pieces. is_busy: whether somebody is under way who goes first."""

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self.is_busy = is_busy
        self._turn = asyncio.Lock()
        self._rests_until = 0.0  # monotonic

    async def take(self, pieces: Iterable[Callable[[], None]], asker: Asker) -> None:
        """Runs the pieces in their order. Raises what they raise, and DeadlineExceeded: no piece begins after it."""
        for piece in pieces:
            async with self._turn:
                await self._give_way()
                if time.monotonic() >= asker.deadline:
                    raise DeadlineExceeded
                started = time.thread_time()
                try:
                    piece()
                finally:
                    self._rest(time.thread_time() - started)
                # Held meanwhile: of sixteen who come at once, each waits for a turn of its own.
                await asyncio.sleep(0)

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns, begun in its turn; what it takes of the loop, between its waits, is a piece like others.

        Raises what it raises.
        """
        await self._give_way()
        timed = _OwnTime(work())
        try:
            return await timed
        finally:
            self._rest(timed.seconds)

    async def _give_way(self) -> None:
        """Returns once nobody goes first, or the others have had their share."""
        while self.is_busy() and time.monotonic() < self._rests_until:  # noqa: ASYNC110  (a signal would cost predictions)
            await asyncio.sleep(STEP_S)

    def _rest(self, spent_s: float) -> None:
        now = time.monotonic()
        rest = max(self._rests_until - now, 0.0) + spent_s * (1 - SHARE) / SHARE
        self._rests_until = now + min(rest, LONGEST_REST_S)


class _OwnTime(Generic[T]):
    """Waits for `work`, and adds up what its steps take of this thread's time: `seconds`."""

    def __init__(self, work: Awaitable[T]) -> None:
        self.work = work
        self.seconds = 0.0

    def __await__(self) -> Generator[Any, None, T]:
        steps = self.work.__await__()
        step: Callable[[], Any] = steps.__next__
        while True:
            started = time.thread_time()
            try:
                waits_for = step()
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                self.seconds += time.thread_time() - started
            try:
                yield waits_for
                step = steps.__next__
            except BaseException as exc:  # noqa: BLE001  (a cancellation is for the work, not for who measures it)
                step = _thrown(steps, exc)


def _thrown(steps: Generator[Any, None, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(error)
