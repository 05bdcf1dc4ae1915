"""Releases come, go and break under a gateway that clients never leave alone, with in-process ONNX Runtime."""

import random
import shutil
import time
from collections.abc import Callable

import pytest

from feature_client.routes import Canary, Route, read_routes
from tests.faults.conftest import HOME
from tests.faults.flood import check_flood
from tests.faults.gateway import WORKERS
from tests.faults.promise import GONE
from tests.faults.publisher import Publisher
from tests.faults.repository import (
    DAMAGE,
    MODEL,
    UNREADABLE,
    damaged,
    forge,
    next_version,
    replace_routes,
    write_routes,
)
from tests.faults.rig import AFTERMATH, Rig
from tests.faults.traffic import Ask, until

KILLS = 8


@pytest.fixture(scope="module")
def rig(rigs: Callable[..., Rig]) -> Rig:
    return rigs("embedded")


@pytest.fixture(scope="module")
def publisher(rig: Rig, publishers: Callable[[Rig], Publisher]) -> Publisher:
    return publishers(rig)


def test_a_release_that_is_published_changes_nothing(rig: Rig, publisher: Publisher) -> None:
    with rig.scenario("publish", HOME):
        rig.oracle.same(next_version(rig.root), 3)
        assert publisher.publish(3, route=False)


def test_a_flood_of_explanations_is_answered_right_and_fails_no_prediction(rig: Rig) -> None:
    check_flood(rig)


def test_a_promotion_and_a_rollback_fail_nobody(rig: Rig) -> None:
    with rig.scenario("promote", HOME) as current:
        rig.command(current, Route(champion=2, previous=1), "route", "--champion", "2")
    with rig.scenario("roll back", Route(champion=2, previous=1)) as current:
        rig.command(current, HOME, "rollback")
    with rig.scenario("promote to other features", HOME) as current:
        rig.command(current, Route(champion=3, previous=1), "route", "--champion", "3")


def test_a_canarys_customers_stay_its_own(rig: Rig) -> None:
    def arms() -> dict[str, str]:
        """Customer -> version, of everybody who was asked for since the last route."""
        [period] = [period for period in rig.promise.periods if period.until > time.monotonic()]
        return {
            customer: prediction["version"]
            for outcome in rig.driver.history.copy()
            if outcome.status == 200 and outcome.ask.version is None and rig.promise.at(outcome) == [period]
            for customer, prediction in zip(outcome.ask.customers, outcome.body["predictions"], strict=True)
        }

    def seen() -> dict[str, str]:
        """Once everybody has been asked for, several times and wherever."""
        everybody = tuple(rig.driver.asks.customers)
        rig.driver.ask(*[Ask("predict", everybody)] * 8)
        until(lambda: len(arms()) == len(everybody), "an answer for every customer")
        return arms()

    tenth = Route(champion=1, previous=2, canary=Canary(version=3, percent=10))
    with rig.scenario("canary 10 %", HOME) as current:
        rig.command(current, tenth, "route", "--canary", "3:10")
        before = seen()
        chosen = {customer for customer, version in before.items() if version == "3"}
        assert 0.05 < len(chosen) / len(before) < 0.16
    with rig.scenario("canary 10 %, gateway restarted", tenth) as current:
        with rig.fault(current, GONE):
            rig.gateway.stop()
            rig.gateway.start()
        assert seen() == before
    with rig.scenario("canary 10 %, grown to 40 %", tenth) as current:
        more = Route(champion=1, previous=2, canary=Canary(version=3, percent=40))
        rig.command(current, more, "route", "--canary", "3:40")
        grown = {customer for customer, version in seen().items() if version == "3"}
        assert chosen < grown


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_release_answers_nobody_though_a_route_names_it(rig: Rig, damage: str) -> None:
    with rig.scenario(f"corrupt: {damage}", HOME):
        version = damaged(rig.root, 2, damage)
        with rig.counted_failure():
            write_routes(rig.root, Route(champion=version, previous=1))
            rig.refused(f"{MODEL}.{version}")
        rig.driver.wait_for(AFTERMATH)
        write_routes(rig.root, HOME)


@pytest.mark.parametrize("fault", UNREADABLE)
def test_routes_that_cannot_be_read_change_nothing(rig: Rig, fault: str) -> None:
    with rig.scenario(f"routes.toml: {fault}", HOME):
        with rig.counted_failure():
            replace_routes(rig.root, UNREADABLE[fault])
        write_routes(rig.root, HOME)


def test_a_publisher_killed_between_any_two_steps_leaves_the_old_or_the_new(rig: Rig, publisher: Publisher) -> None:
    with rig.scenario("publisher killed", HOME) as current:
        rig.oracle.same(next_version(rig.root), 2)
        steps = publisher.publish(2, route=False)
        assert steps is not None
        # Beyond `steps` it is the route that is being written.
        for nth in (*random.Random(4).sample(range(1, steps), KILLS), steps + 1, steps + 2):
            rig.oracle.same(next_version(rig.root), 3)
            assert publisher.publish(3, route=True, killed_before=nth) is None
            assert read_routes(rig.root)[MODEL].champion == 1
        # Whoever tries again gets through.
        since, version = time.monotonic(), next_version(rig.root)
        rig.oracle.same(version, 3)
        rig.promise.expect(Route(champion=version, previous=1))
        assert publisher.publish(3, route=True)
        rig.settle(current, since)


def test_a_worker_that_is_killed_takes_only_its_own_connections_with_it(rig: Rig) -> None:
    with rig.scenario("worker killed", HOME) as current, rig.fault(current, GONE):
        victim = rig.gateway.workers()[0]
        victim.kill()
        until(lambda: len(set(rig.gateway.workers()) - {victim}) == WORKERS, "another worker in its place")


def test_a_cold_start_with_a_broken_champion_comes_up_on_the_one_before(rig: Rig) -> None:
    with rig.scenario("cold start, champion broken", Route(champion=2, previous=1)) as current:
        version = forge(rig.root, 3)
        shutil.rmtree(rig.root / f"{MODEL}.{version}.explain")
        with rig.fault(current, GONE):
            # Of what is named beside the champion before, nothing is promised.
            rig.promise.expect(Route(champion=2))
            write_routes(rig.root, Route(champion=version, previous=2))
            rig.gateway.stop()
            rig.gateway.start()
            rig.promise.settled()
        rig.refused(f"{MODEL}.{version}")
