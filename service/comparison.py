"""Champion against shadow on the same customers: how their answers differ, and whether the shadow may take over.

A verdict compares, it does not judge: where the answers differ, somebody must say whether they should. `promote` says
that nobody will notice; `hold` says who would, and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from feature_client.contract import Task
from service.shadow_records import OK, UNKNOWN, Pairs, Side

FloatArray = npt.NDArray[np.float64]

DECILES = 10
TOP = 3
"""Groups of an explanation that are shown first: `explain: 3` is what most ask for."""

MIN_EXPLAINED = 30
"""Customers with attributions of both: fewer say nothing about a mean."""

MIN_TIMED = 20
"""Timed slices of about one size, until their median says something."""

SMOOTHING = 0.5
"""Added to the count of every decile, so that an empty one is no infinite shift (Jeffreys' prior)."""


@dataclass(frozen=True)
class Thresholds:
    """Beyond any of them the shadow is held. A comparison that is not defined (NaN) passes none.

    min_rows: customers that have a score of both, for each task. At 1,000 the sampling error of a KS statistic is
        0.06 (5 % level) and that of a PSI over deciles 0.02: both below what they are held against.
    max_psi: the convention of credit scoring (Siddiqi, Credit Risk Scorecards): below 0.1 nothing has changed, from
        0.1 to 0.25 something has, above 0.25 the population is another one.
    max_ks: a tenth of the customers on the other side of some threshold, wherever one may be.
    max_mean_shift: of the mean, in standard deviations of the champion: half of what counts as a small effect (Cohen).
    min_rank: Spearman. On 4,000 generated customers, two trainings that differ in nothing but their seed reach 0.97 to
        0.99, with 85 to 91 % of the top tenth in common: what is below has learned something else.
    min_top_overlap: share of the champion's best tenth that is in the shadow's: who is called, mailed or courted.
    max_segment_changes: share of customers who are called something else than before.
    max_undefined_changes: share for whom one has a score and the other none.
    min_cosine: mean similarity of the attributions: reasons are read by people, who notice other ones.
    max_latency: median of the shadow's inference time in the champion's, on the same rows. Where fewer than MIN_TIMED
        batches of about one size were timed, the report says so and the verdict is without it.
    max_more_degraded: share of customers, beyond the champion's, with a feature that is missing or stale.
    max_failed: share of rows for which the shadow had no answer.
    """

    min_rows: int = 1_000
    max_psi: float = 0.1
    max_ks: float = 0.1
    max_mean_shift: float = 0.1
    min_rank: float = 0.95
    min_top_overlap: float = 0.8
    max_segment_changes: float = 0.05
    max_undefined_changes: float = 0.01
    min_cosine: float = 0.8
    max_latency: float = 1.5
    max_more_degraded: float = 0.01
    max_failed: float = 0.001


@dataclass(frozen=True)
class TaskComparison:
    """One task that both have. rows: customers with a score of both; the figures are NaN where they are not defined.

    undefined_changes: share of customers for whom just one has a score. segment_changes: None without segments.
    mean_shift: in `unit`. explained: customers with attributions of both; cosine, top_overlap and same_sign are means.
    """

    task: str
    unit: str
    rows: int
    undefined: int
    undefined_changes: float
    mean: float
    mean_shift: float
    mean_shift_sd: float
    psi: float
    ks: float
    rank: float
    top_decile_overlap: float
    segment_changes: float | None
    explained: int
    cosine: float
    top_overlap: float
    same_sign: float


@dataclass(frozen=True)
class Latency:
    """Of inferences of about one size, on the same rows: medians, in microseconds a row."""

    rows: str
    batches: int
    champion_us: float
    shadow_us: float
    ratio: float


@dataclass(frozen=True)
class Comparison:
    """customers: with a pair; the last pair of each counts. unknown: those left out because no store knows them.

    seconds: from the first pair to the last. degraded: share of the customers.
    """

    model: str
    champion: str
    shadow: str
    customers: int
    pairs: int
    unknown: int
    failed: int
    incomparable: int
    damaged_lines: int
    older_files: int
    own_reads: int
    seconds: float
    champion_degraded: float
    shadow_degraded: float
    tasks: tuple[TaskComparison, ...]
    latency: tuple[Latency, ...]
    verdict: Literal["promote", "hold"]
    reasons: tuple[str, ...]


def compare(pairs: Pairs, thresholds: Thresholds) -> Comparison:
    heading = pairs.heading
    last = _last(pairs.entities)
    unknown = (pairs.champion_statuses[last] == UNKNOWN) & (pairs.shadow_statuses[last] == UNKNOWN)
    kept = last[~unknown]
    tasks = [
        _task(pairs, kept, position, shadow.index(task.name))
        for shadow in [[other.name for other in heading.shadow.tasks]]
        for position, task in enumerate(heading.champion.tasks)
        if task.name in shadow
    ]
    degraded = [_share(statuses[kept] != OK) for statuses in (pairs.champion_statuses, pairs.shadow_statuses)]
    latency = _latency(pairs.timed)
    reasons = [
        *_about_tasks(heading.champion, heading.shadow),
        *(reason for task in tasks for reason in _reasons(task, thresholds)),
        *_about_all(pairs, degraded, latency, thresholds),
    ]
    return Comparison(
        model=heading.model,
        champion=heading.champion.version,
        shadow=heading.shadow.version,
        customers=len(kept),
        pairs=len(pairs),
        unknown=int(unknown.sum()),
        failed=pairs.failed,
        incomparable=pairs.incomparable,
        damaged_lines=pairs.damaged,
        older_files=pairs.older,
        own_reads=pairs.own_reads,
        seconds=float(np.ptp(pairs.at)) if len(pairs) else 0.0,
        champion_degraded=degraded[0],
        shadow_degraded=degraded[1],
        tasks=tuple(tasks),
        latency=latency,
        verdict="hold" if reasons else "promote",
        reasons=tuple(reasons),
    )


def psi(reference: FloatArray, other: FloatArray) -> float:
    """Population stability index over the deciles of `reference`, of which equal ones (many zeros) are one."""
    if not len(reference) or not len(other):
        return float("nan")
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, DECILES + 1)[1:-1]))
    shares = []
    for values in (reference, other):
        counts = np.bincount(edges.searchsorted(values), minlength=len(edges) + 1) + SMOOTHING
        shares.append(counts / counts.sum())
    before, after = shares
    return float(((after - before) * np.log(after / before)).sum())


