"""The pictures of `rapport report`: narrow enough to be read on a phone, with the colours of the other pages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from model_export.bootstrap import Interval
from model_export.explain_figures import FAINT, INK, LOWERS, NEUTRAL, PLAIN, RAISES, STYLE, Floats
from model_export.report_facts import Bin, SliceFacts

WIDTH_IN = 5.0
HEIGHT_IN = 3.6
OURS, SAID, NAIVE = LOWERS, RAISES, NEUTRAL
"""The model and what came; what was said; what takes no model. Told apart by shape and dashes as well."""

SIDE = 10  # dots of a side of a hundred


@dataclass(frozen=True)
class Unit:
    """How values are drawn: shares as percent, amounts in their currency."""

    factor: float
    axis: str

    def ticks(self, value: float, _: int | None = None) -> str:
        value = value if abs(value) > 1e-9 else 0.0
        if self.axis == "%":
            return f"{value:.0f} %"
        for size, letter in ((1e9, "bn"), (1e6, "m"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.3g}{letter}"
        return f"{value:.3g}"


def hundreds(shares: Sequence[float], titles: Sequence[str], outcome: str) -> Figure:
    """A hundred dots for each share, so many of them full."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.0), layout="constrained")
        for axes, share, title, colour in zip(
            figure.subplots(1, len(shares)), shares, titles, (OURS, PLAIN), strict=False
        ):
            full = round(100 * share)
            places = np.arange(SIDE * SIDE)
            x, y = places % SIDE, places // SIDE
            axes.scatter(x[full:], y[full:], s=52, color=FAINT, linewidths=0)
            axes.scatter(x[:full], y[:full], s=52, color=colour, linewidths=0)
            axes.set_xlim(-0.8, SIDE - 0.2)
            axes.set_ylim(SIDE - 0.2, -0.8)
            axes.set_aspect("equal")
            axes.set_axis_off()
            axes.set_title(f"{title}\n{full} of 100 {outcome}", fontsize=10.5)
        return figure


def tenths(bins: Sequence[Bin], base: float, unit: Unit, axis: str, of_all: str) -> Figure:
    """What came of each tenth, the highest scores first, with its interval, and what was said."""
    with mpl.rc_context(STYLE):
        figure, axes = _one()
        places = np.arange(1, len(bins) + 1)
        came = np.array([one.came.value for one in bins]) * unit.factor
        axes.bar(places, came, width=0.72, color=OURS, alpha=0.85, label="what came")
        _whiskers(axes, places, [one.came for one in bins], unit.factor, INK)
        said = [one.said * unit.factor for one in bins]
        axes.plot(places, said, "D", color=SAID, markeredgecolor="white", markersize=7, label="what we said")
        axes.axhline(base * unit.factor, color=INK, linewidth=1.1, linestyle="--", label=of_all)
        axes.set_xticks(places)
        axes.set_xlabel("customers in tenths, the highest scores first")
        _finish(axes, unit, axis)
        axes.set_ylim(0, 1.12 * max(*said, *(one.came.high * unit.factor for one in bins), 1e-9))
        axes.legend(frameon=False, fontsize=9.5)
        return figure


def gains(model: Floats, naive: Floats | None, naive_name: str, axis: str) -> Figure:
    """Share of all that came, among the highest 0 to 100 percent."""
    with mpl.rc_context(STYLE):
        figure, axes = _one()
        percent = np.arange(101)
        axes.plot(percent, 100 * model, color=OURS, linewidth=2.4, label="our ranking")
        if naive is not None:
            axes.plot(percent, 100 * naive, color=NAIVE, linewidth=1.6, linestyle="--", label=naive_name)
        axes.plot([0, 100], [0, 100], color=PLAIN, linewidth=1.2, linestyle=":", label="at random")
        for place in (10, 20):
            height = 100 * model[place]
            axes.plot([place, place], [0, height], color=INK, linewidth=0.8)
            axes.plot(place, height, "o", color=OURS, markersize=6)
            axes.annotate(f"{height:.0f} %", (place, height), (-4, 5), textcoords="offset points", ha="right")
        axes.set_xlim(-4, 100)
        axes.set_ylim(0, 105)
        axes.set_xlabel("share of customers, the highest scores first")
        _finish(axes, Unit(1.0, "%"), axis)
        axes.xaxis.set_major_formatter(FuncFormatter(Unit(1.0, "%").ticks))
        axes.legend(frameon=False, fontsize=9.5, loc="lower right")
        return figure


def calibration(bins: Sequence[Bin]) -> Figure:
    """What was said against what came."""
    with mpl.rc_context(STYLE):
        figure, axes = _one()
        most = 105 * max(max(one.said, one.came.high) for one in bins)
        axes.plot([0, most], [0, most], color=PLAIN, linewidth=1.2, linestyle="--", label="exactly as said")
        said = np.array([100 * one.said for one in bins])
        _whiskers(axes, said, [one.came for one in bins], 100.0, OURS)
        axes.plot(
            said, [100 * one.came.value for one in bins], "o", color=OURS, markersize=6, label="groups of customers"
        )
        axes.set_xlim(0, most)
        axes.set_ylim(0, most)
        axes.set_xlabel("what we said")
        _finish(axes, Unit(1.0, "%"), "what came")
        axes.xaxis.set_major_formatter(FuncFormatter(Unit(1.0, "%").ticks))
        axes.legend(frameon=False, fontsize=9.5, loc="upper left")
        return figure


