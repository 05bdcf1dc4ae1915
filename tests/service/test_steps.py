"""Steps: done once, repeated when what they depend on changed."""

import shutil
from pathlib import Path

import pytest

from service import steps
from service.steps import STEPS, Stamps


def finished(home: Path, parameters: dict[str, object]) -> Stamps:
    stamps = Stamps(home, parameters)
    for step in STEPS:
        for made in step.makes:
            (home / made).parent.mkdir(parents=True, exist_ok=True)
            (home / made).touch()
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


def test_what_was_deleted_is_made_again(tmp_path: Path) -> None:
    stamps = finished(tmp_path, {})
    (tmp_path / "models" / "routes.toml").unlink()

    assert stamps.stale() == ["publish"]


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("feature_client/feature_repo/feature_store.yaml", ["features", "materialize", "train", "publish"]),
        ("feature_client/offline/events.py", ["events", "features", "materialize", "train", "publish"]),
        ("model_export/train.py", ["train", "publish"]),
    ],
)
def test_changed_code_repeats_what_it_is_code_of(tmp_path: Path, file: str, stale: list[str]) -> None:
    sources = tmp_path / "sources"
    for package in ("feature_client", "model_export"):
        shutil.copytree(steps.SOURCES / package, sources / package)
    home = tmp_path / "home"
    stamps = finished(home, {})
    assert Stamps(home, {}, sources).stale() == []
    with (sources / file).open("a") as source:
        source.write("\n# changed\n")

    assert Stamps(home, {}, sources).stale() == stale
    assert stamps.stale() == []


def test_forgetting_the_store_repeats_only_that(tmp_path: Path) -> None:
    stamps = finished(tmp_path, {})
    stamps.forget("materialize")

    assert stamps.stale() == ["materialize"]
