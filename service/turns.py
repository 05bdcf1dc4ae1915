"""Work on the event loop that gives way: in small pieces, one a turn of the loop, and predictions first."""

import asyncio
import time
from collections.abc import Callable, Iterable

from service.asker import Asker
from service.errors import DeadlineExceeded

PATIENCE_S = 0.003
"""How long a piece of work waits for those it gives way to. With so many of them that there is always somebody, pieces
still get done, some hundred a second."""

STEP_S = 0.0005


class Turns:
    """First come, first served, over all who have pieces. is_busy: whether somebody is under way who goes first."""

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self.is_busy = is_busy
        self._turn = asyncio.Lock()

    async def take(self, pieces: Iterable[Callable[[], None]], asker: Asker) -> None:
        """Runs the pieces in their order. Raises what they raise, and DeadlineExceeded: no piece begins after it."""
        for piece in pieces:
            async with self._turn:
                await self.give_way()
                if time.monotonic() >= asker.deadline:
                    raise DeadlineExceeded
                piece()
                # Held meanwhile: of sixteen who come at once, each waits for a turn of its own.
                await asyncio.sleep(0)

    async def give_way(self) -> None:
        """Returns once nobody goes first, or after PATIENCE_S."""
        ends = time.monotonic() + PATIENCE_S
        while self.is_busy() and time.monotonic() < ends:  # noqa: ASYNC110  (a signal would cost predictions)
            await asyncio.sleep(STEP_S)
