"""The pictures of explanations: what matters most, every customer as a dot, value against contribution, one customer.

Colours are of Okabe and Ito's set, and of a map that is even to the eye: who is colour-blind, or prints in grey, reads
them too. No pyplot: figures are objects without a window, and nothing global changes.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, SymmetricalLogLocator
from PIL import Image

from feature_client.contract import Task

Floats = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

RAISES, LOWERS, NEUTRAL = "#D55E00", "#0072B2", "#00795A"
INK, PLAIN, FAINT, MISSING_COLOUR = "#1C2430", "#5F6B76", "#D5DAE0", "#9AA3AD"

LOW_TO_HIGH: Colormap = LinearSegmentedColormap.from_list(
    "low_to_high",
    mpl.colormaps["plasma"](np.linspace(0.0, 0.86, 64)),  # the yellow end is too pale for white paper
)

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same picture everywhere
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8A94A0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#E6E9ED",
    "text.parse_math": False,  # labels are anybody's: a dollar sign is a dollar sign
}

WIDTH_IN = 8.6
DPI = 120
LABEL_CHARS = 30
DOT_AREA = 13.0  # points squared
BINS = 160
"""Across a beeswarm: dots of one bin are stacked."""

OUTSIDE = 0.005
"""Share of the dots on each side that may lie beyond an edge, where they are far out; they are drawn on it."""

LEAST = 0.005
"""Of a point, or of a unit of currency: what is less is written as 0."""

CATEGORIES_SHOWN = 8
MIDDLES, MIDDLE_OF = 20, 5
"""Points of the line through a panel of dependence, and how many customers one is at least the middle of."""

SKEW = 8.0
"""A feature is drawn on a logarithmic scale where its largest value is more than so many times its median."""


@dataclass(frozen=True)
class Scale:
    """How contributions to a task are written: probabilities in points of a hundred, amounts in their currency."""

    factor: float
    prefix: str
    suffix: str
    axis: str

    @classmethod
    def of(cls, task: Task) -> "Scale":
        if task.kind == "probability":
            return cls(100.0, "", "%", "percentage points")
        return cls(1.0, f"{task.unit} ", "", task.unit)

    def score(self, value: float) -> str:
        """`31.4 %`, `GBP 1,204`."""
        return f"{self.prefix}{digits(value * self.factor)}{' ' if self.suffix else ''}{self.suffix}"

    def contribution(self, value: float) -> str:
        """Signed: `+3.1 points`, `-GBP 42`; what rounds to nothing has no sign."""
        size = self.size(value)
        return size if size == self.size(0.0) else f"{'-' if value < 0 else '+'}{size}"

    def exactly(self, value: float) -> str:
        """A difference that is very small: `0.00002 points`."""
        return f"{self.prefix}{abs(value) * self.factor:.1g}{' points' if self.suffix else ''}"

    def span(self, low: float, high: float) -> str:
        """`-2.6 to +3.1 points`."""
        return f"{self.contribution(low).removesuffix(' points')} to {self.contribution(high)}"

    def is_nothing(self, values: Floats) -> BoolArray:
        """Of contributions: those that are written as 0."""
        return np.asarray(np.abs(values) * self.factor < LEAST)

    def size(self, value: float) -> str:
        """Of a contribution, without its sign."""
        return f"{self.prefix}{digits(abs(value) * self.factor)}{' points' if self.suffix else ''}"


@dataclass(frozen=True)
class Bar:
    label: str
    mean: float


@dataclass(frozen=True)
class Swarm:
    """One line of a beeswarm. contributions [B]. ranks [B]: of the customers' values, 0 lowest to 1 highest, NaN where
    there is none; None: dots are coloured by whether they raise or lower the score."""

    label: str
    contributions: Floats
    ranks: Floats | None = None


@dataclass(frozen=True)
class Numbers:
    """One panel of dependence. values, contributions [B]; NaN is missing. reference: quantiles of the training rows at
    0, 0.05, ..., 1, or none. write: a value as text."""

    label: str
    values: Floats
    contributions: Floats
    reference: Sequence[float]
    write: Callable[[float], str]


@dataclass(frozen=True)
class Words:
    """The same for a category. values [B]: words. reference: word -> share of the training rows."""

    label: str
    values: Sequence[str]
    contributions: Floats
    reference: dict[str, float]


@dataclass(frozen=True)
class Step:
    """One contribution of a waterfall, with a line that says what it comes from."""

    label: str
    note: str
    contribution: float


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """With 256 colours, a third of the size. Nothing in it says when it was made: the same figure, the same bytes."""
    with io.BytesIO() as drawn, io.BytesIO() as file, mpl.rc_context(STYLE):
        figure.savefig(drawn, format="png", dpi=dpi, facecolor="white")
        with Image.open(drawn) as image:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "png", optimize=True)
        return file.getvalue()


def bars(parts: Sequence[Bar], scale: Scale, width: float = WIDTH_IN) -> Figure:
    """Mean |contribution|, in the order given. width: inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.9 + 0.42 * len(parts)), layout="constrained")
        axes = figure.subplots()
        means = [part.mean * scale.factor for part in parts]
        drawn = axes.barh(range(len(parts)), means, height=0.66, color=NEUTRAL)
        axes.bar_label(drawn, [scale.size(part.mean) for part in parts], padding=4, fontsize=10)
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"moves the score by, on average ({scale.axis})" if width == WIDTH_IN else scale.axis)
        _name_rows(axes, [part.label for part in parts])
        _plain_ticks(axes)
        return figure


