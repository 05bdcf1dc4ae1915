"""What a directory must hold to be a release, and that nothing else ever is one."""

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_client.contract import EXPLAINERS
from feature_client.golden import GoldenError
from feature_client.release import (
    DIRECTORY_NAME,
    EXPLAIN_SUFFIX,
    Release,
    ReleaseError,
    list_versions,
    release_directories,
    release_files,
)
from tests.feature_client.poison import manifest_file, read_again, seal
from tests.model_export.tiny_release import with_explainers

Change = Callable[[Release], None]


def touch(path: str, content: str = "x") -> Change:
    def change(release: Release) -> None:
        (release.root / path).parent.mkdir(parents=True, exist_ok=True)
        (release.root / path).write_text(content)

    return change


def linked_file(release: Release) -> None:
    outside = release.root / "elsewhere.md"
    release.card.rename(outside)
    release.card.symlink_to(outside)


def linked_directory(explainer: str) -> Change:
    def change(release: Release) -> None:
        outside = release.root / "elsewhere"
        (release.root / release.graph_name(explainer)).rename(outside)
        (release.root / release.graph_name(explainer)).symlink_to(outside)

    return change


def linked_model(release: Release) -> None:
    outside = release.root / "elsewhere"
    (release.directory / "1").rename(outside)
    (release.directory / "1").symlink_to(outside)


def pipe(release: Release) -> None:
    """Reading one would wait for ever."""
    os.mkfifo(release.directory / "pipe")


def pipe_for_a_file(release: Release) -> None:
    release.card.unlink()
    os.mkfifo(release.card)


def listed(path: str) -> Change:
    def change(release: Release) -> None:
        seal(release, files={**release.manifest.files, path: "0" * 64})

    return change


def other_case(release: Release) -> None:
    release.card.rename(release.directory / "CARD.md")


def bigger(file: str, size: int) -> Change:
    def change(release: Release) -> None:
        with (release.directory / file).open("ab") as opened:
            opened.truncate(size)

    return change


LISTED = [listed("engagement.1/1/model.py"), listed("engagement.1/../x.py"), listed("/etc/passwd")]

STRUCTURE: dict[str, tuple[Change, str]] = {
    "a Python file": (touch("engagement.1/1/model.py"), r"not in its manifest: engagement\.1/1/model\.py"),
    "a Python file for the other": (touch("engagement.1.explain/1/model.py"), "not in its manifest"),
    "a Python file for the last": (touch("engagement.1.explain_exact/1/model.py"), "not in its manifest"),
    "a listed Python file": (LISTED[0], "lists what no release has"),
    "a path to above": (LISTED[1], "lists what no release has"),
    "an absolute path": (LISTED[2], "lists what no release has"),
    "another version for Triton": (touch("engagement.1/2/model.onnx"), r"no directory engagement\.1/2"),
    "another version of an explainer": (touch("engagement.1.explain_exact/2/model.onnx"), "no directory"),
    "a hidden directory": (touch("engagement.1/.x/y"), "no directory"),
    "a nested directory": (touch("engagement.1/1/x/y"), "no directory"),
    "a link for a file": (linked_file, "neither a file nor a directory"),
    "a link for a directory": (linked_directory("fast"), r"engagement\.1\.explain is a link"),
    "a link for another explainer's": (linked_directory("exact"), r"engagement\.1\.explain_exact is a link"),
    "a link for the model": (linked_model, "neither a file nor a directory"),
    "a pipe": (pipe, "neither a file nor a directory"),
    "a pipe for a file": (pipe_for_a_file, "neither a file nor a directory"),
    "another case": (other_case, "missing|does not list"),
    "a name with a line end": (touch("engagement.1/x\ny"), "not in its manifest"),
    "a huge card": (bigger("card.md", 5 * 2**20), "card.md is larger than"),
    "a huge contract": (bigger("contract.json", 17 * 2**20), "contract.json is larger than"),
    "a huge config": (bigger("config.pbtxt", 65 * 2**10), "config.pbtxt is larger than"),
    "huge golden rows": (bigger("golden.npz", 17 * 2**20), "golden.npz is larger than"),
}


