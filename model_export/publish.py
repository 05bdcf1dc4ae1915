"""Lays a release out beside the model repository's others, verifies it there, and commits it with one rename.

A publisher that is killed at any point leaves a whole release or none: only directories without a manifest, which no
reader lists and whose numbers are not used again.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from feature_client.clock import to_iso
from feature_client.contract import Contract
from feature_client.durable import sync
from feature_client.errors import RapportError
from feature_client.release import (
    CARD,
    DIRECTORY_NAME,
    MANIFEST,
    MODEL_NAME,
    REPORT,
    SIGNATURE,
    Manifest,
    Release,
    graph_file,
    read_release,
    release_directories,
    release_files,
    sha256,
)
from feature_client.repository import promote
from feature_client.routes import change_route
from feature_client.triton_config import config_pbtxt

if TYPE_CHECKING:  # needs an extra, and only where releases are signed
    from feature_client.signature import SigningKey


class PublishError(RapportError):
    """A release that could not be written; the message says where and why."""


@dataclass(frozen=True)
class Artifacts:
    """What a release is made of besides its contract, as files to copy."""

    score_graph: Path
    explain_graphs: Mapping[str, Path]  # by explainer, those of the contract
    golden: Path
    card: Path
    report: Path | None = None  # that the card links to


def publish(root: Path, contract: Contract, artifacts: Artifacts, key: "SigningKey | None" = None) -> Release:
    """The next version of the contract's model, signed where there is a key, and verified as readers verify it.

    No route changes. Raises PublishError; ReleaseError for what no reader would take, which is then not published.
    """
    if not MODEL_NAME.fullmatch(contract.model):
        raise PublishError(f"model name {contract.model!r}: use up to 64 of a-z, 0-9 and _")
    with _translated(root):
        root.mkdir(parents=True, exist_ok=True)
        version = _claim(root, contract.model)
        name = f"{contract.model}.{version}"
        try:
            with tempfile.TemporaryDirectory(prefix=".staging-", dir=root) as staging:
                _lay_out(Path(staging), name, contract, artifacts)
                _write_manifest(Path(staging), name, contract, version, key)
                release = read_release(Path(staging), contract.model, version, None if key is None else key.trusted)
                _commit(root, Path(staging), name, release.manifest.explainers)
        except BaseException:
            _discard(root, name)
            raise
        return replace(release, root=root)


def set_champion(root: Path, model: str, version: int) -> None:
    """Points the model's route at `version`, and a rollback at the champion before it. Raises RoutesError."""
    change_route(root, model, lambda route: promote(root, model, route, version))


def _claim(root: Path, model: str) -> int:
    """A version number nobody used, not even a publisher that was killed; its directory is made here."""
    while True:
        matches = (DIRECTORY_NAME.fullmatch(path.name) for path in root.iterdir())
        version = 1 + max((int(match[3]) for match in matches if match and match[2] == model), default=0)
        try:
            (root / f"{model}.{version}").mkdir()
        except FileExistsError:  # another publisher was faster
            continue
        return version


def _lay_out(staging: Path, name: str, contract: Contract, artifacts: Artifacts) -> None:
    explainers = tuple(contract.explanation.explainers)
    graphs = (artifacts.score_graph, *(artifacts.explain_graphs[explainer] for explainer in explainers))
    for explainer, graph, directory in zip(
        (None, *explainers), graphs, release_directories(name, explainers), strict=True
    ):
        target = graph_file(staging / directory)
        target.parent.mkdir(parents=True)
        shutil.copyfile(graph, target)
        (staging / directory / "config.pbtxt").write_text(config_pbtxt(directory, contract, explainer))
    score = staging / name
    (score / "contract.json").write_bytes(contract.to_json())
    shutil.copyfile(artifacts.golden, score / "golden.npz")
    shutil.copyfile(artifacts.card, score / CARD)
    if artifacts.report is not None:
        shutil.copyfile(artifacts.report, score / REPORT)


def _write_manifest(staging: Path, name: str, contract: Contract, version: int, key: "SigningKey | None") -> None:
    explainers = tuple(contract.explanation.explainers)
    files = [*release_files(name, explainers), *([f"{name}/{REPORT}"] if (staging / name / REPORT).exists() else [])]
    digests = {file: sha256(staging / file) for file in files}
    manifest = Manifest(contract.model, version, contract.digest, to_iso(time.time()), explainers, digests)
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (staging / name / MANIFEST).write_bytes(content)
    if key is not None:
        (staging / name / SIGNATURE).write_bytes(key.sign(content))


def _commit(root: Path, staging: Path, name: str, explainers: Sequence[str]) -> None:
    # Files, then the directories that name them: a release that is listed is whole even after a power cut.
    directories = release_directories(name, explainers)
    for directory in reversed(directories):
        for path in sorted((staging / directory).rglob("*"), reverse=True):
            sync(path)
        sync(staging / directory)
    for directory in directories[1:]:
        (staging / directory).rename(root / directory)
    sync(root)
    # Over the empty directory that claimed the number; the manifest comes with it, so this is the commit.
    (staging / name).rename(root / name)
    sync(root)


def _discard(root: Path, name: str) -> None:
    if not (root / name / "manifest.json").exists():
        for directory in release_directories(name):
            shutil.rmtree(root / directory, ignore_errors=True)


@contextmanager
def _translated(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise PublishError(f"cannot write to the model repository {root}: {exc.strerror or exc}") from exc
