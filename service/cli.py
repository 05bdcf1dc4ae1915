"""The `rapport` command. Sub-commands of the offline half are reached lazily: the gateway installs without them."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from feature_client.errors import RapportError
from service.explain_commands import app as explain
from service.extras import reach
from service.gates import Accept, print_gates
from service.instants import instant_of
from service.report_command import report
from service.skew_commands import app as skew


class _Releases(TyperGroup):
    """Commands of a module that is reached only when one is asked for: `serve` forks, and what it forks from must not
    have imported numpy, which starts threads."""

    def list_commands(self, ctx: Any) -> list[str]:
        return self._group.list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._group.get_command(ctx, cmd_name)

    @cached_property
    def _group(self) -> TyperGroup:
        from service.release_commands import app as releases  # noqa: PLC0415

        return typer.main.get_group(releases)


app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
events = typer.Typer(no_args_is_help=True, help="Raw customer events: make them, or bring your own.")
features = typer.Typer(no_args_is_help=True, help="Features: declare, build, put into the online store.")
releases = typer.Typer(
    cls=_Releases,
    no_args_is_help=True,
    help="Releases: what is published, which one answers whom, and how it changes.",
)
keys = typer.Typer(no_args_is_help=True, help="API keys.")
triton = typer.Typer(no_args_is_help=True, help="A real Triton without a container, on this machine's CPUs.")
app.add_typer(events, name="events")
app.add_typer(features, name="features")
app.add_typer(keys, name="keys")
app.add_typer(triton, name="triton")
app.add_typer(releases, name="release")
app.add_typer(explain, name="explain")
app.command()(report)
app.add_typer(skew, name="skew")

Home = Annotated[Path, typer.Option(help="Where data sets, models and servers of this project keep their files.")]
WorkspaceDir = Annotated[Path, typer.Option("--workspace", help="The directory of one data set.")]
Redis = Annotated[
    str,
    typer.Option(
        envvar="RAPPORT_REDIS", help="The online store as Feast names it: host:port, then options after commas."
    ),
]
AsOf = Annotated[str | None, typer.Option(help="The instant to compute for, ISO 8601. Default: the data set's own.")]
Customers = Annotated[int, typer.Option(min=100, help="How many customers to make up.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]
Data = Annotated[Path | None, typer.Option(help="A file of events. Default: generated events.")]


class Runtime(StrEnum):
    EMBEDDED = "embedded"
    TRITON = "triton"


class Estimator(StrEnum):
    NETWORK = "network"
    LIGHTGBM = "lightgbm"
    LOGISTIC = "logistic"


DEFAULT_HOME = Path(".rapport")
DEFAULT_WORKSPACE = DEFAULT_HOME / "generated"
DEFAULT_REDIS = "127.0.0.1:6379"
DEFAULT_CUSTOMERS = 20_000
WATCH_S = 0.5


def main() -> None:
    """Entry point: an error that a person can mend is one sentence and exit code 1."""
    # So that a command that is ended tidies up as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except RapportError as exc:
        sys.exit(f"rapport: {exc}")


@app.command()
def up(
    home: Home = DEFAULT_HOME,
    data: Data = None,
    customers: Customers = DEFAULT_CUSTOMERS,
    seed: Seed = 0,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The gateway's port on 127.0.0.1.")] = 8080,
    backend: Annotated[
        Runtime,
        typer.Option(help="What runs models: ONNX Runtime inside the gateway, or a real Triton beside it."),
    ] = Runtime.EMBEDDED,
    accept: Accept = None,
) -> None:
    """Everything, from events to a gateway that answers, until Ctrl-C."""
    module = reach("service.up", "local")
    module.up(module.Request(home, data, customers, seed, port, backend.value, accept))


@app.command()
def down(home: Home = DEFAULT_HOME) -> None:
    """End what `rapport up` started."""
    ended = reach("service.up", "local").down(home)
    print(f"ended {len(ended)} processes" if ended else "nothing was running")  # noqa: T201


@app.command()
def prepare(
    home: Home = DEFAULT_HOME,
    data: Data = None,
    customers: Customers = DEFAULT_CUSTOMERS,
    seed: Seed = 0,
    redis: Redis = DEFAULT_REDIS,
    accept: Accept = None,
) -> None:
    """The offline half of `up`: whatever is stale of events, features, online store, model and release."""
    from service.steps import Stamps  # noqa: PLC0415  (only where it is needed)

    request = reach("service.up", "local").Request(home, data, customers, seed, 0)
    workspace = _workspace(request.workspace, redis)
    steps: dict[str, Callable[[], object]] = {
        "events": lambda: (
            _offline("generator").generate(workspace, customers, seed)
            if data is None
            else _offline("events").load_events(workspace, data)
        ),
        "features": lambda: _build(workspace),
        "materialize": lambda: _materialize(workspace, None),
        "train": lambda: _export("pipeline").train_workspace(workspace, seed=seed),
        "publish": lambda: print_gates(_export("pipeline").publish_workspace(workspace, accept)),
    }
    stamps = Stamps(request.workspace, request.parameters)
    for name, run in steps.items():
        if not stamps.is_fresh(name):
            with _announced(name):
                run()
            stamps.done(name)


@events.command("generate")
def events_generate(
    workspace: WorkspaceDir = DEFAULT_WORKSPACE, customers: Customers = DEFAULT_CUSTOMERS, seed: Seed = 0
) -> None:
    """Made-up engagement events whose true effects are known."""
    _offline("generator").generate(_workspace(workspace), customers, seed)


@events.command("load")
def events_load(data: Path, workspace: WorkspaceDir, as_of: AsOf = None) -> None:
    """Check and take over a file of events: Parquet of our schema, or Online Retail II."""
    _offline("events").load_events(_workspace(workspace), data, instant_of(as_of))


@features.command("apply")
def features_apply(workspace: WorkspaceDir = DEFAULT_WORKSPACE, redis: Redis = DEFAULT_REDIS) -> None:
    """Register the Feast definitions and compile them into the feature schema."""
    _offline("registry").apply(_workspace(workspace, redis))


@features.command("compile")
def features_compile(
    repo: Annotated[Path, typer.Argument(help="A Feast project of your own: the folder with feature_store.yaml.")],
    service: Annotated[str, typer.Argument(help="Its feature service.")],
    compat: Annotated[bool, typer.Option("--compat", help="A plan for compat mode instead.")] = False,  # noqa: FBT002  (Typer's way to say a flag)
) -> None:
    """Print the feature schema of your own Feast project, as it is registered, as JSON."""
    module = "compat_registry" if compat else "registry"
    sys.stdout.buffer.write(_offline(module).compile_project(repo, service))


@features.command("verify")
def features_verify(
    repo: Annotated[Path | None, typer.Argument(help="A Feast project of your own. Default: the workspace's.")] = None,
    service: Annotated[str | None, typer.Argument(help="Its feature service.")] = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    redis: Redis = DEFAULT_REDIS,
    sample: Annotated[int, typer.Option(min=1, help="Live entities to read.")] = 1_000,
    allow_unverified: Annotated[bool, typer.Option("--allow-unverified", help="Under any version of Feast.")] = False,  # noqa: FBT002  (Typer's way to say a flag)
) -> None:
    """Read live entities through Feast and through our readers, and compare value for value."""
    verify = _offline("verify")
    if (repo is None) != (service is None):
        raise RapportError("a project of your own and its feature service go together")
    report = (
        verify.verify_workspace(_workspace(workspace, redis), sample, allow_unverified=allow_unverified)
        if repo is None
        else verify.verify_project(repo, service, sample, allow_unverified=allow_unverified)
    )
    print(*report.lines(), sep="\n")  # noqa: T201
    if report.different:
        raise RapportError(f"Feast and our readers differ in {', '.join(report.different)}")


@features.command("build")
def features_build(workspace: WorkspaceDir = DEFAULT_WORKSPACE) -> None:
    """Compute every feature view at every cutoff of the data set."""
    _build(_workspace(workspace))


@features.command("materialize")
def features_materialize(
    workspace: WorkspaceDir = DEFAULT_WORKSPACE, redis: Redis = DEFAULT_REDIS, as_of: AsOf = None
) -> None:
    """Put the latest rows into the online store, through Feast."""
    _materialize(_workspace(workspace, redis), instant_of(as_of))


@features.command("load")
def features_load(
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    redis: Redis = DEFAULT_REDIS,
    as_of: AsOf = None,
    copies: Annotated[
        int, typer.Option(min=1, help="Write every customer that often, as ID, ID~1, ...: for load tests at full size.")
    ] = 1,
) -> None:
    """Put the latest rows into the online store as `materialize` does, without Feast: millions in minutes."""
    place = _workspace(workspace, redis)
    loaded = _offline("bulk").load(place, instant_of(as_of), copies=copies)
    _offline("sample").write_customers(place)
    rate = loaded.entities / loaded.seconds
    print(  # noqa: T201
        f"{loaded.entities:,} customers, {sum(loaded.rows.values()):,} rows, in {loaded.seconds:.1f} s "
        f"({rate:,.0f} customers/s)"
    )


@app.command()
def train(
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    seed: Seed = 0,
    estimator: Annotated[
        Estimator,
        typer.Option(help="The multi-task network, LightGBM's boosted trees, or scikit-learn's linear models."),
    ] = Estimator.NETWORK,
) -> None:
    """Train the model on the data set's training cutoffs and measure it on its test cutoffs."""
    place = _workspace(workspace)
    _export("pipeline").train_workspace(place, estimator=estimator.value, seed=seed)
    for verdict in _export("pipeline").judge_workspace(place):
        print(f"rapport: gate {verdict.outcome}: {verdict}", file=sys.stderr)  # noqa: T201