@pytest.mark.parametrize("kind", STRUCTURE)
def test_a_release_holds_its_files_and_nothing_else(release: Release, kind: str) -> None:
    change, reason = STRUCTURE[kind]
    change(release)
    if change not in (pipe_for_a_file, *LISTED):
        seal(release)

    with pytest.raises(ReleaseError, match=reason):
        read_again(release)


def test_a_manifest_that_leaves_a_file_out_is_refused(release: Release) -> None:
    files = {file: digest for file, digest in release.manifest.files.items() if not file.endswith("golden.npz")}
    seal(release, files=files)
    with pytest.raises(ReleaseError, match=r"does not list engagement\.1/golden\.npz"):
        read_again(release)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"format": 9}, "manifest format 9"),
        ({"version": 2}, r"its manifest is of engagement\.2"),
        ({"model": "other"}, r"its manifest is of other\.1"),
        ({"contract": "0" * 64}, "contract.json is not the one"),
        ({"files": []}, "manifest.json cannot be read"),
        ({"files": {"x": 1}}, "manifest.json cannot be read"),
        ({"explainers": "fast"}, "manifest.json cannot be read"),
        ({"explainers": None}, "manifest.json cannot be read"),
        ({"explainers": ["fast", "guessed"]}, "its manifest's explainers are not some of fast, precise, exact, feat"),
        ({"explainers": ["fast", "../evil"]}, "its manifest's explainers are not some of"),
        ({"explainers": ["fast", "fast"]}, "its manifest's explainers are not some of"),
    ],
)
def test_a_manifest_of_something_else_is_refused(release: Release, changed: dict[str, Any], reason: str) -> None:
    seal(release, **changed)
    with pytest.raises(ReleaseError, match=reason):
        read_again(release)


def test_a_manifest_from_before_releases_had_explainers_is_refused_by_its_format(release: Release) -> None:
    manifest = json.loads(manifest_file(release).read_bytes())
    del manifest["explainers"]
    manifest_file(release).write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(ReleaseError, match="manifest format 1, this version reads 2"):
        read_again(release)


def test_a_manifests_explainers_are_those_of_the_contract_in_its_order(release: Release) -> None:
    default, *others = release.manifest.explainers
    seal(release, explainers=[*others, default])
    with pytest.raises(ReleaseError, match="has other explainers than its manifest"):
        read_again(release)


@pytest.mark.parametrize("dropped", ["fast", "exact"])
def test_an_explainer_that_a_release_loses_is_missed(release: Release, dropped: str) -> None:
    """By whatever is not changed with it, until its contract knows nothing of it."""
    name = release.graph_name(dropped)
    left = [explainer for explainer in release.manifest.explainers if explainer != dropped]
    files = {file: digest for file, digest in release.manifest.files.items() if not file.startswith(f"{name}/")}

    seal(release, explainers=left)
    with pytest.raises(ReleaseError, match=rf"lists what no release has: {re.escape(name)}/"):
        read_again(release)
    seal(release, files=files)
    with pytest.raises(ReleaseError, match=rf"does not list {re.escape(name)}/"):
        read_again(release)
    seal(release, explainers=left, files=files)
    with pytest.raises(ReleaseError, match=rf"not in its manifest: {re.escape(name)}/"):
        read_again(release)
    shutil.rmtree(release.root / name)
    with pytest.raises(ReleaseError, match="has other explainers than its manifest"):
        read_again(release)


