"""Steps: done once, repeated when what they depend on changed."""

from pathlib import Path

from service.steps import STEPS, Stamps


def finished(home: Path, parameters: dict[str, object]) -> Stamps:
    stamps = Stamps(home, parameters)
    for step in STEPS:
        stamps.done(step.name)
    return stamps


def test_a_new_directory_has_everything_to_do(tmp_path: Path) -> None:
    assert Stamps(tmp_path, {}).stale() == [step.name for step in STEPS]


def test_what_is_done_stays_done(tmp_path: Path) -> None:
    finished(tmp_path, {"seed": 1})

    assert Stamps(tmp_path, {"seed": 1}).stale() == []


def test_other_events_make_everything_stale(tmp_path: Path) -> None:
    finished(tmp_path, {"seed": 1})

    assert Stamps(tmp_path, {"seed": 2}).stale() == [step.name for step in STEPS]


def test_forgetting_the_store_repeats_only_that(tmp_path: Path) -> None:
    stamps = finished(tmp_path, {})
    stamps.forget("materialize")

    assert stamps.stale() == ["materialize"]
