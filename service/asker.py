"""Who waits for an answer, and what is noted down for them on the way."""

import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

STAGES = ("decode", "admit", "features", "queue", "infer", "encode")

NO_MODEL = "-"
"""The model of a request that names none that is served."""


class Asker(msgspec.Struct):
    """deadline: monotonic instant until which the answer is wanted. stages: stage -> seconds, for all that are over.

    since: monotonic instant at which the stage that runs began.
    """

    request_id: str
    has_left: Callable[[], bool] | None = None  # asks whether the client has closed the connection
    deadline: float = 0.0
    model: str = NO_MODEL
    rows: int = 0
    since: float = 0.0
    stages: dict[str, float] = msgspec.field(default_factory=dict)

    def gone(self) -> bool:
        """Whether nobody waits any more."""
        return self.has_left is not None and self.has_left()

    def note(self, parts: Iterable[Mapping[str, float]]) -> None:
        """Where the time went since `since`; when nothing was at work for it, it was waiting.

        parts: stage -> seconds, of each batch that had a part of it.
        """
        stages = self.stages
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        for part in parts:
            for stage, spent in part.items():
                stages[stage] = stages.get(stage, 0.0) + spent
                seconds -= spent
        # The slices of a large request overlap: together they may take longer than it waited.
        stages["queue"] = stages.get("queue", 0.0) + max(seconds, 0.0)
