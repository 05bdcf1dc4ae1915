"""Where the offline half keeps its files: one directory for one data set."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec


@dataclass(frozen=True)
class DataSet:
    """What is known of the events besides the events themselves.

    as_of: the instant at which the data set is served; its events end before it.
    recorded: the event types that its source records; features over other types are null, not zero.
    """

    name: str
    as_of: datetime
    currency: str
    recorded: tuple[str, ...]
    events: int
    rejected: dict[str, int]  # reason -> rows
    digest: str  # of the accepted events


@dataclass(frozen=True)
class Workspace:
    """`redis` is Feast's connection string of the online store, `host:port` with options after commas."""

    root: Path
    redis: str = "127.0.0.1:6379"
    project: str = "rapport"

    @property
    def events(self) -> Path:
        return self.root / "events.parquet"

    @property
    def rejected(self) -> Path:
        return self.root / "rejected.parquet"

    @property
    def dataset_file(self) -> Path:
        return self.root / "dataset.json"

    @property
    def features(self) -> Path:
        """One parquet file a feature view: `<view>.parquet`."""
        return self.root / "features"

    @property
    def registry(self) -> Path:
        return self.root / "registry.db"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def models(self) -> Path:
        """The model repository."""
        return self.root / "models"

    def dataset(self) -> DataSet:
        return msgspec.json.decode(self.dataset_file.read_bytes(), type=DataSet)
