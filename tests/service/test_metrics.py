"""Metrics: cheap to observe, and to Prometheus exactly what the library itself would have said."""

import math
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from feature_client.release import Release
from feature_client.schema import Encoded
from service.metrics import AGES, ROWS, SCORES, SECONDS, Metrics
from service.shared_metrics import forget, shared_registry
from service.tallies import FEW_ROWS, CounterTally, GaugeTally, HistogramTally, observe_columns

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]

BOUNDS = (0.0, 0.5, 1.0, 10.0)
ON_AND_BESIDE_BOUNDS = [
    value for bound in BOUNDS for value in (bound, math.nextafter(bound, -math.inf), math.nextafter(bound, math.inf))
]
AMOUNTS = st.sampled_from([*ON_AND_BESIDE_BOUNDS, math.inf]) | st.floats(-5, 20)


def series(exposition: bytes) -> Series:
    """(name, sorted labels) -> value; without the instants of creation."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def same(ours: Series, naive: Series) -> None:
    assert ours.keys() == naive.keys()
    for name, value in naive.items():
        if name[0].endswith("_sum"):
            assert ours[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
        else:
            assert ours[name] == value, name


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), AMOUNTS), max_size=5), max_size=4))
def test_a_histogram_says_what_the_librarys_own_says_however_often_it_is_asked(
    scrapes: list[list[tuple[str, float]]],
) -> None:
    ours, naive = CollectorRegistry(), CollectorRegistry()
    tally = HistogramTally("seconds", "Doc", ["stage"], buckets=BOUNDS, registry=ours)
    own = Histogram("seconds", "Doc", ["stage"], buckets=BOUNDS, registry=naive)

    for observed in scrapes:
        for stage, amount in observed:
            tally.of(stage).observe(amount)
            own.labels(stage).observe(amount)
        same(series(generate_latest(ours)), series(generate_latest(naive)))


@given(st.integers(0, 3 * FEW_ROWS), st.data())
def test_a_matrix_is_observed_as_its_values_one_by_one(rows: int, data: st.DataObject) -> None:
    values = data.draw(
        st.lists(st.lists(AMOUNTS | st.just(math.nan), min_size=2, max_size=2), min_size=rows, max_size=rows)
    )
    ours, naive = CollectorRegistry(), CollectorRegistry()
    tally = HistogramTally("age", "Doc", ["view"], buckets=BOUNDS, registry=ours)
    own = Histogram("age", "Doc", ["view"], buckets=BOUNDS, registry=naive)
    columns = [tally.of("x"), tally.of("y")]
    for column in "xy":
        own.labels(column)

    observe_columns(columns, np.array(values, dtype=np.float64).reshape(rows, 2))
    for row in values:
        for column, value in zip("xy", row, strict=True):
            if not math.isnan(value):
                own.labels(column).observe(value)

    same(series(generate_latest(ours)), series(generate_latest(naive)))


def test_counters_and_gauges_are_the_librarys_own() -> None:
    def said(counter: type[Counter], gauge: type[Gauge]) -> Iterator[bytes]:
        registry = CollectorRegistry()
        failures = counter("failures", "Doc", registry=registry)
        requests = counter("requests", "Doc", ["code"], registry=registry)
        rows = gauge("rows", "Doc", ["lane"], registry=registry)
        yield generate_latest(registry)
        requests.labels("200").inc()
        requests.labels("200").inc(2.5)
        rows.labels("predict").set(7)
        failures.inc()
        yield generate_latest(registry)
        yield generate_latest(registry)
        requests.labels("503").inc(3)
        requests.labels("200").inc()
        rows.labels("predict").set(9)
        rows.labels("predict").set(0)
        yield generate_latest(registry)

    for ours, naive in zip(said(CounterTally, GaugeTally), said(Counter, Gauge), strict=True):
        assert without_created(ours) == without_created(naive)


def without_created(exposition: bytes) -> bytes:
    return re.sub(rb"(_created\S*) \S+", rb"\1", exposition)


def test_nothing_is_lost_or_counted_twice_while_others_scrape() -> None:
    registry = CollectorRegistry()
    histogram = HistogramTally("seconds", "Doc", ["stage"], buckets=BOUNDS, registry=registry)
    counter = CounterTally("requests", "Doc", registry=registry)
    done = threading.Event()
    seen: list[list[float]] = [[], []]

    def scrape(into: list[float]) -> None:
        while not done.is_set():
            into.append(series(generate_latest(registry))["requests_total", ()])

    scrapers = [threading.Thread(target=scrape, args=(into,)) for into in seen]
    for scraper in scrapers:
        scraper.start()
    child = histogram.of("infer")
    observed = 0
    while observed < 100_000 or min(map(len, seen)) < 20:
        child.observe(observed % 3)
        counter.inc()
        observed += 1
    done.set()
    for scraper in scrapers:
        scraper.join()

    found = series(generate_latest(registry))
    assert found["seconds_count", (("stage", "infer"),)] == observed
    assert found["seconds_sum", (("stage", "infer"),)] == sum(n % 3 for n in range(observed))
    assert found["requests_total", ()] == observed
    assert all(values == sorted(values) for values in seen)


def test_a_scrape_of_some_metrics_alone_is_as_fresh() -> None:
    metrics = Metrics()
    metrics.shed("predict", "inflight_rows")

    exposition = generate_latest(metrics.registry.restricted_registry(["rapport_shed_total"]))

    assert list(series(exposition).values()) == [1]


class Naive:
    """What Metrics promises, said with the library alone and one observation at a time."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.predictions = Counter("rapport_predictions", "", ["model", "version", "status"], registry=registry)
        self.ages = Histogram("rapport_feature_age_seconds", "", ["view"], buckets=AGES, registry=registry)
        self.defaulted = Counter("rapport_feature_defaulted", "", ["feature"], registry=registry)
        self.stale = Counter("rapport_feature_stale", "", ["feature"], registry=registry)
        self.scores = Histogram("rapport_scores", "", ["model", "version", "task"], buckets=SCORES, registry=registry)
        self.requests = Counter("rapport_requests", "", ["route", "model", "code"], registry=registry)
        self.duration = Histogram(
            "rapport_request_duration_seconds", "", ["route", "model"], buckets=SECONDS, registry=registry
        )
        self.stages = Histogram("rapport_stage_duration_seconds", "", ["stage"], buckets=SECONDS, registry=registry)
        self.batch_rows = Histogram("rapport_batch_rows", "", ["stage"], buckets=ROWS, registry=registry)


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1, 100])
def test_a_batch_counts_as_its_entities_one_by_one(release: Release, rows: int) -> None:
    contract = release.contract
    features, views, tasks = contract.schema.features, contract.schema.views, contract.task_names
    random = np.random.default_rng(rows)
    defaulted, stale = random.random((2, rows, len(features))) < 0.2
    ages = random.choice([*AGES, 0.0, 1e3, 1e9, np.nan], (rows, len(views)))
    # On the bounds, as float32 and as float64 has them.
    scores = random.choice([*SCORES, 0.05001, 0.33, 77.7, 1e6], (rows, len(tasks))).astype(np.float32)
    answered = random.random((rows, len(tasks))) < 0.8
    statuses = random.choice(["ok", "degraded", "unknown_entity"], rows).tolist()
    none = np.zeros_like(stale)
    encoded = Encoded(
        np.zeros((rows, 1), np.float32), np.zeros((rows, 1), np.int64), defaulted, stale, none,
        np.zeros(rows, bool), np.zeros(rows),
    )  # fmt: skip

    ours, naive = Metrics(), Naive()
    for _ in range(2):
        ours.batch("infer", rows)
        ours.features(contract, encoded, ages)
        ours.predictions(contract, "3", statuses, scores, answered)
        ours.request("/v1/predict", contract.model, 200, 0.0025)
        ours.stage("infer", 0.25)

        naive.batch_rows.labels("infer").observe(rows)
        for _, column in np.argwhere(defaulted):
            naive.defaulted.labels(features[column].name).inc()
        for _, column in np.argwhere(stale):
            naive.stale.labels(features[column].name).inc()
        for row, column in np.argwhere(~np.isnan(ages)):
            naive.ages.labels(views[column]).observe(ages[row, column])
        for row, column in np.argwhere(answered):
            naive.scores.labels(contract.model, "3", tasks[column]).observe(float(scores[row, column]))
        for status in statuses:
            naive.predictions.labels(contract.model, "3", status).inc()
        naive.requests.labels("/v1/predict", contract.model, 200).inc()
        naive.duration.labels("/v1/predict", contract.model).observe(0.0025)
        naive.stages.labels("infer").observe(0.25)

    found, promised = series(ours.exposition()), series(generate_latest(naive.registry))
    # A series may be there before its first observation, with nothing in it.
    rest = {name: value for name, value in found.items() if name not in promised}
    assert set(rest.values()) <= {0}
    same({name: value for name, value in found.items() if name in promised}, promised)


