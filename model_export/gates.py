"""What a model must be before it is published: calibrated, no worse than the champion, better than no model at all.

A gate fails where the test rows show the fault beyond doubt, and not by chance: intervals are drawn by customer
(bootstrap.py). Calibration passes only within its bound: beyond it, but by what may be chance, it is not judged. Nor is
a figure that too few rows speak for. What is not judged is said, and refuses nothing. docs/report.md has the rules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from feature_client.contract import Contract, Task
from feature_client.release import Release
from feature_client.schema import FloatArray
from feature_client.verdicts import (
    ACCEPTED,
    CHAMPION,
    CHAMPION_CONTRACT,
    ERRORS,
    FAILED,
    NOT_JUDGED,
    PASSED,
    TOLERATED,
    GateError,
    reason,
)
from model_export import bootstrap
from model_export.bootstrap import Draws, Figure, Interval
from model_export.champion import OtherFeatures, scores_of
from model_export.evaluate import calibration_bins, expected_calibration_error
from model_export.holdout import Holdout

LEVEL = 0.98
"""Of the intervals: one model in a hundred fails a gate by chance where it is just within its bound."""

ECE_AT_MOST = 0.08
"""The turn of a season undoes some of what a model was calibrated to on the months before: on Online Retail II churn of
different seeds ends at 0.033 to 0.045 (docs/model-quality.md), of which 0.02 to 0.04 may be chance. The mark there,
0.03, is stricter: a goal, and less than what may be chance in churn's rows; no model of them could pass such a gate."""

SUM_RATIO_WITHIN = (0.8, 1.25)
SUM_RATIO_SEEN = 1.1
"""Of the band: an interval that ends beyond it by more than this factor is too wide to judge by."""

BoolArray = npt.NDArray[np.bool_]
Outcome = Literal["passed", "failed", "not judged"]


@dataclass(frozen=True)
class Comparison:
    """A metric that two models are compared by. seen: how much worse than what is tolerated must be visible in the test
    rows, or they are too few to compare by. is_error: less is better, and how much less is a share."""

    name: str
    figure: Callable[[FloatArray, FloatArray], Figure]  # of scores and labels
    seen: float

    @property
    def tolerated(self) -> float:
        return TOLERATED[self.name]

    @property
    def is_error(self) -> bool:
        return self.name in ERRORS

    def gain(self, new: Figure, old: Figure) -> Figure:
        return bootstrap.saving(new, old) if self.is_error else bootstrap.difference(new, old)

    def write(self, gain: float) -> str:
        return f"{100 * gain:.1f} %" if self.is_error else f"{gain:.4f}"


COMPARISONS = {
    "probability": (Comparison("auc", bootstrap.auc, 0.05),),
    "amount": (
        # Not of logarithms: what is said is a mean, and the mean of amounts is far above that of their logarithms.
        Comparison("rmse_capped", bootstrap.rmse_capped, 0.10),
        Comparison("spearman", bootstrap.spearman, 0.10),
    ),
}


@dataclass(frozen=True)
class Verdict:
    """gate: `calibration`, `champion` or `baseline`. says: the figures, their interval and the bound, in one line."""

    gate: str
    task: str
    metric: str
    outcome: Outcome
    says: str

    def __str__(self) -> str:
        return f"{self.task}, {self.gate}, {self.metric}: {self.says}"


def judge(
    contract: Contract, holdout: Holdout, champion: Release | None, without: str = "there is none yet"
) -> list[Verdict]:
    """Every gate of every task. champion: whom the model would replace. without: why it is compared with nobody."""
    rival = _Rival(contract, holdout, champion, without)
    verdicts = []
    for position, task in enumerate(contract.tasks):
        rows = holdout.eligible[:, position]
        if not rows.any():
            verdicts.append(Verdict("every gate", task.name, "any", "not judged", "it is defined for no test row"))
            continue
        if wrong := int((~np.isfinite(holdout.scores[rows, position])).sum()):
            verdicts.append(
                Verdict("every gate", task.name, "any", "failed", f"{wrong} scores are not finite; allowed is 0")
            )
            continue
        judged = _Judged(
            task,
            holdout.scores[rows, position].astype(np.float64),
            holdout.labels[rows, position].astype(np.float64),
            Draws(holdout.customers[rows]),
        )
        verdicts.append(judged.calibrated())
        verdicts += rival.compared(judged, rows)
        feature = holdout.naive_features[position]
        naive = holdout.naive[rows, position].astype(np.float64)
        verdicts += judged.compared("baseline", feature, naive, 0.0) if feature else [_no_baseline(task)]
    return verdicts


