"""A release once more, under another number or another model's name: the same graphs, golden answers and card."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from feature_client.contract import CONTRACT_KEY
from feature_client.release import RELEASE_NAME, Release, graph_file, read_release
from feature_client.routes import read_routes
from model_export.publish import Artifacts, PublishError, publish, set_champion

if TYPE_CHECKING:  # needs an extra, and only where releases are signed
    from feature_client.signature import SigningKey


def republish(source: Path, target: Path, names: list[str]) -> list[Release]:
    """The champion of the only model in `source`, in the repository `target`, as the champion of each model in `names`.

    Raises PublishError, ReleaseError, RoutesError.
    """
    routes = read_routes(source)
    if len(routes) != 1:
        raise PublishError(f"{source} serves {len(routes)} models; only from a repository of one is it clear which")
    [(model, route)] = routes.items()
    release = read_release(source, model, route.champion)
    return [_under_name(release, target, name) for name in names]


def take_over(directory: Path, target: Path, key: "SigningKey | None" = None) -> Release:
    """The release in `directory`, of any repository, as the next version of its model in `target`. No route changes.

    key: signs it anew, for a signature holds for one number. Raises PublishError, ReleaseError.
    """
    match = RELEASE_NAME.fullmatch(directory.name)
    if match is None:
        raise PublishError(f"{directory} is not the directory of a release, as in models/engagement.3")
    release = read_release(directory.parent, match[1], int(match[2]))
    return publish(target, release.contract, artifacts_of(release), key)


def artifacts_of(release: Release) -> Artifacts:
    """Its files, where they lie."""
    graphs = {explainer: graph_file(release.root / name) for explainer, name in release.explain_names.items()}
    return Artifacts(graph_file(release.directory), graphs, release.golden, release.card)


def _under_name(release: Release, target: Path, name: str) -> Release:
    contract = replace(release.contract, model=name)
    with tempfile.TemporaryDirectory() as scratch:
        renamed = {name: Path(scratch) / f"{name}.onnx" for name in release.graph_names}
        for graph_name, path in renamed.items():
            graph = onnx.load(graph_file(release.root / graph_name))
            # The contract names the model, so its digest is another one.
            onnx.helper.set_model_props(graph, {CONTRACT_KEY: contract.digest})
            path.write_bytes(graph.SerializeToString())
        graphs = {explainer: renamed[graph_name] for explainer, graph_name in release.explain_names.items()}
        artifacts = Artifacts(renamed[release.name], graphs, release.golden, release.card)
        published = publish(target, contract, artifacts)
    set_champion(target, name, published.manifest.version)
    return published
