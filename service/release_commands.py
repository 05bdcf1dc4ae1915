"""`rapport release ...`: what is published, which of it answers whom, and how that changes."""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from feature_client.errors import RapportError
from feature_client.release import SIGNATURE, Release, ReleaseError, read_release
from feature_client.repository import Listed, Pruning, promote, prunable, prune, roles, take_inventory
from feature_client.routes import Canary, Route, RoutesError, change_route, read_routes
from service.backends import Backend, BackendUnavailable, BadModelOutput
from service.compare_command import compare_releases
from service.extras import reach
from service.gates import Accept, print_gates
from service.promotion import let_answer, warnings
from service.watching import wait_until_served

if TYPE_CHECKING:
    from feature_client.signature import SigningKey, TrustedKeys

app = typer.Typer(no_args_is_help=True, help="Releases: what is published, which one answers whom, and how it changes.")

WORKSPACE = Path(".rapport/generated")
WORKSPACE_MODELS = WORKSPACE / "models"
KEEP = 3

Model = Annotated[str, typer.Argument(help="The model's name.")]
AnyModel = Annotated[str | None, typer.Argument(help="Of this model. Default: of all.")]
Version = Annotated[int, typer.Argument(min=1, help="The release's number.")]
Models = Annotated[
    str | None,
    typer.Option(
        "--models",
        envvar="RAPPORT_MODELS",
        help=f"The model repository. Default: {WORKSPACE_MODELS} where it is there, else models.",
    ),
]
Gateway = Annotated[
    str | None,
    typer.Option("--gateway", help="Wait until this one serves it: http://host:port; its key is in RAPPORT_KEY."),
]
Key = Annotated[
    Path | None,
    typer.Option("--key", envvar="RAPPORT_RELEASE_KEY", help="Public keys (PEM), of which one must have signed it."),
]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]


@app.command("list")
def list_releases(model: AnyModel = None, models: Models = None, as_json: Json = False) -> None:  # noqa: FBT002  (Typer's way to say a flag)
    """Every release with its roles, and what killed publishers have left."""
    root = local_repository(models)
    inventory = take_inventory(root, model)
    if as_json:
        _print_json(
            {
                "models": str(root),
                "routes": inventory.routes,
                "releases": [_said(listed) for listed in inventory.releases],
                "leftovers": inventory.leftovers,
            }
        )
        return
    header = ("release", "role", "created", "contract", "signed", "size")
    _print_table([header, *(_row(listed) for listed in inventory.releases)])
    for name, route in inventory.routes.items():
        for accepted in route.accepted:
            when = accepted.at[:10]
            typer.echo(f"{name}.{accepted.version} may answer against its gates, since {when}: {accepted.because}")
    for leftover in inventory.leftovers:
        typer.echo(
            f"leftover {leftover.name}, {_size(leftover.size)}, touched {leftover.age_s / 60:,.0f} min ago: "
            "an unfinished publish"
        )


