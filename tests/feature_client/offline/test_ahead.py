"""Two steps of a stream at once, in order, and nothing left behind."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from feature_client.offline.ahead import ahead


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")}


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_items_come_in_order_and_each_once(depth: int) -> None:
    assert list(ahead(iter(range(1, 20)), depth)) == list(range(1, 20))
    assert not threads()


def test_the_next_item_is_made_while_one_is_used_and_no_more_than_that() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number + 1

    with closing(ahead(items())) as coming:
        assert next(coming) == 1
        assert made[1].wait(10)
        assert next(coming) == 2
        assert made[2].wait(10)
        assert not made[3].is_set()


def test_a_fault_is_raised_where_the_item_was_to_be_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no space left")

    coming = ahead(items(), 2)
    assert next(coming) == 1
    with pytest.raises(OSError, match="no space left"):
        next(coming)
    assert not threads()


def test_who_stops_early_leaves_no_thread() -> None:
    with closing(ahead(iter(range(1, 100)), 5)) as coming:
        next(coming)
        assert threads()
    assert not threads()
