"""A gateway under load for each backend, shared by all scenarios; what they saw is printed at the end."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from feature_client.routes import Route
from tests.faults.gateway import GatewayProcess
from tests.faults.oracle import Oracle
from tests.faults.promise import Promise
from tests.faults.repository import write_routes
from tests.faults.rig import Rig, Scenario, table
from tests.faults.traffic import Asks, TrafficDriver
from tests.faults.world import EXPLAINED, Store, build_releases, make_store, releases_in

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
    return Oracle(world, releases_in(pristine))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if DONE:
        terminalreporter.section("faults under load")
        for line in table(DONE):
            terminalreporter.line(line)
