"""The coalescer: what waits forms the next batch; members leave alone."""

import asyncio
from collections.abc import Sequence

import pytest

from service.admission import Deadline
from service.coalescer import Coalescer
from service.errors import DeadlineExceeded


class Doubler:
    """Doubles numbers; keeps the batches it saw; can be held."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.started = asyncio.Event()
        if not held:
            self.gate.set()

    async def run(self, items: Sequence[int], seconds: float) -> list[int]:
        assert seconds > 0
        self.batches.append(list(items))
        self.started.set()
        await self.gate.wait()
        return [2 * item for item in items]


def in_seconds(seconds: float) -> Deadline:
    return Deadline.after(seconds)


def test_requests_of_one_tick_are_one_batch_and_each_gets_its_own_answer() -> None:
    async def scenario() -> None:
        doubler = Doubler()
        coalescer = Coalescer(doubler.run, max_rows=100, in_flight=1)

        answers = await asyncio.gather(*(coalescer.submit(n, 1, in_seconds(5)) for n in range(10)))

        assert answers == [2 * n for n in range(10)]
        assert doubler.batches == [list(range(10))]

    asyncio.run(scenario())


def test_what_arrives_while_a_batch_runs_forms_the_next_one() -> None:
    async def scenario() -> None:
        doubler = Doubler(held=True)
        coalescer = Coalescer(doubler.run, max_rows=100, in_flight=1)
        first = asyncio.create_task(coalescer.submit(1, 1, in_seconds(5)))
        await doubler.started.wait()
        later = [asyncio.create_task(coalescer.submit(n, 1, in_seconds(5))) for n in (2, 3)]
        await asyncio.sleep(0.01)

        assert doubler.batches == [[1]]
        doubler.gate.set()
        assert await asyncio.gather(first, *later) == [2, 4, 6]
        assert doubler.batches == [[1], [2, 3]]

    asyncio.run(scenario())


def test_a_batch_never_has_more_than_max_rows() -> None:
    async def scenario() -> None:
        doubler = Doubler()
        coalescer = Coalescer(doubler.run, max_rows=10, in_flight=1)

        await asyncio.gather(*(coalescer.submit(n, 4, in_seconds(5)) for n in range(5)))

        assert [len(batch) for batch in doubler.batches] == [2, 2, 1]

    asyncio.run(scenario())


def test_a_member_whose_deadline_passes_leaves_alone() -> None:
    async def scenario() -> None:
        doubler = Doubler(held=True)
        coalescer = Coalescer(doubler.run, max_rows=100, in_flight=1)
        hasty = asyncio.create_task(coalescer.submit(1, 1, in_seconds(0.02)))
        patient = asyncio.create_task(coalescer.submit(2, 1, in_seconds(5)))

        with pytest.raises((TimeoutError, DeadlineExceeded)):
            await hasty
        doubler.gate.set()
        assert await patient == 4

    asyncio.run(scenario())


def test_work_whose_client_has_gone_is_not_started() -> None:
    async def scenario() -> None:
        doubler = Doubler(held=True)
        coalescer = Coalescer(doubler.run, max_rows=100, in_flight=1)
        first = asyncio.create_task(coalescer.submit(1, 1, in_seconds(5)))
        await doubler.started.wait()
        gone = asyncio.create_task(coalescer.submit(2, 1, in_seconds(5)))
        stays = asyncio.create_task(coalescer.submit(3, 1, in_seconds(5)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        doubler.gate.set()

        assert await first == 2
        assert await stays == 6
        assert doubler.batches == [[1], [3]]

    asyncio.run(scenario())


def test_an_expired_deadline_never_enters_the_queue() -> None:
    async def scenario() -> None:
        doubler = Doubler()
        coalescer = Coalescer(doubler.run, max_rows=100, in_flight=1)

        with pytest.raises(DeadlineExceeded):
            await coalescer.submit(1, 1, in_seconds(-1))
        await asyncio.sleep(0.01)
        assert doubler.batches == []

    asyncio.run(scenario())


def test_a_failing_batch_fails_its_members_and_the_next_one_runs() -> None:
    async def scenario() -> None:
        async def run(items: Sequence[int], seconds: float) -> list[int]:
            if 1 in items:
                raise ConnectionError("down")
            return list(items)

        coalescer = Coalescer(run, max_rows=100, in_flight=1)

        with pytest.raises(ConnectionError):
            await coalescer.submit(1, 1, in_seconds(5))
        assert await coalescer.submit(2, 1, in_seconds(5)) == 2

    asyncio.run(scenario())
