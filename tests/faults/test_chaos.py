"""Faults in any order, one after the other and two at a time, for as long as one likes: `make test-chaos`."""

import os
import random
import sys
import time
from collections.abc import Callable

import pytest

from feature_client.routes import Canary, Route, read_routes
from service.local_triton import LocalTriton
from tests.faults.gateway import WORKERS
from tests.faults.promise import GONE
from tests.faults.publisher import Publisher
from tests.faults.repository import DAMAGE, MODEL, UNREADABLE, damaged, next_version, replace_routes, write_routes
from tests.faults.rig import Rig, Scenario
from tests.faults.traffic import until
from tests.faults.triton import DOWN, kill_backends, replace_models, stopped, unload

SECONDS = float(os.environ.get("CHAOS_SECONDS") or 120)
"""For each backend."""
PUBLISHED_STEPS = 60
"""About what a publisher does to files; after it, the route."""

SOURCES = (1, 2, 3)
"""Of what releases are made: these three differ in every answer."""


class Chaos:
    """good: versions that may be routed to."""

    def __init__(self, rig: Rig, publisher: Publisher, dice: random.Random) -> None:
        self.rig = rig
        self.publisher = publisher
        self.dice = dice
        self.good = [*SOURCES]

    @property
    def route(self) -> Route:
        return self.rig.promise.periods[-1].route

    def another_route(self) -> Route:
        champion, previous, canary = self.dice.sample(self.good, 3)
        percent = self.dice.choice((None, 5, 50, 100))
        return Route(
            champion=champion,
            previous=previous,
            canary=Canary(version=canary, percent=percent) if percent else None,
            salt=self.dice.choice(("", "other")),
        )

    def announce(self) -> tuple[int, int]:
        """What the publisher makes next: its version, and of which source."""
        version, source = next_version(self.rig.root), self.dice.choice(SOURCES)
        self.rig.oracle.same(version, source)
        return version, source


Step = Callable[[Chaos, Scenario], None]


def flip(chaos: Chaos, current: Scenario) -> None:
    chaos.rig.route(chaos.another_route(), current)


def publish(chaos: Chaos, current: Scenario) -> None:
    version, source = chaos.announce()
    assert chaos.publisher.publish(source, route=False)
    chaos.good.append(version)


def publisher_killed(chaos: Chaos, current: Scenario) -> None:
    since = time.monotonic()
    version, source = chaos.announce()
    chaos.publisher.publish(source, route=True, killed_before=chaos.dice.randint(1, PUBLISHED_STEPS))
    routed = read_routes(chaos.rig.root)[MODEL]
    if routed != chaos.route:  # it got as far as that
        assert routed.champion == version
        chaos.rig.promise.expect(routed).since = since
        chaos.rig.settle(current, since)
        chaos.good.append(version)


def corrupt_release(chaos: Chaos, current: Scenario) -> None:
    with chaos.rig.counted_failure():
        version = damaged(chaos.rig.root, chaos.dice.choice((2, 3)), chaos.dice.choice(list(DAMAGE)))
        write_routes(chaos.rig.root, Route(champion=version, previous=1))
        chaos.rig.refused(f"{MODEL}.{version}")
    write_routes(chaos.rig.root, chaos.route)


def unreadable_routes(chaos: Chaos, current: Scenario) -> None:
    with chaos.rig.counted_failure():
        replace_routes(chaos.rig.root, UNREADABLE[chaos.dice.choice(list(UNREADABLE))])
    write_routes(chaos.rig.root, chaos.route)


def worker_killed(chaos: Chaos, current: Scenario) -> None:
    with chaos.rig.fault(current, GONE):
        victim = chaos.dice.choice(chaos.rig.gateway.workers())
        victim.kill()
        until(lambda: len(set(chaos.rig.gateway.workers()) - {victim}) == WORKERS, "another worker in its place")


def gateway_restarted(chaos: Chaos, current: Scenario) -> None:
    with chaos.rig.fault(current, GONE):
        chaos.rig.gateway.stop()
        chaos.rig.gateway.start()


STEPS: tuple[Step, ...] = (
    flip, flip, publish, publisher_killed, corrupt_release, unreadable_routes, worker_killed, gateway_restarted,
)  # fmt: skip


Fault = Callable[[Chaos, LocalTriton], None]


def killed(chaos: Chaos, server: LocalTriton) -> None:
    server.kill()


def restarted(chaos: Chaos, server: LocalTriton) -> None:
    server.restart()


def stalled(chaos: Chaos, server: LocalTriton) -> None:
    with stopped(server):
        chaos.rig.driver.wait_for(chaos.dice.randint(1, 300))


def robbed(chaos: Chaos, server: LocalTriton) -> None:
    unload(server, [f"{MODEL}.{chaos.route.champion}", f"{MODEL}.{chaos.route.champion}.explain"])


def given_others(chaos: Chaos, server: LocalTriton) -> None:
    champion = chaos.route.champion
    replace_models(chaos.rig, server, champion, chaos.dice.choice([one for one in SOURCES if one != champion]))


def backends_killed(chaos: Chaos, server: LocalTriton) -> None:
    kill_backends(server)


FAULTS: tuple[Fault, ...] = (killed, restarted, stalled, robbed, given_others, backends_killed)


def triton_steps(server: LocalTriton) -> tuple[Step, ...]:
    """Each fault alone, and while a route flips."""

    def alone(fault: Fault) -> Step:
        def step(chaos: Chaos, current: Scenario) -> None:
            with chaos.rig.fault(current, *DOWN):
                fault(chaos, server)

        step.__name__ = f"Triton_{fault.__name__}"
        return step

    def in_a_flip(fault: Fault) -> Step:
        def step(chaos: Chaos, current: Scenario) -> None:
            route, since = chaos.another_route(), time.monotonic()
            with chaos.rig.fault(current, *DOWN):
                chaos.rig.promise.expect(route)
                write_routes(chaos.rig.root, route)
                fault(chaos, server)
                chaos.rig.settle(current, since)

        step.__name__ = f"Triton_{fault.__name__}_in_a_flip"
        return step

    return (*map(alone, FAULTS), *map(in_a_flip, FAULTS))


@pytest.fixture(scope="module")
def dice() -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
    sys.stderr.write(f"\nCHAOS_SEED={seed} CHAOS_SECONDS={SECONDS:.0f}\n")
    return random.Random(seed)


def run(chaos: Chaos, steps: tuple[Step, ...]) -> None:
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        step = chaos.dice.choice(steps)
        with chaos.rig.scenario(step.__name__.replace("_", " "), chaos.route) as current:
            step(chaos, current)


@pytest.mark.chaos
def test_any_order_of_faults(
    rigs: Callable[..., Rig], publishers: Callable[[Rig], Publisher], dice: random.Random
) -> None:
    rig = rigs("embedded")
    run(Chaos(rig, publishers(rig), dice), STEPS)


@pytest.mark.chaos
def test_any_order_of_faults_on_triton(
    start_triton: Callable[[], LocalTriton],
    rigs: Callable[..., Rig],
    publishers: Callable[[Rig], Publisher],
    dice: random.Random,
) -> None:
    server = start_triton()
    rig = rigs("triton", server)
    run(Chaos(rig, publishers(rig), dice), STEPS + triton_steps(server))
