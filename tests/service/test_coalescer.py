"""The coalescer: what waits forms the next batch; large members go in slices; members leave alone."""

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest

from service import coalescer as module
from service.asker import Asker
from service.coalescer import Coalescer
from service.errors import ClientGone, DeadlineExceeded


class Numbers(tuple[int, ...]):
    """Rows of a request."""

    __slots__ = ()

    def part(self, rows: slice) -> "Numbers":
        return Numbers(self[rows])


class Doubler:
    """Doubles numbers; keeps the batches it saw; can be held."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.gate = asyncio.Event()
        self.started = asyncio.Event()
        if not held:
            self.gate.set()

    async def run(self, items: Sequence[Numbers], seconds: float, has_read: Callable[[], None]) -> list[list[int]]:
        assert seconds > 0
        has_read()
        self.batches.append([tuple(item) for item in items])
        self.started.set()
        await self.gate.wait()
        return [[2 * number for number in item] for item in items]

    def queue(self, *, max_rows: int = 100, slice_rows: int = 100, in_flight: int = 1) -> "Queue":
        return Coalescer(self.run, max_rows=max_rows, slice_rows=slice_rows, in_flight=in_flight)


Queue = Coalescer[Numbers, list[int]]


def stays() -> bool:
    return False


class Client(Asker):
    has_left: Callable[[], bool] = stays

    def gone(self) -> bool:
        return self.has_left()


async def ask(queue: Queue, *numbers: int, seconds: float = 5, gone: Callable[[], bool] = stays) -> list[int]:
    parts = await queue.submit(Numbers(numbers), Client("request", deadline=time.monotonic() + seconds, has_left=gone))
    return [number for part in parts for number in part]


async def turns(count: int = 10) -> None:
    """Lets everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


def idle(queue: Queue) -> bool:
    """Nothing is left of anybody."""
    return not (queue.waiting or queue.unanswered or queue.running or queue.reading)


def test_requests_of_one_tick_are_one_batch_and_each_gets_its_own_answer() -> None:
    async def scenario() -> None:
        doubler = Doubler()
        queue = doubler.queue()

        answers = await asyncio.gather(*(ask(queue, n) for n in range(10)))

        assert answers == [[2 * n] for n in range(10)]
        assert doubler.batches == [[(n,) for n in range(10)]]
        assert idle(queue)

    asyncio.run(scenario())


def test_those_who_come_in_the_next_turns_of_the_loop_join_and_it_does_not_wait_for_ever() -> None:
    async def scenario() -> None:
        doubler = Doubler()
        queue = doubler.queue()
        asked = []
        for number in range(40):
            asked += [asyncio.create_task(ask(queue, number)) for _ in range(2)]
            await asyncio.sleep(0)
        await asyncio.gather(*asked)

        first, *others = doubler.batches
        assert 2 < len(first) <= 2 * (module.SETTLING_TICKS + 2)
        assert others

    asyncio.run(scenario())


def test_what_arrives_while_a_batch_runs_forms_the_next_one() -> None:
    async def scenario() -> None:
        doubler = Doubler(held=True)
        queue = doubler.queue()
        first = asyncio.create_task(ask(queue, 1))
        await doubler.started.wait()
        later = [asyncio.create_task(ask(queue, n)) for n in (2, 3)]
        await turns()

        assert doubler.batches == [[(1,)]]
        doubler.gate.set()
        assert await asyncio.gather(first, *later) == [[2], [4], [6]]
        assert doubler.batches == [[(1,)], [(2,), (3,)]]

    asyncio.run(scenario())


def test_a_batch_never_has_more_than_max_rows() -> None:
    async def scenario() -> None:
        doubler = Doubler()
        queue = doubler.queue(max_rows=10)

        await asyncio.gather(*(ask(queue, n, n, n, n) for n in range(5)))

        assert [len(batch) for batch in doubler.batches] == [2, 2, 1]

    asyncio.run(scenario())


