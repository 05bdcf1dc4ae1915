"""Who gets in: rows are counted by lane, and nobody is too large for a lane that is empty."""

import time

import pytest

from service.admission import Admission
from service.errors import Overloaded
from service.metrics import Metrics


@pytest.fixture
def admission() -> Admission:
    return Admission({"predict": 100, "explain": 64}, Metrics())


def shed(admission: Admission, lane: str, reason: str = "inflight_rows") -> float:
    labels = {"lane": lane, "reason": reason}
    return admission.metrics.registry.get_sample_value("rapport_shed_total", labels) or 0.0


def test_a_lane_takes_what_fits_and_refuses_the_rest(admission: Admission) -> None:
    admission.enter("explain", 32)
    admission.enter("explain", 32)
    with pytest.raises(Overloaded):
        admission.enter("explain", 1)
    assert shed(admission, "explain") == 1

    admission.leave("explain", 32)
    admission.enter("explain", 32)
    assert admission.rows == {"predict": 0, "explain": 64}


def test_lanes_do_not_crowd_each_other_out(admission: Admission) -> None:
    admission.enter("explain", 64)
    admission.enter("predict", 100)

    for lane in ("explain", "predict"):
        with pytest.raises(Overloaded):
            admission.enter(lane, 1)


def test_a_lane_with_nobody_in_it_takes_anybody(admission: Admission) -> None:
    """A request that is allowed but heavier than the lane would otherwise never be answered."""
    admission.enter("explain", 32 * 64)
    assert shed(admission, "explain") == 0

    for rows in (1, 32 * 64):
        with pytest.raises(Overloaded):
            admission.enter("explain", rows)
    admission.leave("explain", 32 * 64)
    assert admission.rows["explain"] == 0
    admission.enter("explain", 32 * 64)


def test_who_is_refused_counts_for_nothing(admission: Admission) -> None:
    admission.enter("predict", 60)
    with pytest.raises(Overloaded):
        admission.enter("predict", 41)

    admission.enter("predict", 40)
    assert admission.rows["predict"] == 100
    for rows in (60, 40):
        admission.leave("predict", rows)
    assert set(admission.rows.values()) == {0}


def test_who_would_be_answered_too_late_is_refused_at_once_behind_others(admission: Admission) -> None:
    now = time.monotonic()
    admission.enter("explain", 10, row_s=1.0, deadline=now + 5)  # nobody is before it: it is tried
    admission.enter("explain", 10, row_s=1.0, deadline=now + 60)

    with pytest.raises(Overloaded):
        admission.enter("explain", 10, row_s=1.0, deadline=now + 15)
    assert shed(admission, "explain", "predicted_wait") == 1
    assert admission.rows["explain"] == 20
