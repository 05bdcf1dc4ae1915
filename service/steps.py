"""Which steps of the offline half are still valid: a step is repeated when what it depends on has changed."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

SOURCES = Path(__file__).parent.parent


@dataclass(frozen=True)
class Step:
    """after: the step whose result this one reads. makes: files in the workspace that it leaves, at least these.

    code: packages and modules whose change makes it stale.
    """

    name: str
    after: str | None
    makes: tuple[str, ...]
    code: tuple[str, ...]


OFFLINE = ("feature_client/offline", "feature_client/feature_repo", "feature_client/schema.py")
STEPS = (
    Step("events", None, ("events.parquet", "dataset.json"), ("feature_client/offline",)),
    Step("features", "events", ("features/lifetime.parquet", "schema.json", "registry.db"), OFFLINE),
    Step("materialize", "features", ("customers.txt",), OFFLINE),
    Step("train", "features", ("run/contract.json",), ("feature_client", "model_export")),
    Step("publish", "train", ("models/routes.toml",), ("feature_client", "model_export")),
)


class Stamps:
    """One file a step holds the key of what it was made from; parameters are those of the first step."""

    def __init__(self, home: Path, parameters: Mapping[str, object], sources: Path = SOURCES) -> None:
        self.home = home
        self.parameters = parameters
        self.sources = sources

    def stale(self) -> list[str]:
        return [step.name for step in STEPS if not self.is_fresh(step.name)]

    def is_fresh(self, name: str) -> bool:
        path = self._path(name)
        there = all((self.home / made).exists() for made in _step(name).makes)
        return there and path.exists() and path.read_text() == self._key(name)

    def done(self, name: str) -> None:
        self._path(name).parent.mkdir(parents=True, exist_ok=True)
        self._path(name).write_text(self._key(name))

    def forget(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.home / "stamps" / name

    def _key(self, name: str) -> str:
        step = _step(name)
        digest = hashlib.sha256(_code_digest(self.sources, step.code))
        if step.after is None:
            digest.update(msgspec.json.encode(self.parameters, order="deterministic"))
        else:
            digest.update(self._key(step.after).encode())
        return digest.hexdigest()


def _step(name: str) -> Step:
    return next(step for step in STEPS if step.name == name)


def _code_digest(sources: Path, code: Iterable[str]) -> bytes:
    digest = hashlib.sha256()
    for entry in code:
        path = sources / entry
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.suffix not in (".py", ".yaml"):
                continue
            digest.update(file.relative_to(sources).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.digest()
