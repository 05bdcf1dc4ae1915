"""Dataset to release: what `rapport train` and `rapport publish` do.

Training leaves a run, a directory with the contract, the weights and some real rows; publishing needs nothing else.
"""

import hashlib
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from feature_client.contract import Contract
from feature_client.declaration import declaration_differences
from feature_client.errors import RapportError
from feature_client.offline.workspace import Workspace
from feature_client.release import CARD, REPORT, Release, ReleaseError
from feature_client.schema import FeatureSchema
from model_export.card import card
from model_export.champion import find_champion
from model_export.evaluate import evaluate, reference, segments
from model_export.explanation import FULL, Explained, Sample, Settings, explain
from model_export.export import export
from model_export.gates import Verdict, admit, judge
from model_export.holdout import Holdout, hold_out
from model_export.kinds import ESTIMATOR, Estimator, fit, restore
from model_export.network import Network
from model_export.publish import Artifacts, publish, set_champion
from model_export.rows import Dataset
from model_export.scorer import Scorer
from model_export.train import EPOCHS, predict
from model_export.verify import Floats, Graphs, Ints, verify, write_golden

if TYPE_CHECKING:  # needs an extra, and only where releases are signed
    from feature_client.signature import SigningKey

MODEL = "engagement"

SAMPLE_ROWS = 2_000
"""Test rows that a run keeps: for what is stated about explanations, for golden answers, and for reports."""


DRAWING = ("jinja2", "markupsafe", "matplotlib", "PIL")
"""What the extra `report` brings: without it a release has no report."""


class RunError(RapportError):
    """A run that is missing or incomplete; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """A trained model with everything that a release says about it.

    rows: `numeric` and `categorical` of real test rows.
    """

    contract: Contract
    weights: Mapping[str, torch.Tensor]
    rows: tuple[Floats, Ints]
    explained: Explained
    holdout: Holdout


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch and BLAS on one thread: torch's spin while they wait for each other, which on a busy machine made training
    of so small a network 15 times slower; and sums do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def train_workspace(
    workspace: Workspace,
    *,
    estimator: Estimator = "network",
    seed: int = 0,
    epochs: int = EPOCHS,
    model: str = MODEL,
) -> Contract:
    """Builds the dataset, fits, evaluates, and leaves the run in the workspace."""
    # Here, not above: Feast takes seconds to import, and publishing needs none of it.
    from model_export.dataset import build  # noqa: PLC0415

    dataset = build(workspace, code_digest())
    cache = workspace.root / "explained"
    run = train_run(dataset, estimator=estimator, seed=seed, epochs=epochs, model=model, cache=cache)
    write_run(run, _run_directory(workspace))
    return run.contract


def judge_workspace(workspace: Workspace, models: Path | None = None) -> list[Verdict]:
    """What the gates say of the workspace's run, and of the champion in `models`, by default the workspace's own."""
    _, verdicts = _judge(workspace_run(workspace), models or workspace.models)
    return verdicts


def publish_workspace(workspace: Workspace, accept: str | None = None) -> Release:
    """Exports, verifies and publishes the workspace's run, and makes it the champion, if its gates let it pass.

    accept: why, if they do not. Raises GateError.
    """
    run, verdicts = _admitted(workspace, workspace.models, accept)
    return publish_run(run, workspace.models, verdicts)


def publish_unrouted(
    workspace: Workspace, root: Path, key: "SigningKey | None" = None, accept: str | None = None
) -> Release:
    """The same, signed, into the repository `root`, but that no route changes."""
    run, verdicts = _admitted(workspace, root, accept)
    return export_run(run, root, key, verdicts)


@one_thread()
def train_run(
    dataset: Dataset,
    *,
    estimator: Estimator = "network",
    seed: int = 0,
    epochs: int = EPOCHS,
    model: str = MODEL,
    settings: Settings = FULL,
    cache: Path | None = None,
) -> Run:
    """settings: of explanations. cache: a directory for those; training itself is repeated."""
    network = fit(estimator, dataset, seed=seed, epochs=epochs)
    chosen = np.random.default_rng(seed).permutation(len(dataset.test))[:SAMPLE_ROWS]
    rows = (dataset.test.numeric[chosen], dataset.test.categorical[chosen])
    explained, explanation = explain(network, dataset, Sample(*rows), settings, seed=seed, cache=cache)
    named = segments(predict(network, dataset.validation), dataset.validation, dataset.tasks)
    tasks = tuple(replace(task, segments=named[task.name]) for task in dataset.tasks)
    scores = predict(network, dataset.test)
    contract = Contract(
        model=model,
        schema=dataset.schema,
        tasks=tasks,
        explanation=explanation,
        reference=reference(dataset.schema, dataset.train),
        training={ESTIMATOR: estimator, **dataset.about, **_left_out(network, dataset)},
        metrics=evaluate(scores, dataset.test, tasks),
        digests={"data": dataset.digest, "code": code_digest()},
    )
    return Run(contract, network.state_dict(), rows, explained, hold_out(dataset, scores))


def publish_run(run: Run, root: Path, verdicts: Sequence[Verdict] | None = None) -> Release:
    """Exports, verifies and publishes a run as the next version, and makes it the champion. verdicts: see there."""
    release = export_run(run, root, verdicts=verdicts)
    set_champion(root, run.contract.model, release.manifest.version)
    return release


@one_thread()
def export_run(
    run: Run, root: Path, key: "SigningKey | None" = None, verdicts: Sequence[Verdict] | None = None
) -> Release:
    """Exports, verifies and publishes a run as the next version, signed where there is a key; no route changes.

    verdicts: what its gates said, for the report in the release; without them it has none.
    """
    network = restore(run.contract.schema, run.contract.tasks, run.weights)
    explainers = run.contract.explanation.explainers
    explained = {name: run.explained.graph(network, run.contract.schema, name) for name in explainers}
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=4 + len(explained), unit="step") as progress:
        files = {name: Path(scratch) / f"{name}.onnx" for name in explained}
        graphs = Graphs(network, Path(scratch) / "score.onnx", explained, files)
        progress.set_description("export")
        export(network, run.contract, graphs.score_file)
        progress.update()
        for name, module in explained.items():
            export(module, run.contract, files[name])
            progress.update()
        progress.set_description("verify")
        verify(graphs, *run.rows)
        golden, about = Path(scratch) / "golden.npz", Path(scratch) / CARD
        write_golden(graphs, *run.rows, golden)
        progress.update()
        progress.set_description("report")
        report = None if verdicts is None else _report(run, verdicts, Path(scratch) / REPORT)
        about.write_text(card(run.contract, reported=report is not None), encoding="utf-8")
        artifacts = Artifacts(graphs.score_file, files, golden, about, report)
        progress.update()
        progress.set_description("publish")
        release = publish(root, run.contract, artifacts, key)
        progress.update()
    return release


def _left_out(model: Scorer, dataset: Dataset) -> dict[str, str]:
    """The features that the network does not look at although its rows have them (`Rows.evidenced`)."""
    if not isinstance(model, Network):
        return {}
    rows = dataset.fitted
    unused = ~rows.evidenced() & ~np.isnan(rows.numeric).all(axis=0)
    names = [feature.name for feature, out in zip(dataset.schema.numeric, unused, strict=True) if out]
    return {"without_evidence": ", ".join(names)} if names else {}


def _report(run: Run, verdicts: Sequence[Verdict], path: Path) -> Path | None:
    """Writes the page that lies in a release; None where what draws it is not installed."""
    try:
        # Here, not above: it imports this module, and needs an extra.
        from model_export.report import make_report  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        if str(exc.name).partition(".")[0] not in DRAWING:
            raise
        return None
    report, _ = make_report(run.contract, run.holdout, verdicts, None, without="the one that this page lies in")
    path.write_text(report.html, encoding="utf-8")
    return path


def _run_to_publish(workspace: Workspace) -> Run:
    """Raises RunError where its features have been declared otherwise since: they are served as declared now."""
    run = workspace_run(workspace)
    if workspace.schema_file.exists():  # a run may be published where nothing else of its workspace is
        declared = msgspec.json.decode(workspace.schema_file.read_bytes(), type=FeatureSchema)
        if different := declaration_differences(run.contract.schema, declared):
            said = "; ".join(f"{name}: {what}" for name, what in different.items())
            raise RunError(f"skew: features have been declared anew since this model was trained, train again: {said}")
    return run


def workspace_run(workspace: Workspace) -> Run:
    """The workspace's trained model. Raises RunError, ContractError."""
    return read_run(_run_directory(workspace))


