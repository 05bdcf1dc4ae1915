"""A worse model and a badly calibrated one are caught and named, a good one passes, and nobody fails by chance."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from feature_client.contract import Contract
from feature_client.errors import RapportError
from feature_client.offline.workspace import Workspace
from feature_client.release import Release
from feature_client.schema import FloatArray
from feature_client.verdicts import GateError
from model_export.bootstrap import Draws, rmse_capped
from model_export.card import card
from model_export.champion import OtherFeatures, scores_of
from model_export.evaluate import calibration_bins
from model_export.gates import ECE_AT_MOST, Verdict, admit, calibration_error, judge
from model_export.pipeline import Run, judge_workspace, publish_workspace, write_run
from model_export.rows import Dataset
from model_export.train import train
from service import cli
from tests.model_export.worse_runs import overconfident, shuffled_labels, shuffled_weights, with_weights


def workspace_of(run: Run, champion: Release, root: Path) -> Workspace:
    shutil.copytree(champion.root, root / "models")
    write_run(run, root / "run")
    return Workspace(root)


def outcomes(verdicts: list[Verdict], outcome: str) -> set[tuple[str, str, str]]:
    return {(verdict.task, verdict.gate, verdict.metric) for verdict in verdicts if verdict.outcome == outcome}


def test_a_good_model_passes_and_what_could_not_be_judged_is_said(run: Run) -> None:
    verdicts = judge(run.contract, run.holdout, None)

    assert outcomes(verdicts, "failed") == set()
    assert outcomes(verdicts, "not judged") == {(task, "champion", "any") for task in run.contract.task_names}
    assert len(outcomes(verdicts, "passed")) == 7
    training = admit(run.contract, verdicts, None).training
    assert training["gates_passed"] == "7 of 10"
    assert training["gates_not_judged"].startswith("purchase_30d, champion, any: there is none yet; churn_90d")
    assert "gates_failed" not in training


def test_training_once_more_is_no_worse_model(run: Run, dataset: Dataset, pristine: Release) -> None:
    again = with_weights(run, train(dataset, seed=1, epochs=6).state_dict())

    assert outcomes(judge(again.contract, again.holdout, pristine), "failed") == set()


Spoil = Callable[[Run, Dataset], Run]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda run, _: overconfident(run, "purchase_30d", 1.0), {"purchase_30d, calibration, ece"}),
        (lambda run, _: overconfident(run, "spend_90d", -0.6), {"spend_90d, calibration, sum_ratio"}),
        (
            lambda run, _: shuffled_weights(run),
            {"purchase_30d, champion, auc", "churn_90d, champion, auc", "spend_90d, champion, rmse_capped"},
        ),
        (
            shuffled_labels,
            {"purchase_30d, baseline, auc", "churn_90d, champion, auc", "spend_90d, baseline, spearman"},
        ),
    ],
    ids=["overconfident", "half of the spend", "shuffled weights", "shuffled labels"],
)
def test_a_bad_model_is_not_published_and_its_faults_are_named(
    run: Run, dataset: Dataset, pristine: Release, tmp_path: Path, spoil: Spoil, named: set[str]
) -> None:
    workspace = workspace_of(spoil(run, dataset), pristine, tmp_path)
    before = sorted(path.name for path in workspace.models.iterdir())

    with pytest.raises(GateError) as refused:
        publish_workspace(workspace)

    faults = str(refused.value).removeprefix("engagement does not pass its gates: ").split("; ")
    assert named <= {fault.split(":")[0] for fault in faults}
    assert "allowed is" in str(refused.value)
    assert sorted(path.name for path in workspace.models.iterdir()) == before


def test_the_figures_of_a_refusal_are_those_of_the_rows(run: Run, pristine: Release) -> None:
    bad = overconfident(run, "purchase_30d", 1.0)
    score, label = bad.holdout.scores[:, 0].astype(float), bad.holdout.labels[:, 0].astype(float)
    ece = sum(abs(score[rows].mean() - label[rows].mean()) * len(rows) for rows in calibration_bins(score)) / len(score)

    [said] = [str(v) for v in judge(bad.contract, bad.holdout, pristine) if v.outcome == "failed"]

    assert said.startswith(f"purchase_30d, calibration, ece: {ece:.3f}, of which ")
    assert said.endswith("; allowed is at most 0.08")


@pytest.mark.parametrize("customers", [20, 80, 400])
def test_a_perfect_model_does_not_fail_by_chance(run: Run, customers: int) -> None:
    """Labels drawn with the very probabilities that were said, twice for each customer, and the same both times."""
    rng = np.random.default_rng(0)
    contract = replace(run.contract, tasks=run.contract.tasks[:1])
    failed = 0
    for _ in range(100):
        score = np.repeat(rng.beta(1.0, 3.0, customers), 2)
        label = np.repeat(rng.random(customers), 2) < score
        holdout = replace(
            run.holdout,
            scores=score[:, None].astype(np.float32),
            labels=label[:, None].astype(np.float32),
            eligible=np.ones((len(score), 1), dtype=bool),
            naive=np.repeat(rng.beta(1.0, 3.0, customers), 2)[:, None].astype(np.float32),
            naive_features=("chance",),
            customers=np.arange(len(score)) // 2,
        )
        failed += bool(outcomes(judge(contract, holdout, None), "failed"))

    assert failed <= 3


def judged(run: Run, place: int, score: FloatArray, label: FloatArray) -> Verdict:
    """What the calibration gate of one task says of rows that are a customer each."""
    holdout = replace(
        run.holdout,
        scores=score[:, None].astype(np.float32),
        labels=label[:, None].astype(np.float32),
        eligible=np.ones((len(score), 1), dtype=bool),
        naive=score[:, None].astype(np.float32),
        naive_features=("itself",),
        customers=np.arange(len(score)),
    )
    return judge(replace(run.contract, tasks=run.contract.tasks[place : place + 1]), holdout, None)[0]


@pytest.mark.parametrize(
    ("ratio", "rows", "outcome", "why"),
    [
        (1.0, 4_000, "passed", ""),
        (1.0, 30, "not judged", "too few rows"),
        (0.78, 2_000, "not judged", "outside, but perhaps by chance"),
        (1.28, 2_000, "not judged", "outside, but perhaps by chance"),
        (0.65, 100, "not judged", "too few rows"),
        (0.65, 4_000, "failed", ""),
        (1.5, 4_000, "failed", ""),
    ],
)
def test_a_sum_passes_only_within_its_bounds_and_where_the_rows_can_tell(
    run: Run, ratio: float, rows: int, outcome: str, why: str
) -> None:
    label = np.random.default_rng(0).lognormal(0.0, 1.0, rows)

    said = judged(run, 2, np.full(rows, ratio * label.mean()), label)

    assert (said.metric, said.outcome) == ("sum_ratio", outcome)
    assert said.says.startswith(f"{why}: {ratio:g} [".removeprefix(": "))
    assert said.says.endswith("]; allowed is 0.8 to 1.25")


@pytest.mark.parametrize(
    ("rows", "outcome", "begins"), [(800, "not judged", "above, but perhaps by chance: 0.1"), (8_000, "failed", "0.1")]
)
def test_an_ece_above_its_bound_never_passes(run: Run, rows: int, outcome: str, begins: str) -> None:
    score = np.linspace(0.0, 0.2, rows)
    label = (np.random.default_rng(0).random(rows) < score + 0.11).astype(float)

    said = judged(run, 0, score, label)

    assert (said.metric, said.outcome) == ("ece", outcome)
    assert said.says.startswith(begins)
    assert said.says.endswith(" may be chance; allowed is at most 0.08")


def test_chance_explains_less_the_more_rows_there_are() -> None:
    rng = np.random.default_rng(0)
    score = rng.beta(1.0, 3.0, 20_000)
    label = (rng.random(20_000) < np.clip(score + 0.1, 0, 1)).astype(float)
    found = [calibration_error(score[:rows], label[:rows], Draws(np.arange(rows))) for rows in (100, 2_000, 20_000)]

    noises = [noise for _, noise in found]
    assert noises == sorted(noises, reverse=True)
    assert found[0][0] - found[0][1] < ECE_AT_MOST  # not shown by a hundred
    assert ECE_AT_MOST < found[2][0] - found[2][1] < 0.1


def test_a_champion_is_scored_by_name_and_word(run: Run, pristine: Release) -> None:
    """Its columns and categories stand in another order than the rows'."""
    schema, kept = run.contract.schema, run.holdout
    turned = (replace(feature, vocabulary=tuple(reversed(feature.vocabulary))) for feature in reversed(schema.features))
    shuffled = replace(schema, features=tuple(turned))
    columns = [[feature.name for feature in schema.numeric].index(feature.name) for feature in shuffled.numeric]
    words = kept.categorical[:, ::-1].copy()
    sizes = np.array([len(feature.vocabulary) for feature in shuffled.categorical])
    known = words >= 2
    words[known] = (sizes + 3 - words)[known]

    found = scores_of(pristine, shuffled, kept.numeric[:, columns], words)

    np.testing.assert_allclose(found, kept.scores, rtol=1e-4, atol=1e-5)
    fewer = replace(shuffled, features=tuple(f for f in shuffled.features if f.name != "returns_365d"))
    with pytest.raises(OtherFeatures, match="returns_365d"):
        scores_of(pristine, fewer, kept.numeric[:, columns], words)


