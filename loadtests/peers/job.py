"""The job that every peer does, inside its own environment: a customer's features by Feast's SDK, encoded, scored.

The calls are those that Feast documents; the store is opened and the feature service looked up once.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from feast import FeatureStore

from loadtests.peers.encode import Columns
from loadtests.peers.model import AS_OF, RELEASE, REPO, Model


class Job:
    def __init__(self, repo: Path, release: Path, as_of: float) -> None:
        self.store = FeatureStore(repo_path=str(repo))
        # A release's folder is MODEL.VERSION, and the feature service has the model's name.
        self.service = self.store.get_feature_service(release.name.partition(".")[0])
        self.model = Model(release, as_of)

    @classmethod
    def from_environment(cls) -> "Job":
        return cls(Path(os.environ[REPO]), Path(os.environ[RELEASE]), float(os.environ[AS_OF]))

    def read(self, customers: Sequence[str]) -> Columns:
        answer: Columns = self.store.get_online_features(self.service, _rows(customers)).to_dict()
        return answer

    async def read_async(self, customers: Sequence[str]) -> Columns:
        answer: Columns = (await self.store.get_online_features_async(self.service, _rows(customers))).to_dict()
        return answer


def _rows(customers: Sequence[str]) -> list[dict[str, str]]:
    return [{"customer_id": customer} for customer in customers]
