"""The feature read of a batch, by whoever asks for it: predictions, explanations and the features themselves."""

import time
from collections.abc import Sequence

from feature_client.online.plan import ReadPlan
from feature_client.online.reader import EntityKey, FeatureReader, FeatureStoreUnavailable
from feature_client.schema import FeatureBatch
from service.errors import DeadlineExceeded
from service.metrics import Metrics

TIMER_S = 0.005
"""How early a timer may be: event loops count in milliseconds, from when they last looked at the clock."""


async def fetch(
    reader: FeatureReader, metrics: Metrics, plan: ReadPlan, keys: Sequence[EntityKey], seconds: float
) -> FeatureBatch:
    """Within the seconds that are left. Raises FeatureStoreUnavailable, DeadlineExceeded."""
    started = time.monotonic()
    try:
        stored = await reader.fetch(plan, keys, seconds)
    except FeatureStoreUnavailable as exc:
        if time.monotonic() - started >= seconds - TIMER_S:
            # It was the requests' own time that ran out: nothing is known of the store.
            raise DeadlineExceeded from exc
        metrics.dependency("feature_store", up=False)
        raise
    metrics.dependency("feature_store", up=True)
    return stored
