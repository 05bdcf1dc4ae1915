"""The model repository on disk: what a release consists of, when it exists, and which one a route names.

A release is several directories: `<model>.<version>` with the score graph and all that is said about it, and one for
each of its explainers, `<model>.<version>.explain` for the fast one. It exists when its manifest does and agrees with
every file: the manifest is written last, so a reader sees a whole release or none.

Whoever can write a release can also recompute its checksums. So reading one trusts nothing of it: each file is read
once, within a limit, and what was hashed is what is looked at, before a runtime or Triton sees any of it.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from feature_client import onnx_file
from feature_client.contract import EXPLAINERS, Contract
from feature_client.errors import RapportError
from feature_client.golden import Golden, GoldenError
from feature_client.model_config import ConfigError, check_config
from feature_client.onnx_file import GraphError, check_graph

if TYPE_CHECKING:  # needs an extra, and only where a key is configured
    from feature_client.signature import TrustedKeys

MODEL_NAME = re.compile(r"[a-z0-9_]{1,64}")
RELEASE_NAME = re.compile(r"([a-z0-9_]{1,64})\.([0-9]{1,9})")
MANIFEST_FORMAT = 2

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
CONFIG, GRAPH = "config.pbtxt", "1/model.onnx"
CARD, REPORT = "card.md", "report.html"
SCORE_FILES = (CONFIG, "contract.json", "golden.npz", CARD, GRAPH)
EXPLAIN_FILES = (CONFIG, GRAPH)
"""What a release consists of, besides its manifest, the manifest's signature, and the report that its card links to, if
it has one: this and nothing else."""

EXPLAIN = "explain"
EXPLAIN_SUFFIX: Mapping[str, str] = {
    explainer: EXPLAIN if explainer == EXPLAINERS[0] else f"{EXPLAIN}_{explainer}" for explainer in EXPLAINERS
}
"""Explainer -> what the names of its directory, and of its Triton model, end with."""

DIRECTORY_NAME = re.compile(rf"({RELEASE_NAME.pattern})(?:\.({'|'.join(EXPLAIN_SUFFIX.values())}))?")

MAX_BYTES: Mapping[str, int] = {
    MANIFEST: 64 * 2**10,
    SIGNATURE: 1 * 2**10,
    CONFIG: 64 * 2**10,
    "contract.json": 16 * 2**20,  # vocabularies
    "golden.npz": 16 * 2**20,
    CARD: 4 * 2**20,
    REPORT: 16 * 2**20,  # with its pictures
    GRAPH: onnx_file.MAX_BYTES,
}
"""A larger file is refused before it is read: a release must not take a gateway's memory."""


class ReleaseError(RapportError):
    """A release that is incomplete, damaged, or not of this format; the message names the file."""


@dataclass(frozen=True)
class Manifest:
    """files: path relative to the repository -> SHA-256, for every file of all directories but this one."""

    model: str
    version: int
    contract: str  # digest
    created_at: str
    explainers: tuple[str, ...]
    files: Mapping[str, str]
    format: int = MANIFEST_FORMAT


@dataclass(frozen=True)
class AnyManifest:
    """What a manifest of any format says."""

    format: int = MANIFEST_FORMAT


@dataclass(frozen=True, eq=False)
class ReleaseGraph:
    """One of a release's graphs, with all that a backend needs to load and to prove it.

    name: `engagement.3`, or `engagement.3.explain`. explainer: which one it is; None: it gives scores alone.
    golden: with the answers of this very graph. digests: config.pbtxt and 1/model.onnx -> SHA-256, as verified.
    """

    name: str
    directory: Path
    contract: Contract
    golden: Golden
    explainer: str | None
    digests: Mapping[str, str]

    @property
    def explains(self) -> bool:
        return self.explainer is not None

    @property
    def file(self) -> Path:
        return graph_file(self.directory)

    @property
    def config(self) -> Path:
        return self.directory / "config.pbtxt"

    def read(self) -> bytes:
        """The graph as it was verified: a backend that loads these bytes runs nothing else. Raises ReleaseError."""
        return _read_again(self.directory / GRAPH, f"{self.name}/{GRAPH}", self.digests[GRAPH])

    def outputs(self, rows: int) -> dict[str, tuple[int, ...]]:
        """Output -> shape, for that many rows."""
        return self.contract.outputs(rows, self.explainer)


