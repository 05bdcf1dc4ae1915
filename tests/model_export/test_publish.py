import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

import model_export.publish
from feature_client.contract import CONTRACT_KEY
from feature_client.golden import golden_name
from feature_client.offline.workspace import Workspace
from feature_client.release import (
    EXPLAIN_SUFFIX,
    Release,
    ReleaseError,
    graph_file,
    list_versions,
    read_release,
    release_directories,
)
from feature_client.repository import prunable, prune
from feature_client.routes import RoutesError, read_routes
from model_export.pipeline import Run, RunError, publish_workspace, read_run, write_run
from model_export.publish import PublishError, publish, set_champion
from model_export.republish import artifacts_of
from model_export.verify import GOLDEN_ROWS, Session
from tests.model_export.tiny_release import GROUPS, judged, with_explainers


def publish_again(release: Release) -> Release:
    """The same artifacts as another version, without another export."""
    artifacts = artifacts_of(release)
    return publish(release.root, release.contract, artifacts)


def test_a_published_release_reads_back_and_is_champion(pristine: Release, run: Run) -> None:
    release = read_release(pristine.root, "engagement", 1)
    written = judged(run).contract
    assert release.contract == written
    assert release.contract.digest == written.digest
    # Mappings are equal in any order; the columns of the attributions are not.
    assert list(release.contract.schema.groups) == list(run.contract.schema.groups) != sorted(GROUPS)
    assert read_routes(pristine.root)["engagement"].champion == 1
    assert release.manifest.explainers == tuple(run.contract.explanation.explainers)
    suffixes = [EXPLAIN_SUFFIX[explainer] for explainer in release.manifest.explainers]
    assert suffixes[0] == "explain"
    assert len(suffixes) > 1
    assert {path.relative_to(pristine.root).as_posix() for path in pristine.root.rglob("*") if path.is_file()} == {
        ".routes.lock",
        "routes.toml",
        "engagement.1/1/model.onnx",
        "engagement.1/config.pbtxt",
        "engagement.1/contract.json",
        "engagement.1/golden.npz",
        "engagement.1/card.md",
        "engagement.1/manifest.json",
        *(f"engagement.1.{suffix}/{file}" for suffix in suffixes for file in ("1/model.onnx", "config.pbtxt")),
    }


def test_configs_name_the_contract_and_set_no_queue_policy(pristine: Release) -> None:
    for name in pristine.graph_names:
        config = (pristine.root / name / "config.pbtxt").read_text()
        assert f'name: "{name}"' in config
        assert pristine.contract.digest in config
        assert CONTRACT_KEY in config
        assert "queue" not in config


def test_golden_answers_repeat_and_hold_a_row_without_any_value(pristine: Release) -> None:
    with np.load(pristine.golden, allow_pickle=False) as file:
        golden = dict(file)
    assert len(golden["numeric"]) == GOLDEN_ROWS + 1
    assert np.isnan(golden["numeric"][-1]).all()
    held = {"numeric", "categorical"}
    for explainer in (None, *pristine.manifest.explainers):
        file = graph_file(pristine.root / pristine.graph_name(explainer))
        outputs = tuple(pristine.contract.outputs(1, explainer))
        for output, answer in Session(file, outputs).run(golden["numeric"], golden["categorical"]).items():
            np.testing.assert_array_equal(answer, golden[golden_name(explainer, output)])
            held.add(golden_name(explainer, output))
    assert golden.keys() == held


def test_the_card_tells_what_the_contract_holds(pristine: Release) -> None:
    text = pristine.card.read_text(encoding="utf-8")
    for feature in pristine.contract.schema.features:
        assert f"`{feature.name}`" in text
    for task in pristine.contract.tasks:
        assert f"`{task.name}`" in text


@pytest.mark.parametrize(
    "file",
    [
        "engagement.1/1/model.onnx",
        "engagement.1/card.md",
        "engagement.1.explain/1/model.onnx",
        "engagement.1.explain_exact/1/model.onnx",
        "engagement.1.explain_exact/config.pbtxt",
    ],
)
def test_a_flipped_byte_is_found(release: Release, file: str) -> None:
    path = release.root / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ReleaseError, match="damaged"):
        read_release(release.root, "engagement", 1)


def test_a_removed_file_and_an_added_one_are_found(release: Release) -> None:
    for name in release.graph_names:
        extra = release.root / name / "notes.txt"
        extra.write_text("x")
        with pytest.raises(ReleaseError, match=rf"not in its manifest: {re.escape(name)}/notes\.txt"):
            read_release(release.root, "engagement", 1)
        extra.unlink()
    shutil.rmtree(release.root / "engagement.1.explain_exact")
    with pytest.raises(ReleaseError, match=r"missing engagement\.1\.explain_exact/1/model\.onnx"):
        read_release(release.root, "engagement", 1)
    (release.directory / "golden.npz").unlink()
    with pytest.raises(ReleaseError, match=r"missing engagement\.1\.explain_exact/.*engagement\.1/golden\.npz"):
        read_release(release.root, "engagement", 1)


