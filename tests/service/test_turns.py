"""Long work on the event loop lets others in between."""

import asyncio
import itertools
import math
import time
from functools import partial

import pytest

from service.asker import Asker
from service.errors import ClientGone, DeadlineExceeded
from service.turns import SHARE, Turns, _OwnTime

PATIENT = Asker("r", deadline=math.inf)


def work_for(seconds: float) -> None:
    """Of this thread's time."""
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        pass


def test_whoever_needs_the_loop_waits_for_one_piece_whoever_has_how_many() -> None:
    done: list[str] = []

    async def other() -> None:
        for _ in range(30):
            done.append("-")
            await asyncio.sleep(0)

    async def scenario() -> None:
        turns = Turns(lambda: False)
        pieces = {name: [partial(done.append, name) for _ in range(3)] for name in "ab"}
        await asyncio.gather(other(), *(turns.take(some, PATIENT) for some in pieces.values()))

    asyncio.run(scenario())

    assert "".join(done).replace("-", "") == "aaabbb"
    assert not {"aa", "ab", "bb"} & {first + second for first, second in itertools.pairwise(done)}


def test_a_piece_that_fails_is_its_owners_error_and_holds_up_nobody() -> None:
    def fail() -> None:
        raise ValueError("mine")

    async def scenario() -> None:
        turns = Turns(lambda: False)
        done: list[str] = []
        with pytest.raises(ValueError, match="mine"):
            await turns.take([fail], PATIENT)
        await turns.take([partial(done.append, "next")], PATIENT)
        assert done == ["next"]

    asyncio.run(scenario())


def test_nothing_is_begun_after_the_deadline_and_the_next_one_is_not_held_up() -> None:
    hurried = Asker("r", deadline=time.monotonic() + 60)
    done: list[str] = []

    def late() -> None:
        done.append("late")
        hurried.deadline = time.monotonic()

    async def scenario() -> None:
        turns = Turns(lambda: False)
        with pytest.raises(DeadlineExceeded):
            await turns.take([late, partial(done.append, "never")], hurried)
        await turns.take([partial(done.append, "next")], PATIENT)

    asyncio.run(scenario())

    assert done == ["late", "next"]


def test_pieces_wait_for_predictions_but_not_for_ever() -> None:
    async def scenario() -> None:
        under_way = True
        turns = Turns(lambda: under_way)
        done: list[str] = []

        def long_piece() -> None:
            done.append("long")
            work_for(0.02)

        await turns.take([long_piece], PATIENT)
        waiting = asyncio.create_task(turns.take([partial(done.append, "given way")], PATIENT))
        await asyncio.sleep(0.002)
        assert done == ["long"]
        under_way = False
        await waiting
        assert done == ["long", "given way"]
        under_way = True
        await turns.take([long_piece, partial(done.append, "all the same")], PATIENT)
        assert done == ["long", "given way", "long", "all the same"]

    asyncio.run(scenario())


def test_the_loops_time_is_shared_out_while_predictions_are_under_way() -> None:
    """By the clock of the thread: what the machine does meanwhile counts for nothing."""
    piece_s, pieces = 0.001, 10

    async def scenario() -> float:
        turns = Turns(lambda: True)
        started = time.monotonic()
        await turns.take([partial(work_for, piece_s)] * pieces, PATIENT)
        return time.monotonic() - started

    assert asyncio.run(scenario()) >= (pieces - 1) * piece_s / SHARE


def test_what_work_takes_of_the_loop_between_its_waits_counts_and_its_waits_do_not() -> None:
    async def work() -> str:
        work_for(0.001)
        await asyncio.sleep(0.05)
        work_for(0.001)
        return "answer"

    async def scenario() -> None:
        timed = _OwnTime(work())
        assert await timed == "answer"
        assert 0.002 <= timed.seconds < 0.03

    asyncio.run(scenario())


def test_work_that_is_cancelled_or_fails_ends_as_it_would_alone() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("tidied up")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("mine")

    async def scenario() -> None:
        turns = Turns(lambda: False)
        waiting = asyncio.create_task(turns.run(work))
        await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(ValueError, match="mine"):
            await turns.run(fail)

    asyncio.run(scenario())
    assert ended == ["tidied up"]


def test_of_more_than_there_is_time_for_some_are_in_time_and_the_others_stop_at_their_deadline() -> None:
    """Taking turns piece by piece, all of them would be too late."""
    pieces = 20

    async def client(turns: Turns, deadline: float) -> bool:
        try:
            await turns.take([partial(work_for, 0.0005)] * pieces, Asker("r", deadline=deadline))
        except DeadlineExceeded:
            return False
        return True

    async def scenario() -> list[bool]:
        turns = Turns(lambda: True)
        # One takes some 0.33 s while somebody is always under way; there is time for three or four of eight.
        deadline = time.monotonic() + 1.2
        return await asyncio.gather(*(client(turns, deadline) for _ in range(8)))

    in_time = asyncio.run(scenario())
    assert in_time[0]
    assert not in_time[-1]
    assert in_time == sorted(in_time, reverse=True)


def test_nothing_more_is_done_for_who_has_gone() -> None:
    done: list[int] = []

    async def scenario() -> None:
        turns = Turns(lambda: False)
        gone = Asker("r", has_left=lambda: True, deadline=time.monotonic() + 60)
        with pytest.raises(ClientGone):
            await turns.take([partial(work_for, 0.15), partial(done.append, 1), partial(done.append, 2)], gone)
        await turns.take([partial(done.append, 3)], PATIENT)

    asyncio.run(scenario())
    assert done == [3]
