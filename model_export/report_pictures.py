"""The pictures of one task in `rapport report`, with the words that stand for them and explain them."""

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from feature_client.contract import Task
from model_export import explain_figures as explained
from model_export import report_figures as draw
from model_export import report_words as words
from model_export.explain_figures import Scale
from model_export.page import Picture
from model_export.report_facts import Bin, Facts
from model_export.report_figures import Unit
from model_export.report_words import Outcome, money, percent, quality

DPI = 170
"""The pictures are small and are read on telephones."""

SLICED_BY = {"probability": ("auc", "order right, of 100 pairs"), "amount": ("sum_ratio", "said, in % of what came")}


def of_probability(facts: Facts, currency: str) -> list[Picture]:
    task, outcome, base = facts.rows.task, Outcome.of(facts.rows.task), facts.base
    size, came = facts.top.size, facts.top.came.value
    pictures = [
        _picture(
            task,
            "top",
            "The list against chance",
            f"Two squares of a hundred dots. Of the highest {size}: {100 * came:.0f} of 100 full; at random: "
            f"{100 * base:.0f}.",
            f"A full dot is a customer who {outcome.came}. Left: the {size} ranked highest on a test date; right: "
            "anybody.",
            draw.hundreds([came, base], [f"The {size} ranked highest", "Picked at random"], outcome.short),
        ),
        _picture(
            task,
            "lift",
            "From the highest tenth to the lowest",
            "Bar chart. " + _tenths_said(facts.tenths, percent),
            "Each bar is a tenth of the customers, the highest scores on the left: how many of them "
            f"{outcome.came}. The diamonds are what we had said. Thin lines: where it could be with other customers "
            "(95 of 100 times).",
            draw.tenths(facts.tenths, base, Unit(100.0, "%"), f"share who {outcome.came}", "all customers"),
        ),
        _picture(
            task,
            "gains",
            "How far down the list to go",
            f"Curve. The highest tenth of the list holds {percent(facts.gains[10])} {outcome.those}, the highest "
            f"fifth {percent(facts.gains[20])}, the highest half {percent(facts.gains[50])}.",
            "Go down the list from left to right: how many of all who matter you have reached by then. The further "
            "the curve is above the dotted line, the more the list is worth.",
            draw.gains(facts.gains, facts.naive_gains, "best single fact", f"share {outcome.those}"),
        ),
        _picture(
            task,
            "calibration",
            "Does what we say come true?",
            "Scatter plot. " + _tenths_said(facts.tenths, percent),
            "Each dot is a group of customers with like scores: to the right what we said, upwards what came. On "
            "the dashed line both are the same; above it more came than we said.",
            draw.calibration(facts.bins),
        ),
    ]
    if words.is_at_stake(facts):
        pictures.append(_risk(facts, task, currency))
    return pictures


def _risk(facts: Facts, task: Task, currency: str) -> Picture:
    said = "; ".join(f"tenth {place}: {one.risked:,.0f}" for place, one in enumerate(facts.tenths, start=1))
    return _picture(
        task,
        "at-stake",
        "What is at stake",
        f"Bar chart of last year's spend by tenth of risk. {said}.",
        "What the customers of each tenth spent in the year before, the highest risk on the left. Losing someone "
        "on the left is likely; losing someone on the right is dear.",
        draw.risk(facts.tenths, currency),
    )


def of_amount(facts: Facts) -> list[Picture]:
    task = facts.rows.task
    say = partial(money, unit=task.unit)
    return [
        _picture(
            task,
            "value",
            "Worth, from the highest tenth to the lowest",
            "Bar chart. " + _tenths_said(facts.tenths, say),
            "Each bar is a tenth of the customers, those of whom we expect most on the left: what one of them "
            "brought on average. The diamonds are what we had said. Thin lines: where it could be with other "
            "customers.",
            draw.tenths(facts.tenths, facts.base, Unit(1.0, task.unit), f"{task.unit} a customer", "all customers"),
        ),
        _picture(
            task,
            "gains",
            "Where the money is",
            f"Curve. The tenth of customers of whom most is expected brought {percent(facts.gains[10])} of all that "
            f"was spent, the highest fifth {percent(facts.gains[20])}.",
            "Go down the list from left to right: how much of all that was spent these customers brought.",
            draw.gains(facts.gains, facts.naive_gains, "best single fact", "share of all that was spent"),
        ),
        _picture(
            task,
            "calibration",
            "Does what we say come true?",
            "Scatter plot on logarithmic axes. " + _tenths_said(facts.tenths, say),
            "Each dot is a tenth of the customers: to the right what we said of one on average, upwards what came. "
            "Each step of the axes is ten times as much.",
            draw.amounts(facts.tenths, Unit(1.0, task.unit), task.unit),
        ),
    ]


def of_slices(facts: Facts) -> list[Picture]:
    """One, or none where the test can tell no kind of customers apart."""
    told = [one for one in facts.slices if one.quality is not None]
    if not told:
        return []
    task = facts.rows.task
    metric, axis = SLICED_BY[task.kind]
    whole = words.metric(facts, metric).own
    return [
        _picture(
            task,
            "slices",
            "For whom it is worse",
            "Dots with lines. " + "; ".join(f"{one.title} {one.name}: {quality(one, 100.0)}" for one in told) + ".",
            "The same for kinds of customers. A line is where the dot could be with other customers; the dashed "
            "line and the band around it are all customers. Triangles are surely worse. Kinds of whom the test has "
            "too few are left out.",
            draw.by_slice(facts.slices, whole, 100.0, axis, partial(words.is_worse, facts)),
        )
    ]


def of_drivers(task: Task, drivers: Sequence[tuple[str, float]]) -> Picture:
    scale = Scale.of(task)
    return _picture(
        task,
        "drivers",
        "What moves it",
        "Bar chart. " + "; ".join(f"{label}: {scale.size(mean)}" for label, mean in drivers) + ".",
        "By how much each kind of facts moves the score of a customer, up or down, on average. It is how the model "
        "comes to its scores, and not what would change if you changed something.",
        explained.bars([explained.Bar(label, mean) for label, mean in drivers], scale, draw.WIDTH_IN),
    )


def of_curves(facts: Facts) -> Picture:
    auc, precision = (words.metric(facts, name).own.value for name in ("auc", "average_precision"))
    return _picture(
        facts.rows.task,
        "curves",
        "ROC, and precision and recall",
        f"Two curves. Area under the ROC curve {auc:.3f}; average precision {precision:.3f}.",
        "Dotted: a ranking at random.",
        draw.curves(facts.rows.score, facts.rows.label),
    )


def _picture(task: Task, name: str, title: str, alt: str, caption: str, figure: Figure) -> Picture:
    return Picture(f"{task.name}-{name}", title, alt, caption, explained.png(figure, DPI))


def _tenths_said(tenths: Sequence[Bin], write: Callable[[float], str]) -> str:
    told = (
        f"tenth {place}: said {write(one.said)}, came {write(one.came.value)}" for place, one in enumerate(tenths, 1)
    )
    return "; ".join(told) + "."
