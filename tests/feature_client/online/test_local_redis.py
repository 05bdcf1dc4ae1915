"""A redis-server that is there when the block begins, and gone when it ends."""

import os
import socket
from pathlib import Path

import pytest
from redis import Redis

from feature_client.errors import RapportError
from feature_client.online import local_redis
from feature_client.online.local_redis import LocalRedis, find_server


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_answers_inside_the_block_and_is_gone_behind_it(tmp_path: Path) -> None:
    with LocalRedis(tmp_path / "not" / "there" / "yet") as redis:
        pid = redis.pid
        with Redis(port=redis.port) as client:
            assert client.ping()
        assert redis.address == f"127.0.0.1:{redis.port}"

    assert not runs(pid)
    with pytest.raises(RapportError, match="not running"):
        assert redis.pid


def test_it_is_gone_behind_a_block_that_fails(tmp_path: Path) -> None:
    redis = LocalRedis(tmp_path)

    def fail(pid: int) -> None:
        pids.append(pid)
        raise ZeroDivisionError

    pids: list[int] = []
    with pytest.raises(ZeroDivisionError), redis:
        fail(redis.pid)

    assert not runs(pids[0])


@pytest.mark.parametrize(("persistent", "found"), [(True, b"1"), (False, None)])
def test_a_persistent_one_finds_its_data_again(tmp_path: Path, *, persistent: bool, found: bytes | None) -> None:
    for _ in range(2):
        with LocalRedis(tmp_path, persistent=persistent) as redis, Redis(port=redis.port) as client:
            value = client.get("a")
            client.set("a", 1)

    assert value == found


def test_a_port_in_use_is_said_in_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RapportError, match=f"port {port} on 127.0.0.1 is in use"), LocalRedis(tmp_path, port):
            pass


def test_a_given_port_is_taken(tmp_path: Path) -> None:
    with LocalRedis(tmp_path) as redis:
        port = redis.port
    with LocalRedis(tmp_path, port) as again:
        assert again.address == f"127.0.0.1:{port}"


def test_one_that_dies_at_its_start_says_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_bytes(b"this is no AOF")
    (tmp_path / "appendonlydir").mkdir()
    manifest = "file appendonly.aof.1.base.rdb seq 1 type b\n"
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text(manifest)

    with pytest.raises(RapportError, match=r"redis-server ended with code 1: .*(AOF|file)"):
        LocalRedis(tmp_path, persistent=True).__enter__()


def test_without_a_redis_server_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(local_redis, "find_spec", lambda name: None)

    with pytest.raises(RapportError, match=r"rapport\[local\]"):
        find_server()


def test_the_one_on_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_server() == server


def test_a_ctrl_c_in_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    with LocalRedis(tmp_path) as redis:
        assert os.getpgid(redis.pid) != os.getpgid(0)
