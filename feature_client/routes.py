"""routes.toml: which release of each model answers whom. People write it, and so do commands, one at a time."""

import errno
import fcntl
import os
import stat
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import mmh3
import msgspec
from msgspec import Meta

from feature_client.durable import write_atomically
from feature_client.errors import RapportError
from feature_client.release import MODEL_NAME

Version = Annotated[int, Meta(ge=1, le=999_999_999)]

MAX_BYTES = 1 * 2**20
"""A larger routes.toml is refused: a model's route takes a hundred."""

LOCK_WAIT_S = 30.0
"""A writer reads the files of the releases that it names while the others wait."""


class RoutesError(RapportError):
    """A routes.toml that cannot be read or written, or a route that makes no sense; the message says where."""


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """percent: share of the customers whom `version` answers; always the same ones, and growing it keeps them."""

    version: Version
    percent: Annotated[float, Meta(ge=0, le=100)]


class Accepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version that may answer although its gates speak against that. at: when somebody said so, ISO 8601."""

    version: Version
    because: str
    at: str


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """champion: the version that answers. previous: the one before it, kept loaded so that a rollback is instant.

    shadow: versions that score the champion's customers, too, and answer nobody. standby: versions kept loaded for
    requests that ask for them by number. unknown: what a customer without any stored row gets. salt: another one deals
    the customers of a canary anew. accepted: versions that somebody let answer against their gates, the last one last.
    """

    champion: Version
    previous: Version | None = None
    canary: Canary | None = None
    shadow: tuple[Version, ...] = ()
    standby: tuple[Version, ...] = ()
    unknown: Literal["score", "reject"] = "score"
    salt: str = ""
    accepted: tuple[Accepted, ...] = ()

    def __post_init__(self) -> None:
        if self.canary is not None and self.canary.version == self.champion:
            raise ValueError("the canary is the champion")
        if self.champion in self.shadow or (self.canary is not None and self.canary.version in self.shadow):
            raise ValueError("a version that answers cannot be a shadow as well")

    @property
    def answering(self) -> tuple[int, ...]:
        """The champion, and the canary where there is one."""
        return (self.champion,) if self.canary is None else (self.champion, self.canary.version)

    @property
    def named(self) -> tuple[int, ...]:
        """Every version that is to be loaded, the champion first, each once."""
        canary = () if self.canary is None else (self.canary.version,)
        previous = () if self.previous is None else (self.previous,)
        return tuple(dict.fromkeys((self.champion, *canary, *self.shadow, *previous, *self.standby)))

    def arm(self, entity: Mapping[str, str]) -> int:
        """The version that answers this entity, the canary or the champion; entity: join key -> value."""
        if self.canary is None or share(entity, self.salt) >= self.canary.percent:
            return self.champion
        return self.canary.version

    def promoted(self, version: int) -> "Route":
        """With another champion: the one of now becomes the previous one, and the new one is nothing besides."""
        if version == self.champion:
            return self
        return self._with(version, None if self.canary and self.canary.version == version else self.canary)

    def rolled_back(self) -> "Route":
        """The champion and the previous one change places, so a second time goes back again. No canary any more.

        Raises RoutesError where there is no previous one.
        """
        if self.previous is None or self.previous == self.champion:
            raise RoutesError("there is no previous champion to go back to")
        return self._with(self.previous, None)

    def _with(self, champion: int, canary: Canary | None) -> "Route":
        return msgspec.structs.replace(
            self,
            champion=champion,
            previous=self.champion,
            canary=canary,
            shadow=tuple(version for version in self.shadow if version != champion),
            standby=tuple(version for version in self.standby if version != champion),
        )


def share(entity: Mapping[str, str], salt: str) -> float:
    """Where an entity stands between 0 and 100 (exclusive): a canary of p percent answers those that stand below p.

    A function of the entity's join keys, in any order, and of the salt alone: the same in every process, on every
    machine, in every version of ours. So growing a canary keeps the customers it has.
    """
    parts = [salt, *(part for pair in sorted(entity.items()) for part in pair)]
    # Each with its length, so that no two entities read the same.
    text = "".join([f"{len(part)}:{part}" for part in parts])
    # Half of a surrogate pair is no id, which whoever reads its features says; here nothing fails.
    return float(mmh3.hash(text.encode("utf-8", "surrogatepass"), signed=False) * (100 / 2**32))


KEYS = Route.__struct_fields__


def routes_file(root: Path) -> Path:
    return root / "routes.toml"


def read_routes(root: Path) -> dict[str, Route]:
    """Model -> route. Raises RoutesError."""
    path = routes_file(root)
    try:
        tables = tomllib.loads(_read(path))
        routes = msgspec.convert(tables, dict[str, Route])
    except FileNotFoundError as exc:
        raise RoutesError(f"no release is published: {path} does not exist") from exc
    except OSError as exc:
        raise RoutesError(f"{path} cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as exc:
        raise RoutesError(f"{path}: {exc}") from exc
    if not all(MODEL_NAME.fullmatch(model) for model in routes):
        raise RoutesError(f"{path}: a model is named by {MODEL_NAME.pattern}")
    return routes


def _read(path: Path) -> str:
    """Never waits for the other end of a pipe: whoever watches would watch no more. Raises OSError, UnicodeDecodeError.

    Through links, as a mounted ConfigMap has them.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_BYTES:,} bytes", str(path))
    return content.decode()