def beeswarm(rows: Sequence[Swarm], scale: Scale) -> Figure:
    """One line a part, one dot a customer. Dots far out are drawn on the edge, as triangles."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 1.3 + 0.56 * len(rows)), layout="constrained")
        axes = figure.subplots()
        every = np.concatenate([row.contributions for row in rows]) * scale.factor
        low, high = _edges(every)
        room = 0.03 * (high - low)
        for place, row in enumerate(rows):
            _swarm(axes, place, row, scale, (low - room, high + room))
        axes.axvline(0.0, color=INK, linewidth=0.9, zorder=1)
        axes.set_xlim(low - 2 * room, high + 2 * room)
        axes.set_xlabel(f"lowers the score  \N{LEFTWARDS ARROW}  contribution ({scale.axis})"
                        "  \N{RIGHTWARDS ARROW}  raises the score")  # fmt: skip
        _name_rows(axes, [row.label for row in rows])
        _plain_ticks(axes)
        if any(row.ranks is not None for row in rows):
            _value_bar(figure, axes)
        return figure


def dependence(panels: Sequence[Numbers | Words], scale: Scale) -> Figure:
    """Two panels a line: a customer's value against what it contributed, above how common the value is."""
    lines = -(-len(panels) // 2)
    with mpl.rc_context(STYLE | {"font.size": 9.5}):
        room = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
        figure = Figure(figsize=(WIDTH_IN + 1.0, 3.35 * lines), layout=room)
        cells = figure.subfigures(lines, 2, squeeze=False).ravel()
        for cell, panel in zip(cells, panels, strict=False):
            if isinstance(panel, Words):
                _words(cell.subplots(), panel, scale)
            else:
                _numbers(cell.subplots(2, 1, sharex=True, height_ratios=(5, 1)), panel, scale)
        return figure


def waterfall(base: float, score: float, steps: Sequence[Step], scale: Scale) -> Figure:
    """From the typical customers' mean score, contribution by contribution in the order given, to the customer's."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 1.0 + 0.55 * (len(steps) + 2)), layout="constrained")
        axes = figure.subplots()
        last = len(steps) + 1
        axes.barh([0, last], [base * scale.factor, score * scale.factor], height=0.6, color=PLAIN)
        ends = np.cumsum([base, *(step.contribution for step in steps)]) * scale.factor
        for place, step in enumerate(steps, start=1):
            start, end = ends[place - 1], ends[place]
            axes.barh(place, end - start, left=start, height=0.6, color=RAISES if end >= start else LOWERS)
            _write(axes, max(start, end), place, scale.contribution(step.contribution))
        for place, end in enumerate(ends):
            axes.plot([end, end], [place - 0.3, place + 1.3], color=INK, linewidth=0.7)
        _write(axes, base * scale.factor, 0, scale.score(base), weight="bold")
        _write(axes, score * scale.factor, last, scale.score(score), weight="bold")
        axes.axvline(0.0, color=INK, linewidth=0.9)
        lowest, highest = min(0.0, ends.min()), max(ends.max(), 0.0)
        axes.set_xlim(lowest - 0.02 * (highest - lowest) * (lowest < 0), highest + 0.2 * (highest - lowest))
        axes.set_xlabel(f"score ({scale.suffix or scale.axis})")
        labels = ["Typical customers", *(step.label for step in steps), "This customer"]
        _name_rows(axes, labels, ["", *(step.note for step in steps), ""])
        _plain_ticks(axes)
        return figure


def _swarm(axes: Axes, place: int, row: Swarm, scale: Scale, edges: tuple[float, float]) -> None:
    x = row.contributions * scale.factor
    kept = np.clip(x, *edges)
    y = place + 0.42 * _stacked(kept, edges)
    if row.ranks is None:
        nothing = np.abs(x) < 0.001 * (edges[1] - edges[0])
        colours = np.array([mpl.colors.to_rgba(colour) for colour in np.where(x > 0, RAISES, LOWERS)]).reshape(-1, 4)
        colours[nothing] = mpl.colors.to_rgba(MISSING_COLOUR)
    else:
        known = ~np.isnan(row.ranks)
        colours = np.full((len(x), 4), mpl.colors.to_rgba(MISSING_COLOUR))
        colours[known] = LOW_TO_HIGH(row.ranks[known])
    for marker, here in _beyond(x, kept, "<", ">"):
        axes.scatter(kept[here], y[here], s=DOT_AREA, c=colours[here], marker=marker, linewidths=0, zorder=2)


def _stacked(x: Floats, edges: tuple[float, float]) -> Floats:
    """Offsets in -1..1 that spread dots of one bin to both sides of the line, the fuller the wider."""
    bins = np.floor((x - edges[0]) / max(edges[1] - edges[0], 1e-9) * (BINS - 1)).astype(int)
    order = np.argsort(bins, kind="stable")
    counts = np.bincount(bins, minlength=BINS)
    starts = np.cumsum(counts) - counts
    within = np.empty(len(x), dtype=int)
    within[order] = np.arange(len(x)) - starts[bins[order]]
    # 0, 1, -1, 2, -2, ...
    offsets = (within + 1) // 2 * np.where(within % 2, 1, -1)
    # Thin lines stay thin, as wide as their dots are; full ones fill their place.
    return np.asarray(offsets / max(float(np.abs(offsets).max()), 12.0))


def _numbers(axes: npt.NDArray[np.object_], panel: Numbers, scale: Scale) -> None:
    dots, below = axes
    known = ~np.isnan(panel.values)
    x, y = panel.values[known], panel.contributions[known] * scale.factor
    title = _wrapped(panel.label, 44)
    if not known.all():
        mean = float(panel.contributions[~known].mean())
        share = f"{(~known).mean():.0%}" if (~known).mean() >= 0.005 else "under 1%"
        title += f"\nnot known for {share}: {scale.contribution(mean)} on average"
    dots.set_title(title, fontsize=9.5)
    dots.axhline(0.0, color=INK, linewidth=0.8)
    kept = np.clip(y, *_edges(y)) if len(y) else y
    for marker, here in _beyond(y, kept, "v", "^"):
        dots.scatter(x[here], kept[here], s=8, color=NEUTRAL, alpha=0.4, marker=marker, linewidths=0)
    if len(y):
        room = 0.05 * (_edges(y)[1] - _edges(y)[0])
        dots.set_ylim(_edges(y)[0] - room, _edges(y)[1] + room)
    dots.plot(*_middles(x, y), color=INK, linewidth=1.4)
    dots.set_ylabel(scale.axis)
    dots.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    dots.grid(axis="y")
    _histogram(below, x)
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: panel.write(value)))
    if panel.reference:
        quantile = dict(zip(range(0, 105, 5), panel.reference, strict=True))
        below.plot([quantile[5], quantile[95]], [0.5, 0.5], color=PLAIN, linewidth=1.2)
        below.plot([quantile[25], quantile[75]], [0.5, 0.5], color=PLAIN, linewidth=4.5, solid_capstyle="butt")
        below.plot(quantile[50], 0.5, "o", color="white", markeredgecolor=INK, markersize=5.5)
    below.set_yticks([])
    below.spines["left"].set_visible(False)
    below.set_ylim(0, 1.05)


def _histogram(axes: Axes, x: Floats) -> None:
    """How common the values x are; on a logarithmic scale, where zero has a bar of its own, if a few are very large."""
    if len(x) and x.min() >= 0 and x.max() > SKEW * max(float(np.median(x)), 1.0):
        floor = float(10.0 ** np.floor(np.log10(np.quantile(x[x > 0], 0.05))))
        axes.set_xscale("symlog", linthresh=floor, linscale=0.5)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=floor))
        axes.xaxis.set_minor_locator(NullLocator())
        # Below `floor` the scale is linear, with little room: the positive values there make one bar.
        above = np.geomspace(0.999 * floor, 1.001 * max(float(x.max()), 2 * floor), 26)
        edges = np.concatenate([[-0.2 * floor, 0.2 * floor], above])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
        edges = np.histogram_bin_edges(x, 25) if len(x) else np.array([0.0, 1.0])
    counts, _ = np.histogram(x, edges)
    axes.bar(edges[:-1], counts / max(counts.max(), 1), np.diff(edges), align="edge", color=FAINT)


def _words(axes: Axes, panel: Words, scale: Scale) -> None:
    words, counts = np.unique(np.asarray(panel.values, dtype=str), return_counts=True)
    shown = words[np.argsort(-counts, kind="stable")][:CATEGORIES_SHOWN].tolist()
    values = np.array([word if word in shown else "others" for word in panel.values])
    if set(values) - set(shown):
        shown.append("others")
    limits = _edges(panel.contributions * scale.factor)
    for place, word in enumerate(shown):
        here = panel.contributions[values == word] * scale.factor
        kept = np.clip(here, *limits)
        axes.scatter(kept, place + 0.34 * _stacked(kept, limits), s=8, color=NEUTRAL, alpha=0.4,
                     linewidths=0)  # fmt: skip
        axes.plot(2 * [np.median(here)], [place - 0.36, place + 0.36], color=INK, linewidth=1.6)
    axes.set_title(_wrapped(panel.label, 44), fontsize=9.5)
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_xlabel(scale.axis)
    known = {word: panel.reference.get(word) for word in shown}
    names = [_wrapped(word, 22) + ("" if known[word] is None else f" ({known[word]:.0%})") for word in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    _plain_ticks(axes)


def _middles(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Medians of each distinct value where there are few, else of bins with about equally many customers."""
    values, places = np.unique(x, return_inverse=True)
    if len(values) > MIDDLES:
        lower = np.searchsorted(np.sort(x), x)  # how many have less: who have the same value stay together
        places = MIDDLES * lower // len(x)
    bins = [places == place for place in np.unique(places)]
    bins = [rows for rows in bins if rows.sum() >= MIDDLE_OF]
    return np.array([np.median(x[rows]) for rows in bins]), np.array([np.median(y[rows]) for rows in bins])


def _edges(x: Floats) -> tuple[float, float]:
    """Ends of an axis of contributions, zero inside: a few that are far out do not press the others flat."""
    low, high = np.quantile(x, [OUTSIDE, 1.0 - OUTSIDE])
    room = 0.3 * (high - low)
    low, high = min(max(float(x.min()), low - room), 0.0), max(min(float(x.max()), high + room), 0.0)
    return (low, high) if high > low else (-1.0, 1.0)


def _beyond(x: Floats, kept: Floats, below: str, above: str) -> tuple[tuple[str, BoolArray], ...]:
    """Marker, and which dots have it: a triangle that points outwards for those that were moved to an edge."""
    return ("o", x == kept), (below, x < kept), (above, x > kept)


def _name_rows(axes: Axes, labels: Sequence[str], notes: Sequence[str] | None = None) -> None:
    """Names the lines of a chart, the first at the top, each with a smaller note below it."""
    axes.set_yticks(range(len(labels)), [""] * len(labels))
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for place, label in enumerate(labels):
        note = notes[place] if notes else ""
        at: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "clip_on": False}
        if note:
            axes.text(-0.012, place - 0.16, _shortened(label), va="center", **at)
            axes.text(-0.012, place + 0.2, _shortened(note, 64), va="center", fontsize=8.5, color=PLAIN, **at)
        else:
            axes.text(-0.012, place, _wrapped(label), va="center", linespacing=1.05, **at)