KILLED_PUBLISHERS = """
import os, shutil, signal, sys
from itertools import count
from pathlib import Path
from feature_client.release import read_release
from model_export.publish import publish
from model_export.republish import artifacts_of

STEPS = {"open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.chmod", "shutil.copyfile", "os.scandir", "fsync"}

def publish_until(last, root):
    old = read_release(root, "engagement", 1)
    done = 0

    def step(event, arguments):
        nonlocal done
        if event in STEPS and any(str(root) in str(argument) for argument in arguments):
            done += 1
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sync = os.fsync
    os.fsync = lambda descriptor: (step("fsync", [os.readlink(f"/proc/self/fd/{descriptor}")]), sync(descriptor))
    sys.addaudithook(step)
    publish(root, old.contract, artifacts_of(old))

pristine, target = Path(sys.argv[1]), Path(sys.argv[2])
for last in count(1):
    root = Path(shutil.copytree(pristine, target / str(last)))
    child = os.fork()
    if child == 0:
        publish_until(last, root)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != -signal.SIGKILL:
        sys.exit(code)
"""
"""Publishes what version 1 holds as version 2, again and again, each time in a fresh copy of the repository and in a
process of its own, which is killed right before its first touch of the file system, then before its second, and so on
until one gets through. (One process loads the libraries and forks the others.)"""


def test_a_publisher_killed_at_any_step_leaves_a_whole_release_or_none_and_its_number_is_not_used_again(
    pristine: Release, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED_PUBLISHERS, str(pristine.root), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)

    repositories = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    outcomes = [list_versions(root, "engagement") for root in repositories]
    assert len(repositories) > 50
    committed = outcomes.index([1, 2])
    assert outcomes == [[1]] * committed + [[1, 2]] * (len(outcomes) - committed)
    assert 0 < committed < len(outcomes) - 1  # some are killed before the commit, and some after it
    # And some with any number of its explainers in place: the commit brings the score graph, after all of them.
    explainers = pristine.manifest.explainers
    names = release_directories("engagement.2", explainers)[1:]
    placed = [sum((root / name).exists() for name in names) for root in repositories]
    assert placed == sorted(placed)
    assert set(placed[:committed]) == set(range(len(names) + 1))
    for root, listed in zip(repositories, outcomes, strict=True):
        for version in listed:
            read_release(root, "engagement", version)
        assert read_routes(root)["engagement"].champion == 1
        taken = any((root / name).exists() for name in ("engagement.2", *names))
        version = int(publish_again(replace(pristine, root=root)).version)
        assert version == (3 if taken else 2)
        assert list_versions(root, "engagement") == [*listed, version]
        read_release(root, "engagement", version)
        # Whatever is left of the killed one is told from releases and goes, once it is old enough.
        for path in root.rglob("*"):
            os.utime(path, (0, 0))
        prune(root, prunable(root, None, keep=9))
        releases = [release_directories(f"engagement.{one}", explainers) for one in (*listed, version)]
        assert {path.name for path in root.iterdir() if path.is_dir()} == {*chain.from_iterable(releases)}


def test_a_number_is_taken_by_whatever_is_left_of_it(release: Release) -> None:
    """Of any explainer; what no publisher makes takes none."""
    for name in ("engagement.4.explain_precise", "engagement.9.explain_guess", "engagement.9.explain.x", "other.9"):
        (release.root / name).mkdir()

    assert publish_again(release).version == "5"


def test_a_failed_publisher_cleans_up_behind_itself(release: Release) -> None:
    artifacts, absent = artifacts_of(release), release.root / "absent.onnx"
    before = sorted(release.root.rglob("*"))
    for failing in (
        replace(artifacts, score_graph=absent),
        replace(artifacts, explain_graphs={**artifacts.explain_graphs, "exact": absent}),
    ):
        with pytest.raises(PublishError, match="No such file"):
            publish(release.root, release.contract, failing)
        assert sorted(release.root.rglob("*")) == before


