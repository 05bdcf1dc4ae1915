"""What commands say of a model's gates. Light, for `serve` forks from what the commands import."""

from typing import Annotated, Any

import typer

from feature_client.verdicts import PREFIX

Accept = Annotated[
    str | None,
    typer.Option(help="Publish even a model that fails its gates: why, in words that its model card will say."),
]


def print_gates(release: Any) -> None:
    """To stderr, from what its contract says. release: a Release; not imported here, for `serve` forks from this."""
    found = {name: said for name, said in release.contract.training.items() if name.startswith(PREFIX)}
    for name, said in found.items():
        typer.echo(f"rapport: {release.name}: {name.replace('_', ' ')}: {said}", err=True)
    if not found:
        typer.echo(f"rapport: {release.name}: its gates were not asked when it was made", err=True)