@pytest.mark.parametrize("rows", [1, 9, 10, 11, 20, 25])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_large_request_is_answered_in_slices_and_in_its_order(rows: int, in_flight: int) -> None:
    async def scenario() -> None:
        doubler = Doubler()
        queue = doubler.queue(slice_rows=10, in_flight=in_flight)

        assert await ask(queue, *range(rows)) == [2 * n for n in range(rows)]
        assert [[len(part) for part in batch] for batch in doubler.batches] == [
            [min(10, rows - first)] for first in range(0, rows, 10)
        ]

    asyncio.run(scenario())


def test_slices_that_overtake_each_other_come_back_in_order() -> None:
    async def scenario() -> None:
        gates = {0: asyncio.Event(), 10: asyncio.Event()}

        async def run(items: Sequence[Numbers], seconds: float, has_read: Callable[[], None]) -> list[list[int]]:
            has_read()
            await gates[items[0][0]].wait()
            return [list(item) for item in items]

        queue: Queue = Coalescer(run, max_rows=100, slice_rows=10, in_flight=2)
        asked = asyncio.create_task(ask(queue, *range(20)))
        await turns()
        gates[10].set()
        await turns()
        gates[0].set()

        assert await asked == list(range(20))

    asyncio.run(scenario())


def test_one_row_never_waits_for_all_of_a_thousand() -> None:
    """It is in the next batch that forms, and no batch has more than a slice of the thousand."""

    async def scenario() -> None:
        doubler = Doubler(held=True)
        queue = doubler.queue(max_rows=1_024, slice_rows=128, in_flight=2)
        large = asyncio.create_task(ask(queue, *range(1_000)))
        await turns()
        small = asyncio.create_task(ask(queue, -1))
        await turns()
        assert [[len(part) for part in batch] for batch in doubler.batches] == [[128], [128]]
        doubler.gate.set()

        assert await small == [-2]
        assert [len(part) for part in doubler.batches[2]] == [128, 1]
        assert await large == [2 * n for n in range(1_000)]
        assert max(sum(map(len, batch)) for batch in doubler.batches) == 129

    asyncio.run(scenario())


def test_one_batch_reads_while_another_infers_and_no_two_read() -> None:
    async def scenario() -> None:
        read, infer = asyncio.Semaphore(0), asyncio.Semaphore(0)
        begun: list[tuple[int, ...]] = []

        async def run(items: Sequence[Numbers], seconds: float, has_read: Callable[[], None]) -> list[list[int]]:
            begun.append(tuple(number for item in items for number in item))
            await read.acquire()
            has_read()
            await infer.acquire()
            return [list(item) for item in items]

        queue: Queue = Coalescer(run, max_rows=100, slice_rows=100, in_flight=2)
        asked = [asyncio.create_task(ask(queue, 1))]
        await turns()
        for number in (2, 3):
            asked.append(asyncio.create_task(ask(queue, number)))
            await turns()
        assert begun == [(1,)]  # the others grow together while it reads
        read.release()
        await turns()
        assert begun == [(1,), (2, 3)]
        asked.append(asyncio.create_task(ask(queue, 4)))
        read.release()
        await turns()
        assert begun == [(1,), (2, 3)]  # two are in flight
        infer.release()
        await turns()
        assert begun == [(1,), (2, 3), (4,)]
        for stage in (read, infer, infer):
            stage.release()
        assert await asyncio.gather(*asked) == [[1], [2], [3], [4]]
        assert idle(queue)

    asyncio.run(scenario())


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_batch_whose_read_fails_lets_the_next_one_read(in_flight: int) -> None:
    async def scenario() -> None:
        async def run(items: Sequence[Numbers], seconds: float, has_read: Callable[[], None]) -> list[list[int]]:
            if (1,) in items:
                raise ConnectionError("down")
            has_read()
            return [list(item) for item in items]

        queue: Queue = Coalescer(run, max_rows=1, slice_rows=1, in_flight=in_flight)
        failed, answered = await asyncio.gather(ask(queue, 1), ask(queue, 2), return_exceptions=True)

        assert isinstance(failed, ConnectionError)
        assert answered == [2]

    asyncio.run(scenario())


