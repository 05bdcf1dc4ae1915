"""A real tritonserver of our own: its life and death, whoever ends what."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import requests

from feature_client.errors import RapportError
from feature_client.release import ReleaseGraph
from service.local_triton import HOST, LocalTriton
from service.triton_install import Installation, find
from service.triton_supervisor import SHARED_MEMORY
from tests.model_export.tiny_release import build_tiny_release
from tests.triton_calls import Refused, connected, infer, load, loaded

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def installation(triton: LocalTriton) -> Installation:
    """After `triton`, which skips where there is none."""
    return find()


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> ReleaseGraph:
    release = build_tiny_release(tmp_path_factory.mktemp("models") / "models")
    return release.graphs()[0]


@pytest.fixture
def own(installation: Installation, tmp_path: Path) -> Iterator[LocalTriton]:
    """A tritonserver of one test alone."""
    with LocalTriton(tmp_path / "own", installation=installation) as server:
        yield server


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def family(pid: int) -> list[psutil.Process]:
    one = psutil.Process(pid)
    return [one, *one.children(recursive=True)]


def are_gone(processes: list[psutil.Process]) -> bool:
    """A zombie is: it only waits for the parent that adopted it."""
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def memory(triton: LocalTriton) -> set[Path]:
    return set(SHARED_MEMORY.glob(f"{triton.shared_memory}*"))


def answers(triton: LocalTriton, graph: ReleaseGraph) -> None:
    with loaded(triton.address, graph) as client:
        graph.golden.check(infer(client, graph, graph.golden.tensors))


@contextmanager
def rapport_triton(directory: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    command = [sys.executable, "-m", "service.cli", "triton", "serve", str(directory), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()
            process.communicate(timeout=TIMEOUT_S)


@pytest.mark.parametrize("end", ["kill", "restart"])
def test_one_that_died_is_back_on_its_address_with_no_model_and_nothing_of_it_is_left(
    own: LocalTriton, graph: ReleaseGraph, end: str
) -> None:
    address = own.address
    with loaded(address, graph) as client:
        before, regions = family(own.pid), memory(own)
        assert len(before) > 1
        assert regions

        getattr(own, end)()

        assert not client.is_model_ready(graph.name)
    assert own.address == address
    assert are_gone(before)
    assert not regions & memory(own)
    answers(own, graph)


def test_nothing_is_left_after_the_block_but_a_log(
    installation: Installation, tmp_path: Path, graph: ReleaseGraph
) -> None:
    with LocalTriton(tmp_path, installation=installation) as own, connected(own.address) as client:
        load(client, graph)
        before = family(own.supervisor_pid)
        assert len(before) > 2
        assert memory(own)

    assert are_gone(before)
    assert not memory(own)
    assert not own.is_running
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 0] == [own.log]


def test_a_killed_supervisor_takes_its_server_along_and_the_next_one_starts(
    installation: Installation, tmp_path: Path, graph: ReleaseGraph
) -> None:
    with LocalTriton(tmp_path, installation=installation) as own, connected(own.address) as client:
        load(client, graph)
        before = family(own.supervisor_pid)
        before[0].kill()
        with LocalTriton(tmp_path, installation=installation) as another:
            assert are_gone(before)
            answers(another, graph)
        assert not own.is_running


def test_nothing_outlives_a_killed_owner(tmp_path: Path, installation: Installation, graph: ReleaseGraph) -> None:
    with rapport_triton(tmp_path) as (process, address), connected(address) as client:
        load(client, graph)
        before = family(process.pid)
        assert len(before) > 3

        process.kill()

        until(lambda: are_gone(before))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_its_address_and_ends_with_its_server(
    tmp_path: Path, installation: Installation, graph: ReleaseGraph, number: signal.Signals
) -> None:
    with rapport_triton(tmp_path, "--models", str(graph.directory.parent)) as (process, address):
        with connected(address) as client:
            client.load_model(graph.name)
            graph.golden.check(infer(client, graph, graph.golden.tensors))
        before = family(process.pid)

        process.send_signal(number)
        process.wait(TIMEOUT_S)

        assert are_gone(before)


def test_it_listens_on_loopback_and_there_only_where_it_was_told_to(
    own: LocalTriton, installation: Installation, tmp_path: Path
) -> None:
    def listening(triton: LocalTriton) -> set[tuple[str, int]]:
        found = psutil.Process(triton.pid).net_connections("inet")
        return {(c.laddr.ip.removeprefix("::ffff:"), c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}

    assert listening(own) == {(HOST, own.port)}
    with LocalTriton(tmp_path, http_port=0, metrics_port=0, installation=installation) as more:
        assert more.http_port
        assert more.metrics_port
        assert listening(more) == {(HOST, more.port), (HOST, more.http_port), (HOST, more.metrics_port)}
        assert requests.get(f"http://{HOST}:{more.http_port}/v2/health/ready", timeout=5).status_code == 200
        assert "nv_" in requests.get(f"http://{HOST}:{more.metrics_port}/metrics", timeout=5).text


def test_a_model_is_loaded_only_when_it_is_told_to(
    installation: Installation, tmp_path: Path, graph: ReleaseGraph
) -> None:
    with (
        LocalTriton(tmp_path, models=graph.directory.parent, installation=installation) as server,
        connected(server.address) as client,
    ):
        with pytest.raises(Refused, match="not found"):
            infer(client, graph, graph.golden.tensors)
        client.load_model(graph.name)
        graph.golden.check(infer(client, graph, graph.golden.tensors))


def test_a_port_that_is_taken_is_named(installation: Installation, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        for ports in ({"port": port}, {"http_port": port}, {"metrics_port": port}):
            with (
                pytest.raises(RapportError, match=f"port {port} on {HOST} is in use"),
                LocalTriton(tmp_path, installation=installation, **ports),
            ):
                pass


def test_two_do_not_share_a_directory(own: LocalTriton, installation: Installation) -> None:
    pid = own.pid
    with (
        pytest.raises(RapportError, match="another tritonserver runs in"),
        LocalTriton(own.directory, installation=installation),
    ):
        pass
    assert own.pid == pid
    own.kill()  # and the first one is still supervised


def test_one_that_cannot_start_is_given_up_with_the_reason(installation: Installation, tmp_path: Path) -> None:
    broken = replace(installation, home=tmp_path / "broken")
    broken.server.parent.mkdir(parents=True)
    broken.server.write_text("#!/bin/sh\necho error: no such luck\nexit 1\n")
    broken.server.chmod(0o755)

    server = LocalTriton(tmp_path / "server", installation=broken)
    with pytest.raises(RapportError, match="tritonserver did not start: error: no such luck"), server:
        pass
    assert not server.is_running


def test_where_it_is_not_installed_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPPORT_TRITON_HOME", str(tmp_path / "none"))
    with pytest.raises(RapportError, match="`rapport triton install` makes it"), LocalTriton(tmp_path):
        pass