@dataclass(frozen=True)
class Release:
    """A verified release: its files were read and agree with its manifest."""

    root: Path
    manifest: Manifest
    contract: Contract

    @cached_property
    def name(self) -> str:
        return f"{self.manifest.model}.{self.manifest.version}"

    @cached_property
    def version(self) -> str:
        return str(self.manifest.version)

    @cached_property
    def explain_names(self) -> Mapping[str, str]:
        """Explainer -> name of its graph, the default one first."""
        return {explainer: f"{self.name}.{EXPLAIN_SUFFIX[explainer]}" for explainer in self.manifest.explainers}

    def graph_name(self, explainer: str | None) -> str:
        """explainer: None for the score graph."""
        return self.name if explainer is None else self.explain_names[explainer]

    @cached_property
    def graph_names(self) -> tuple[str, ...]:
        return (self.name, *self.explain_names.values())

    @property
    def directory(self) -> Path:
        return self.root / self.name

    @property
    def golden(self) -> Path:
        """Inputs, and the answers of every graph: see golden.py."""
        return self.directory / "golden.npz"

    @property
    def card(self) -> Path:
        return self.directory / CARD

    @property
    def report(self) -> Path | None:
        """The page that the card links to, where there is one."""
        return self.directory / REPORT if f"{self.name}/{REPORT}" in self.manifest.files else None

    def read(self, file: str) -> bytes:
        """file: as the manifest names it. What it holds, as it was verified. Raises ReleaseError."""
        return _read_again(self.root / file, file, self.manifest.files[file])

    def graphs(self) -> tuple[ReleaseGraph, ...]:
        """The score graph, then the explainers', the default one first. Raises ReleaseError."""
        content = self.read(f"{self.name}/golden.npz")
        return tuple(self._graph(explainer, content) for explainer in (None, *self.manifest.explainers))

    def _graph(self, explainer: str | None, golden: bytes) -> ReleaseGraph:
        name = self.graph_name(explainer)
        try:
            answers = Golden.from_bytes(golden, self.contract, explainer)
        except GoldenError as exc:
            raise ReleaseError(f"release {self.name}: {exc}") from exc
        digests = {file: self.manifest.files[f"{name}/{file}"] for file in EXPLAIN_FILES}
        return ReleaseGraph(name, self.root / name, self.contract, answers, explainer, digests)


def graph_file(directory: Path) -> Path:
    """Triton's layout: every release is version 1 of its own Triton model."""
    return directory / "1" / "model.onnx"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def release_directories(name: str, explainers: Iterable[str] = EXPLAINERS) -> tuple[str, ...]:
    """The one with the manifest first. explainers: by default all there may be."""
    return (name, *(f"{name}.{EXPLAIN_SUFFIX[explainer]}" for explainer in explainers))


def release_files(name: str, explainers: Iterable[str]) -> tuple[str, ...]:
    """Of all directories, relative to the repository; the manifest, its signature and a report aside."""
    score, *others = release_directories(name, explainers)
    return (
        *(f"{score}/{file}" for file in SCORE_FILES),
        *(f"{directory}/{file}" for directory in others for file in EXPLAIN_FILES),
    )


def list_versions(root: Path, model: str) -> list[int]:
    """Versions whose manifest exists, ascending. Files are not verified here."""
    if not root.is_dir():
        return []
    matches = ((RELEASE_NAME.fullmatch(path.parent.name)) for path in root.glob(f"*/{MANIFEST}"))
    # Written another way, as in engagement.03, it is another directory than the one that would be read.
    return sorted(int(match[2]) for match in matches if match and match[0] == f"{model}.{int(match[2])}")


def read_manifest(content: bytes, name: str) -> Manifest:
    """content: of manifest.json. Raises ReleaseError where it is not one of the release `name`."""
    try:
        found = msgspec.json.decode(content, type=AnyManifest).format
        if found != MANIFEST_FORMAT:
            raise ReleaseError(f"manifest format {found}, this version reads {MANIFEST_FORMAT}")
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ReleaseError(f"{MANIFEST} cannot be read: {exc}") from exc
    if f"{manifest.model}.{manifest.version}" != name:
        raise ReleaseError(f"its manifest is of {manifest.model}.{manifest.version}")
    if len(set(manifest.explainers)) < len(manifest.explainers) or not set(manifest.explainers) <= set(EXPLAINERS):
        raise ReleaseError(f"its manifest's explainers are not some of {', '.join(EXPLAINERS)}")
    files = set(release_files(name, manifest.explainers))
    if foreign := set(manifest.files) - files - {f"{name}/{REPORT}"}:
        raise ReleaseError(f"its manifest lists what no release has: {_some(foreign)}")
    if unlisted := files - set(manifest.files):
        raise ReleaseError(f"its manifest does not list {_some(unlisted)}")
    return manifest