def test_large_requests_take_turns() -> None:
    async def scenario() -> None:
        doubler = Doubler()
        queue = doubler.queue(max_rows=10, slice_rows=10)

        await asyncio.gather(ask(queue, *[1] * 30), ask(queue, *[2] * 30))

        assert [batch[0][0] for batch in doubler.batches] == [1, 2, 1, 2, 1, 2]

    asyncio.run(scenario())


def test_a_member_whose_deadline_passes_leaves_alone() -> None:
    async def scenario() -> None:
        doubler = Doubler(held=True)
        queue = doubler.queue()
        hasty = asyncio.create_task(ask(queue, 1, seconds=0.02))
        patient = asyncio.create_task(ask(queue, 2))

        with pytest.raises(DeadlineExceeded):
            await hasty
        assert not patient.done()
        doubler.gate.set()
        assert await patient == [4]

    asyncio.run(scenario())


def test_one_timer_serves_all_deadlines_in_whatever_order_they_come() -> None:
    async def scenario() -> None:
        doubler = Doubler(held=True)
        queue = doubler.queue()
        left: list[int] = []

        async def give_up(number: int, seconds: float) -> None:
            with pytest.raises(DeadlineExceeded):
                await ask(queue, number, seconds=seconds)
            left.append(number)

        patient = asyncio.create_task(ask(queue, 9))
        await asyncio.gather(give_up(3, 0.3), give_up(1, 0.02), give_up(2, 0.16))

        assert left == [1, 2, 3]
        assert {member.item[0] for member in queue.unanswered} == {9}
        doubler.gate.set()
        await patient

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["cancelled", "expired", "gone"])
def test_who_leaves_while_waiting_is_out_of_the_queue_and_never_started(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.01)

    async def scenario() -> None:
        doubler = Doubler(held=True)
        queue = doubler.queue()
        first = asyncio.create_task(ask(queue, 1))
        await doubler.started.wait()
        leaver = asyncio.create_task(ask(queue, 2, seconds=0.02 if end == "expired" else 5, gone=lambda: end == "gone"))
        stayer = asyncio.create_task(ask(queue, 3))
        await turns()
        if end == "cancelled":
            leaver.cancel()
        [error] = await asyncio.gather(leaver, return_exceptions=True)

        expected = {"cancelled": asyncio.CancelledError, "expired": DeadlineExceeded, "gone": ClientGone}
        assert isinstance(error, expected[end])
        assert [member.item for member in queue.waiting] == [(3,)]
        doubler.gate.set()
        assert (await first, await stayer) == ([2], [6])
        assert doubler.batches == [[(1,)], [(3,)]]
        assert idle(queue)

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["cancelled", "expired", "gone", "error"])
def test_nothing_more_of_a_sliced_request_is_started_once_it_has_ended(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.01)

    async def scenario() -> None:
        doubler = Doubler(held=True)

        async def run(
            items: Sequence[Numbers], seconds: float, has_read: Callable[[], None]
        ) -> Sequence[list[int] | Exception]:
            answers = await doubler.run(items, seconds, has_read)
            return [ConnectionError("down")] * len(answers) if end == "error" else answers

        queue: Queue = Coalescer(run, max_rows=100, slice_rows=10, in_flight=1)
        large = asyncio.create_task(
            ask(queue, *range(50), seconds=0.02 if end == "expired" else 5, gone=lambda: end == "gone")
        )
        await doubler.started.wait()
        if end == "cancelled":
            large.cancel()
        if end == "error":
            doubler.gate.set()
        [error] = await asyncio.gather(large, return_exceptions=True)
        assert isinstance(error, (asyncio.CancelledError, DeadlineExceeded, ClientGone, ConnectionError))
        doubler.gate.set()
        await asyncio.gather(*queue.running, return_exceptions=True)
        await turns()

        assert doubler.batches == [[tuple(range(10))]]
        assert idle(queue)

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["cancelled", "expired", "gone"])
@pytest.mark.parametrize("stage", ["reads", "infers"])
def test_a_batch_that_all_have_left_is_cancelled_and_one_with_a_member_is_not(
    end: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.01)

    async def scenario() -> None:
        begun, ended = [], []
        gate = asyncio.Event()

        async def run(items: Sequence[Numbers], seconds: float, has_read: Callable[[], None]) -> list[list[int]]:
            begun.append(items)
            if stage == "infers":
                has_read()
            try:
                await gate.wait()
            except asyncio.CancelledError:
                ended.append(items)
                raise
            return [list(item) for item in items]

        def leaver(number: int) -> "asyncio.Task[list[int]]":
            seconds = 0.03 if end == "expired" else 5
            return asyncio.create_task(ask(queue, number, seconds=seconds, gone=lambda: end == "gone"))

        queue: Queue = Coalescer(run, max_rows=2, slice_rows=2, in_flight=1)
        leavers = [leaver(1), leaver(2), leaver(3)]
        stayer = asyncio.create_task(ask(queue, 4))
        await turns()
        for task in leavers if end == "cancelled" else []:
            task.cancel()
        await asyncio.gather(*leavers, return_exceptions=True)
        await turns(30)

        assert ended == [[(1,), (2,)]]
        assert begun[1:] == [[(4,)]]
        gate.set()
        assert await stayer == [4]
        assert idle(queue)

    asyncio.run(scenario())


