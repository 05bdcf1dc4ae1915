"""The open loop: what it counts when a server is slow, wrong or silent."""

import random
import socket
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from loadtests.bench.load import LoadError
from loadtests.bench.open_loop import arrivals, drive, percentile_ms

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
RIGHT = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine"
Answer = Callable[[int], bytes | None]


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, int]]:
    """A server for connections of one client; `answer` is given the number of the request.

    None answers nothing, nothing at all (b"") hangs up.
    """
    numbers = iter(range(1_000_000))
    lock = threading.Lock()

    def serve(connection: socket.socket) -> None:
        with connection:
            while connection.recv(1 << 16):
                with lock:
                    said = answer(next(numbers))
                if said == b"":
                    return
                connection.sendall(said or b"")

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threads: list[threading.Thread] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield listener.getsockname()[:2]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join()


def test_every_request_is_sent_and_answered() -> None:
    due = arrivals(1_000.0, 0.2, random.Random(0))

    with answering(lambda _: RIGHT) as address:
        load = drive(address, [REQUEST], due, connections=8)

    assert (load.errors, load.unanswered) == (0, 0)
    assert load.offered == pytest.approx(len(due) / due[-1])
    assert 0 < load.achieved <= load.offered
    assert 0 < load.p50_ms <= load.p99_ms <= load.max_ms


def test_waiting_for_a_connection_counts() -> None:
    """Counted from when they were sent, requests that had to wait would look as fast as the first."""
    with answering(lambda _: RIGHT) as address:
        load = drive(address, [REQUEST], [0.001] * 200, connections=1)

    # The last one waited for all others, and then for its own answer.
    assert load.max_ms > load.late_p99_ms > load.p50_ms > 0


def test_a_request_does_not_wait_for_earlier_answers() -> None:
    """The server answers nobody until all 20 have asked: a closed loop would hang."""
    everyone = threading.Barrier(20)

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.recv(1 << 16)
            everyone.wait(30)
            connection.sendall(RIGHT)

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threads = []

        def accept() -> None:
            for _ in range(20):
                threads.append(threading.Thread(target=serve, args=(listener.accept()[0],)))
                threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        load = drive(listener.getsockname()[:2], [REQUEST], [number / 1_000 for number in range(1, 21)], 20)
        acceptor.join()
        for thread in threads:
            thread.join()

    assert load.unanswered == 0


def test_other_statuses_are_errors_and_silence_is_unanswered() -> None:
    def answer(number: int) -> bytes | None:
        return (RIGHT, RIGHT.replace(b"200 OK", b"503 No"), None)[number % 3]

    with answering(answer) as address:
        load = drive(address, [REQUEST], [number / 1_000 for number in range(1, 10)], connections=9, drain_s=0.5)

    assert (load.errors, load.unanswered) == (3, 3)


def test_a_closed_connection_is_no_figure() -> None:
    with answering(lambda _: b"") as address, pytest.raises(LoadError, match="closed a connection"):
        drive(address, [REQUEST], [0.001], connections=1)


def test_no_answers_are_no_figure() -> None:
    with answering(lambda _: None) as address, pytest.raises(LoadError, match="no request was answered"):
        drive(address, [REQUEST], [0.001], connections=1, drain_s=0.1)


def test_arrivals_are_poisson() -> None:
    instants = arrivals(1_000.0, 100.0, random.Random(0))
    gaps = [after - before for before, after in pairwise(instants)]

    assert len(instants) == pytest.approx(100_000, rel=0.02)
    # Of exponential gaps mean and deviation are equal; constant ones would have none.
    assert statistics.mean(gaps) == pytest.approx(0.001, rel=0.02)
    assert statistics.stdev(gaps) == pytest.approx(0.001, rel=0.02)


def test_a_percentile_is_one_that_some_request_took() -> None:
    seconds = [number / 1_000 for number in range(100, 0, -1)]

    assert [percentile_ms(seconds, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
