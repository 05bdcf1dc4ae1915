"""Where a value lies among the customers of training."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_client.contract import Distribution

STEPS = np.linspace(0.0, 1.0, 21)


def of(values: "list[float] | np.ndarray") -> Distribution:
    return Distribution(0.0, tuple(np.quantile(np.asarray(values, dtype=np.float64), STEPS).tolist()))


NUMBERS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60)


@given(NUMBERS, NUMBERS)
def test_a_larger_value_never_has_a_smaller_percentile(known: list[float], asked: list[float]) -> None:
    distribution = of(known)
    found = [distribution.percentile(value) for value in sorted([*asked, *known])]

    assert all(percentile is not None and 0 <= percentile <= 100 for percentile in found)
    assert found == sorted(found, key=float)  # type: ignore[arg-type]


@given(NUMBERS)
def test_what_nobody_has_lies_at_the_ends(known: list[float]) -> None:
    below, above = min(known) - 1 - abs(min(known)), max(known) + 1 + abs(max(known))

    assert of(known).percentile(below) == 0
    assert of(known).percentile(above) == 100


@given(st.integers(0, 1000))
def test_evenly_spread_values_are_their_own_percentiles(tenths: int) -> None:
    assert of([0.0, 100.0]).percentile(tenths / 10) == pytest.approx(tenths / 10)


def test_a_value_that_many_share_lies_in_the_middle_of_them() -> None:
    of_ten = [0.0] * 4 + [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    many = np.repeat(of_ten, 1_000)

    assert of(many).percentile(0.0) == pytest.approx(20, abs=2.5)
    assert of([7.0, 7.0, 7.0]).percentile(7.0) == 50
    assert of([7.0, 7.0, 7.0]).percentile(6.9) == 0
    assert of([7.0, 7.0, 7.0]).percentile(7.1) == 100


def test_percentiles_say_how_many_customers_have_less() -> None:
    values = np.random.default_rng(0).lognormal(3, 1, 50_000)
    distribution = of(values)

    for value in (5.0, 20.0, 60.0):
        assert distribution.percentile(value) == pytest.approx(100 * (values < value).mean(), abs=1)
    # Of the largest twentieth only its ends are known, so the long tail within it is not.
    for value in (0.5, 150.0, 500.0):
        assert distribution.percentile(value) == pytest.approx(100 * (values < value).mean(), abs=5)


@pytest.mark.parametrize("quantiles", [(), (1.0,)])
def test_without_reference_there_is_no_percentile(quantiles: tuple[float, ...]) -> None:
    assert Distribution(1.0, quantiles).percentile(1.0) is None
