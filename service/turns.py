"""Work on the event loop in small pieces, one a turn of it: whoever needs the loop in between waits for one at most."""

import asyncio
from collections.abc import Callable, Iterable


class Turns:
    """First come, first served, over all who have pieces."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def take(self, pieces: Iterable[Callable[[], None]]) -> None:
        """Runs the pieces in their order. Raises what they raise."""
        for piece in pieces:
            async with self._turn:
                piece()
                # Held meanwhile: of sixteen who come at once, each waits for a turn of its own.
                await asyncio.sleep(0)
