"""What every test may use: a real Redis, a real Triton. And in CI nothing is skipped in silence."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from feature_client.errors import RapportError
from feature_client.online.local_redis import LocalRedis
from service.local_triton import LocalTriton
from service.triton_install import find

if TYPE_CHECKING:  # torch takes seconds to import, and most tests need none of it
    from feature_client.release import Release
    from model_export.pipeline import Run

IN_CI = os.environ.get("CI") == "true"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a real Redis, shared by the session: whoever writes to it cleans up first."""
    with LocalRedis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.address


@pytest.fixture
def redis(redis_url: str) -> Iterator["Redis"]:
    """The same Redis, empty."""
    host, _, port = redis_url.rpartition(":")
    with Redis(host, int(port)) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """A real tritonserver, shared by the session, with no repository of its own: models are sent to it. Whoever loads
    one unloads it; who kills the server leaves it ready."""
    try:
        installation = find()
    except RapportError as exc:
        pytest.skip(str(exc))
    with LocalTriton(tmp_path_factory.mktemp("triton"), installation=installation) as server:
        yield server


@pytest.fixture(scope="session")
def trees_run() -> "Run":
    """Boosted trees, really trained."""
    from tests.model_export.tiny_release import tiny_trees  # noqa: PLC0415  (as above)

    return tiny_trees()


@pytest.fixture(scope="session")
def trees_release(trees_run: "Run", tmp_path_factory: pytest.TempPathFactory) -> "Release":
    """They are published, as engagement.1 of a repository of its own that no test changes."""
    from tests.model_export.tiny_release import build_tiny_release  # noqa: PLC0415  (as above)

    return build_tiny_release(tmp_path_factory.mktemp("trees") / "models", trees_run)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # An expected failure is reported as skipped too, and stays one.
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for files that skip themselves as a whole."""
    report = yield
    if IN_CI and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def shared_file(name: str) -> Path:
    """A file of the real data set; without it the test is skipped (which fails in CI)."""
    folder = Path(os.environ.get("RAPPORT_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / name).exists():
        pytest.skip(f"the real data set is not there: {folder / name}; RAPPORT_DATA names its folder")
    return folder / name


@pytest.fixture(scope="session")
def retail_file() -> Path:
    return shared_file("online_retail_ii.parquet")


@pytest.fixture(scope="session")
def sample_file() -> Path:
    """300 customers of it."""
    return shared_file("online_retail_ii_sample.parquet")
