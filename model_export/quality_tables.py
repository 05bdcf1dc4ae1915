"""The tables that `make quality` prints before its JSON."""

from collections.abc import Mapping, Sequence

import numpy as np

from feature_client.schema import FloatArray
from model_export.measure import Measure, Measured, keys
from model_export.resampling import Interval
from model_export.rows import Dataset
from model_export.slices import Slice

WORDS = {
    "auc": "AUC",
    "ap": "average precision",
    "ece": "calibration error",
    "rmse_log": "RMSE of log1p",
    "spearman": "rank correlation",
    "rmse_capped": "RMSE, capped",
    "sum_ratio": "forecast / actual",
}
LOWER_IS_BETTER = frozenset({"ece", "rmse_log", "rmse_capped"})
JUDGED = frozenset({"auc", "rmse_log"})
"""The figures by which a slice is called better or worse."""


def tables(
    dataset: Dataset,
    measure: Measure,
    whole: Measured,
    by_seed: Sequence[FloatArray],
    sliced: Sequence[tuple[Slice, Measured]],
    chosen: Mapping[str, str],
) -> str:
    lines = _about(dataset, measure, chosen)
    for place, (task, name) in enumerate(keys(dataset.tasks)):
        if place == 0 or keys(dataset.tasks)[place - 1][0] != task:
            lines += ["", f"{task}: {_base(dataset, task)}"]
        lines.append(f"  {WORDS[name]}")
        for model, figures in whole.figures.items():
            said = f"    {model:<13}{_number(figures[place]):>9}  {whole.interval(model, place)}"
            if model == "network":
                said += f"  seeds {', '.join(_number(figures[place]) for figures in by_seed)}"
                said += f"; minus lightgbm {whole.difference('network', 'lightgbm', place)}"
            lines.append(said)
    lines += ["", "By slice: network, lightgbm, and the 95 % interval of the difference", *_slices(dataset, sliced)]
    return "\n".join(lines)


def _about(dataset: Dataset, measure: Measure, chosen: Mapping[str, str]) -> list[str]:
    about = dataset.about
    lines = [f"{about.get('data')}: {about.get('events')} events"]
    lines += [
        f"  {part:<11}{len(getattr(dataset, part)):>7} rows at cutoffs {about.get(f'{part}_cutoffs')}"
        for part in ("train", "validation", "test")
    ]
    lines += [f"  best feature of {task}: {name}" for task, name in chosen.items()]
    lines += [f"  {task} is capped at {cap:,.0f} for the RMSE" for task, cap in measure.caps.items()]
    customers = len(np.unique(dataset.test.customers.astype(str)))
    return [*lines, f"  {customers} test customers; intervals are 95 %, by customer"]


def _base(dataset: Dataset, task: str) -> str:
    place = [one.name for one in dataset.tasks].index(task)
    parts = []
    for name in ("train", "validation", "test"):
        rows = getattr(dataset, name)
        labels = rows.labels[rows.eligible[:, place], place].astype(np.float64)
        parts.append(f"{labels.mean():.3f} in {name}" if len(labels) else f"no row in {name}")
    return f"mean label {', '.join(parts)}"


def _slices(dataset: Dataset, sliced: Sequence[tuple[Slice, Measured]]) -> list[str]:
    lines = []
    for place, (task, name) in enumerate(keys(dataset.tasks)):
        if name not in JUDGED:
            continue
        lines += ["", f"  {task}, {WORDS[name]}"]
        for part, measured in sliced:
            difference = measured.difference("network", "lightgbm", place)
            ours, theirs = (_number(measured.figures[model][place]) for model in ("network", "lightgbm"))
            said = f"    {part.by:<20}{part.name:<18}{len(part.rows):>6} rows  {ours:>7}  {theirs:>7}  {difference}"
            lines.append(f"{said}  {_verdict(difference, name)}".rstrip())
    return lines


def _verdict(difference: Interval, name: str) -> str:
    """Only what the interval leaves no doubt about."""
    low, high = (difference.low, difference.high) if name in LOWER_IS_BETTER else (-difference.high, -difference.low)
    return "worse" if low > 0 else "better" if high < 0 else ""


def _number(figure: float) -> str:
    return f"{figure:,.1f}" if abs(figure) >= 100 else f"{figure:.4f}"