@app.command()
def quality(
    data: Annotated[Path | None, typer.Argument(help="A file of events. Default: what the workspace holds.")] = None,
    workspace: WorkspaceDir = DEFAULT_HOME / "quality",
    cutoffs: Annotated[
        str | None,
        typer.Option(help="Test cutoffs, as 2011-05-19,2011-06-02. Default: the last whose labels are known."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many networks; the figures are their medians.")] = 3,
) -> None:
    """How good the model is on unseen cutoffs, beside simpler ones: tables, then one line of JSON."""
    test = None if cutoffs is None else _offline("cutoffs").parse(cutoffs)
    found = _export("quality").quality(_workspace(workspace), data, test, seeds=seeds)
    print(found.tables, json.dumps(found.result), sep="\n")  # noqa: T201


@app.command()
def publish(workspace: WorkspaceDir = DEFAULT_WORKSPACE, accept: Accept = None) -> None:
    """Export the trained model, verify it, and publish it as the next release, if it passes its gates."""
    release = _export("pipeline").publish_workspace(_workspace(workspace), accept)
    print_gates(release)
    print(f"published {release.name}")  # noqa: T201


@app.command()
def republish(
    names: Annotated[list[str], typer.Argument(help="Names of models.")],
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    models: Annotated[Path | None, typer.Option(help="Another model repository. Default: the workspace's own.")] = None,
    accept: Accept = None,
) -> None:
    """Publish the champion once more, as the champion of other models: the same release under other names."""
    source = _workspace(workspace).models
    for release in _export("republish").republish(source, models or source, names, accept):
        print(f"published {release.name}")  # noqa: T201


@app.command()
def redis(
    directory: Annotated[Path, typer.Argument(help="Where it keeps its log and, if persistent, its data.")],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Its port on 127.0.0.1. Default: a free one.")
    ] = None,
    persistent: Annotated[bool, typer.Option(help="Find again what was written last time.")] = False,  # noqa: FBT002
) -> None:
    """A real redis-server on loopback, until Ctrl-C; its address is the only line of stdout."""
    from feature_client.online.local_redis import LocalRedis  # noqa: PLC0415  (other commands start no server)

    with LocalRedis(directory, port, persistent=persistent) as server:
        print(server.address, flush=True)  # noqa: T201
        with suppress(KeyboardInterrupt):
            while server.is_running:
                time.sleep(WATCH_S)
            raise RapportError(f"redis-server ended; its log is {server.log}")


@triton.command("install")
def triton_install(
    directory: Annotated[
        Path | None, typer.Argument(help="Where. Default: RAPPORT_TRITON_HOME, else inside this Python environment.")
    ] = None,
) -> None:
    """NVIDIA's tritonserver from its wheel, with an environment for its Python processes; nothing, if it is there."""
    from service.triton_install import install  # noqa: PLC0415  (other commands install nothing)

    print(install(directory).home)  # noqa: T201


@triton.command("serve")
def triton_serve(
    directory: Annotated[Path, typer.Argument(help="Where it keeps its log.")],
    models: Annotated[
        Path | None, typer.Option(help="The model repository that it may load from. Default: none; models are sent.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of gRPC on 127.0.0.1; 0 takes a free one.")] = 0,
    http_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of HTTP. Default: off.")] = None,
    metrics_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of its metrics. Default: off.")] = None,
) -> None:
    """A real tritonserver on loopback, until Ctrl-C; its address is the only line of stdout. No model is loaded."""
    from service.local_triton import LocalTriton  # noqa: PLC0415  (other commands start no server)

    with LocalTriton(directory, port, models=models, http_port=http_port, metrics_port=metrics_port) as server:
        print(server.address, flush=True)  # noqa: T201
        with suppress(KeyboardInterrupt):
            while server.is_running:
                time.sleep(WATCH_S)
            raise RapportError(f"tritonserver ended; its log is {server.log}")


@app.command()
def serve() -> None:
    """The gateway, with the settings of the environment (RAPPORT_*; service/settings.py says how to choose)."""
    from service.server import serve as run  # noqa: PLC0415  (other commands need no web framework)

    run()


@keys.command("new")
def keys_new(
    name: str,
    scope: Annotated[list[str], typer.Option(help="predict, explain, admin; may be given several times.")] = [  # noqa: B006  (Typer reads the default)
        "predict",
        "explain",
    ],
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires. Default: never.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Requests a second. Default: no quota.")] = None,
    file: Annotated[Path, typer.Option(help="The keys file to add it to.")] = Path("keys.toml"),
) -> None:
    """Make an API key: its hash goes into the keys file, the key itself is shown once."""
    from service.auth import add_key  # noqa: PLC0415  (other commands need no gateway)

    expires = datetime.now(UTC) + timedelta(days=days) if days else None
    print(add_key(file, name, tuple(scope), expires, rate))  # noqa: T201


def _build(workspace: Any) -> None:
    # Applied first: what is computed is checked against what is declared.
    _offline("registry").apply(workspace)
    _offline("aggregates").build(workspace)


def _materialize(workspace: Any, as_of: datetime | None) -> None:
    _offline("materialize").materialize(workspace, as_of)
    _offline("sample").write_customers(workspace)


def _workspace(root: Path, redis: str = DEFAULT_REDIS) -> Any:
    from feature_client.offline.workspace import Workspace  # noqa: PLC0415  (an offline idea)

    return Workspace(root, redis)


def _offline(module: str) -> Any:
    return reach(f"feature_client.offline.{module}", "features")


def _export(module: str) -> Any:
    return reach(f"model_export.{module}", "export")


@contextmanager
def _announced(step: str) -> Iterator[None]:
    started = datetime.now(UTC)
    print(f"rapport: {step} ...", file=sys.stderr, flush=True)  # noqa: T201
    yield
    seconds = (datetime.now(UTC) - started).total_seconds()
    print(f"rapport: {step} took {seconds:.1f} s", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