def amounts(bins: Sequence[Bin], unit: Unit, axis: str) -> Figure:
    """What was said and what came of each tenth on axes of logarithms: amounts span orders of magnitude."""
    with mpl.rc_context(STYLE):
        figure, axes = _one()
        pairs = [one for one in bins if one.said > 0 and one.came.value > 0]
        values = [value for one in pairs for value in (one.said, one.came.value)]
        ends = [0.6 * min(values), 1.7 * max(values)]
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot(ends, ends, color=PLAIN, linewidth=1.2, linestyle="--", label="exactly as said")
        said = np.array([one.said for one in pairs])
        _whiskers(
            axes, said, [Interval(i.value, max(i.low, ends[0]), i.high) for i in (p.came for p in pairs)], 1.0, OURS
        )
        axes.plot(said, [one.came.value for one in pairs], "o", color=OURS, markersize=6, label="tenths of customers")
        axes.set_xlim(*ends)
        axes.set_ylim(ends[0], max(ends[1], *(1.1 * one.came.high for one in pairs)))
        axes.set_xlabel(f"what we said ({axis})")
        axes.set_ylabel(f"what came ({axis})")
        for side in (axes.xaxis, axes.yaxis):
            side.set_major_formatter(FuncFormatter(unit.ticks))
            side.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axes.grid()
        axes.legend(frameon=False, fontsize=9.5, loc="upper left")
        return figure


def risk(bins: Sequence[Bin], currency: str) -> Figure:
    """Last year's spend of the customers of each tenth."""
    with mpl.rc_context(STYLE):
        figure, axes = _one()
        places = np.arange(1, len(bins) + 1)
        spent = [one.risked for one in bins]
        unit = Unit(1.0, currency)
        drawn = axes.bar(places, spent, width=0.72, color=OURS, alpha=0.85)
        axes.bar_label(drawn, [unit.ticks(value) for value in spent], padding=3, fontsize=9)
        axes.set_xticks(places)
        axes.set_xlabel("customers in tenths, the highest risk first")
        _finish(axes, unit, f"their spend in the year before ({currency})")
        axes.margins(y=0.12)
        return figure


def by_slice(
    parts: Sequence[SliceFacts], whole: Interval, factor: float, axis: str, is_worse: Callable[[Interval], bool]
) -> Figure:
    """Each kind of customers that can be told, with its interval, against the whole."""
    told = [part for part in parts if part.quality is not None]
    titles = list(dict.fromkeys(part.title for part in told))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 1.2 + 0.3 * (len(told) + len(titles))), layout="constrained")
        axes = figure.subplots()
        names: list[tuple[float, str, dict[str, Any]]] = []
        place = 0.0
        axes.axvspan(whole.low * factor, whole.high * factor, color=FAINT, alpha=0.6, linewidth=0)
        axes.axvline(whole.value * factor, color=INK, linewidth=1.1, linestyle="--")
        for title in titles:
            names.append((place, title, {"weight": "bold"}))
            for part in (one for one in told if one.title == title):
                place += 1
                found = part.quality
                if found is not None:
                    colour, marker = (SAID, "v") if is_worse(found) else (OURS, "o")
                    axes.plot([found.low * factor, found.high * factor], [place, place], color=colour, linewidth=1.8)
                    axes.plot(found.value * factor, place, marker, color=colour, markersize=7)
                    names.append((place, part.name if len(part.name) < 24 else f"{part.name[:22]}…", {}))
            place += 1
        axes.set_yticks([at for at, _, _ in names], [name for _, name, _ in names])
        for label, (_, _, how) in zip(axes.get_yticklabels(), names, strict=True):
            label.set(**how)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(place - 0.4, -0.6)
        axes.set_xlabel(axis)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        return figure


def curves(score: Floats, label: Floats) -> Figure:
    """ROC on the left, precision and recall on the right, of one probability."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, [True]))
    hits = np.cumsum(label[order])[ends]
    misses = ends + 1 - hits
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=PLAIN, linewidth=1.2, linestyle=":")
        left.plot([0, *misses / misses[-1]], [0, *hits / hits[-1]], color=OURS, linewidth=2)
        left.set_title("ROC")
        left.set_xlabel("false positive rate")
        left.set_ylabel("true positive rate")
        right.axhline(float(label.mean()), color=PLAIN, linewidth=1.2, linestyle=":")
        right.plot(hits / hits[-1], hits / (ends + 1), color=OURS, linewidth=2)
        right.set_title("Precision and recall")
        right.set_xlabel("recall")
        right.set_ylabel("precision")
        for axes in (left, right):
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.02)
            axes.grid()
            axes.set_box_aspect(1)
        return figure


def _one() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    return figure, figure.subplots()


def _whiskers(axes: Axes, x: npt.ArrayLike, found: Sequence[Interval], factor: float, colour: str) -> None:
    middle = np.array([one.value for one in found]) * factor
    low, high = (np.array([getattr(one, end) for one in found]) * factor for end in ("low", "high"))
    reach = [np.maximum(middle - low, 0), np.maximum(high - middle, 0)]
    axes.errorbar(x, middle, reach, fmt="none", ecolor=colour, elinewidth=1.4, capsize=3)


def _finish(axes: Axes, unit: Unit, axis: str) -> None:
    axes.set_ylabel(axis)
    axes.yaxis.set_major_formatter(FuncFormatter(unit.ticks))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