def test_a_champion_of_other_features_is_met_by_what_it_states_of_the_same_data(run: Run, pristine: Release) -> None:
    def renamed(contract: Contract, **digests: str) -> Contract:
        """As if the first feature were another one."""
        first, *others = contract.schema.features
        schema = replace(contract.schema, features=(replace(first, name="another"), *others))
        importance = replace(contract.explanation.importance, features={})
        explanation = replace(contract.explanation, importance=importance)
        return replace(contract, schema=schema, explanation=explanation, digests={**contract.digests, **digests})

    bad = shuffled_weights(run)
    same, other = (
        replace(pristine, contract=renamed(pristine.contract, **digests)) for digests in ({}, {"data": "other"})
    )
    stated = [str(verdict) for verdict in judge(bad.contract, bad.holdout, same) if verdict.gate == "champion"]
    silent = [verdict for verdict in judge(bad.contract, bad.holdout, other) if verdict.gate == "champion"]

    assert len(stated) == 4
    assert all("that the contract of engagement.1 states of the same data, worse by" in line for line in stated)
    failed = outcomes(judge(bad.contract, bad.holdout, same), "failed")
    assert ("spend_90d", "champion", "rmse_capped") in failed
    assert {verdict.outcome for verdict in silent} == {"not judged"}
    assert all("other data, and cannot score these rows: it reads another" in verdict.says for verdict in silent)