def admit(
    contract: Contract, verdicts: Sequence[Verdict], accept: str | None, champion: Release | None = None
) -> Contract:
    """The contract with what its gates said in `training`. accept: why the model is published though some failed.
    champion: that they were asked with.

    Raises GateError.
    """
    by_outcome = {
        outcome: [str(verdict) for verdict in verdicts if verdict.outcome == outcome]
        for outcome in ("passed", "failed", "not judged")
    }
    failed = by_outcome["failed"]
    said = {PASSED: f"{len(by_outcome['passed'])} of {len(verdicts)}"}
    if champion is not None:
        said |= {CHAMPION: champion.name, CHAMPION_CONTRACT: champion.contract.digest}
    if by_outcome["not judged"]:
        said[NOT_JUDGED] = "; ".join(by_outcome["not judged"])
    if failed:
        said |= {FAILED: "; ".join(failed), ACCEPTED: _reason(contract, failed, accept)}
    return replace(contract, training={**contract.training, **said})


def _reason(contract: Contract, failed: Sequence[str], accept: str | None) -> str:
    if accept is None:
        raise GateError(
            f"{contract.model} does not pass its gates: {'; '.join(failed)}. `rapport report` shows more; --accept "
            '"why" publishes it all the same, and its model card says why'
        )
    return reason(accept)


@dataclass(frozen=True)
class _Judged:
    """The test rows for which one task is defined. score, label [rows]."""

    task: Task
    score: FloatArray
    label: FloatArray
    draws: Draws

    def calibrated(self) -> Verdict:
        if self.task.kind == "amount":
            return self._in_sum()
        ece, noise = calibration_error(self.score, self.label, self.draws)
        says = f"{ece:.3f}, of which {noise:.3f} may be chance; allowed is at most {ECE_AT_MOST}"
        if ece - noise > ECE_AT_MOST:
            return self._verdict("calibration", "ece", "failed", says)
        if noise > ECE_AT_MOST:
            return self._verdict("calibration", "ece", "not judged", f"too few rows: {says}")
        if not ece <= ECE_AT_MOST:
            return self._verdict("calibration", "ece", "not judged", f"above, but perhaps by chance: {says}")
        return self._verdict("calibration", "ece", "passed", says)

    def _in_sum(self) -> Verdict:
        """The sum of the scores by the sum of the amounts."""
        found = self.draws.interval(bootstrap.sum_ratio(self.score, self.label), LEVEL)
        low, high = SUM_RATIO_WITHIN
        says = f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]; allowed is {low} to {high}"
        if found.low > high or found.high < low:
            return self._verdict("calibration", "sum_ratio", "failed", says)
        # Also true of NaN, where nobody spent anything.
        if not (found.low >= low / SUM_RATIO_SEEN and found.high <= high * SUM_RATIO_SEEN):
            return self._verdict("calibration", "sum_ratio", "not judged", f"too few rows: {says}")
        if not low <= found.value <= high:
            return self._verdict("calibration", "sum_ratio", "not judged", f"outside, but perhaps by chance: {says}")
        return self._verdict("calibration", "sum_ratio", "passed", says)

    def compared(self, gate: str, with_whom: str, other: FloatArray, tolerated: float | None = None) -> list[Verdict]:
        """other [rows]: the scores of somebody else. tolerated: in place of the metric's own."""
        verdicts = []
        for by in COMPARISONS[self.task.kind]:
            own, others = by.figure(self.score, self.label), by.figure(other, self.label)
            everyone = np.ones((1, len(self.label)))
            figures = f"{own(everyone)[0]:.4g} against {others(everyone)[0]:.4g} of {with_whom}"
            gain = self.draws.interval(by.gain(own, others), LEVEL)
            verdicts.append(self._compared(gate, by, figures, gain, by.tolerated if tolerated is None else tolerated))
        return verdicts

    def against_stated(self, champion: Release, by: Comparison, stated: float) -> Verdict:
        """Where the champion cannot score these rows: by what its contract states of the same data, unpaired."""
        own = by.figure(self.score, self.label)
        gain = self.draws.interval(by.gain(own, lambda weights: np.full(len(weights), stated)), LEVEL)
        value = float(own(np.ones((1, len(self.label))))[0])
        figures = f"{value:.4g} against {stated:.4g} that the contract of {champion.name} states of the same data"
        return self._compared("champion", by, figures, gain, by.tolerated)

    def _compared(self, gate: str, by: Comparison, figures: str, gain: Interval, tolerated: float) -> Verdict:
        """gain: by how much the model is better."""
        low, high = gain.low, gain.high
        way, ends = ("worse", (-gain.value, -high, -low)) if gain.value < 0 else ("better", (gain.value, low, high))
        value, *interval = (by.write(end) for end in ends)
        allowed = f"{100 * tolerated:g} %" if by.is_error else f"{tolerated:g}"
        says = f"{figures}, {way} by {value} [{', '.join(interval)}]; allowed is {allowed} worse"
        if gain.value < -tolerated and high < 0:
            return self._verdict(gate, by.name, "failed", says)
        if not low >= -(tolerated + by.seen):  # also true of NaN
            return self._verdict(gate, by.name, "not judged", f"too few rows: {says}")
        return self._verdict(gate, by.name, "passed", says)

    def _verdict(self, gate: str, metric: str, outcome: Outcome, says: str) -> Verdict:
        return Verdict(gate, self.task.name, metric, outcome, says)


