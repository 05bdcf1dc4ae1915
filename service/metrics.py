"""What SREs see: every Prometheus metric of the gateway, in seconds and base units.

Labels come from closed sets only: routes, served models, versions, tasks, features and views of loaded contracts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from feature_client.contract import Contract
from feature_client.release import Release
from feature_client.schema import Encoded

SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
AGES = (60, 600, 3_600, 21_600, 86_400, 172_800, 345_600, 604_800, 2_592_000, 7_776_000)
SCORES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 10, 50, 100, 250, 500, 1_000, 5_000, 10_000)

NO_MODEL = "-"
"""The model label of a request that names none that is served."""


class Metrics:
    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._requests = Counter("rapport_requests", "Requests answered", ["route", "model", "code"], registry=registry)
        self._duration = Histogram(
            "rapport_request_duration_seconds",
            "From the first byte to the answer",
            ["route", "model"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "rapport_stage_duration_seconds",
            "Time of a request in one stage",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._predictions = Counter(
            "rapport_predictions", "Entities scored", ["model", "version", "status"], registry=registry
        )
        self._batch_rows = Histogram(
            "rapport_batch_rows", "Entities in one batch", ["stage"], buckets=ROWS, registry=registry
        )
        self._feature_age = Histogram(
            "rapport_feature_age_seconds", "Age of the rows read", ["view"], buckets=AGES, registry=registry
        )
        self._defaulted = Counter(
            "rapport_feature_defaulted", "Values missing and replaced by their default", ["feature"], registry=registry
        )
        self._stale = Counter(
            "rapport_feature_stale", "Values older than their max_age", ["feature"], registry=registry
        )
        self._scores = Histogram(
            "rapport_scores", "Scores given", ["model", "version", "task"], buckets=SCORES, registry=registry
        )
        self._inflight = Gauge(
            "rapport_inflight", "Entities admitted and not yet answered", ["lane"], registry=registry
        )
        self._shed = Counter("rapport_shed", "Requests refused at the door", ["lane", "reason"], registry=registry)
        self._dependency = Gauge(
            "rapport_dependency_up", "1 while the dependency answered last time", ["dependency"], registry=registry
        )
        self._release = Gauge(
            "rapport_release_info",
            "1 for every loaded release, 0 for those that were",
            ["model", "version", "digest", "role"],
            registry=registry,
        )
        self._loaded: set[tuple[str, str, str, str]] = set()
        self._reload_failures = Counter(
            "rapport_reload_failures", "Releases or routes that could not be loaded", registry=registry
        )

    def request(self, route: str, model: str, code: int, seconds: float) -> None:
        self._requests.labels(route, model, code).inc()
        self._duration.labels(route, model).observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        self._stages.labels(name).observe(seconds)

    def batch(self, stage: str, rows: int) -> None:
        self._batch_rows.labels(stage).observe(rows)

    def shed(self, lane: str, reason: str) -> None:
        self._shed.labels(lane, reason).inc()

    def inflight(self, lane: str, rows: int) -> None:
        self._inflight.labels(lane).set(rows)

    def dependency(self, name: str, *, up: bool) -> None:
        self._dependency.labels(name).set(int(up))

    def reload_failed(self) -> None:
        self._reload_failures.inc()

    def releases(self, loaded: list[tuple[Release, str]]) -> None:
        """`loaded`: every release with its role, champion or standby; what was loaded before becomes 0."""
        # Set, not removed: removing a series is not possible where several workers share their metrics.
        labels = {
            (release.manifest.model, release.version, release.contract.digest[:12], role) for release, role in loaded
        }
        for gone in self._loaded - labels:
            self._release.labels(*gone).set(0)
        for label in labels:
            self._release.labels(*label).set(1)
        self._loaded |= labels

    def features(self, contract: Contract, encoded: Encoded, view_ages: npt.NDArray[np.float64]) -> None:
        """view_ages: [rows, views] in seconds, NaN where the view has no row."""
        names = [feature.name for feature in contract.schema.features]
        for position in np.flatnonzero(encoded.defaulted.any(axis=0)):
            self._defaulted.labels(names[position]).inc(int(encoded.defaulted[:, position].sum()))
        for position in np.flatnonzero(encoded.stale.any(axis=0)):
            self._stale.labels(names[position]).inc(int(encoded.stale[:, position].sum()))
        for view, ages in zip(contract.schema.views, view_ages.T, strict=True):
            for age in ages[~np.isnan(ages)].tolist():
                self._feature_age.labels(view).observe(age)

    def predictions(
        self,
        contract: Contract,
        version: str,
        statuses: Sequence[str],
        scores: npt.NDArray[np.float32],
        answered: npt.NDArray[np.bool_],
    ) -> None:
        """statuses: one a row. scores, answered: [rows, tasks]; what was not answered is not observed."""
        for status in statuses:
            self._predictions.labels(contract.model, version, status).inc()
        for position, task in enumerate(contract.task_names):
            for score in scores[answered[:, position], position].tolist():
                self._scores.labels(contract.model, version, task).observe(score)

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)
