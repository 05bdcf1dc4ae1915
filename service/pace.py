"""How long something takes, by what it took lately."""

LEARNING_RATE = 0.1
"""How much of a new measurement goes into what is expected."""

OUTLIER = 11.0
"""A run that took more times what was expected counts for so many: one that hung must not refuse all others. It may
still double what is expected."""


class Pace:
    """Seconds a row, as they were seen lately: of a graph through this backend, or of a lane."""

    def __init__(self, row_s: float) -> None:
        self.row_s = row_s

    def seen(self, rows: int, seconds: float) -> None:
        self.row_s += LEARNING_RATE * (min(seconds / rows, OUTLIER * self.row_s) - self.row_s)

    def expected_s(self, rows: int) -> float:
        return rows * self.row_s
