"""Work on the event loop that gives way: in small pieces, one a turn of the loop, and predictions first."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

from service.asker import Asker
from service.errors import ClientGone, DeadlineExceeded

SHARE = 0.03
"""Of the event loop's time that explanations get while there is always somebody who goes first. What they do elsewhere
comes on top: their graphs, and their answers on their way out."""

LONGEST_REST_S = 0.05
"""However much was done before, the next piece waits no longer than that."""

STEP_S = 0.0005

ASK_EVERY_S = 0.1
"""How often somebody whose pieces are being done is asked whether they are still there."""

T = TypeVar("T")


class Turns:
    """Whoever has pieces comes in the order of arrival: of many who ask for more than there is time for, some are
    answered in time, and not all of them too late.

    is_busy: whether somebody is under way who goes first. share: of the loop's time, meanwhile.
    """

    def __init__(self, is_busy: Callable[[], bool], share: float = SHARE) -> None:
        self.is_busy = is_busy
        self.share = share
        self._turn = asyncio.Lock()
        self._rests_until = 0.0  # monotonic

    async def take(self, pieces: Iterable[Callable[[], None]], asker: Asker, spare_s: float = 0.0) -> None:
        """Runs the pieces in their order. spare_s: of the asker's time, for what comes afterwards.

        Raises what they raise, DeadlineExceeded and ClientGone: no piece begins after that.
        """
        async with self._turn_by(asker.deadline - spare_s):
            asked = time.monotonic()
            for piece in pieces:
                await self._give_way()
                now = time.monotonic()
                if now >= asker.deadline - spare_s:
                    raise DeadlineExceeded
                if now - asked > ASK_EVERY_S:
                    asked = now
                    if asker.gone():
                        raise ClientGone
                started = time.thread_time()
                try:
                    piece()
                finally:
                    self._rest(time.thread_time() - started)
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

    @contextlib.asynccontextmanager
    async def _turn_by(self, ends: float) -> AsyncIterator[None]:
        """Raises DeadlineExceeded where the turn has not come by then (monotonic)."""
        try:
            async with asyncio.timeout(None if ends == math.inf else max(ends - time.monotonic(), 0.0)):
                await self._turn.acquire()
        except TimeoutError as exc:
            raise DeadlineExceeded from exc
        try:
            yield
        finally:
            self._turn.release()

    async def _give_way(self) -> None:
        """Returns once nobody goes first, or the others have had their share."""
        while self.is_busy() and time.monotonic() < self._rests_until:  # noqa: ASYNC110  (a signal would cost predictions)
            await asyncio.sleep(STEP_S)

    def _rest(self, spent_s: float) -> None:
        now = time.monotonic()
        rest = max(self._rests_until - now, 0.0) + spent_s * (1 - self.share) / self.share
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
