"""What `rapport report` shows of one task: sentences and pictures for everybody, tables for the appendix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from feature_client.contract import Contract, Task
from model_export import report_pictures as pictures
from model_export import report_words as words
from model_export.bootstrap import Interval
from model_export.explain_figures import Scale
from model_export.page import Picture
from model_export.report_facts import Facts, Rows, facts_of
from model_export.report_words import Outcome, money, percent

METRICS = {
    "auc": "AUC (area under the ROC curve)",
    "average_precision": "average precision",
    "ece": "ECE (expected calibration error)",
    "brier": "Brier score",
    "rmse_capped": "RMSE, cut off at the 99th percentile",
    "log_rmse": "RMSE of log(1 + amount)",
    "spearman": "Spearman's rank correlation",
    "sum_ratio": "sum said / sum came",
}


@dataclass(frozen=True)
class Appendix:
    """Tables as text. metrics: name, value, interval, baseline. tenths: number, rows, said, came, interval, share of
    all. slices: of what, kind, rows, said, came, quality."""

    metrics: Sequence[Sequence[str]]
    tenths: Sequence[Sequence[str]]
    slices: Sequence[Sequence[str]]
    quality: str
    curves: Picture | None


@dataclass(frozen=True)
class Section:
    """big: the figure that stands at the top of the page, and what it is. too_few: why there is nothing else."""

    task: Task
    question: str
    asked_of: str
    big: tuple[str, str] | None
    sentences: Sequence[str]
    calibrated: str
    worse: str
    drivers: str
    too_few: str
    pictures: Sequence[Picture]
    appendix: Appendix | None

    @property
    def every_picture(self) -> list[Picture]:
        curves = self.appendix.curves if self.appendix else None
        return [*self.pictures, *([curves] if curves else [])]


def section_of(contract: Contract, rows: Rows) -> Section:
    task, question = rows.task, Outcome.of(rows.task).question
    asked_of = words.asked_of(contract, task)
    if not rows.are_enough:
        return Section(task, question, asked_of, None, (), "", "", "", words.too_few(rows), (), None)
    facts = facts_of(rows)
    shown = (
        pictures.of_probability(facts, words.currency(contract))
        if task.kind == "probability"
        else pictures.of_amount(facts)
    )
    drivers = words.drivers(contract, task)
    if drivers:
        shown.append(pictures.of_drivers(task, drivers))
    shown += pictures.of_slices(facts)
    return Section(
        task,
        question,
        asked_of,
        _big(facts),
        words.sentences(contract, facts),
        words.calibrated(facts),
        words.worse(facts),
        _driven(task, drivers),
        "",
        shown,
        _appendix(facts),
    )


def _big(facts: Facts) -> tuple[str, str]:
    task = facts.rows.task
    if task.kind == "probability":
        size = facts.top.size
        came, chance = round(size * facts.top.came.value), round(size * facts.base)
        return f"{came} of {size}", f"{Outcome.of(task).came}, of the {size} we rank highest; at random: {chance}"
    ratio = words.metric(facts, "sum_ratio").own.value
    spent = float(facts.rows.label.sum()) / facts.rows.dates
    what = f"expected of all customers within {task.horizon_days} days; {money(spent, task.unit)} came"
    return money(spent * ratio, task.unit), what


def _driven(task: Task, drivers: Sequence[tuple[str, float]]) -> str:
    moving = [(label, mean) for label, mean in drivers if mean > 0][:3]
    if not moving:
        return "The release has no figures of what moves this score."
    scale = Scale.of(task)
    said = ", then ".join(f"**{label.lower()}** ({scale.size(mean)} on average)" for label, mean in moving)
    return f"What moves the score of a customer most is {said}."


def _appendix(facts: Facts) -> Appendix:
    task = facts.rows.task
    is_probability = task.kind == "probability"
    write = percent if is_probability else partial(money, unit=task.unit)
    return Appendix(
        metrics=[
            (
                METRICS[one.name],
                f"{one.own.value:.3f}",
                _span(one.own),
                "" if np.isnan(one.naive) else f"{one.naive:.3f}",
            )
            for one in facts.metrics
        ],
        tenths=[
            (
                str(place),
                f"{one.rows:,}",
                write(one.said),
                write(one.came.value),
                _ends(one.came, write),
                percent(one.share),
            )
            for place, one in enumerate(facts.tenths, start=1)
        ],
        slices=[
            (one.title, one.name, f"{one.rows:,}", write(one.said), write(one.came), words.quality(one, 1.0))
            for one in facts.slices
        ],
        quality="AUC" if is_probability else "sum said / sum came",
        curves=pictures.of_curves(facts) if is_probability else None,
    )


def _ends(found: Interval, write: Callable[[float], str]) -> str:
    return f"{write(found.low)} to {write(found.high)}"


def _span(found: Interval) -> str:
    return f"[{found.low:.3f}, {found.high:.3f}]"
