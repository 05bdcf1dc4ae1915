"""routes.toml: which release of each model answers whom."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import mmh3
import msgspec
from msgspec import Meta

from feature_client.errors import RapportError
from feature_client.release import MODEL_NAME

Version = Annotated[int, Meta(ge=1, le=999_999_999)]


class RoutesError(RapportError):
    """A routes.toml that cannot be read; the message says where."""


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """percent: share of the customers whom `version` answers; always the same ones, and growing it keeps them."""

    version: Version
    percent: Annotated[float, Meta(ge=0, le=100)]


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """champion: the version that answers. previous: the one before it, kept loaded so that a rollback is instant.

    shadow: versions that score the champion's customers, too, and answer nobody. standby: versions kept loaded for
    requests that ask for them by number. unknown: what a customer without any stored row gets. salt: another one deals
    the customers of a canary anew.
    """

    champion: Version
    previous: Version | None = None
    canary: Canary | None = None
    shadow: tuple[Version, ...] = ()
    standby: tuple[Version, ...] = ()
    unknown: Literal["score", "reject"] = "score"
    salt: str = ""

    def __post_init__(self) -> None:
        if self.canary is not None and self.canary.version == self.champion:
            raise ValueError("the canary is the champion")
        if self.champion in self.shadow or (self.canary is not None and self.canary.version in self.shadow):
            raise ValueError("a shadow is no other than the versions that answer")

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


def routes_file(root: Path) -> Path:
    return root / "routes.toml"


def read_routes(root: Path) -> dict[str, Route]:
    """Model -> route. Raises RoutesError."""
    path = routes_file(root)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
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