def write_run(run: Run, directory: Path) -> None:
    """Replaces the run in `directory`; the contract comes last, so a run without one is not a run."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        torch.save(dict(run.weights), directory / "weights.pt")
        np.savez(directory / "rows.npz", numeric=run.rows[0], categorical=run.rows[1])
        np.savez(directory / "explained.npz", **run.explained.arrays())  # type: ignore[arg-type]
        np.savez(directory / "holdout.npz", **run.holdout.arrays())  # type: ignore[arg-type]
        (directory / "contract.json").write_bytes(run.contract.to_json())
    except OSError as exc:
        raise RunError(f"cannot write the run to {directory}: {exc.strerror or exc}") from exc


def read_run(directory: Path) -> Run:
    """Raises RunError, ContractError."""
    try:
        contract = Contract.from_json((directory / "contract.json").read_bytes())
        weights = torch.load(directory / "weights.pt", weights_only=True)
        rows, explained, held = (_read_arrays(directory / f"{name}.npz") for name in ("rows", "explained", "holdout"))
        holdout = Holdout.from_arrays(held)
        return Run(contract, weights, (rows["numeric"], rows["categorical"]), Explained.from_arrays(explained), holdout)
    except FileNotFoundError as exc:
        raise RunError(f"no trained model in {directory}: run `rapport train` first") from exc
    except (OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError) as exc:
        raise RunError(f"the run in {directory} is damaged, train again: {exc}") from exc


def code_digest() -> str:
    """SHA-256 over the sources that turn events into a release."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for package in ("feature_client", "model_export"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _admitted(workspace: Workspace, models: Path, accept: str | None) -> tuple[Run, list[Verdict]]:
    """The workspace's run with what its gates said in its contract, and that. Raises GateError."""
    run = _run_to_publish(workspace)
    champion, verdicts = _judge(run, models)
    return replace(run, contract=admit(run.contract, verdicts, accept, champion)), verdicts


def _judge(run: Run, models: Path) -> tuple[Release | None, list[Verdict]]:
    """The champion that the run was compared with, and what its gates say."""
    try:
        champion, without = find_champion(models, run.contract.model), "there is none yet"
    except ReleaseError as exc:  # which a new one shall replace all the same
        champion, without = None, f"it is damaged: {exc}"
    return champion, judge(run.contract, run.holdout, champion, without)


def _run_directory(workspace: Workspace) -> Path:
    return workspace.root / "run"


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