WORKER = """
import sys
from pathlib import Path
from service.metrics import Metrics
from service.shared_metrics import share

share(Path(sys.argv[1]), int(sys.argv[2]))
metrics = Metrics()
for _ in range(int(sys.argv[3])):
    metrics.request("/v1/predict", "engagement", 200, 0.25)
metrics.inflight("predict", int(sys.argv[3]))
metrics.dependency("feature_store", up=sys.argv[4] == "up")
metrics.flush()
print(metrics.exposition().decode())
"""


def worker(directory: Path, number: int, requests: int, store: str) -> Series:
    """A process that counts and goes, killed or not; what it saw at its end."""
    arguments = [str(directory), str(number), str(requests), store]
    run = subprocess.run([sys.executable, "-c", WORKER, *arguments], capture_output=True, text=True, check=True)
    return series(run.stdout.encode())


def test_workers_add_up_and_a_successor_goes_on_where_its_predecessor_stopped(tmp_path: Path) -> None:
    requests = "rapport_requests_total", (("code", "200"), ("model", "engagement"), ("route", "/v1/predict"))
    labels = (("model", "engagement"), ("route", "/v1/predict"))
    up = "rapport_dependency_up", (("dependency", "feature_store"),)

    def count(found: Series) -> Sequence[float]:
        return [
            found[requests],
            found["rapport_request_duration_seconds_count", labels],
            found["rapport_request_duration_seconds_sum", labels],
            found["rapport_request_duration_seconds_bucket", (("le", "0.25"), *labels)],
            found["rapport_request_duration_seconds_bucket", (("le", "0.1"), *labels)],
        ]

    assert count(worker(tmp_path, 0, 3, "up")) == [3, 3, 0.75, 3, 0]
    second = worker(tmp_path, 1, 4, "down")
    assert count(second) == [7, 7, 1.75, 7, 0]
    assert second["rapport_inflight", (("lane", "predict"),)] == 7
    assert second[up] == 0
    files = set(tmp_path.iterdir())
    successor = worker(tmp_path, 0, 2, "up")
    assert count(successor) == [9, 9, 2.25, 9, 0]
    assert successor["rapport_inflight", (("lane", "predict"),)] == 6
    assert successor[up] == 1
    assert set(tmp_path.iterdir()) == files
    forget(tmp_path, 1)
    left = series(generate_latest(shared_registry(tmp_path)))
    assert count(left) == [9, 9, 2.25, 9, 0]
    assert left["rapport_inflight", (("lane", "predict"),)] == 2
