"""What SREs see: every Prometheus metric of the gateway, in seconds and base units.

Labels come from closed sets only: routes, served models, versions, tasks, features and views of loaded contracts.
A scrape of any worker answers for all of them (shared_metrics.py).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, generate_latest

from feature_client.contract import Contract
from feature_client.release import Release
from feature_client.schema import Encoded
from service.shared_metrics import shared_directory, shared_registry
from service.tallies import FEW_ROWS, CounterTally, GaugeTally, HistogramTally, Tally, observe_columns

SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
AGES = (60, 600, 3_600, 21_600, 86_400, 172_800, 345_600, 604_800, 2_592_000, 7_776_000)
SCORES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 10, 50, 100, 250, 500, 1_000, 5_000, 10_000)


class Metrics:
    """Observed in one thread; the exposition may be asked for in another."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        counter = partial(CounterTally, registry=registry)
        gauge = partial(GaugeTally, registry=registry)
        histogram = partial(HistogramTally, registry=registry)
        self._requests = counter("rapport_requests", "Requests answered", ["route", "model", "code"])
        self._duration = histogram(
            "rapport_request_duration_seconds", "From the first byte to the answer", ["route", "model"], buckets=SECONDS
        )
        self._stages = histogram(
            "rapport_stage_duration_seconds", "Time of a request in one stage", ["stage"], buckets=SECONDS
        )
        self._predictions = counter("rapport_predictions", "Entities scored", ["model", "version", "status"])
        self._batch_rows = histogram("rapport_batch_rows", "Entities in one batch", ["stage"], buckets=ROWS)
        self._feature_age = histogram("rapport_feature_age_seconds", "Age of the rows read", ["view"], buckets=AGES)
        self._defaulted = counter(
            "rapport_feature_defaulted", "Values missing and replaced by their default", ["feature"]
        )
        self._stale = counter("rapport_feature_stale", "Values older than their max_age", ["feature"])
        self._scores = histogram("rapport_scores", "Scores given", ["model", "version", "task"], buckets=SCORES)
        self._inflight = gauge(
            "rapport_inflight", "Entities admitted and not yet answered", ["lane"], multiprocess_mode="livesum"
        )
        self._shed = counter("rapport_shed", "Requests refused at the door", ["lane", "reason"])
        # Whichever worker asked last: the worst of all would stay where its worker is asked no more.
        self._dependency = gauge(
            "rapport_dependency_up",
            "1 while the dependency answered last time",
            ["dependency"],
            multiprocess_mode="livemostrecent",
        )
        self._release = gauge(
            "rapport_release_info",
            "1 for every loaded release, 0 for those that were",
            ["model", "version", "digest", "role"],
            multiprocess_mode="livemax",
        )
        self._reload_failures = counter("rapport_reload_failures", "Releases or routes that could not be loaded")
        self._shadow = counter(
            "rapport_shadow_rows", "Rows that a shadow got to see, by what came of it", ["model", "version", "outcome"]
        )
        self._shadow_unwritten = counter(
            "rapport_shadow_unwritten_rows",
            "Rows that a shadow scored and that could not be kept",
            ["model", "version"],
        )
        self._loaded: set[tuple[str, str, str, str]] = set()
        self._ages: dict[str, list[HistogramTally]] = {}  # contract digest -> one a view
        self._tasks: dict[tuple[str, str], list[HistogramTally]] = {}  # contract digest, version -> one a task

    def requests(self, route: str, model: str, code: int, seconds: Sequence[float]) -> None:
        """Requests that were answered alike, with how long each took."""
        self._requests.of(route, model, code).inc(len(seconds))
        self._duration.of(route, model).observe_all(seconds)

    def stages(self, name: str, seconds: Sequence[float]) -> None:
        """How long requests were in a stage."""
        self._stages.of(name).observe_all(seconds)

    def batch(self, stage: str, rows: int) -> None:
        self._batch_rows.of(stage).observe(rows)

    def shed(self, lane: str, reason: str) -> None:
        self._shed.of(lane, reason).inc()

    def inflight(self, rows: Mapping[str, int]) -> None:
        """rows: lane -> entities; looked at whenever somebody asks, and kept up to date by its owner."""
        self._inflight.source = lambda: [((lane,), count) for lane, count in rows.items()]

    def dependency(self, name: str, *, up: bool) -> None:
        self._dependency.of(name).set(int(up))

    def reload_failed(self) -> None:
        self._reload_failures.inc()

    def releases(self, loaded: list[tuple[Release, str]]) -> None:
        """`loaded`: every release with its role: champion, canary, shadow, standby; what was before becomes 0."""
        # Set, not removed: removing a series is not possible where several workers share their metrics.
        labels = {
            (release.manifest.model, release.version, release.contract.digest[:12], role) for release, role in loaded
        }
        for gone in self._loaded - labels:
            self._release.of(*gone).set(0)
        for label in labels:
            self._release.of(*label).set(1)
        self._loaded |= labels

    def shadow(self, release: Release, outcome: str, rows: int) -> None:
        """outcome: scored, dropped (no time for them), failed, incomparable (asked what the shadow does not know)."""
        self._shadow.of(release.manifest.model, release.version, outcome).inc(rows)

    def shadow_unwritten(self, release: Release, rows: int) -> None:
        self._shadow_unwritten.of(release.manifest.model, release.version).inc(rows)

    def features(self, contract: Contract, encoded: Encoded, view_ages: npt.NDArray[np.float64]) -> None:
        """What one batch read. view_ages: [rows, views] in seconds, NaN where the view has no row."""
        for counter, mask in ((self._defaulted, encoded.defaulted), (self._stale, encoded.stale)):
            # Most batches have none, and asking bytes is much cheaper than asking numpy.
            if 1 in mask.tobytes():
                for feature, values in zip(contract.schema.features, mask.sum(axis=0).tolist(), strict=True):
                    if values:
                        counter.of(feature.name).inc(values)
        ages = self._ages.get(contract.digest)
        if ages is None:
            ages = self._ages[contract.digest] = [self._feature_age.of(view) for view in contract.schema.views]
        observe_columns(ages, view_ages)

    def predictions(
        self,
        contract: Contract,
        version: str,
        statuses: Sequence[str],
        scores: npt.NDArray[np.float32],
        answered: npt.NDArray[np.bool_],
    ) -> None:
        """What one batch was answered.

        statuses: one an entity. scores: [rows, tasks]. answered: [rows, tasks], false where the answer has no score.
        """
        for status, entities in [(statuses[0], 1)] if len(statuses) == 1 else Counter(statuses).items():
            self._predictions.of(contract.model, version, status).inc(entities)
        tasks = self._tasks.get((contract.digest, version))
        if tasks is None:
            tasks = [self._scores.of(contract.model, version, task) for task in contract.task_names]
            self._tasks[contract.digest, version] = tasks
        if len(scores) > FEW_ROWS:
            observe_columns(tasks, np.where(answered, scores, np.nan))
            return
        for row, given in zip(scores.tolist(), answered.tolist(), strict=True):
            for task, score, is_given in zip(tasks, row, given, strict=True):
                if is_given:
                    task.observe(score)

    def flush(self) -> None:
        """For a scrape of another worker to see what was observed so far; one's own scrape needs none."""
        for metric in vars(self).values():
            if isinstance(metric, Tally):
                metric.flush()

    def exposition(self) -> bytes:
        """The text format of Prometheus; of all workers, where there are several."""
        directory = shared_directory()
        if directory is None:
            return generate_latest(self.registry)
        self.flush()
        return generate_latest(shared_registry(directory))
