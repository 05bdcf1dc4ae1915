"""Where the offline half keeps its files: one directory for one data set."""

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from feature_client.errors import RapportError


class WorkspaceError(RapportError):
    """A file of the workspace that is not there, cannot be read, or does not fit on the disk."""


@dataclass(frozen=True)
class DataSet:
    """What is known of the events besides the events themselves.

    first_event: the earliest event. as_of: the instant at which the data set is served; its events end before it.
    recorded: the event types that its source records; features over other types are null, not zero.
    """

    name: str
    first_event: datetime
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
    def schema_file(self) -> Path:
        """The compiled FeatureSchema as JSON, so that nothing but `features apply` has to import Feast."""
        return self.root / "schema.json"

    @property
    def truth(self) -> Path:
        """The effects that generated events were made with."""
        return self.root / "truth.json"

    @property
    def customers(self) -> Path:
        """Some ids that the online store knows, one a line."""
        return self.root / "customers.txt"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def models(self) -> Path:
        """The model repository."""
        return self.root / "models"

    def dataset(self) -> DataSet:
        """Raises WorkspaceError where there are no events yet."""
        try:
            return msgspec.json.decode(self.dataset_file.read_bytes(), type=DataSet)
        except FileNotFoundError as exc:
            raise WorkspaceError(f"no events in {self.root}: generate or load some first") from exc
        except msgspec.MsgspecError as exc:
            raise WorkspaceError(f"{self.dataset_file} cannot be read ({exc}): load the events again") from exc

    def require_space(self, needed: int, why: str) -> None:
        """Refuses early, by name, what would otherwise fail half-way. needed: bytes."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise WorkspaceError(
                f"{why} needs about {needed / 1e6:,.0f} MB in {self.root}, only {free / 1e6:,.0f} free"
            )
