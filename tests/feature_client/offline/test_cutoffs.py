"""The split: matured labels, nothing in two parts, the same rule for every data set."""

from datetime import UTC, datetime, timedelta

import pytest

from feature_client.offline.cutoffs import CutoffError, default_cutoffs, parse, split
from feature_client.offline.workspace import DataSet


def dataset(first: str, as_of: str) -> DataSet:
    begin, end = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (first, as_of))
    return DataSet("events", begin, end, "GBP", ("purchase",), 1, {}, "")


def days(cutoffs: list[datetime]) -> list[str]:
    return [f"{cutoff:%Y-%m-%d}" for cutoff in cutoffs]


def test_the_real_data_is_split_as_its_figures_were_measured() -> None:
    parts = split(dataset("2009-12-01T07:45:00", "2011-09-01"))
    assert (days(parts.train)[0], days(parts.train)[-1], len(parts.train)) == ("2010-03-04", "2010-10-14", 17)
    assert days(parts.validation) == ["2011-01-20", "2011-02-03", "2011-02-17"]
    assert days(parts.test) == ["2011-05-19", "2011-06-02"]
    assert (days(parts.known)[-1], len(parts.known)) == ("2011-04-14", 30)


@pytest.mark.parametrize("as_of", ["2026-01-01T00:00:00", "2025-12-09T00:00:00", "2026-03-03T17:30:00"])
def test_labels_of_one_part_end_before_the_next_begins(as_of: str) -> None:
    data = dataset("2024-01-04T02:10:00", as_of)
    parts = split(data)
    label = timedelta(days=90)
    assert max(parts.train) + label <= min(parts.validation)
    assert max(parts.validation) + label <= min(parts.test)
    assert max(parts.test) + label <= data.as_of
    assert min(parts.train) >= data.first_event + timedelta(days=89)
    assert len(parts.train) >= 20
    assert set(parts.train) <= set(parts.known)
    assert parts.known[-1] + timedelta(days=30) <= min(parts.test) < parts.known[-1] + timedelta(days=44)
    assert set(default_cutoffs(data)) == {*parts.known, *parts.validation, *parts.test, data.as_of}
    assert {cutoff.weekday() for cutoff in default_cutoffs(data)} == {data.as_of.weekday()}


def test_data_too_short_to_learn_from_is_refused_with_what_is_missing() -> None:
    with pytest.raises(CutoffError, match=r"training, validation and test need [0-9]+ more days"):
        split(dataset("2025-06-01", "2026-01-01"))


def test_windows_follow_from_test_cutoffs_of_ones_own() -> None:
    """The split of the figures on the longer file."""
    parts = split(dataset("2009-12-01T07:45:00", "2011-12-10"), parse("2011-09-08,2011-09-01"))
    assert (days(parts.train)[0], days(parts.train)[-1], len(parts.train)) == ("2010-03-04", "2011-02-03", 25)
    assert days(parts.validation) == ["2011-05-05", "2011-05-19", "2011-06-02"]
    assert days(parts.test) == ["2011-09-01", "2011-09-08"]


def test_own_cutoffs_equal_to_the_default_ones_change_nothing() -> None:
    data = dataset("2009-12-01T07:45:00", "2011-09-01")
    assert split(data, parse("2011-05-19,2011-06-02")) == split(data)


def test_test_cutoffs_whose_labels_are_open_are_refused() -> None:
    with pytest.raises(CutoffError, match="2011-06-16 need events until 2011-09-14, but events ends on 2011-09-01"):
        split(dataset("2009-12-01", "2011-09-01"), parse("2011-05-19,2011-06-16"))


@pytest.mark.parametrize("text", ["", "2011-05-19,", "19.05.2011", "2011-13-01", "2011-05-19;2011-06-02"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(CutoffError, match="write dates as 2011-05-19,2011-06-02"):
        parse(text)


def test_dates_are_midnights_once_each_in_order() -> None:
    assert parse("2011-06-02, 2011-05-19,2011-06-02") == [
        datetime(2011, 5, 19, tzinfo=UTC),
        datetime(2011, 6, 2, tzinfo=UTC),
    ]