@pytest.fixture(scope="module")
def fast_alone(pristine: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of one explainer, beside nothing else."""
    return with_explainers(pristine, tmp_path_factory.mktemp("fast") / "models", ["fast"])


@pytest.mark.parametrize("whose", ["a release's", "something else"])
def test_an_explainer_that_no_manifest_names_may_not_lie_beside_a_release(
    fast_alone: Release, pristine: Release, tmp_path: Path, whose: str
) -> None:
    """Triton would load it like the others."""
    release = replace(fast_alone, root=Path(shutil.copytree(fast_alone.root, tmp_path / "models")))
    assert read_again(release).graph_names == ("engagement.1", "engagement.1.explain")
    stranger = release.root / "engagement.1.explain_exact"
    if whose == "a release's":
        shutil.copytree(pristine.root / pristine.graph_name("exact"), stranger)
    else:
        touch("engagement.1.explain_exact/1/model.py")(release)

    with pytest.raises(ReleaseError, match=r"not in its manifest: engagement\.1\.explain_exact/"):
        read_again(release)
    shutil.rmtree(stranger)
    stranger.symlink_to(pristine.root / pristine.graph_name("exact"))
    with pytest.raises(ReleaseError, match=r"engagement\.1\.explain_exact is a link"):
        read_again(release)


def test_directories_of_releases_are_told_from_others() -> None:
    names = [EXPLAIN_SUFFIX[explainer] for explainer in EXPLAINERS]
    assert names == ["explain", "explain_precise", "explain_exact", "explain_features"]
    for directory in release_directories("engagement.12"):
        match = DIRECTORY_NAME.fullmatch(directory)
        assert match is not None
        assert match.groups()[:3] == ("engagement.12", "engagement", "12")
    for other in ("engagement.12.explain_", "engagement.12.explain_fast", "engagement.12.exact", "engagement.12.", "x"):
        assert DIRECTORY_NAME.fullmatch(other) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"x" * 70_000])
def test_a_manifest_that_cannot_be_read_is_refused(release: Release, content: bytes) -> None:
    manifest_file(release).write_bytes(content)
    with pytest.raises(ReleaseError, match=r"manifest\.json"):
        read_again(release)


def test_a_version_written_another_way_is_not_listed(release: Release) -> None:
    for name in ("engagement.02", "Engagement.3", "engagement.4.explain", "engagement.x", "other.1"):
        touch(f"{name}/manifest.json")(release)
    assert list_versions(release.root, "engagement") == [1]


def savez(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def good(release: Release) -> dict[str, Any]:
    with np.load(release.golden) as file:
        return dict(file)


def without(name: str) -> Callable[[Release], bytes]:
    def make(release: Release) -> bytes:
        arrays = good(release)
        del arrays[name]
        return savez(**arrays)

    return make


def other(name: str, change: Callable[[Any], Any]) -> Callable[[Release], bytes]:
    def make(release: Release) -> bytes:
        arrays = good(release)
        arrays[name] = change(arrays[name])
        return savez(**arrays)

    return make


def every(change: Callable[[Any], Any]) -> Callable[[Release], bytes]:
    return lambda release: savez(**{name: change(array) for name, array in good(release).items()})


def first_missing(array: Any) -> Any:
    array.flat[0] = np.nan
    return array


def compressed(release: Release) -> bytes:
    """Zeros that would fill the memory."""
    file = io.BytesIO()
    np.savez_compressed(file, **good(release))
    return file.getvalue()


def promising(release: Release) -> bytes:
    """A header that promises more than there is: NumPy's reader allocates all of it."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 12), }"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in good(release):
            opened.writestr(f"{name}.npy", npy)
    return file.getvalue()


GOLDEN: dict[str, tuple[Callable[[Release], bytes], str]] = {
    "pickles": (other("scores", lambda array: array.astype(object)), "scores is object"),
    "non-finite answers": (other("fast.attributions", first_missing), "not all answers are finite"),
    "non-finite answers of another": (other("exact.margin_attributions", first_missing), "not all answers are finite"),
    "one answer less": (other("fast.base", lambda array: array[1:]), r"fast\.base is"),
    "one answer less of another": (other("exact.margins", lambda array: array[1:]), r"exact\.margins is"),
    "one row of scores more": (other("exact.scores", lambda array: array[[0, *range(17)]]), r"numeric is \[17, 12\]"),
    "another width": (other("numeric", lambda array: array[:, 1:]), "numeric is"),
    "another group": (other("exact.attributions", lambda array: array[..., 1:]), r"exact\.attributions is"),
    "no rows": (every(lambda array: array[:0]), "has 0 rows"),
    "too many rows": (every(lambda array: np.repeat(array, 100, axis=0)), "has 1700 rows"),
    "another dtype": (other("scores", lambda array: array.astype(np.float64)), "scores is float64"),
    "by column": (other("numeric", np.asfortranarray), "in Fortran's order"),
    "no answers": (without("scores"), "cannot be read: .*'scores.npy'"),
    "no answers of one explainer": (without("exact.base"), "cannot be read: .*'exact.base.npy'"),
    "compressed": (compressed, "is compressed"),
    "promises": (promising, "cannot be read: cannot reshape"),
    "no file of NumPy's": (lambda release: b"nothing", "cannot be read: File is not a zip file"),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_rows_that_prove_nothing_are_refused(release: Release, kind: str) -> None:
    make, reason = GOLDEN[kind]
    release.golden.write_bytes(make(release))
    seal(release)
    with pytest.raises(ReleaseError, match=reason):
        read_again(release)


def test_every_output_of_every_graph_is_held_against_its_own_golden_answers(pristine: Release) -> None:
    """One value that is a little off, or that is no number: and it says of which output."""
    graphs = pristine.graphs()
    assert [graph.explainer for graph in graphs] == [None, *pristine.contract.explanation.explainers]
    for graph in graphs:
        answers = dict(graph.golden.answers)
        assert answers.keys() == graph.outputs(1).keys()
        graph.golden.check(answers)
        size = 1 + max(float(np.abs(values).sum()) for values in answers.values())
        for name, values in answers.items():
            for off in (1e-4 * size, np.nan):
                wrong = values.astype(np.float64)
                wrong[(-1,) * wrong.ndim] += off
                with pytest.raises(GoldenError, match=f"^{name} differ from the golden answers"):
                    graph.golden.check({**answers, name: wrong})


def test_what_was_verified_is_what_is_read_again(release: Release) -> None:
    """Whatever happens to the files between the check and the load."""
    verified = read_again(release)
    score, explain, *_ = verified.graphs()
    good_graph = (score.directory / "1" / "model.onnx").read_bytes()
    assert score.read() == good_graph
    explain.file.write_bytes(good_graph)
    with pytest.raises(ReleaseError, match=r"engagement\.1\.explain/1/model\.onnx is damaged"):
        explain.read()
    score.file.unlink()
    with pytest.raises(ReleaseError, match="cannot be read"):
        score.read()
    verified.golden.write_bytes(savez(**good(verified)) + b" ")
    with pytest.raises(ReleaseError, match=r"golden\.npz is damaged"):
        verified.graphs()


FILES = release_files("engagement.1", ("fast", "exact"))  # others there may be are no different


@given(
    file=st.sampled_from(["engagement.1/manifest.json", *FILES]),
    damage=st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.just(0)),
        st.tuples(st.just("insert"), st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
    ),
    checksums=st.sampled_from(["as they were", "made anew"]),
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_no_damage_ever_raises_anything_but_release_error(
    release: Release, file: str, damage: tuple[str, float, int], checksums: str
) -> None:
    """Damage of any file, also under checksums made anew: refused, or the same contract and rows of the same shapes."""
    how, where, value = damage
    path = release.root / file
    before = path.read_bytes()
    manifest = manifest_file(release).read_bytes()
    at = int(where * len(before))
    after = {
        "flip": before[:at] + bytes([before[at] ^ value if value else 0]) + before[at + 1 :],
        "cut": before[:at],
        "insert": before[:at] + bytes([value]) + before[at:],
    }[how]
    try:
        path.write_bytes(after)
        if checksums == "made anew" and path.name != "manifest.json":
            seal(release)
        try:
            again = read_again(release)
        except ReleaseError:
            return
        assert checksums == "made anew" or path.name == "manifest.json"
        assert again.contract == release.contract
        again.graphs()
    finally:
        path.write_bytes(before)
        manifest_file(release).write_bytes(manifest)