def read_release(root: Path, model: str, version: int, trust: "TrustedKeys | None" = None) -> Release:
    """Reads and verifies one release. trust: keys of which one must have signed it. Raises ReleaseError."""
    name = f"{model}.{version}"
    try:
        return _read_release(root, name, trust)
    except FileNotFoundError as exc:
        raise ReleaseError(f"release {name} does not exist in {root}") from exc
    except OSError as exc:
        raise ReleaseError(f"release {name} cannot be read: {exc}") from exc
    except RapportError as exc:
        raise ReleaseError(f"release {name}: {exc}") from exc


def _read_release(root: Path, name: str, trust: "TrustedKeys | None") -> Release:
    """In this order: who signed it, what there is, whether it is whole, and only then what it holds."""
    manifest_file = root / name / MANIFEST
    content = _read(manifest_file, MANIFEST)
    if trust is not None:
        if not (root / name / SIGNATURE).exists():
            raise ReleaseError("it is not signed, and this gateway takes signed releases only")
        trust.check(content, _read(root / name / SIGNATURE, SIGNATURE))
    manifest = read_manifest(content, name)
    # Of all explainers there may be: one that the manifest does not know must not lie beside the others.
    present = set(_present(root, release_directories(name)))
    if missing := set(manifest.files) - present:
        raise ReleaseError(f"missing {_some(missing)}")
    if extra := present - set(manifest.files) - {f"{name}/{MANIFEST}", f"{name}/{SIGNATURE}"}:
        raise ReleaseError(f"not in its manifest: {_some(extra)}")

    def verified(file: str) -> bytes:
        return _read(root / file, file, manifest.files[file])

    contract = Contract.from_json(verified(f"{name}/contract.json"))
    if contract.digest != manifest.contract or f"{contract.model}.{manifest.version}" != name:
        raise ReleaseError("contract.json is not the one that its manifest names")
    if tuple(contract.explanation.explainers) != manifest.explainers:
        raise ReleaseError("contract.json has other explainers than its manifest")
    golden = verified(f"{name}/golden.npz")
    for file in {f"{name}/{CARD}", f"{name}/{REPORT}"} & set(manifest.files):
        verified(file)
    for explainer, directory in zip(
        (None, *manifest.explainers), release_directories(name, manifest.explainers), strict=True
    ):
        Golden.from_bytes(golden, contract, explainer)
        with _named(f"{directory}/{CONFIG}"):
            check_config(verified(f"{directory}/{CONFIG}"), directory, contract, explainer)
        with _named(f"{directory}/{GRAPH}"):
            check_graph(verified(f"{directory}/{GRAPH}"), contract, explainer)
    return Release(root, manifest, contract)


@contextmanager
def _named(file: str) -> Iterator[None]:
    try:
        yield
    except (ConfigError, GraphError) as exc:
        raise ReleaseError(f"{file}: {exc}") from exc


def _present(root: Path, directories: Iterable[str]) -> Iterator[str]:
    """Every file of these directories, relative to the repository. Raises ReleaseError for what has no place there."""
    for directory in directories:
        if (root / directory).is_symlink():
            raise ReleaseError(f"{directory} is a link")
        for parent in (directory, f"{directory}/1"):
            if not (root / parent).is_dir():
                continue  # its files are missed by name
            with os.scandir(root / parent) as entries:
                for entry in entries:
                    path = f"{parent}/{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if path != f"{directory}/1":
                            raise ReleaseError(f"a release has no directory {_some([path])}")
                    elif entry.is_file(follow_symlinks=False):
                        yield path
                    else:
                        raise ReleaseError(f"{_some([path])} is neither a file nor a directory")


def _read(path: Path, file: str, digest: str | None = None) -> bytes:
    """file: its name in messages. digest: the SHA-256 that it must have. Raises ReleaseError, OSError."""
    at_most = MAX_BYTES[GRAPH if path.name == "model.onnx" else path.name]
    # Never through a link, and never waiting for the other end of a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ReleaseError(f"{file} is not a file")
        content = opened.read(at_most + 1)
    if len(content) > at_most:
        raise ReleaseError(f"{file} is larger than {at_most:,} bytes")
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise ReleaseError(f"{file} is damaged: its SHA-256 differs from the manifest")
    return content


def _read_again(path: Path, file: str, digest: str) -> bytes:
    try:
        return _read(path, file, digest)
    except OSError as exc:
        raise ReleaseError(f"{file} cannot be read: {exc.strerror}") from exc


def _some(files: Iterable[str]) -> str:
    """For a message: at most three of them, whatever they are called."""
    shown = [file.encode("ascii", "backslashreplace").decode() for file in sorted(files)]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