def test_a_disk_that_fails_between_two_explainers_leaves_no_release(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are in place already; they go again, and the next publisher has the number."""
    rename, renamed = Path.rename, []

    def fails_once(path: Path, target: Path) -> Path:
        if path.name.startswith("engagement.2.explain"):
            renamed.append(path.name)
            if len(renamed) == 2:
                raise OSError(5, "Input/output error")
        return rename(path, target)

    before = sorted(release.root.rglob("*"))
    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(PublishError, match="Input/output error"):
        publish_again(release)
    assert len(renamed) == 2
    assert sorted(release.root.rglob("*")) == before
    assert publish_again(release).version == "2"


def test_a_release_has_the_explainers_of_its_contract_and_no_others(pristine: Release, tmp_path: Path) -> None:
    fast = with_explainers(pristine, tmp_path / "models", ["fast"])

    assert read_release(tmp_path / "models", "engagement", 1).manifest == fast.manifest
    assert fast.graph_names == ("engagement.1", "engagement.1.explain")
    assert {path.name for path in fast.root.iterdir() if path.is_dir()} == set(fast.graph_names)
    assert [graph.explainer for graph in fast.graphs()] == [None, "fast"]


def test_a_repository_that_cannot_be_written_is_named(release: Release, tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with pytest.raises(PublishError, match=r"cannot write to the model repository .*a file"):
        publish_again(replace(release, root=blocked))


@pytest.mark.parametrize("explainer", [None, "fast", "exact"])
def test_what_no_reader_would_take_is_not_published(release: Release, tmp_path: Path, explainer: str | None) -> None:
    poisoned = tmp_path / "poisoned.onnx"
    model = onnx.load(graph_file(release.root / release.graph_name(explainer)))
    weights = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    weights.raw_data = np.float32(np.nan).tobytes() + weights.raw_data[4:]
    poisoned.write_bytes(model.SerializeToString())
    artifacts = artifacts_of(release)
    if explainer is None:
        artifacts = replace(artifacts, score_graph=poisoned)
    else:
        artifacts = replace(artifacts, explain_graphs={**artifacts.explain_graphs, explainer: poisoned})
    before = sorted(release.root.rglob("*"))
    with pytest.raises(ReleaseError, match="not all of its values are finite"):
        publish(release.root, release.contract, artifacts)
    assert sorted(release.root.rglob("*")) == before


def test_a_full_disk_leaves_no_release(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(release.root.iterdir())
    monkeypatch.setattr(model_export.publish, "sync", full)
    with pytest.raises(PublishError, match="No space left on device"):
        publish_again(release)
    assert list_versions(release.root, "engagement") == [1]
    assert sorted(release.root.iterdir()) == before


def test_a_name_that_is_no_model_name_is_refused(release: Release) -> None:
    with pytest.raises(PublishError, match="a-z"):
        publish_again(replace(release, contract=replace(release.contract, model="Engagement!")))


def test_flipping_the_champion_keeps_everything_else(release: Release) -> None:
    path = release.root / "routes.toml"
    path.write_text(
        '[engagement]\nchampion = 1\nunknown = "reject"\n'
        "canary = { version = 4, percent = 10 }\nshadow = [5]\n\n[other]\nchampion = 7\n"
    )
    set_champion(release.root, "engagement", 2)
    assert tomllib.loads(path.read_text()) == {
        "engagement": {
            "champion": 2,
            "previous": 1,
            "unknown": "reject",
            "canary": {"version": 4, "percent": 10},
            "shadow": [5],
        },
        "other": {"champion": 7},
    }


@pytest.mark.parametrize("content", ["[engagement", "champion = 1\n"])
def test_routes_that_cannot_be_read_are_left_alone(release: Release, content: str) -> None:
    path = release.root / "routes.toml"
    path.write_text(content)
    with pytest.raises(RoutesError, match="left alone"):
        set_champion(release.root, "engagement", 2)
    assert path.read_text() == content


def test_a_run_survives_the_disk(run: Run, tmp_path: Path) -> None:
    write_run(run, tmp_path / "run")
    again = read_run(tmp_path / "run")
    assert again.contract == run.contract
    assert again.weights.keys() == run.weights.keys()
    assert all(bool((again.weights[name] == run.weights[name]).all()) for name in run.weights)
    np.testing.assert_array_equal(again.rows[0], run.rows[0])
    for kept, made in ((again.explained, run.explained), (again.holdout, run.holdout)):
        assert list(kept.arrays()) == list(made.arrays())
        for name, array in made.arrays().items():
            np.testing.assert_array_equal(kept.arrays()[name], array)


def test_a_run_that_is_missing_or_damaged_says_what_to_do(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="rapport train"):
        read_run(tmp_path)
    for name in ("weights.pt", "rows.npz", "explained.npz", "holdout.npz"):
        write_run(run, tmp_path / "run")
        (tmp_path / "run" / name).write_bytes(b"not what it was")
        with pytest.raises(RunError, match="train again"):
            read_run(tmp_path / "run")


def test_a_model_whose_features_are_declared_otherwise_by_now_is_not_published(run: Run, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_run(run, tmp_path / "run")
    schema = run.contract.schema
    features = tuple(replace(one, default=50.0) if one.name == "spend_90d" else one for one in schema.features)
    workspace.schema_file.write_bytes(msgspec.json.encode(replace(schema, features=features)))
    with pytest.raises(RunError, match=r"spend_90d: default is 0\.0 in the model and 50\.0 as declared"):
        publish_workspace(workspace)
    assert not workspace.models.exists()
