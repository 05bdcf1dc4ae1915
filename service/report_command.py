"""`rapport report`: how good the trained model is, for people. Reached by `service/cli.py`, and light."""

from pathlib import Path
from typing import Annotated, Any

import typer

from service.extras import reach


def report(
    workspace: Annotated[Path, typer.Option("--workspace", help="The directory of one data set.")] = Path(
        ".rapport/generated"
    ),
    models: Annotated[Path | None, typer.Option(help="The model repository. Default: the workspace's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="A directory. Default: report, in the workspace.")] = None,
) -> None:
    """How good the model is that was trained last: one HTML page in plain words, its pictures, and the model card."""
    place: Any = reach("feature_client.offline.workspace", "features").Workspace(workspace)
    module = reach("model_export.report", "report")
    folder = out or workspace / "report"
    made, contract = module.report_workspace(place, models or place.models)
    module.write_folder(made, contract, folder)
    typer.echo(
        f"{folder / 'report.html'}: {made.rows:,} test rows, {len(made.figures)} pictures, "
        f"{len(made.html) / 1e6:.1f} MB"
    )
