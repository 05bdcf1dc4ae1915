"""Small data sets, built once: 300 real customers, and 300 made-up ones."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from feature_client.offline import aggregates, registry
from feature_client.offline.cutoffs import default_cutoffs
from feature_client.offline.events import load_events
from feature_client.offline.generator import generate
from feature_client.offline.workspace import Workspace
from feature_client.schema import FeatureSchema

CREATED = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> FeatureSchema:
    return registry.apply(Workspace(tmp_path_factory.mktemp("schema")))


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Workspace:
    """300 made-up customers, with features at the last default cutoffs."""
    workspace = Workspace(tmp_path_factory.mktemp("generated"), redis_url, project="offline_generated")
    dataset = generate(workspace, customers=300, seed=7, progress=False)
    registry.apply(workspace)
    aggregates.build(workspace, default_cutoffs(dataset)[-4:], progress=False, created=CREATED)
    return workspace


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory, redis_url: str, sample_file: Path) -> Workspace:
    """300 real customers, with features at `instants`."""
    workspace = Workspace(tmp_path_factory.mktemp("sample"), redis_url, project="offline_sample")
    dataset = load_events(workspace, sample_file)
    registry.apply(workspace)
    aggregates.build(workspace, instants(dataset.first_event, dataset.as_of, 5), progress=False, created=CREATED)
    return workspace


def instants(first: datetime, end: datetime, number: int) -> Sequence[datetime]:
    """Random ones, at any second of the day; the first few months have too little to look at."""
    start = first + timedelta(days=60)
    seconds = np.random.default_rng(11).integers(0, int((end - start).total_seconds()), number)
    return sorted(start.replace(microsecond=0) + timedelta(seconds=int(second)) for second in seconds)
