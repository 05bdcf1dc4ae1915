"""`rapport report`: how good a trained model is, as one page that needs no other knowledge, with an appendix for those
who have it.

Everything in it is recomputed from the test rows that the run keeps. Nothing in it names a customer.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from feature_client.contract import Contract
from feature_client.offline.workspace import Workspace
from feature_client.release import CARD, REPORT, Release, ReleaseError, list_versions, read_release
from feature_client.routes import read_routes, routes_file
from model_export.card import LIMITS, card
from model_export.gates import Verdict, judge
from model_export.holdout import Holdout
from model_export.page import Report, ReportError, render, versions, write_report
from model_export.pipeline import workspace_run
from model_export.report_facts import rows_of
from model_export.report_sections import section_of

TEMPLATE = "report.html.j2"

OUTCOMES = {"passed": "passed", "failed": "failed", "not judged": "could not be judged"}


def report_workspace(workspace: Workspace, models: Path) -> tuple[Report, Contract]:
    """Of the model that was trained last, and its contract, as it was released if it was. Raises RapportError."""
    run = workspace_run(workspace)
    release = find_release(run.contract, models)
    verdicts = judge(run.contract, run.holdout, *_rival(run.contract, models))
    return make_report(run.contract if release is None else release.contract, run.holdout, verdicts, release)


def make_report(
    contract: Contract,
    holdout: Holdout,
    verdicts: Sequence[Verdict],
    release: Release | None,
    without: str = "not published",
) -> tuple[Report, Contract]:
    """release: of this model, if it was published. without: what is said of the release where that is None."""
    sections = [section_of(contract, rows_of(contract, holdout, place)) for place in range(len(contract.tasks))]
    page = render(
        TEMPLATE,
        contract=contract,
        name=contract.model if release is None else release.name,
        sections=sections,
        verdicts=verdicts,
        tally={said: sum(verdict.outcome == outcome for verdict in verdicts) for outcome, said in OUTCOMES.items()},
        people=len(np.unique(holdout.customers)),
        dates=_dates(holdout),
        limits=LIMITS,
        card=CARD,
        made=_made(contract, holdout, release, without),
    )
    pictures = [picture for section in sections for picture in section.every_picture]
    return Report(page, pictures, len(holdout)), contract


def write_folder(report: Report, contract: Contract, folder: Path) -> None:
    """The page, its pictures on their own, and the model card that links to the page. Raises ReportError."""
    write_report(report, folder / REPORT, folder)
    try:
        (folder / CARD).write_text(card(contract, reported=True), encoding="utf-8")
    except OSError as exc:
        raise ReportError(f"cannot write {folder / CARD}: {exc.strerror or exc}") from exc


def find_release(contract: Contract, models: Path) -> Release | None:
    """The newest that was published of this very model: its contract says what the gates said, and else the same."""
    for version in reversed(list_versions(models, contract.model) if models.is_dir() else ()):
        try:
            release = read_release(models, contract.model, version)
        except ReleaseError:
            continue
        if replace(release.contract, training=contract.training) == contract:
            return release
    return None


def _rival(contract: Contract, models: Path) -> tuple[Release | None, str]:
    """Whom the model replaces, or has replaced; or why there is nobody."""
    route = read_routes(models).get(contract.model) if routes_file(models).exists() else None
    if route is None:
        return None, "there is none yet"
    try:
        champion = read_release(models, contract.model, route.champion)
        if replace(champion.contract, training=contract.training) != contract:
            return champion, ""
        if route.previous is None:
            return None, "it is the champion itself, and replaced nobody"
        return read_release(models, contract.model, route.previous), ""
    except ReleaseError as exc:
        return None, f"it is damaged: {exc}"


def _dates(holdout: Holdout) -> list[str]:
    return [f"{datetime.fromtimestamp(float(cutoff), UTC):%Y-%m-%d}" for cutoff in np.unique(holdout.cutoffs)]


def _made(contract: Contract, holdout: Holdout, release: Release | None, without: str) -> list[tuple[str, str]]:
    """What the page was made of: name and value."""
    kept = f"{len(holdout):,} of {len(np.unique(holdout.customers)):,} customers"
    published = [("release", without)]
    if release is not None:
        published = [("release", release.name), ("published", release.manifest.created_at)]
    return [
        *published,
        ("test rows", f"{kept}; the test cutoffs have {holdout.customers_of_test:,} customers"),
        *((key.replace("_", " "), value) for key, value in contract.training.items()),
        ("digest of the contract", contract.digest),
        *((f"digest of the {name}", digest) for name, digest in contract.digests.items()),
        ("made with", versions()),
    ]
