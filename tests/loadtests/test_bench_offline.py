"""What the steps of the offline half cost, measured on a small scale."""

from pathlib import Path

import pytest

from loadtests.bench.home import Home, PreparationError
from loadtests.bench.offline import STEPS, Step, offline
from loadtests.bench.offline_page import by_size
from loadtests.bench.plan import Plan
from loadtests.bench.targets import Cores


def plan_of(directory: Path, *sizes: int) -> Plan:
    home = Home(directory, "", "", [], directory, "", directory, {})
    return Plan(home, Cores(0, 0), seconds=1, rounds=1, customers=1, models=1, sizes=sizes)


def test_a_step_is_measured_at_every_size_and_leaves_nothing(tmp_path: Path) -> None:
    time, memory = offline(plan_of(tmp_path, 2_000, 200, 1_000), steps=STEPS[:1])
    for row in (time, memory):
        assert row.details["customers"] == [200, 1_000, 2_000]
        small, _, large = row.details["costs"]
        for cost in row.details["costs"]:
            assert cost["seconds"] > 0
            assert cost["processor_s"] > 0
            assert 50 < cost["mib"] < 4_000
    assert time.figure == pytest.approx(large["seconds"] / small["seconds"] / 10)
    assert memory.figure == pytest.approx(large["mib"] / small["mib"])
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="features build"):
        list(offline(plan_of(tmp_path, 2_000), steps=[Step("features", ("features", "build"), "building features")]))


def test_the_page_has_a_line_for_every_step_and_size() -> None:
    details = {
        "step": "building features",
        "customers": [100_000, 1_000_000],
        "costs": [
            {"seconds": 90.4, "processor_s": 120.0, "mib": 1_400.2},
            {"seconds": 1_901.0, "processor_s": 1_300.0, "mib": 1_450.0},
        ],
    }
    lines = by_size([{"details": details}, {"details": details}])

    assert lines[-2:] == [
        "| building features | 100,000 | 90 | 120 | 1,200 | 1,400 |",
        "| building features | 1,000,000 | 1,901 | 1,300 | 1,300 | 1,450 |",
    ]
    assert by_size([]) == []
