"""Work on the event loop in small pieces, one a turn of it: whoever needs the loop in between waits for one at most."""

import asyncio
import time
from collections.abc import Callable, Iterable

from service.asker import Asker
from service.errors import DeadlineExceeded


class Turns:
    """First come, first served, over all who have pieces."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def take(self, pieces: Iterable[Callable[[], None]], asker: Asker) -> None:
        """Runs the pieces in their order. Raises what they raise, and DeadlineExceeded: no piece begins after it."""
        for piece in pieces:
            async with self._turn:
                if time.monotonic() >= asker.deadline:
                    raise DeadlineExceeded
                piece()
                # Held meanwhile: of sixteen who come at once, each waits for a turn of its own.
                await asyncio.sleep(0)
