"""Things made by a thread while those before them are used: two steps of a stream on two cores."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], depth: int = 1) -> Generator[T]:
    """The same items, at most `depth` of them (and the one being made) waiting to be used.

    What goes wrong with an item is raised where it was to be used. Whoever stops early closes it (contextlib.closing),
    and then no thread is left.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        coming = deque(pool.submit(next, items, None) for _ in range(depth))
        while (item := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
