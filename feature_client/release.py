"""The model repository on disk: what a release consists of, when it exists, and which one a route names.

A release is two directories, `<model>.<version>` and `<model>.<version>.explain`. It exists when its manifest does and
agrees with every file: the manifest is written last, so a reader sees a whole release or none.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from feature_client.contract import Contract
from feature_client.errors import RapportError
from feature_client.golden import Golden, GoldenError

MODEL_NAME = re.compile(r"[a-z0-9_]{1,64}")
RELEASE_NAME = re.compile(r"([a-z0-9_]{1,64})\.([0-9]{1,9})")
MANIFEST_FORMAT = 1


class ReleaseError(RapportError):
    """A release that is incomplete, damaged, or not of this format; the message names the file."""


@dataclass(frozen=True)
class Manifest:
    """files: path relative to the repository -> SHA-256, for every file of both directories but this one."""

    model: str
    version: int
    contract: str  # digest
    created_at: str
    files: Mapping[str, str]
    format: int = MANIFEST_FORMAT


@dataclass(frozen=True, eq=False)
class ReleaseGraph:
    """One of a release's two graphs, with all that a backend needs to load and to prove it.

    name: `engagement.3`, or `engagement.3.explain`. explains: it gives attributions and base as well as scores.
    """

    name: str
    directory: Path
    contract: Contract
    golden: Golden
    explains: bool

    @property
    def file(self) -> Path:
        return graph_file(self.directory)

    @property
    def config(self) -> Path:
        return self.directory / "config.pbtxt"

    def outputs(self, rows: int) -> dict[str, tuple[int, ...]]:
        """Output -> shape, for that many rows."""
        return self.contract.outputs(rows, explained=self.explains)


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
    def explain_name(self) -> str:
        return f"{self.name}.explain"

    @property
    def directory(self) -> Path:
        return self.root / self.name

    @property
    def explain_directory(self) -> Path:
        return self.root / self.explain_name

    @property
    def golden(self) -> Path:
        """Inputs and the answers of both graphs: numeric, categorical, scores, attributions, base."""
        return self.directory / "golden.npz"

    @property
    def card(self) -> Path:
        return self.directory / "card.md"

    def graphs(self) -> tuple[ReleaseGraph, ReleaseGraph]:
        """Scores, and scores with reasons. Raises ReleaseError."""
        try:
            golden = Golden.read(self.golden)
        except GoldenError as exc:
            raise ReleaseError(f"release {self.name}: {exc}") from exc
        return (
            ReleaseGraph(self.name, self.directory, self.contract, golden, explains=False),
            ReleaseGraph(self.explain_name, self.explain_directory, self.contract, golden, explains=True),
        )


def graph_file(directory: Path) -> Path:
    """Triton's layout: every release is version 1 of its own Triton model."""
    return directory / "1" / "model.onnx"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_versions(root: Path, model: str) -> list[int]:
    """Versions whose manifest exists, ascending. Files are not verified here."""
    if not root.is_dir():
        return []
    matches = ((RELEASE_NAME.fullmatch(path.parent.name)) for path in root.glob("*/manifest.json"))
    return sorted(int(match[2]) for match in matches if match and match[1] == model)


def read_release(root: Path, model: str, version: int) -> Release:
    """Reads and verifies one release. Raises ReleaseError, ContractError."""
    name = f"{model}.{version}"
    try:
        manifest = msgspec.json.decode((root / name / "manifest.json").read_bytes(), type=Manifest)
    except FileNotFoundError as exc:
        raise ReleaseError(f"release {name} does not exist in {root}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OSError) as exc:
        raise ReleaseError(f"release {name}: manifest.json cannot be read: {exc}") from exc
    _check(root, name, manifest)
    contract = Contract.from_json((root / name / "contract.json").read_bytes())
    if contract.digest != manifest.contract or contract.model != model:
        raise ReleaseError(f"release {name}: contract.json is not the one that its manifest names")
    return Release(root, manifest, contract)


def _check(root: Path, name: str, manifest: Manifest) -> None:
    if manifest.format != MANIFEST_FORMAT:
        raise ReleaseError(f"release {name}: manifest format {manifest.format}, this version reads {MANIFEST_FORMAT}")
    if f"{manifest.model}.{manifest.version}" != name:
        raise ReleaseError(f"release {name}: its manifest is of {manifest.model}.{manifest.version}")
    present = {
        path.relative_to(root).as_posix()
        for directory in (root / name, root / f"{name}.explain")
        for path in directory.rglob("*")
        if not path.is_dir() and path != root / name / "manifest.json"
    }
    if missing := sorted(set(manifest.files) - present):
        raise ReleaseError(f"release {name}: missing {', '.join(missing)}")
    if extra := sorted(present - set(manifest.files)):
        raise ReleaseError(f"release {name}: not in its manifest: {', '.join(extra)}")
    for file, digest in manifest.files.items():
        if sha256(root / file) != digest:
            raise ReleaseError(f"release {name}: {file} is damaged: its SHA-256 differs from the manifest")