def ks(one: FloatArray, other: FloatArray) -> float:
    """Kolmogorov-Smirnov: the largest difference between the two empirical distribution functions."""
    if not len(one) or not len(other):
        return float("nan")
    at = np.concatenate([one, other])
    below = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (one, other)]
    return float(np.abs(below[0] - below[1]).max())


def spearman(one: FloatArray, other: FloatArray) -> float:
    """Rank correlation, ties at their mean rank; NaN where one of them has a single value."""
    ranks = [_ranks(values) for values in (one, other)]
    centred = [values - values.mean() for values in ranks] if len(one) else ranks
    size = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / size if size else float("nan")


def top_overlap(one: FloatArray, other: FloatArray, share: float = 0.1) -> float:
    """Share of the highest tenth of one that is in that of the other; of equal values the first ones count."""
    count = int(np.ceil(share * len(one)))
    if not count:
        return float("nan")
    best = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (one, other)]
    return len(best[0] & best[1]) / count


def _ranks(values: FloatArray) -> FloatArray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatArray = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _last(entities: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """Position of the last pair of each customer: whoever is asked for often counts no more than anybody else."""
    _, backwards = np.unique(entities[::-1], return_index=True)
    return np.sort(len(entities) - 1 - backwards)


def _task(pairs: Pairs, kept: npt.NDArray[np.intp], position: int, other: int) -> TaskComparison:
    """position, other: of the task among the champion's, and among the shadow's."""
    task, twin = pairs.heading.champion.tasks[position], pairs.heading.shadow.tasks[other]
    champion, shadow = pairs.champion[kept, position], pairs.shadow[kept, other]
    defined = np.isfinite(champion), np.isfinite(shadow)
    both = defined[0] & defined[1]
    one, two = champion[both], shadow[both]
    shift = float(two.mean() - one.mean()) if len(one) else float("nan")
    spread = float(one.std()) if len(one) else float("nan")
    names = [_segments(of, values) for of, values in ((task, one), (twin, two))]
    explained, cosine, top, sign = _attributions(pairs, position, other)
    return TaskComparison(
        task=task.name,
        unit=task.unit,
        rows=len(one),
        undefined=int((~both).sum()),
        undefined_changes=_share(defined[0] != defined[1]),
        mean=float(one.mean()) if len(one) else float("nan"),
        mean_shift=shift,
        # Without any spread, no shift is none and every other is without bounds.
        mean_shift_sd=abs(shift) / spread if spread else (0.0 if shift == 0 else float("inf")),
        psi=psi(one, two),
        ks=ks(one, two),
        rank=spearman(one, two),
        top_decile_overlap=top_overlap(one, two),
        segment_changes=_share(names[0] != names[1]) if task.segments or twin.segments else None,
        explained=explained,
        cosine=cosine,
        top_overlap=top,
        same_sign=sign,
    )


def _segments(task: Task, scores: FloatArray) -> npt.NDArray[np.object_]:
    # As float32: that is what the thresholds were held against when the scores were given.
    return np.array([task.segment(float(score)) for score in scores], dtype=object)


def _attributions(pairs: Pairs, position: int, other: int) -> tuple[int, float, float, float]:
    """Customers, and means of: cosine, overlap of the TOP groups, share of contribution with one sign.

    Groups that only one of them has are zero to the other.
    """
    explained, heading = pairs.explained, pairs.heading
    last = _last(pairs.entities[explained.rows])
    rows = explained.rows[last]
    defined = np.isfinite(pairs.champion[rows, position]) & np.isfinite(pairs.shadow[rows, other])
    last = last[defined]
    if not len(last):
        return 0, float("nan"), float("nan"), float("nan")
    groups = list(dict.fromkeys((*heading.champion.groups, *heading.shadow.groups)))
    one = _aligned(explained.champion[last, position], heading.champion.groups, groups)
    two = _aligned(explained.shadow[last, other], heading.shadow.groups, groups)
    sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    # Two explanations without any contribution agree; one with and one without do not.
    agree = (np.abs(one) + np.abs(two)).sum(axis=1) == 0
    cosine = np.where(sizes > 0, (one * two).sum(axis=1) / np.where(sizes > 0, sizes, 1.0), agree)
    count = min(TOP, len(groups))
    best = [np.argsort(-np.abs(values), axis=1, kind="stable")[:, :count] for values in (one, two)]
    top = (best[0][:, :, None] == best[1][:, None, :]).any(axis=2).mean(axis=1)
    # By size: the sign of a contribution of nothing is noise.
    weights = np.abs(one) + np.abs(two)
    total = weights.sum(axis=1)
    same = np.where(total > 0, (weights * (one * two > 0)).sum(axis=1) / np.where(total > 0, total, 1.0), 1.0)
    return len(last), float(cosine.mean()), float(top.mean()), float(same.mean())


def _aligned(values: FloatArray, own: Sequence[str], groups: Sequence[str]) -> FloatArray:
    """values: [rows, own] -> [rows, groups]."""
    aligned = np.zeros((len(values), len(groups)))
    aligned[:, [groups.index(group) for group in own]] = values
    return aligned


def _latency(timed: FloatArray) -> tuple[Latency, ...]:
    """timed: [batches, 3]: rows, seconds of either. By powers of two, for a row costs less in a larger batch."""
    found = []
    sizes = np.floor(np.log2(timed[:, 0])) if len(timed) else np.empty(0)
    for size in np.unique(sizes):
        rows, champion, shadow = timed[sizes == size].T
        if len(rows) >= MIN_TIMED:
            first, behind = int(2**size), int(2 ** (size + 1))
            name = str(first) if behind - first == 1 else f"{first}-{behind - 1}"
            us = [float(np.median(seconds / rows)) * 1e6 for seconds in (champion, shadow)]
            found.append(Latency(name, len(rows), us[0], us[1], float(np.median(shadow / champion))))
    return tuple(found)


def _about_tasks(champion: Side, shadow: Side) -> list[str]:
    theirs = {task.name: task for task in shadow.tasks}
    reasons = []
    for task in champion.tasks:
        twin = theirs.get(task.name)
        if twin is None:
            reasons.append(f"{task.name}: the shadow has no such task")
        elif (twin.unit, twin.horizon_days) != (task.unit, task.horizon_days):
            reasons.append(
                f"{task.name}: {task.unit} over {task.horizon_days} days to the champion, "
                f"{twin.unit} over {twin.horizon_days} days to the shadow"
            )
    return reasons


def _reasons(task: TaskComparison, t: Thresholds) -> list[str]:
    name = task.task
    if task.rows < t.min_rows:
        return [f"{name}: {task.rows:,} customers with a score of both, fewer than {t.min_rows:,}"]
    checks = [
        # Written so that NaN is a reason to hold.
        (task.psi < t.max_psi, f"the distribution shifts: PSI {task.psi:.3f}, {t.max_psi:g} or more"),
        (task.ks <= t.max_ks, f"the distribution shifts: KS {task.ks:.3f}, more than {t.max_ks:g}"),
        (
            task.mean_shift_sd <= t.max_mean_shift,
            (
                f"the mean shifts by {task.mean_shift:+.3g} {task.unit}, {task.mean_shift_sd:.2f} standard deviations, "
                f"more than {t.max_mean_shift:g}"
            ),
        ),
        (task.rank >= t.min_rank, f"customers are ranked differently: Spearman {task.rank:.3f}, below {t.min_rank:g}"),
        (
            task.top_decile_overlap >= t.min_top_overlap,
            f"{task.top_decile_overlap:.0%} of the top tenth stay in it, fewer than {t.min_top_overlap:.0%}",
        ),
        (
            task.segment_changes is None or task.segment_changes <= t.max_segment_changes,
            (
                f"{task.segment_changes or 0:.1%} of the customers change their segment, more than "
                f"{t.max_segment_changes:.1%}"
            ),
        ),
        (
            task.undefined_changes <= t.max_undefined_changes,
            (
                f"{task.undefined_changes:.1%} of the customers have a score of only one of the two, more than "
                f"{t.max_undefined_changes:.1%}"
            ),
        ),
        (
            task.explained >= MIN_EXPLAINED,
            f"{task.explained} customers with attributions of both, fewer than {MIN_EXPLAINED}",
        ),
        (
            task.explained < MIN_EXPLAINED or task.cosine >= t.min_cosine,
            f"the reasons differ: mean cosine of the attributions {task.cosine:.2f}, below {t.min_cosine:g}",
        ),
    ]
    return [f"{name}: {reason}" for passes, reason in checks if not passes]


def _about_all(pairs: Pairs, degraded: Sequence[float], latency: Sequence[Latency], t: Thresholds) -> list[str]:
    reasons = []
    failed = pairs.failed / max(len(pairs) + pairs.failed, 1)
    if not failed <= t.max_failed:
        reasons.append(f"the shadow had no answer for {failed:.2%} of the rows, more than {t.max_failed:.2%}")
    if not degraded[1] - degraded[0] <= t.max_more_degraded:
        reasons.append(
            f"{degraded[1]:.1%} of the customers are degraded with the shadow, {degraded[0]:.1%} with the champion"
        )
    reasons += [
        f"{one.rows} rows take the shadow {one.ratio:.2f} times as long, more than {t.max_latency:g}"
        for one in latency
        if not one.ratio <= t.max_latency
    ]
    return reasons


def _share(mask: npt.NDArray[np.bool_]) -> float:
    return float(np.mean(mask)) if len(mask) else 0.0
