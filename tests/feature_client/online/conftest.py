"""A real Feast project over a real Redis, once a session."""

from typing import TYPE_CHECKING

import pytest

from tests.feature_client.online.shop import open_shop

if TYPE_CHECKING:
    from feast import FeatureStore


@pytest.fixture(scope="session")
def feast_store(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> "FeatureStore":
    return open_shop(tmp_path_factory.mktemp("shop"), {"type": "redis", "connection_string": redis_url})
