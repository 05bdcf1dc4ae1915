"""A gateway under load for each backend, shared by all scenarios; what they saw is printed at the end."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from feature_client.errors import RapportError
from feature_client.online.local_redis import LocalRedis
from feature_client.routes import Route
from service.local_triton import LocalTriton
from service.triton_install import find
from tests.faults.checks import counted_once
from tests.faults.gateway import GatewayProcess
from tests.faults.oracle import Oracle
from tests.faults.promise import Promise
from tests.faults.publisher import Publisher
from tests.faults.repository import write_routes
from tests.faults.rig import Rig, Scenario, table
from tests.faults.traffic import Asks, TrafficDriver
from tests.faults.world import EXPLAINED, Store, build_releases, make_store, releases_in

HOME = Route(champion=1, previous=2)
"""Where every scenario begins."""

DONE: list[Scenario] = []


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with three releases, never changed."""
    root = tmp_path_factory.mktemp("pristine")
    build_releases(root)
    return root


@pytest.fixture(scope="session")
def world() -> Store:
    return make_store()


@pytest.fixture(scope="session")
def recomputed(world: Store, pristine: Path) -> Oracle:
    return Oracle.of_releases(world, releases_in(pristine))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if DONE:
        terminalreporter.section("faults under load")
        for line in table(DONE):
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def store_address(world: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of their own, which no other test empties."""
    with LocalRedis(tmp_path_factory.mktemp("faults-redis")) as server:
        with Redis("127.0.0.1", server.port) as client:
            world.write(client)
        yield server.address


@pytest.fixture(scope="module")
def rigs(
    pristine: Path, world: Store, recomputed: Oracle, store_address: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Rig]]:
    """Starts gateways under load: `rigs("embedded")`, `rigs("triton", server)`; settings are added to the environment.
    Of several Tritons it is the last that may die."""
    with ExitStack() as stack:

        def begin(backend: str, *tritons: LocalTriton, **settings: str) -> Rig:
            if tritons:
                settings["RAPPORT_BACKEND"] = "triton"
                settings["RAPPORT_TRITON"] = ",".join(server.address for server in tritons)
            place = tmp_path_factory.mktemp(backend)
            root = place / "models"
            shutil.copytree(pristine, root)
            oracle, promise = Oracle(recomputed.answers), Promise()
            promise.expect(HOME)
            write_routes(root, HOME)
            gateway = stack.enter_context(GatewayProcess(place, root, store_address, **settings))
            asks = Asks(world.customers, world.customers[:EXPLAINED], lambda: promise.named, seed=1)
            driver = TrafficDriver(gateway.address, asks)
            rig = Rig(backend, root, gateway, driver, promise, oracle, DONE, tritons[-1] if tritons else None)
            stack.callback(account, rig)
            stack.enter_context(driver)
            rig.settle(None, 0.0)
            return rig

        yield begin


@pytest.fixture(scope="module")
def start_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], LocalTriton]]:
    """Tritons of their own, for they are killed."""
    try:
        installation = find()
    except RapportError as exc:
        pytest.skip(str(exc))
    with ExitStack() as stack:
        yield lambda: stack.enter_context(LocalTriton(tmp_path_factory.mktemp("triton"), installation=installation))


@pytest.fixture(scope="module")
def publishers() -> Iterator[Callable[[Rig], Publisher]]:
    """Publishers into the repository of a rig."""
    with ExitStack() as stack:
        yield lambda rig: stack.enter_context(Publisher(rig.root))


def account(rig: Rig) -> None:
    """After the last answer: every request that was ever sent has one outcome."""
    outcomes = [outcome.number for outcome in rig.driver.history]
    assert not list(counted_once(outcomes, rig.driver.started))
