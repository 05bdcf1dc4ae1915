"""`rapport explain ...`: what moves the scores of a release, for people. Reached by `service/cli.py`, and light."""

from pathlib import Path
from typing import Annotated, Any

import typer

from service.extras import reach

app = typer.Typer(no_args_is_help=True, help="Explanations for people: what moves the scores of a release.")


@app.callback()
def explain() -> None:
    """With one command alone, Typer would leave its name out."""


@app.command()
def report(
    workspace: Annotated[
        Path, typer.Option("--workspace", help="The directory of one data set: customers of its test are explained.")
    ] = Path(".rapport/generated"),
    models: Annotated[Path | None, typer.Option(help="The model repository. Default: the workspace's own.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the model that the workspace trains.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="A release's number. Default: the champion.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many customers to explain.")] = 1_000,
    seed: Annotated[int, typer.Option(min=0, help="Which customers: same seed, same page.")] = 0,
    explainer: Annotated[
        str | None, typer.Option(help="fast, precise or exact. Default: the most exact that the release has.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    pngs: Annotated[Path | None, typer.Option(help="A directory for its pictures on their own.")] = None,
) -> None:
    """One HTML page: what matters most, every customer a dot, values against contributions, and three customers."""
    place: Any = reach("feature_client.offline.workspace", "features").Workspace(workspace)
    module = reach("model_export.explain_report", "report")
    made = module.report_workspace(
        place, models or place.models, model=model, version=version, rows=rows, seed=seed, explainer=explainer
    )
    reach("model_export.page", "report").write_report(made, out, pngs)
    typer.echo(f"{out}: {made.rows:,} customers, {len(made.figures)} pictures, {len(made.html) / 1e6:.1f} MB")