def test_a_batch_goes_on_for_the_one_member_that_stays() -> None:
    async def scenario() -> None:
        doubler = Doubler(held=True)
        queue = doubler.queue()
        leaver, stayer = asyncio.create_task(ask(queue, 1)), asyncio.create_task(ask(queue, 2))
        await doubler.started.wait()
        leaver.cancel()
        await turns()

        assert doubler.batches == [[(1,), (2,)]]
        doubler.gate.set()
        assert await stayer == [4]
        assert idle(queue)

    asyncio.run(scenario())


def test_a_client_that_stays_is_asked_seldom_and_one_that_is_answered_soon_never() -> None:
    async def scenario() -> None:
        asked: list[int] = []
        doubler = Doubler()

        def gone() -> bool:
            asked.append(1)
            return False

        await asyncio.gather(*(ask(doubler.queue(), n, gone=gone) for n in range(10)))
        assert asked == []

    asyncio.run(scenario())


def test_an_expired_deadline_never_enters_the_queue() -> None:
    async def scenario() -> None:
        doubler = Doubler()
        queue = doubler.queue()

        with pytest.raises(DeadlineExceeded):
            await ask(queue, 1, seconds=-1)
        await turns()
        assert doubler.batches == []
        assert idle(queue)

    asyncio.run(scenario())


def test_a_deadline_that_passed_while_the_loop_was_busy_is_not_started() -> None:
    async def scenario() -> None:
        doubler = Doubler()
        queue = doubler.queue()
        late = asyncio.create_task(ask(queue, 1, seconds=0.005))
        await asyncio.sleep(0)
        time.sleep(0.02)  # noqa: ASYNC251  (the loop is what is held up)

        with pytest.raises(DeadlineExceeded):
            await late
        assert doubler.batches == []

    asyncio.run(scenario())


def test_a_failing_batch_fails_its_members_and_the_next_one_runs() -> None:
    async def scenario() -> None:
        async def run(items: Sequence[Numbers], seconds: float, has_read: Callable[[], None]) -> list[list[int]]:
            if (1,) in items:
                raise ConnectionError("down")
            return [list(item) for item in items]

        queue: Queue = Coalescer(run, max_rows=100, slice_rows=100, in_flight=1)

        with pytest.raises(ConnectionError):
            await ask(queue, 1)
        assert await ask(queue, 2) == [2]

    asyncio.run(scenario())


def test_an_error_among_the_answers_is_for_its_member_alone() -> None:
    async def scenario() -> None:
        async def run(
            items: Sequence[Numbers], seconds: float, has_read: Callable[[], None]
        ) -> list[list[int] | Exception]:
            return [ConnectionError("down") if item == (1,) else list(item) for item in items]

        queue: Queue = Coalescer(run, max_rows=100, slice_rows=100, in_flight=1)

        bad, good = await asyncio.gather(ask(queue, 1), ask(queue, 2), return_exceptions=True)
        assert isinstance(bad, ConnectionError)
        assert good == [2]

    asyncio.run(scenario())