def change_route(root: Path, model: str, change: Callable[[Route | None], Route]) -> tuple[Route | None, Route]:
    """Replaces the model's route by what `change` makes of it (of None where there is none yet); returns both.

    Atomically, and one writer at a time: `change` runs under the lock. Comments, the order of things, other models and
    keys that this version does not know stay. Raises RoutesError, and what `change` raises; then nothing has changed.
    """
    path = routes_file(root)
    if not MODEL_NAME.fullmatch(model):
        raise RoutesError(f"a model is named by {MODEL_NAME.pattern}")
    with locked(root):
        text = _text(path)
        tables = _tables(text, path)
        before = _known(tables, model, path)
        try:
            after = change(before)
        except ValueError as exc:  # what Route says of itself
            raise RoutesError(f"{model}: {exc}") from exc
        if after != before:
            _replace(path, text, tables, model, after)
    return before, after


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """The only one, in any process, who changes routes or removes releases; a killed one's lock is free at once.

    Raises RoutesError, after LOCK_WAIT_S where another one does not finish.
    """
    lock = root / ".routes.lock"
    ends = time.monotonic() + LOCK_WAIT_S
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise RoutesError(f"cannot write to the model repository {root}: {exc.strerror}") from exc
    try:
        while not _is_mine(descriptor, lock):
            if time.monotonic() > ends:
                raise RoutesError(f"another command is changing {root}, for {LOCK_WAIT_S:.0f} s now: try again")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _is_mine(descriptor: int, lock: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        raise RoutesError(f"{lock} cannot be locked on this file system: {exc.strerror}") from exc
    return True


def _text(path: Path) -> str:
    try:
        return _read(path)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as exc:
        raise RoutesError(f"{path} cannot be read, so it is left alone: {exc}") from exc


def _tables(text: str, path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise RoutesError(f"{path} cannot be read, so it is left alone: {exc}") from exc
    if not all(isinstance(table, dict) for table in tables.values()):
        raise RoutesError(f"{path} has a key outside of any model's table, so it is left alone")
    return tables


def _known(tables: Mapping[str, Mapping[str, Any]], model: str, path: Path) -> Route | None:
    """What this version knows of the model's route."""
    if model not in tables:
        return None
    try:
        return msgspec.convert({key: tables[model][key] for key in KEYS if key in tables[model]}, Route)
    except msgspec.ValidationError as exc:
        raise RoutesError(f"{path}, [{model}]: {exc}; it is left alone") from exc


def _replace(path: Path, text: str, tables: Mapping[str, Mapping[str, Any]], model: str, route: Route) -> None:
    old = tables.get(model, {})
    new = _merged(old, route)
    if _known({model: new}, model, path) != route:
        raise RoutesError(f"{path}, [{model}]: not a route that can be written down")
    for edit in (_edited, _renewed):
        written = edit(text, model, old, new)
        # Nothing goes to readers that was not read back: a text can be laid out in more ways than tomlkit can edit.
        if written is not None and _reads_as(written, {**tables, model: new}):
            break
    else:
        raise RoutesError(f"{path} is laid out in a way that cannot be changed by command: change it by hand")
    try:
        write_atomically(path, written.encode(), scratch=path.parent)
    except OSError as exc:
        raise RoutesError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def _reads_as(text: str, tables: Mapping[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == tables
    except tomllib.TOMLDecodeError:
        return False


def _merged(old: Mapping[str, Any], route: Route) -> dict[str, Any]:
    """The table for this route, with what of `old` is unknown, or a default that somebody wrote down all the same."""
    said = msgspec.json.decode(msgspec.json.encode(route))
    meant = msgspec.json.decode(msgspec.json.encode({key: getattr(route, key) for key in KEYS}))
    return {**{key: value for key, value in old.items() if key not in KEYS or value == meant[key]}, **said}


def _edited(text: str, model: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The text with the model's table changed from `old` to `new`, and everything else as it was."""
    import tomlkit  # noqa: PLC0415  (the gateway only reads)

    document = tomlkit.parse(text)
    if model not in document:
        document[model] = tomlkit.table()
    table: Any = document[model]
    try:
        for key in old.keys() - new.keys():
            del table[key]
        for key, value in new.items():
            if old.get(key) != value:
                table[key] = _item(key, value)
    except (LookupError, TypeError, ValueError):  # tables in pieces are too much for tomlkit
        return None
    return document.as_string()


def _renewed(text: str, model: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:  # noqa: ARG001  (as `_edited`)
    """The same, with a new table in place of the model's, whose own comments are lost."""
    import tomlkit  # noqa: PLC0415

    document = tomlkit.parse(text)
    document.pop(model, None)
    table = tomlkit.table()
    for key, value in new.items():
        table[key] = _item(key, value)
    document[model] = table
    return document.as_string()


def _item(key: str, value: Any) -> Any:
    import tomlkit  # noqa: PLC0415

    def inline(fields: Mapping[str, Any]) -> Any:
        table = tomlkit.inline_table()
        table.update(fields)
        return table

    if key == "canary":
        percent = value["percent"]
        return inline(value | {"percent": int(percent) if percent == int(percent) else percent})
    if key == "accepted":
        # Inside the model's table: as tables of their own they would have to come after everything else in it.
        array = tomlkit.array()
        array.extend(map(inline, value))
        return array.multiline(multiline=True)
    return value