@app.command()
def verify(
    model: Model,
    version: Version,
    models: Models = None,
    key: Key = None,
    triton: Annotated[str | None, typer.Option(help="host:port of a Triton's gRPC. Default: in this process.")] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Check a release: its files, what they hold, its signature, and its golden rows on a backend."""
    root = local_repository(models)
    release = read_release(root, model, version, _trusted(key))
    signature = _signature(release, key)
    backend, where = _backend(triton)
    rows = asyncio.run(_prove(release, backend))
    files = len(release.manifest.files)
    if as_json:
        _print_json(
            {
                "release": release.name,
                "files": files,
                "contract": release.contract.digest,
                "signature": signature,
                "backend": where,
                "golden_rows": rows,
            }
        )
        return
    typer.echo(f"{release.name}: {files} files are as the manifest says, and hold nothing but a model and its contract")
    typer.echo(f"{release.name}: {signature}")
    typer.echo(f"{release.name}: {rows} golden rows give the golden scores and explanations on {where}")
    print_gates(release)


@app.command()
def keygen(path: Annotated[Path, typer.Argument(help="Of the private key; the public one is PATH.pub.")]) -> None:
    """Make a key pair: publishers sign with the private key, gateways and `verify` trust the public one."""
    from feature_client.signature import write_key_pair  # noqa: PLC0415  (needs an extra)

    public = write_key_pair(path)
    typer.echo(f"{path}: the private key, for `rapport release publish --sign-with`; keep it from gateways")
    typer.echo(f"{public}: the public key, for RAPPORT_RELEASE_KEY")


@app.command()
def load(
    model: Model,
    version: Version,
    models: Models = None,
    key: Key = None,
    gateway: Gateway = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Have every gateway load and prove a release, before any route flips: put it on standby."""
    root, trust = local_repository(models), _trusted(key)

    def change(route: Route | None) -> Route:
        route = _routed(route, model)
        if version == route.champion or version in route.standby:
            return route
        read_release(root, model, version, trust)
        return msgspec.structs.replace(route, standby=(*route.standby, version))

    _change(root, model, change, gateway, as_json=as_json)


@app.command()
def unload(
    model: Model,
    version: Version,
    models: Models = None,
    gateway: Gateway = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Take a release off standby: gateways let go of it, unless the route names it for something else."""

    def change(route: Route | None) -> Route:
        route = _routed(route, model)
        if version not in route.standby:
            other = ", ".join(roles(route, version))
            raise RoutesError(f"{model}.{version} is not on standby" + (f": it is {other}" if other else ""))
        return msgspec.structs.replace(route, standby=tuple(other for other in route.standby if other != version))

    _change(local_repository(models), model, change, gateway, as_json=as_json)


@app.command("route")
def change_the_route(
    model: Model,
    champion: Annotated[int | None, typer.Option(min=1, help="The release that answers.")] = None,
    canary: Annotated[
        str | None, typer.Option(help="A release for a share of the customers: VERSION:PERCENT, as in 4:10.")
    ] = None,
    no_canary: Annotated[bool, typer.Option("--no-canary", help="No canary any more.")] = False,  # noqa: FBT002
    shadow: Annotated[
        list[int] | None,
        typer.Option(min=1, help="A release that scores as well and answers nobody; may be given several times."),
    ] = None,
    no_shadow: Annotated[bool, typer.Option("--no-shadow", help="No shadow any more.")] = False,  # noqa: FBT002
    unknown: Annotated[str | None, typer.Option(help="Customers without any stored row: score or reject.")] = None,
    salt: Annotated[str | None, typer.Option(help="Another text deals the customers of a canary anew.")] = None,
    accept: Annotated[
        str | None,
        typer.Option(help="Let a release answer that fails its gates: why, in words that routes.toml will say."),
    ] = None,
    models: Models = None,
    key: Key = None,
    gateway: Gateway = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Change who answers; what is not said stays. Releases that are named are verified first, and what is to answer has
    passed its gates, or somebody says why it may."""
    root, trust = local_repository(models), _trusted(key)
    if (canary and no_canary) or (shadow and no_shadow):
        raise RoutesError("say which canary or shadow there is, or that there is none, not both")
    changes: dict[str, Any] = {"canary": _canary(canary)} if canary else {"canary": None} if no_canary else {}
    if unknown not in (None, "score", "reject"):
        raise RoutesError(f"--unknown {unknown}: score or reject")
    if shadow or no_shadow:
        changes["shadow"] = tuple(dict.fromkeys(shadow or ()))
    changes |= {key: value for key, value in (("unknown", unknown), ("salt", salt)) if value is not None}

    def change(route: Route | None) -> Route:
        before = set(route.named) if route else set()
        answering = [version for version in (champion, canary and _canary(canary).version) if version]
        named = {version: read_release(root, model, version, trust) for version in answering}
        after = route if champion is None else promote(root, model, route, champion)
        after = msgspec.structs.replace(_routed(after, model), **changes)
        for version in after.named:
            if version not in before and version not in named:
                read_release(root, model, version, trust)
        for release in named.values():
            after = let_answer(release, route, after, accept)
        for said in warnings(root, named[champion], route) if champion else ():
            typer.echo(f"rapport: {said}", err=True)
        return after

    _change(root, model, change, gateway, as_json=as_json)


@app.command()
def rollback(
    model: Model,
    models: Models = None,
    key: Key = None,
    gateway: Gateway = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """The previous champion answers again, and there is no canary. A second rollback goes back again."""
    root, trust = local_repository(models), _trusted(key)

    def change(route: Route | None) -> Route:
        after = _routed(route, model).rolled_back()
        read_release(root, model, after.champion, trust)
        return after

    _change(root, model, change, gateway, as_json=as_json)


@app.command("prune")
def prune_releases(
    model: AnyModel = None,
    keep: Annotated[int, typer.Option(min=0, help="Spare the newest so many of a model that no route names.")] = KEEP,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,  # noqa: FBT002
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,  # noqa: FBT002
    models: Models = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Remove releases that no route names, and what publishers that were killed more than an hour ago have left.

    Champions, canaries, shadows, previous champions and releases on standby stay. Numbers are never used again.
    """
    root = local_repository(models)
    pruning = prunable(root, model, keep)
    if pruning.names and not dry_run:
        if not yes:
            _ask(pruning)
        pruning = prune(root, pruning)
    if as_json:
        _print_json(
            {"models": str(root), "names": pruning.names, "size": pruning.size, "removed": not dry_run},
        )
        return
    verb = "would remove" if dry_run else "removed"
    names = ", ".join(pruning.names)
    typer.echo(f"{verb} {names}: {_size(pruning.size)}" if names else "nothing to remove")


@app.command("publish")
def publish(
    workspace: Annotated[Path, typer.Option("--workspace", help="The directory of one data set.")] = WORKSPACE,
    models: Models = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="A release of another repository, as in /there/models/engagement.3, to take over."),
    ] = None,
    sign_with: Annotated[
        Path | None,
        typer.Option(envvar="RAPPORT_SIGNING_KEY", help="A private key, of `rapport release keygen`: sign with it."),
    ] = None,
    accept: Accept = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Publish the workspace's trained model, or another repository's release, as the next version. No route changes."""
    place = reach("feature_client.offline.workspace", "features").Workspace(workspace)
    root = place.models if models is None else local_repository(models)
    key = None if sign_with is None else read_signing_key(sign_with)
    published = (
        reach("model_export.pipeline", "export").publish_unrouted(place, root, key, accept)
        if source is None
        else reach("model_export.republish", "export").take_over(source, root, key, accept)
    )
    model, version = published.manifest.model, published.manifest.version
    print_gates(published)
    if as_json:
        _print_json({"models": str(root), "model": model, "version": version})
        return
    typer.echo(f"published {published.name} in {root}; nobody is sent to it yet")
    typer.echo(f"next: rapport release load {model} {version} --models {root}")


@app.command()
def push(
    url: Annotated[str, typer.Argument(help="The repository in object storage, such as s3://bucket/models.")],
    models: Models = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Copy the releases that routes name to object storage, and then routes.toml: gateways follow it from there."""
    from feature_client import mirror  # noqa: PLC0415  (needs an extra)

    root = local_repository(models)
    named = [(model, version) for model, route in read_routes(root).items() for version in route.named]
    for model, version in named:
        mirror.push(root, url, model, version)
    mirror.push_routes(root, url)
    names = [f"{model}.{version}" for model, version in named]
    if as_json:
        _print_json({"url": url, "names": names})
        return
    typer.echo(f"{url} has {', '.join(names)} and routes.toml")


app.command("compare")(compare_releases)


def local_repository(models: str | None) -> Path:
    """Raises RapportError for a URL: routes and releases change where there are locks and renames."""
    if models and "://" in models:
        raise RapportError(f"{models} is not a directory: change one, then copy it: rapport release push {models}")
    if models:
        return Path(models)
    return WORKSPACE_MODELS if WORKSPACE_MODELS.is_dir() else Path("models")


def _routed(route: Route | None, model: str) -> Route:
    if route is None:
        raise RoutesError(f"{model} has no route yet: rapport release route {model} --champion VERSION")
    return route


def _canary(text: str) -> Canary:
    version, _, percent = text.partition(":")
    try:
        canary = Canary(int(version), float(percent))
    except ValueError:
        raise RoutesError(f"--canary {text}: write VERSION:PERCENT, as in 4:10") from None
    if canary.version < 1 or not 0 <= canary.percent <= 100:
        raise RoutesError(f"--canary {text}: a version counts from 1, a percentage is from 0 to 100")
    return canary


def read_signing_key(path: Path) -> "SigningKey":
    """Raises RapportError."""
    from feature_client.signature import SigningKey  # noqa: PLC0415  (needs an extra)

    return SigningKey.read(path)


def _trusted(key: Path | None) -> "TrustedKeys | None":
    if key is None:
        return None
    from feature_client.signature import TrustedKeys  # noqa: PLC0415  (needs an extra)

    return TrustedKeys.read(key)


def _signature(release: Release, key: Path | None) -> str:
    """key: that it was verified with."""
    if key is not None:
        return f"signed by a key of {key}"
    return "signed, which nobody checked: --key" if (release.directory / SIGNATURE).exists() else "not signed"


def _backend(triton: str | None) -> tuple[Backend, str]:
    """A backend to prove a release on, and its name. triton: host:port of one."""
    try:
        if triton is not None:
            from service.backends.triton import TritonBackend  # noqa: PLC0415  (an extra)

            return TritonBackend([triton]), f"Triton at {triton}"
        from service.backends.embedded import EmbeddedBackend  # noqa: PLC0415  (an extra)
    except ModuleNotFoundError as exc:
        extra = "cpu" if triton is None else "triton"
        raise RapportError(f"{exc.name} is not installed: pip install 'rapport[{extra}]'") from exc
    return EmbeddedBackend(), "ONNX Runtime in this process"


async def _prove(release: Release, backend: Backend) -> int:
    """Returns how many golden rows there are. Raises ReleaseError."""
    # Under names of our own: on a Triton that is in use, what answers there is left alone.
    graphs = [replace(graph, name=f"{graph.name}.verify{os.getpid()}") for graph in release.graphs()]
    try:
        for graph in graphs:
            try:
                await backend.load(graph)
            finally:
                await backend.unload(graph.name)
    except TimeoutError as exc:
        raise ReleaseError(f"release {release.name}: the golden rows take too long") from exc
    except (BackendUnavailable, BadModelOutput) as exc:
        raise ReleaseError(f"release {release.name}: {exc}") from exc
    finally:
        await backend.close()
    return len(graphs[0].golden)


def _change(
    root: Path, model: str, change: Callable[[Route | None], Route], gateway: str | None, *, as_json: bool
) -> None:
    before, after = change_route(root, model, change)
    if not as_json:
        _print_change(model, before, after)
    seconds = None if gateway is None else wait_until_served(gateway, model, after)
    if as_json:
        _print_json({"model": model, "before": before, "after": after, "gateway_s": seconds})
    elif seconds is not None:
        typer.echo(f"every answer of {gateway} says so after {seconds:.1f} s")


def _print_change(model: str, before: Route | None, after: Route) -> None:
    was, now = _described(before), _described(after)
    if was == now:
        typer.echo(f"{model} stays as it is: " + ", ".join(f"{key} {value}" for key, value in now.items() if value))
        return
    rows = [(model, key, f"{was[key] or 'none'} -> {now[key] or 'none'}") for key in now if was[key] != now[key]]
    _print_table(rows)


def _described(route: Route | None) -> dict[str, str]:
    """Field -> what a person reads; empty for what there is none of."""
    if route is None:
        return dict.fromkeys(Route.__struct_fields__, "")
    return {
        "champion": str(route.champion),
        "previous": str(route.previous or ""),
        "canary": f"{route.canary.version} at {route.canary.percent:g} %" if route.canary else "",
        "shadow": ", ".join(map(str, route.shadow)),
        "standby": ", ".join(map(str, route.standby)),
        "unknown": route.unknown,
        "salt": route.salt,
        "accepted": ", ".join(f"{accepted.version} because: {accepted.because}" for accepted in route.accepted),
    }


def _ask(pruning: Pruning) -> None:
    names = ", ".join(pruning.names)
    if not sys.stdin.isatty():
        raise RapportError(f"this would remove {names} ({_size(pruning.size)}): say --yes, or --dry-run")
    if not typer.confirm(f"remove {names} ({_size(pruning.size)})?", err=True):
        raise RapportError("nothing was removed")


def _said(listed: Listed) -> Mapping[str, Any]:
    """For machines. size: bytes."""
    manifest = listed.manifest
    return {
        "model": listed.model,
        "version": listed.version,
        "roles": listed.roles,
        "created_at": manifest and manifest.created_at,
        "contract": manifest and manifest.contract,
        "signed": listed.signed,
        "size": listed.size,
        "problem": listed.problem,
    }


def _row(listed: Listed) -> Sequence[str]:
    manifest = listed.manifest
    return (
        listed.name,
        ", ".join(listed.roles) or "-",
        f"{manifest.created_at[:19]}Z" if manifest else listed.problem or "",
        manifest.contract[:12] if manifest else "",
        "yes" if listed.signed else "no",
        _size(listed.size),
    )


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_json(value: Mapping[str, Any]) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