def _plain_ticks(axes: Axes) -> None:
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain_number))


def _plain_number(value: float, _: int | None = None) -> str:
    return f"{value:,.10g}"


def _value_bar(figure: Figure, axes: Axes) -> None:
    mapped = mpl.cm.ScalarMappable(cmap=LOW_TO_HIGH)
    bar = figure.colorbar(mapped, ax=axes, aspect=40, pad=0.015, ticks=[0.0, 1.0])
    bar.ax.set_yticklabels(["low", "high"])
    bar.ax.tick_params(length=0)
    bar.set_label("the customer's own value", labelpad=-16)
    bar.outline.set_visible(False)


def _write(axes: Axes, x: float, place: int, text: str, weight: str = "normal") -> None:
    axes.annotate(text, (x, place), (5, 0), textcoords="offset points", va="center", weight=weight, fontsize=10)


def _wrapped(text: str, width: int = LABEL_CHARS) -> str:
    """On at most two lines."""
    return "\n".join(textwrap.wrap(text, width, max_lines=2, placeholder="…"))


def _shortened(text: str, width: int = LABEL_CHARS + 6) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def digits(value: float) -> str:
    """As people write them: 1,204; 42.3; 3.07; 0.04."""
    size = abs(value)
    if size < LEAST:
        return "0"
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
