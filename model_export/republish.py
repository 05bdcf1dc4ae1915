"""A release once more, under another number or another model's name: the same graphs and golden answers.

What its gates said when it was made travels with it; what they speak against is refused, unless somebody says why not.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from feature_client.contract import CONTRACT_KEY, Contract
from feature_client.release import CARD, RELEASE_NAME, Release, graph_file, read_release
from feature_client.routes import read_routes
from feature_client.verdicts import ACCEPTED, FAILED, NOT_JUDGED, GateError, objection, reason
from model_export.card import card
from model_export.publish import Artifacts, PublishError, publish, set_champion

if TYPE_CHECKING:  # needs an extra, and only where releases are signed
    from feature_client.signature import SigningKey


def republish(source: Path, target: Path, names: list[str], accept: str | None = None) -> list[Release]:
    """The champion of the only model in `source`, in the repository `target`, as the champion of each model in `names`.

    accept: why, though its gates speak against it. Raises PublishError, ReleaseError, RoutesError, GateError.
    """
    routes = read_routes(source)
    if len(routes) != 1:
        raise PublishError(f"{source} serves {len(routes)} models; only from a repository of one is it clear which")
    [(model, route)] = routes.items()
    release = read_release(source, model, route.champion)
    answering = {accepted.version: accepted.because for accepted in route.accepted}
    contract = _admitted(release, answering.get(route.champion) if accept is None else accept)
    published = []
    for name in names:
        published.append(_with_contract(release, replace(contract, model=name), target))
        set_champion(target, name, published[-1].manifest.version)
    return published


def take_over(directory: Path, target: Path, key: "SigningKey | None" = None, accept: str | None = None) -> Release:
    """The release in `directory`, of any repository, as the next version of its model in `target`. No route changes.

    key: signs it anew, for a signature holds for one number. accept: why, though its gates speak against it.
    Raises PublishError, ReleaseError, GateError.
    """
    match = RELEASE_NAME.fullmatch(directory.name)
    if match is None:
        raise PublishError(f"{directory} is not the directory of a release, as in models/engagement.3")
    release = read_release(directory.parent, match[1], int(match[2]))
    contract = _admitted(release, accept)
    if contract != release.contract:
        return _with_contract(release, contract, target, key)
    return publish(target, contract, artifacts_of(release), key)


def artifacts_of(release: Release) -> Artifacts:
    """Its files, where they lie."""
    graphs = {explainer: graph_file(release.root / name) for explainer, name in release.explain_names.items()}
    return Artifacts(graph_file(release.directory), graphs, release.golden, release.card, release.report)


def _admitted(release: Release, accept: str | None) -> Contract:
    """Its contract, which says why where it is accepted against its gates. Raises GateError."""
    against = objection(release.contract.training)
    if against is None:
        return release.contract
    if accept is None:
        raise GateError(
            f'{release.name} is not published: {against}. --accept "why" publishes it all the same, and its model '
            "card says why"
        )
    training = release.contract.training
    said = {} if FAILED in training else {NOT_JUDGED: against}
    return replace(release.contract, training={**training, **said, ACCEPTED: reason(accept)})


def _with_contract(release: Release, contract: Contract, target: Path, key: "SigningKey | None" = None) -> Release:
    """The release with another contract that promises the same, whose digest is noted in its graphs, and its card.

    Without its report, which is of the old contract.
    """
    with tempfile.TemporaryDirectory() as scratch:
        noted = {name: Path(scratch) / f"{name}.onnx" for name in release.graph_names}
        for name, path in noted.items():
            graph = onnx.load(graph_file(release.root / name))
            onnx.helper.set_model_props(graph, {CONTRACT_KEY: contract.digest})
            path.write_bytes(graph.SerializeToString())
        about = Path(scratch) / CARD
        about.write_text(card(contract), encoding="utf-8")
        graphs = {explainer: noted[name] for explainer, name in release.explain_names.items()}
        artifacts = Artifacts(noted[release.name], graphs, release.golden, about)
        return publish(target, contract, artifacts, key)
