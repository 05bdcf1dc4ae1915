"""Which instants features are built at, and which of them train, validate and test: a split by time.

All cutoffs fall on the weekday of the first test cutoff, by default that of `as_of`, because weeks have a rhythm that a
model should not mistake for a change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from feature_client.errors import RapportError
from feature_client.offline.workspace import DataSet

STEP = timedelta(days=14)
SHORTEST_LABEL, LONGEST_LABEL = timedelta(days=30), timedelta(days=90)
GAP = timedelta(days=91)
"""Between the parts, and before `as_of`: the longest label, rounded up to whole weeks."""

HISTORY = timedelta(days=90)
"""Events before the first cutoff, so that its windows are not all empty."""

TEST, VALIDATION = 2, 3
"""Cutoffs in each part; all others train."""


class CutoffError(RapportError):
    """Cutoffs that cannot be, or a data set too short for a split with matured labels."""


@dataclass(frozen=True)
class Split:
    """Cutoffs of each part, ascending. The labels of one part end before the next begins.

    known: every cutoff from the first training one on, a STEP apart, of which some label is known at the first test
    cutoff; what a model is fitted on in the end, once validation has chosen how.
    """

    train: list[datetime]
    validation: list[datetime]
    test: list[datetime]
    known: list[datetime]


def split(dataset: DataSet, test: Sequence[datetime] | None = None) -> Split:
    """Fully matured 90-day labels, no overlap between parts. Raises CutoffError where the data is too short.

    test: its cutoffs, by default the last that can be; validation and training follow from the first of them.
    """
    test = _backwards(dataset.as_of - GAP, TEST) if test is None else sorted(test)
    if late := [cutoff for cutoff in test if cutoff + LONGEST_LABEL > dataset.as_of]:
        raise CutoffError(
            f"labels at the test cutoff {late[0]:%Y-%m-%d} need events until {late[0] + LONGEST_LABEL:%Y-%m-%d}, "
            f"but {dataset.name} ends on {dataset.as_of:%Y-%m-%d}"
        )
    validation = _backwards(test[0] - GAP, VALIDATION)
    first, last = _first(dataset, test[0]), validation[0] - GAP
    if first > last:
        missing = (first - last).days
        raise CutoffError(
            f"{dataset.name} begins on {dataset.first_event:%Y-%m-%d} and ends on {dataset.as_of:%Y-%m-%d}: "
            f"training, validation and test need {missing} more days"
        )
    train, known = (
        [first + number * STEP for number in range((end - first) // STEP + 1)]
        for end in (last, test[0] - SHORTEST_LABEL)
    )
    return Split(train, validation, test, known)


def default_cutoffs(dataset: DataSet) -> list[datetime]:
    """Every cutoff of the split, and `as_of`, whose rows are served."""
    parts = split(dataset)
    return sorted({*parts.train, *parts.validation, *parts.test, *parts.known, dataset.as_of})


def parse(text: str) -> list[datetime]:
    """Dates (2011-05-19,2011-06-02) as midnights in UTC, ascending. Raises CutoffError."""
    found = set()
    for word in text.split(","):
        try:
            found.add(datetime.strptime(word.strip(), "%Y-%m-%d").replace(tzinfo=UTC))
        except ValueError as exc:
            raise CutoffError(f"{word.strip() or text!r} is no cutoff: write dates as 2011-05-19,2011-06-02") from exc
    return sorted(found)


def _backwards(last: datetime, count: int) -> list[datetime]:
    return [last - number * STEP for number in reversed(range(count))]


def _first(dataset: DataSet, like: datetime) -> datetime:
    """The first instant with HISTORY behind it that shares weekday and time of day with `like`."""
    midnight = dataset.first_event.replace(hour=0, minute=0, second=0, microsecond=0)
    weeks = (like - midnight - HISTORY) // timedelta(weeks=1)
    return like - weeks * timedelta(weeks=1)
