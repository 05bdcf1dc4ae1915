"""Lays a release out in the model repository, and commits it by writing its manifest last.

A publisher that is killed at any point leaves no release: only directories without a manifest, which no reader lists
and whose numbers are not used again.
"""

import json
import os
import re
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from feature_client.clock import to_iso
from feature_client.contract import Contract
from feature_client.errors import RapportError
from feature_client.release import (
    MODEL_NAME,
    RELEASE_NAME,
    Manifest,
    Release,
    graph_file,
    read_release,
    sha256,
)
from feature_client.triton_config import config_pbtxt


class PublishError(RapportError):
    """A release that could not be written; the message says where and why."""


@dataclass(frozen=True)
class Artifacts:
    """What a release is made of besides its contract, as files to copy."""

    score_graph: Path
    explain_graph: Path
    golden: Path
    card: Path


def publish(root: Path, contract: Contract, artifacts: Artifacts) -> Release:
    """The next version of the contract's model, verified as readers verify it. No route changes."""
    if not MODEL_NAME.fullmatch(contract.model):
        raise PublishError(f"model name {contract.model!r}: use up to 64 of a-z, 0-9 and _")
    with _translated(root):
        root.mkdir(parents=True, exist_ok=True)
        version = _claim(root, contract.model)
        name = f"{contract.model}.{version}"
        try:
            with tempfile.TemporaryDirectory(prefix=".staging-", dir=root) as staging:
                _lay_out(Path(staging), name, contract, artifacts)
                _commit(root, Path(staging), name, contract, version)
        except BaseException:
            _discard(root, name)
            raise
        return read_release(root, contract.model, version)


def set_champion(root: Path, model: str, version: int) -> None:
    """Points the model's route at `version`, atomically; everything else in routes.toml stays."""
    path = root / "routes.toml"
    with _translated(root):
        try:
            tables: dict[str, dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            tables = {}
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise PublishError(f"{path} cannot be read, so it is left alone: {exc}") from exc
        if not all(isinstance(table, dict) for table in tables.values()):
            raise PublishError(f"{path} has a key outside of any model's table, so it is left alone")
        tables[model] = {**tables.get(model, {}), "champion": version}
        sections = [
            "\n".join([f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())])
            for name, table in tables.items()
        ]
        _write_atomically(path, ("\n\n".join(sections) + "\n").encode(), scratch=root)


def _claim(root: Path, model: str) -> int:
    """A version number nobody used, not even a publisher that was killed; its directory is made here."""
    while True:
        matches = (RELEASE_NAME.fullmatch(path.name.removesuffix(".explain")) for path in root.iterdir())
        version = 1 + max((int(match[2]) for match in matches if match and match[1] == model), default=0)
        try:
            (root / f"{model}.{version}").mkdir()
        except FileExistsError:  # another publisher was faster
            continue
        return version


def _lay_out(staging: Path, name: str, contract: Contract, artifacts: Artifacts) -> None:
    score, explain = staging / name, staging / f"{name}.explain"
    for directory, graph in ((score, artifacts.score_graph), (explain, artifacts.explain_graph)):
        graph_file(directory).parent.mkdir(parents=True)
        shutil.copyfile(graph, graph_file(directory))
        config = config_pbtxt(directory.name, contract, explains=directory == explain)
        (directory / "config.pbtxt").write_text(config)
    (score / "contract.json").write_bytes(contract.to_json())
    shutil.copyfile(artifacts.golden, score / "golden.npz")
    shutil.copyfile(artifacts.card, score / "card.md")


def _commit(root: Path, staging: Path, name: str, contract: Contract, version: int) -> None:
    directories = (f"{name}.explain", name)
    files = [path for directory in directories for path in sorted((staging / directory).rglob("*")) if path.is_file()]
    digests = {path.relative_to(staging).as_posix(): sha256(path) for path in files}
    for path in files:
        _sync(path)
    for directory in directories:
        (staging / directory).rename(root / directory)  # over the empty directory that claimed the number
    manifest = Manifest(contract.model, version, contract.digest, to_iso(time.time()), digests)
    _sync(root)
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    _write_atomically(root / name / "manifest.json", content, scratch=root)


def _write_atomically(path: Path, content: bytes, scratch: Path) -> None:
    """The content is on the disk before its name is, so a crash shows the old file or the new one."""
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}-", dir=scratch)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).chmod(0o644)
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(root: Path, name: str) -> None:
    if not (root / name / "manifest.json").exists():
        for directory in (root / name, root / f"{name}.explain"):
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _translated(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise PublishError(f"cannot write to the model repository {root}: {exc.strerror or exc}") from exc


def _toml(value: Any) -> str:
    """The values that a route may hold: the standard library reads TOML but does not write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value) if isinstance(value, str) else str(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)
