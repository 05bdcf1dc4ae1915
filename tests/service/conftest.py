"""What the gateway's tests serve: a tiny, really trained release, a real Redis, and a few customers in it."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from redis import Redis

from feature_client.contract import EXPLAINERS
from feature_client.online.reader import FeatureReader
from feature_client.release import Release
from service.app import create_app
from service.backends import Backend
from service.settings import Settings
from tests.feast_layout import Value, store
from tests.model_export.tiny_release import (
    AS_OF,
    CATEGORIES,
    CHANNELS,
    COUNTRIES,
    build_tiny_release,
    tiny_run,
    with_explainers,
)
from tests.service.serving import running

NOW = AS_OF.timestamp()
DAY_S = 86_400.0

PATIENT = {"deadline_ms": 10_000, "explain_deadline_ms": 10_000, "redis_timeout_ms": 2_000}
"""A machine that is busy with something else, as in CI, must not turn an answer into a refusal. Tests of patience set
their own."""

Rows = Mapping[str, tuple[float, Mapping[str, Value]]]
Start = Callable[..., str]


def rows_of(customer: str, *, age_s: float = 600.0) -> dict[str, tuple[float, dict[str, Value]]]:
    """Complete rows of a customer, computed `age_s` ago."""
    at = NOW - age_s
    return {
        "orders": (
            at,
            {
                "customer_id": customer,
                "orders_30d": 2.0,
                "orders_90d": 4.0,
                "orders_365d": 9.0,
                "spend_90d": 210.5,
                "spend_365d": 480.25,
                "returns_365d": 1.0,
                "top_category": CATEGORIES[0],
            },
        ),
        "lifetime": (
            at,
            {
                "customer_id": customer,
                "last_purchase_at": NOW - 3 * DAY_S,
                "lifetime_orders": 14.0,
                "mean_gap_days": 24.5,
                "country": COUNTRIES[0],
            },
        ),
        "engagement": (at, {"customer_id": customer, "sessions_30d": 6, "preferred_channel": CHANNELS[0]}),
    }


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return build_tiny_release(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def two_releases(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A repository with the release and, as champion, another one that was trained otherwise."""
    root = tmp_path_factory.mktemp("two")
    shutil.copytree(release.root, root, dirs_exist_ok=True)
    return build_tiny_release(root, tiny_run(rows=1_000, seed=1, epochs=1))


@pytest.fixture(scope="session")
def versions(release: Release, two_releases: Release) -> tuple[Release, Release]:
    """Two releases of one model that answer differently."""
    return release, two_releases


@pytest.fixture(scope="session")
def fast_alone(two_releases: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A repository with both and, as version 3, what version 2 is with no explainer but the default one."""
    root = tmp_path_factory.mktemp("three")
    shutil.copytree(two_releases.root, root, dirs_exist_ok=True)
    return with_explainers(two_releases, root, EXPLAINERS[:1])


@pytest.fixture
def customers(redis: "Redis", release: Release) -> list[str]:
    """Three customers with all their features; c3 has never come back, so churn is not defined for it."""
    for customer in ("c1", "c2", "c3"):
        rows = rows_of(customer)
        if customer == "c2":
            rows["orders"][1]["orders_90d"] = 1.0
        if customer == "c3":
            rows["lifetime"][1]["last_purchase_at"] = NOW - 200 * DAY_S
        store(redis, release.contract.schema, customer, rows)
    return ["c1", "c2", "c3"]


@pytest.fixture(scope="session", params=["straight", "asgi"])
def gateway(release: Release, redis_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """One gateway for all tests that need no other settings; with direct.py in front, and without."""
    app = create_app(Settings(models=release.root, redis=redis_url, as_of=AS_OF, log_level="warning", **PATIENT))  # type: ignore[arg-type]
    with running(app, straight=request.param == "straight") as url:
        wait_ready(url)
        yield url


@pytest.fixture
def url(gateway: str, customers: list[str]) -> str:
    """The shared gateway, with the three customers in its store."""
    return gateway


@pytest.fixture
def start(release: Release, redis_url: str) -> Iterator[Start]:
    """Starts gateways: `start(deadline_ms=10)` gives a URL; settings are PATIENT and the defaults otherwise."""
    with ExitStack() as stack:

        def begin(
            backend: Backend | None = None,
            *,
            reader: FeatureReader | None = None,
            ready: bool = True,
            **settings: object,
        ) -> str:
            usual = {"models": release.root, "redis": redis_url, "as_of": AS_OF, "log_level": "warning"}
            given = {**usual, **PATIENT, "release_poll_s": 0.05, **settings}
            url = stack.enter_context(running(create_app(Settings(**given), backend=backend, reader=reader)))  # type: ignore[arg-type]
            if ready:
                wait_ready(url)
            return url

        yield begin


def wait_ready(url: str, field: str = "ready", value: object = True) -> None:  # noqa: FBT002  (what /readyz says)
    """Until /readyz says so of `field`."""
    deadline = time.monotonic() + 20
    while requests.get(f"{url}/readyz", timeout=5).json()[field] != value:
        assert time.monotonic() < deadline, f"{field} never became {value}"
        time.sleep(0.02)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"
