"""Triton stalls, dies and is meddled with behind a gateway that clients never leave alone."""

from collections.abc import Callable

import pytest

from feature_client.routes import Canary, Route
from service.local_triton import LocalTriton
from tests.faults.conftest import HOME
from tests.faults.flood import check_flood
from tests.faults.repository import MODEL
from tests.faults.rig import Rig
from tests.faults.triton import DOWN, kill_backends, replace_models, stopped, unload


@pytest.fixture(scope="module")
def server(start_triton: Callable[[], LocalTriton]) -> LocalTriton:
    return start_triton()


@pytest.fixture(scope="module")
def rig(server: LocalTriton, rigs: Callable[..., Rig]) -> Rig:
    return rigs("triton", server)


def test_releases_come_and_go_and_fail_nobody(rig: Rig) -> None:
    with rig.scenario("promote", HOME) as current:
        rig.route(Route(champion=3, previous=1), current)
    with rig.scenario("canary 10 %", Route(champion=3, previous=1)) as current:
        rig.route(Route(champion=3, previous=1, canary=Canary(version=2, percent=10)), current)
    with rig.scenario("roll back", Route(champion=3, previous=1)) as current:
        rig.route(HOME, current)


def test_a_flood_of_explanations_is_answered_right_and_fails_no_prediction(rig: Rig) -> None:
    check_flood(rig)


def test_a_triton_that_is_killed_is_back_with_all_models(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("Triton killed", HOME) as current, rig.fault(current, *DOWN):
        server.kill()
    assert current.refusals


def test_a_triton_that_is_restarted_in_order_is_back_with_all_models(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("Triton restarted", HOME) as current, rig.fault(current, *DOWN):
        server.restart()
    assert current.refusals


def test_a_triton_that_stalls_keeps_nobody_beyond_the_deadline(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("Triton stopped and continued", HOME) as current, rig.fault(current, *DOWN), stopped(server):
        rig.driver.wait_for(150)
    assert current.refusals


def test_a_backend_process_that_dies_is_replaced(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("backend processes killed", HOME) as current, rig.fault(current, *DOWN):
        kill_backends(server)
        rig.noticed(current, endpoint=server.address)


def test_models_unloaded_behind_our_back_are_loaded_again(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("models unloaded", HOME) as current, rig.fault(current, *DOWN):
        unload(server, [f"{MODEL}.1", f"{MODEL}.1.explain", f"{MODEL}.2"])
        rig.noticed(current, endpoint=server.address)


def test_another_model_under_our_name_answers_nobody(rig: Rig, server: LocalTriton) -> None:
    with rig.scenario("other models under our names", HOME) as current, rig.fault(current, *DOWN):
        replace_models(rig, server, 1, other=2)
        rig.noticed(current, endpoint=server.address)


def test_of_two_tritons_one_may_die(
    server: LocalTriton, start_triton: Callable[[], LocalTriton], rigs: Callable[..., Rig]
) -> None:
    second = start_triton()
    rig = rigs("two Tritons", server, second)
    with rig.scenario("one killed", HOME) as current, rig.fault(current):
        second.kill()
        rig.noticed(current, endpoint=second.address)
    with rig.scenario("one stopped and continued", HOME) as current, rig.fault(current):
        rig.reaches(second, up=True)
        with stopped(second):
            rig.reaches(second, up=False)
        rig.reaches(second, up=True)
