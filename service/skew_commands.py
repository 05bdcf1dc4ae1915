"""`rapport skew ...`: whether a model in service gets the features it was trained on. Reached by `service/cli.py`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_client.errors import RapportError
from service.extras import reach
from service.instants import instant_of

if TYPE_CHECKING:  # numpy, which starts threads: `serve` forks from a process without any
    from feature_client.served import Source

app = typer.Typer(no_args_is_help=True, help="Skew: whether a model in service gets the features it was trained on.")


@app.callback()
def skew() -> None:
    """With one command alone, Typer would leave its name out."""


@app.command()
def check(
    workspace: Annotated[
        Path, typer.Option("--workspace", help="The directory of one data set: its events are the truth.")
    ] = Path(".rapport/generated"),
    customers: Annotated[int, typer.Option(min=1, help="How many customers, at random.")] = 1_000,
    ids: Annotated[str | None, typer.Option(help="These customers instead, separated by commas.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which customers: same seed, same ones.")] = 0,
    gateway: Annotated[
        str | None, typer.Option(help="Ask this one: http://host:port; its key is in RAPPORT_KEY. Default: the store.")
    ] = None,
    redis: Annotated[
        str, typer.Option(envvar="RAPPORT_REDIS", help="Without a gateway: the online store as Feast names it.")
    ] = "127.0.0.1:6379",
    models: Annotated[
        Path | None, typer.Option(help="Without a gateway: the model repository. Default: the workspace's own.")
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(help="Without a gateway: the instant to encode for, ISO 8601. Default: the data set's own."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Default: the only one.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="A release's number. Default: as routed.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A feature whose differences are known; may be given several times.")
    ] = None,
) -> None:
    """Feature vectors in service against a recomputation from raw events: which differ, how often, by how much.

    The last line is one JSON object. Ends with 1 where any feature differs that is not allowed to.
    """
    found = reach("feature_client.offline.skew", "features")
    place = reach("feature_client.offline.workspace", "features").Workspace(workspace, redis)
    asked = [one.strip() for one in ids.split(",") if one.strip()] if ids is not None else None
    source = (
        _store(place, models or place.models, model, version, as_of)
        if gateway is None
        else _gateway(gateway, model, None if version is None else str(version))
    )
    chosen = found.choose_customers(place, customers, seed) if asked is None else asked
    report = found.check(place, source, chosen, allow or ())
    for line in (*report.lines(), report.to_json()):
        typer.echo(line)
    if not report.is_clean:
        raise RapportError(f"skew: {report.verdict}")


def _gateway(url: str, model: str | None, version: str | None) -> "Source":
    from service.served_features import GatewaySource  # noqa: PLC0415  (numpy)

    return GatewaySource(url, model, version)


def _store(place: Any, models: Path, model: str | None, version: int | None, as_of: str | None) -> "Source":
    from feature_client.release import read_release  # noqa: PLC0415  (numpy)
    from feature_client.routes import read_routes  # noqa: PLC0415
    from feature_client.served import StoreSource  # noqa: PLC0415

    routes = read_routes(models)
    if model is None and len(routes) != 1:
        raise RapportError(f"{models} has {len(routes)} models: say which with --model")
    name = model or next(iter(routes))
    if version is None and name not in routes:
        raise RapportError(f"{models} has no route of {name}: publish a release, or say which with --version")
    release = read_release(models, name, version or routes[name].champion)
    return StoreSource(
        release.contract.schema, release.version, place.redis, instant_of(as_of) or place.dataset().as_of
    )
