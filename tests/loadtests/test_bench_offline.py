"""What the steps of the offline half cost, measured on a small scale."""

from pathlib import Path

import pytest

from loadtests.bench.home import Home, PreparationError
from loadtests.bench.offline import STEPS, Step, offline
from loadtests.bench.plan import Plan
from loadtests.bench.targets import Cores


def plan_of(directory: Path, customers: int) -> Plan:
    home = Home(directory, "", "", [], directory, "", directory, {})
    return Plan(home, Cores(0, 0), seconds=1, rounds=1, customers=customers, models=1)


def test_a_step_is_measured_at_both_sizes_and_leaves_nothing(tmp_path: Path) -> None:
    time, memory = offline(plan_of(tmp_path, 2_000), steps=STEPS[:1])
    for row in (time, memory):
        small, large = row.details["costs"]
        assert row.details["customers"] == (200, 2_000)
        assert small["seconds"] > 0
        assert 50 < small["mib"] < 4_000
        assert 50 < large["mib"] < 4_000
    assert time.figure == pytest.approx(large["seconds"] / small["seconds"] / 10)
    assert memory.figure == pytest.approx(large["mib"] / small["mib"])
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="features build"):
        list(offline(plan_of(tmp_path, 2_000), steps=[Step("features", ("features", "build"), "building features")]))
