from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from feature_client.contract import CONTRACT_KEY
from feature_client.golden import golden_name
from feature_client.release import Release, ReleaseError, graph_file, read_release
from feature_client.routes import Accepted, Route, change_route, read_routes
from feature_client.verdicts import GateError
from model_export.publish import PublishError, set_champion
from model_export.republish import republish, take_over
from model_export.verify import Session
from tests.model_export.test_publish import publish_again
from tests.model_export.tiny_release import with_gates


def test_the_champion_is_published_under_other_names(pristine: Release, tmp_path: Path) -> None:
    published = republish(pristine.root, tmp_path, ["engagement", "second"])

    assert [release.name for release in published] == ["engagement.1", "second.1"]
    assert {model: route.champion for model, route in read_routes(tmp_path).items()} == {"engagement": 1, "second": 1}
    second = read_release(tmp_path, "second", 1)
    assert second.contract == replace(pristine.contract, model="second")
    assert read_release(tmp_path, "engagement", 1).contract.digest == pristine.contract.digest
    assert second.manifest.explainers == pristine.manifest.explainers
    for name in second.graph_names:
        graph = onnx.load(graph_file(second.root / name))
        [noted] = [entry for entry in graph.metadata_props if entry.key == CONTRACT_KEY]
        assert noted.value == second.contract.digest != pristine.contract.digest


def test_it_gives_the_same_answers(pristine: Release, tmp_path: Path) -> None:
    [copy] = republish(pristine.root, tmp_path, ["copy"])

    with np.load(copy.golden, allow_pickle=False) as golden:
        for graph in copy.graphs():
            answers = Session(graph.file, tuple(graph.outputs(1))).run(golden["numeric"], golden["categorical"])
            assert answers.keys() == graph.outputs(1).keys()
            for output, values in answers.items():
                np.testing.assert_array_equal(values, golden[golden_name(graph.explainer, output)])


def test_a_release_is_taken_over_with_all_its_explainers(pristine: Release, tmp_path: Path) -> None:
    taken = take_over(pristine.directory, tmp_path)

    assert taken.contract == pristine.contract
    assert taken.manifest.explainers == pristine.manifest.explainers
    for before, after in zip(pristine.graphs(), taken.graphs(), strict=True):
        assert (after.explainer, after.read()) == (before.explainer, before.read())


def test_it_is_the_champion_and_not_the_newest(release: Release, tmp_path: Path) -> None:
    release.card.write_text("not the champion's")
    newest = publish_again(release)
    assert newest.version == "2"

    set_champion(release.root, "engagement", 2)
    republish(release.root, tmp_path, ["copy"])
    set_champion(release.root, "engagement", 1)

    # The first release is damaged by now, so asking for it fails: the route was read, and not the newest taken.
    with pytest.raises(ReleaseError, match=r"card\.md is damaged"):
        republish(release.root, tmp_path, ["copy"])


def test_a_repository_of_several_models_is_refused(release: Release, tmp_path: Path) -> None:
    republish(release.root, release.root, ["second"])

    with pytest.raises(PublishError, match="serves 2 models"):
        republish(release.root, tmp_path, ["third"])


def test_a_name_that_is_none_is_refused(pristine: Release, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="model name 'Second!'"):
        republish(pristine.root, tmp_path, ["Second!"])


def test_a_champion_that_nobody_judged_is_not_published_again_unless_somebody_says_why(
    pristine: Release, tmp_path: Path
) -> None:
    with_gates(pristine, tmp_path / "there")
    set_champion(tmp_path / "there", "engagement", 1)

    with pytest.raises(GateError, match=r"engagement\.1 is not published: its gates were not asked"):
        republish(tmp_path / "there", tmp_path / "here", ["copy"])
    assert not (tmp_path / "here").exists()
    [copy] = republish(tmp_path / "there", tmp_path / "here", ["copy"], "only to measure")
    # Who was let answer customers needs no second reason.
    answers = Route(champion=1, accepted=(Accepted(1, "Black Friday", "2026-11-27T00:00:00Z"),))
    change_route(tmp_path / "there", "engagement", lambda _: answers)
    [answering] = republish(tmp_path / "there", tmp_path / "elsewhere", ["copy"])
    assert answering.contract.training["gates_accepted_because"] == "Black Friday"

    assert copy.contract.training["gates_accepted_because"] == "only to measure"
    card = copy.card.read_text()
    assert card.startswith("# copy\n")
    assert "| gates accepted because | only to measure |" in card
