"""`rapport redis`: a store for as long as the command runs."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotThere

TIMEOUT_S = 60


@contextmanager
def rapport_redis(directory: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", "Redis"]]:
    command = [sys.executable, "-m", "service.cli", "redis", str(directory), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            host, _, port = process.stdout.readline().strip().rpartition(":")
            with Redis(host, int(port)) as client:
                yield process, client
        finally:
            process.terminate()
            process.communicate(timeout=TIMEOUT_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_and_ends_with_the_command(tmp_path: Path, number: signal.Signals) -> None:
    with rapport_redis(tmp_path) as (process, redis):
        assert redis.ping()

        process.send_signal(number)
        process.wait(TIMEOUT_S)

        with pytest.raises(NotThere):
            redis.ping()


def test_only_a_persistent_one_finds_again_what_was_written(tmp_path: Path) -> None:
    found = []
    for options in (("--persistent",), ("--persistent",), ()):
        with rapport_redis(tmp_path, *options) as (_, redis):
            found.append(redis.get("key"))
            redis.set("key", "value")

    assert found == [None, b"value", None]


def test_the_command_does_not_outlive_its_server(tmp_path: Path) -> None:
    with rapport_redis(tmp_path) as (process, redis):
        redis.shutdown(nosave=True)
        _, said = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 1
    assert f"rapport: redis-server ended; its log is {tmp_path}" in said
