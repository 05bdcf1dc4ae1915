"""`rapport explain report`: what moves a release's scores, over a sample of real customers, as one page.

The page is whole in itself: its pictures are in it, and it asks nothing of a network. Its figures are the released
graphs' own answers in ONNX Runtime. Nothing in it names a customer, a machine or an hour: the same release, sample and
libraries give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_client.contract import Contract
from feature_client.offline.workspace import Workspace
from feature_client.release import GRAPH, Release, list_versions, read_release
from feature_client.routes import read_routes, routes_file
from model_export.explain_figures import Scale
from model_export.explain_sample import Answers, Sample, ask, draw_sample
from model_export.explain_sections import SectionWriter
from model_export.page import Report, ReportError, render, versions
from model_export.pipeline import workspace_run

ROWS = 1_000
TEMPLATE = "explain_report.html.j2"


@dataclass(frozen=True)
class Accuracy:
    """How sure one graph's contributions to one task are, as text; see Errors in the contract."""

    graph: str
    method: str
    task: str
    error: str
    shifted: str
    gap: str


def report_workspace(
    workspace: Workspace,
    models: Path,
    *,
    model: str | None = None,
    version: int | None = None,
    rows: int = ROWS,
    seed: int = 0,
    explainer: str | None = None,
) -> Report:
    """Of a release in the repository `models`, by default the champion, on rows that the workspace's training left.

    explainer: which of the release's graphs of groups is asked, by default the most exact. Raises RapportError.
    """
    run = workspace_run(workspace)
    release = find_release(models, model or run.contract.model, version)
    if release.contract.schema.digest != run.contract.schema.digest:
        raise ReportError(
            f"{release.name} reads other features, or other words of its categories, than the model that was trained "
            f"last in {workspace.root}: publish that one, or name the workspace that {release.name} comes from"
        )
    sample = draw_sample(run, rows, seed)
    return make_report(release, sample, explainer, f"{len(sample):,} of {len(run.rows[0]):,}, drawn with seed {seed}")


def find_release(models: Path, model: str, version: int | None) -> Release:
    """The version asked for, else the champion, else the newest. Raises RapportError."""
    if version is None:
        published = list_versions(models, model)
        if not published:
            raise ReportError(f"no release of {model} in {models}: run `rapport publish` first")
        route = read_routes(models).get(model) if routes_file(models).exists() else None
        version = route.champion if route else published[-1]
    return read_release(models, model, version)


def make_report(release: Release, sample: Sample, explainer: str | None, drawn: str) -> Report:
    """explainer: of groups, by default the most exact. drawn: how the sample was, for people. Raises RapportError."""
    contract = release.contract
    graphs = {graph.explainer: graph for graph in release.graphs()}
    of_features = next((name for name, one in contract.explanation.explainers.items() if one.by_feature), None)
    groups = ask(graphs[_of_groups(contract, explainer)], sample)
    features = ask(graphs[of_features], sample) if of_features else None
    asked = [answers for answers in (groups, features) if answers is not None]
    writer = SectionWriter(contract, sample, groups, features)
    sections = [writer.section(position) for position in range(len(contract.tasks))]
    page = render(
        TEMPLATE,
        release=release,
        contract=contract,
        sections=sections,
        rows=len(sample),
        has_features=features is not None,
        accuracy=[line for answers in asked for line in _accuracy(contract, answers)],
        made=_made(release, asked, drawn),
    )
    return Report(page, [figure for section in sections for figure in section.figures], len(sample))


def _of_groups(contract: Contract, explainer: str | None) -> str:
    """Which explainer is asked for the groups. Raises ReportError."""
    there = [name for name, one in contract.explanation.explainers.items() if not one.by_feature]
    if explainer is None:
        # Not by its cost: of a few groups, every coalition is fewer rows than an estimate takes.
        return min(there, key=lambda name: max(contract.explanation.explainers[name].error.scores.values()))
    if explainer not in there:
        raise ReportError(f"the release explains groups by {', '.join(there)}, not by {explainer}")
    return explainer


def _accuracy(contract: Contract, answers: Answers) -> list[Accuracy]:
    error, gap = answers.explainer.error, answers.gap
    return [
        Accuracy(
            answers.graph.name,
            answers.explainer.method,
            task.label,
            f"{error.scores[task.name]:.1%}",
            f"{error.shifted[task.name]:.1%}",
            Scale.of(task).exactly(gap[position]),
        )
        for position, task in enumerate(contract.tasks)
    ]


def _made(release: Release, asked: Sequence[Answers], drawn: str) -> list[tuple[str, str]]:
    """What the page was made of: name and value."""
    contract, files = release.contract, release.manifest.files
    training = ((key.replace("_", " "), value) for key, value in contract.training.items())
    graphs = ((f"SHA-256 of {answers.graph.name}", files[f"{answers.graph.name}/{GRAPH}"]) for answers in asked)
    return [
        ("release", release.name),
        ("published", release.manifest.created_at),
        ("customers", f"{drawn}; from the test cutoffs, which the model never saw"),
        ("compared with", f"{contract.explanation.background_rows} typical customers, kept in the release"),
        *training,
        *graphs,
        ("digest of the contract", contract.digest),
        *((f"digest of the {name}", digest) for name, digest in contract.digests.items()),
        ("made with", versions()),
    ]
