"""A real Feast project over a real Redis, once a session."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from tests.feature_client.online.shop import open_shop

if TYPE_CHECKING:
    from feast import FeatureStore


@pytest.fixture(scope="session")
def feast_store(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> "FeatureStore":
    return open_shop(tmp_path_factory.mktemp("shop"), {"type": "redis", "connection_string": redis_url})


@pytest.fixture
def redis(redis_url: str) -> Iterator["Redis"]:
    """The same Redis, empty."""
    host, _, port = redis_url.rpartition(":")
    with Redis(host, int(port)) as client:
        client.flushall()
        yield client
