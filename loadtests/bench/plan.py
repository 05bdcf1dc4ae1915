"""What one run of the benchmark was asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # they import what a machine for gpu.py lacks
    from loadtests.bench.home import Home
    from loadtests.bench.targets import Cores

Thing = TypeVar("Thing")
Other = TypeVar("Other")


@dataclass(frozen=True)
class Plan:
    """seconds: of one load. rounds: how often each comparison is repeated. customers, models: of the large ones.

    sizes: numbers of customers that the offline half is run with.
    """

    home: "Home"
    cores: "Cores"
    seconds: float
    rounds: int
    customers: int
    models: int
    sizes: Sequence[int] = ()

    def interleaved(self, first: Callable[[], Thing], second: Callable[[], Other]) -> Iterator[tuple[Thing, Other]]:
        """Both, side by side in time, a pair a round; who goes first alternates, so that a drift favours nobody."""
        for number in range(self.rounds):
            if number % 2 == 0:
                one = first()
                yield one, second()
            else:
                other = second()
                yield first(), other


def in_turn(rounds: int, drives: Sequence[Callable[[], Thing]]) -> Iterator[list[Thing]]:
    """All of them a round, in the order given; who goes first changes, so that a drift favours nobody."""
    for number in range(rounds):
        results = {}
        for step in range(len(drives)):
            turn = (number + step) % len(drives)
            results[turn] = drives[turn]()
        yield [results[turn] for turn in range(len(drives))]


def ratios(pairs: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    return tuple(one / other for one, other in pairs)
