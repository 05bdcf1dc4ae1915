"""Long work on the event loop lets others in between."""

import asyncio
import itertools
import math
import time
from functools import partial

import pytest

from service.asker import Asker
from service.errors import DeadlineExceeded
from service.turns import Turns

PATIENT = Asker("r", deadline=math.inf)


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

    assert "".join(done).replace("-", "") == "ababab"
    assert not {"ab", "ba"} & {first + second for first, second in itertools.pairwise(done)}


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
        waiting = asyncio.create_task(turns.take([partial(done.append, "given way")], PATIENT))
        await asyncio.sleep(0)
        assert done == []
        under_way = False
        await waiting
        assert done == ["given way"]
        under_way = True
        await turns.take([partial(done.append, "all the same")], PATIENT)
        assert done == ["given way", "all the same"]

    asyncio.run(scenario())