def test_a_contract_states_the_error_that_the_gates_compare(run: Run) -> None:
    place = run.contract.task_names.index("spend_90d")
    score, label = (kept[:, place].astype(np.float64) for kept in (run.holdout.scores, run.holdout.labels))

    own = rmse_capped(score, label)(np.ones((1, len(label))))

    assert run.contract.metrics["spend_90d"]["rmse_capped"] == pytest.approx(own[0])


def test_nothing_is_said_of_a_task_that_is_defined_for_nobody(run: Run) -> None:
    holdout = replace(run.holdout, eligible=run.holdout.eligible & [True, False, True])

    verdicts = [verdict for verdict in judge(run.contract, holdout, None) if verdict.task == "churn_90d"]

    assert [str(verdict) for verdict in verdicts] == ["churn_90d, every gate, any: it is defined for no test row"]


def test_a_score_that_is_no_number_passes_no_gate(run: Run) -> None:
    scores = run.holdout.scores.copy()
    scores[3, 0] = np.nan

    verdicts = judge(run.contract, replace(run.holdout, scores=scores), None)

    [said] = [str(verdict) for verdict in verdicts if verdict.outcome == "failed"]
    assert said == "purchase_30d, every gate, any: 1 scores are not finite; allowed is 0"


def test_a_damaged_champion_is_no_reason_not_to_replace_it(run: Run, pristine: Release, tmp_path: Path) -> None:
    workspace = workspace_of(run, pristine, tmp_path)
    (workspace.models / "engagement.1" / "card.md").write_text("x")

    verdicts = judge_workspace(workspace)

    assert outcomes(verdicts, "failed") == set()
    assert any("it is damaged: release engagement.1" in verdict.says for verdict in verdicts)


def test_a_reason_is_part_of_the_contract_and_of_its_card(run: Run) -> None:
    bad = overconfident(run, "purchase_30d", 1.0)
    verdicts = judge(bad.contract, bad.holdout, None)

    accepted = admit(bad.contract, verdicts, "Christmas:\n we  know | it ")

    assert accepted.training["gates_accepted_because"] == "Christmas: we know | it"
    assert accepted.training["gates_failed"].startswith("purchase_30d, calibration, ece: ")
    assert "| gates accepted because | Christmas: we know \\| it |" in card(accepted)
    for empty in ("", "  \n", "x" * 501):
        with pytest.raises(RapportError, match="a reason that others can read"):
            admit(bad.contract, verdicts, empty)


def test_the_command_refuses_in_one_sentence(
    run: Run, pristine: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_of(overconfident(run, "purchase_30d", 1.0), pristine, tmp_path)
    monkeypatch.setattr(sys, "argv", ["rapport", "publish", "--workspace", str(workspace.root)])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process keeps its own

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert str(ended.value.code).startswith("rapport: engagement does not pass its gates: purchase_30d, calibration")
    assert "--accept" in str(ended.value.code)