class _Rival:
    """The champion, and its scores of the test rows where it can tell them."""

    def __init__(self, contract: Contract, holdout: Holdout, champion: Release | None, without: str) -> None:
        self.contract = contract
        self.champion = champion
        self.scores: FloatArray | None = None
        self.why = without
        if champion is not None:
            try:
                scores = scores_of(champion, contract.schema, holdout.numeric, holdout.categorical)
                self.scores = scores.astype(np.float64)
            except OtherFeatures as exc:
                self.why = str(exc)

    def compared(self, judged: _Judged, rows: BoolArray) -> list[Verdict]:
        """rows [all rows]: those for which the task is defined."""
        task = judged.task
        if self.champion is None:
            return [Verdict("champion", task.name, "any", "not judged", self.why)]
        there = {other.name: other for other in self.champion.contract.tasks}
        other = there.get(task.name)
        if other is None or (other.kind, other.unit, other.horizon_days) != (task.kind, task.unit, task.horizon_days):
            return [Verdict("champion", task.name, "any", "not judged", f"{self.champion.name} has no such score")]
        if self.scores is not None:
            own = self.scores[rows, self.champion.contract.task_names.index(task.name)]
            return judged.compared("champion", self.champion.name, own)
        return self._stated(judged, self.champion)

    def _stated(self, judged: _Judged, champion: Release) -> list[Verdict]:
        if champion.contract.digests.get("data") != self.contract.digests.get("data"):
            says = f"{champion.name} was measured on other data, and cannot score these rows: {self.why}"
            return [Verdict("champion", judged.task.name, "any", "not judged", says)]
        stated = champion.contract.metrics.get(judged.task.name, {})
        return [
            judged.against_stated(champion, by, stated[by.name])
            if by.name in stated
            else Verdict("champion", judged.task.name, by.name, "not judged", f"{champion.name} does not state it")
            for by in COMPARISONS[judged.task.kind]
        ]


def calibration_error(score: FloatArray, label: FloatArray, draws: Draws) -> tuple[float, float]:
    """Expected calibration error, and how much of it may be chance.

    By the triangle inequality, the error without chance is at least the measured one less that of the bins' own noise,
    mean |drawn - observed| over the bins, of which this is a high quantile.
    """
    bins = calibration_bins(score)
    inside = np.zeros((len(score), len(bins)))
    for place, rows in enumerate(bins):
        inside[rows, place] = score[rows] - label[rows]
    observed = inside.sum(axis=0) / len(score)

    def noise(weights: FloatArray) -> FloatArray:
        drawn = (weights @ inside) / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
        return np.asarray(np.abs(drawn - observed).sum(axis=1))

    found = draws.figures(noise)
    return expected_calibration_error(score, label), float(np.quantile(found, (1 + LEVEL) / 2))


def _no_baseline(task: Task) -> Verdict:
    return Verdict("baseline", task.name, "any", "not judged", "no feature to forecast it by")
