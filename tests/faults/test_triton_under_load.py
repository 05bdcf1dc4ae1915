"""Triton stalls, dies and is meddled with behind a gateway that clients never leave alone."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import tritonclient.grpc as triton_grpc  # type: ignore[import-untyped]

from feature_client.errors import RapportError
from feature_client.release import graph_file, read_release
from feature_client.routes import Canary, Route
from service.local_triton import LocalTriton
from service.triton_install import find
from tests.faults.conftest import HOME
from tests.faults.promise import MODEL_DOWN, TOO_LATE
from tests.faults.repository import MODEL
from tests.faults.rig import Rig

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


@contextmanager
def control(server: LocalTriton) -> Iterator[triton_grpc.InferenceServerClient]:
    """What everybody may do who reaches Triton's port."""
    with triton_grpc.InferenceServerClient(server.address) as client:
        yield client


@contextmanager
def stopped(rig: Rig, *pids: int) -> Iterator[None]:
    """SIGSTOP, while clients go on, and SIGCONT."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        rig.driver.wait_for(STALLED_FOR)
        yield
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
    with rig.scenario("Triton killed", HOME) as current, rig.fault(current, "kill", MODEL_DOWN, TOO_LATE):
        server.kill()


def test_a_triton_that_is_restarted_in_order_is_back_with_all_models(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("Triton restarted", HOME) as current, rig.fault(current, "restart", MODEL_DOWN, TOO_LATE):
        server.restart()


def test_a_triton_that_stalls_delays_nobody_beyond_the_deadline(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("Triton stopped and continued", HOME) as current:
        with rig.fault(current, "stop", MODEL_DOWN, TOO_LATE), stopped(rig, server.pid):
            pass


def test_a_backend_process_that_dies_is_replaced(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("backend processes killed", HOME) as current:
        with rig.fault(current, "kill", MODEL_DOWN, TOO_LATE):
            for pid in server.python_processes():
                os.kill(pid, signal.SIGKILL)


def test_a_backend_process_that_stalls_is_waited_for(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("backend processes stopped and continued", HOME) as current:
        with rig.fault(current, "stop", MODEL_DOWN, TOO_LATE), stopped(rig, *server.python_processes()):
            pass


def test_models_unloaded_behind_our_back_are_loaded_again(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("models unloaded", HOME) as current:
        with rig.fault(current, "unload", MODEL_DOWN, TOO_LATE), control(server) as client:
            for name in (f"{MODEL}.1", f"{MODEL}.1.explain", f"{MODEL}.2"):
                client.unload_model(name)


def test_another_model_under_our_name_answers_nobody(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("other models under our names", HOME) as current:
        with rig.fault(current, "load", MODEL_DOWN, TOO_LATE), control(server) as client:
            other = read_release(rig.root, MODEL, 2)
            for suffix, directory in (("", other.directory), (".explain", other.explain_directory)):
                name = f"{MODEL}.1{suffix}"
                config = client.get_model_config(name, as_json=True)["config"]
                client.unload_model(name)
                content = graph_file(directory).read_bytes()
                client.load_model(name, config=as_config(config), files={"file:1/model.onnx": content})


def test_of_two_tritons_one_may_die(
    rigs: Callable[..., Rig], server: LocalTriton, start_triton: Callable[[], LocalTriton]
) -> None:
    second = start_triton()
    rig = rigs("two Tritons", RAPPORT_BACKEND="triton", RAPPORT_TRITON=f"{server.address},{second.address}")
    with rig.scenario("one killed", HOME) as current, rig.fault(current, "kill"):
        second.kill()
    with rig.scenario("one stopped and continued", HOME) as current:
        with rig.fault(current, "stop"), stopped(rig, second.pid):
            pass


def as_config(config: object) -> str:
    return json.dumps(config)
