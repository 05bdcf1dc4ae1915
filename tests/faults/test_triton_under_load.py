"""Triton stalls, dies and is meddled with behind a gateway that clients never leave alone."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from feature_client.errors import RapportError
from feature_client.release import read_release
from feature_client.routes import Canary, Route
from feature_client.triton_config import config_json
from service.local_triton import LocalTriton
from service.triton_install import find
from tests.faults.conftest import HOME
from tests.faults.promise import MODEL_DOWN, TOO_LATE
from tests.faults.repository import MODEL
from tests.faults.rig import Rig
from tests.triton_calls import connected

DOWN = (MODEL_DOWN, TOO_LATE)
"""What is promised while nobody can answer."""

STALLED_FOR = 150
"""Requests that come while something is stopped."""


@pytest.fixture(scope="module")
def start_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], LocalTriton]]:
    """Tritons of their own, for they are killed."""
    try:
        installation = find()
    except RapportError as exc:
        pytest.skip(str(exc))
    running: list[LocalTriton] = []

    def start() -> LocalTriton:
        server = LocalTriton(tmp_path_factory.mktemp("triton"), installation=installation)
        server.__enter__()
        running.append(server)
        return server

    yield start
    for server in running:
        server.__exit__(None, None, None)


@pytest.fixture(scope="module")
def server(start_triton: Callable[[], LocalTriton]) -> LocalTriton:
    return start_triton()


@pytest.fixture(scope="module")
def rig(rigs: Callable[..., Rig], server: LocalTriton) -> Rig:
    return rigs("triton", RAPPORT_BACKEND="triton", RAPPORT_TRITON=server.address)


def stall(rig: Rig, *pids: int) -> None:
    """SIGSTOP, while clients go on, and SIGCONT."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        rig.driver.wait_for(STALLED_FOR)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_releases_come_and_go_and_fail_nobody(rig: Rig) -> None:
    with rig.scenario("promote", HOME) as current:
        rig.route(Route(champion=3, previous=1), current)
    with rig.scenario("canary 10 %", Route(champion=3, previous=1)) as current:
        rig.route(Route(champion=3, previous=1, canary=Canary(version=2, percent=10)), current)
    with rig.scenario("roll back", Route(champion=3, previous=1)) as current:
        rig.route(HOME, current)


def test_a_triton_that_is_killed_is_back_with_all_models(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("Triton killed", HOME) as current, rig.fault(current, *DOWN):
        server.kill()
    assert current.refusals


def test_a_triton_that_is_restarted_in_order_is_back_with_all_models(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("Triton restarted", HOME) as current, rig.fault(current, *DOWN):
        server.restart()
    assert current.refusals


def test_a_triton_that_stalls_keeps_nobody_beyond_the_deadline(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("Triton stopped and continued", HOME) as current, rig.fault(current, *DOWN):
        stall(rig, server.pid)
    assert current.refusals


def test_a_backend_process_that_dies_is_replaced(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("backend processes killed", HOME) as current, rig.fault(current, *DOWN):
        for pid in server.python_processes():
            os.kill(pid, signal.SIGKILL)
        rig.noticed(current, graph=f"{MODEL}.1")


def test_a_backend_process_that_stalls_keeps_nobody_beyond_the_deadline(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("backend processes stopped and continued", HOME) as current, rig.fault(current, *DOWN):
        stall(rig, *server.python_processes())
    assert current.refusals


def test_models_unloaded_behind_our_back_are_loaded_again(rig: Rig, server: LocalTriton) -> None:
    with (
        rig.scenario("models unloaded", HOME) as current,
        rig.fault(current, *DOWN),
        connected(server.address) as client,
    ):
        for name in (f"{MODEL}.1", f"{MODEL}.1.explain", f"{MODEL}.2"):
            client.unload_model(name)
        rig.noticed(current, graph=f"{MODEL}.1")


def test_another_model_under_our_name_answers_nobody(rig: Rig, server: LocalTriton) -> None:
    with (
        rig.scenario("other models under our names", HOME) as current,
        rig.fault(current, *DOWN),
        connected(server.address) as client,
    ):
        ours, others = (read_release(rig.root, MODEL, version).graphs() for version in (1, 2))
        for graph, other in zip(ours, others, strict=True):
            client.unload_model(graph.name)
            files = {"file:1/model.onnx": other.file.read_bytes()}
            client.load_model(graph.name, config=config_json(graph), files=files)
        rig.noticed(current, graph=f"{MODEL}.1")


def test_of_two_tritons_one_may_die(
    rigs: Callable[..., Rig], server: LocalTriton, start_triton: Callable[[], LocalTriton]
) -> None:
    second = start_triton()
    rig = rigs("two Tritons", RAPPORT_BACKEND="triton", RAPPORT_TRITON=f"{server.address},{second.address}")
    with rig.scenario("one killed", HOME) as current, rig.fault(current):
        second.kill()
        rig.noticed(current, graph=f"{MODEL}.1", endpoint=second.address)
    with rig.scenario("one stopped and continued", HOME) as current, rig.fault(current):
        stall(rig, second.pid)
        rig.noticed(current, graph=f"{MODEL}.1", endpoint=second.address)
