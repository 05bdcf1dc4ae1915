"""What `rapport explain report` says of one task: tables, and pictures with words that stand for them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from feature_client.contract import Contract, Task
from feature_client.schema import Feature, FeatureSchema
from model_export import explain_figures as draw
from model_export.explain_figures import Scale
from model_export.explain_sample import ANOTHER, NOT_KNOWN, Answers, Doubles, Sample, numbers_of, words_of
from model_export.page import Picture
from model_export.verify import Ints

FEATURES_SWARMED = 12
FEATURES_PLOTTED = 6

EXAMPLES = {"high": ("A high score", 0.95), "middle": ("A score in the middle", 0.5), "low": ("A low score", 0.05)}
"""Name -> title, and the quantile of the scores that the example is nearest to."""


@dataclass(frozen=True)
class Line:
    """A line of a table of importance, as text. middle: where nine of ten contributions lie."""

    label: str
    group: str
    mean: str
    share: str
    raises: str
    middle: str


@dataclass(frozen=True)
class Section:
    """All that the page says of one task. figures: none where the task is defined for nobody of the sample."""

    task: Task
    rows: int
    base: str
    mean: str
    groups: Sequence[Line]
    features: Sequence[Line]
    figures: Sequence[Picture]


class SectionWriter:
    """Sections of one report. positions of tasks and parts are those of the graphs' outputs."""

    def __init__(self, contract: Contract, sample: Sample, groups: Answers, features: Answers | None) -> None:
        self.contract = contract
        self.schema = contract.schema
        self.sample = sample
        self.groups = groups
        self.features = features
        self.numbers = numbers_of(contract.schema, sample)
        self.words = words_of(contract.schema, sample)
        self.labels = unique_labels(contract.schema)
        amounts = [task.unit for task in contract.tasks if task.kind == "amount"]
        self.currency = amounts[0] if amounts else ""

    def section(self, position: int) -> Section:
        task, rows = self.contract.tasks[position], np.flatnonzero(self.sample.eligible[:, position])
        scale = Scale.of(task)
        base = scale.score(self.groups.base[position])
        if not len(rows):
            return Section(task, 0, base, "", (), (), ())
        group_order, groups = self._table(self.groups, position, rows, scale)
        figures = [
            self._bars(task, groups, position, rows, scale),
            self._group_swarm(task, group_order, position, rows, scale),
        ]
        features: Sequence[Line] = ()
        if self.features is not None:
            order, features = self._table(self.features, position, rows, scale)
            figures.append(self._feature_swarm(self.features, task, order, position, rows, scale))
            if plotted := self._plottable(self.features, order, position, rows):
                figures.append(self._dependence(self.features, task, plotted, position, rows, scale))
        figures += [self._example(task, name, position, rows, scale) for name in EXAMPLES]
        mean = scale.score(float(self.groups.scores[rows, position].mean()))
        return Section(task, len(rows), base, mean, groups, features, figures)

    def _table(self, answers: Answers, position: int, rows: Ints, scale: Scale) -> tuple[list[int], list[Line]]:
        """The order of the parts, the most important first, and their lines."""
        contributions = answers.contributions[rows, position]  # [rows, P]
        means = np.abs(contributions).mean(axis=0)
        order = np.argsort(-means, kind="stable").tolist()
        low, high = np.quantile(contributions, [0.05, 0.95], axis=0)
        raised = ((contributions > 0) & ~scale.is_nothing(contributions)).mean(axis=0)
        lines = [
            Line(
                label=self._label(answers, part),
                group=self._group(answers, part),
                mean=scale.size(means[part]),
                share=f"{means[part] / max(means.sum(), np.finfo(float).tiny):.1%}",
                raises=f"{raised[part]:.0%}",
                middle=scale.span(low[part], high[part]),
            )
            for part in order
        ]
        return order, lines

    def _bars(self, task: Task, lines: Sequence[Line], position: int, rows: Ints, scale: Scale) -> Picture:
        means = np.sort(np.abs(self.groups.contributions[rows, position]).mean(axis=0))[::-1]
        drawn = draw.bars([draw.Bar(line.label, mean) for line, mean in zip(lines, means, strict=True)], scale)
        return Picture(
            f"{task.name}-importance",
            "What matters most",
            "Bar chart. " + "; ".join(f"{line.label}: {line.mean}" for line in lines) + ".",
            "The longer the bar, the more these facts move the scores of single customers, up or down, on average. "
            "It does not say in which direction: the next picture does.",
            draw.png(drawn),
        )

    def _group_swarm(self, task: Task, order: Sequence[int], position: int, rows: Ints, scale: Scale) -> Picture:
        contributions = self.groups.contributions[rows, position]
        swarms = [draw.Swarm(self._label(self.groups, part), contributions[:, part]) for part in order]
        return Picture(
            f"{task.name}-groups",
            "Every customer a dot",
            self._spread("Beeswarm plot, one dot a customer.", swarms, scale),
            "Each line has one dot for every customer. Dots to the right: these facts raise this customer's score; to "
            "the left: they lower it. Where many dots pile up, many customers are alike. Triangles at the edge lie "
            "further out than the picture shows.",
            draw.png(draw.beeswarm(swarms, scale)),
        )

    def _feature_swarm(
        self, answers: Answers, task: Task, order: Sequence[int], position: int, rows: Ints, scale: Scale
    ) -> Picture:
        contributions = answers.contributions[rows, position]
        swarms = [
            draw.Swarm(self._label(answers, part), contributions[:, part], self._ranks(answers.parts[part], rows))
            for part in order[:FEATURES_SWARMED]
        ]
        return Picture(
            f"{task.name}-features",
            "The same for single features",
            self._spread("Beeswarm plot of single features, one dot a customer.", swarms, scale),
            f"The {len(swarms)} features that matter most. The colour is the customer's own value, from the lowest "
            "(dark blue) to the highest (orange): where the orange dots are on the right, high values raise the score. "
            "Grey dots have no order: the value is not known, or is a word, or the season.",
            draw.png(draw.beeswarm(swarms, scale)),
        )

    def _dependence(
        self, answers: Answers, task: Task, parts: Sequence[int], position: int, rows: Ints, scale: Scale
    ) -> Picture:
        panels = [self._panel(answers, part, position, rows) for part in parts]
        labels = [panel.label for panel in panels]
        return Picture(
            f"{task.name}-dependence",
            "Value against contribution",
            f"Scatter plots of a customer's value against its contribution, for {'; '.join(labels)}.",
            "Each dot is a customer: its value from left to right, what the value contributed from bottom to top; "
            "triangles lie further out. The black line goes through the middle of the dots. Dots of one value lie at "
            "different heights because the model looks at the other facts, too. Below: how common the values are. Grey "
            "bars: these customers. Thin line, thick line and ring: the middle 90 %, the middle half and the median of "
            "the customers that the model learned from; where there are none of them, the model is guessing.",
            draw.png(draw.dependence(panels, scale)),
        )

    def _example(self, task: Task, name: str, position: int, rows: Ints, scale: Scale) -> Picture:
        title, quantile = EXAMPLES[name]
        scores = self.groups.scores[rows, position]
        row = int(rows[np.argmin(np.abs(scores - np.quantile(scores, quantile)))])
        contributions = self.groups.contributions[row, position]
        order = np.argsort(-np.abs(contributions), kind="stable").tolist()
        steps = [
            draw.Step(self._label(self.groups, part), self.note(part, position, row), contributions[part])
            for part in order
        ]
        base, score = float(self.groups.base[position]), float(self.groups.scores[row, position])
        said = "; ".join(f"{step.label} {scale.contribution(step.contribution)}" for step in steps)
        return Picture(
            f"{task.name}-customer-{name}",
            f"{title} (row {self.sample.positions[row]})",
            f"Waterfall chart. Typical customers {scale.score(base)}; {said}; this customer {scale.score(score)}.",
            "From the mean score of the typical customers at the top, one step a group, the largest first, to this "
            "customer's own score at the bottom.",
            draw.png(draw.waterfall(base, score, steps, scale)),
        )

    def note(self, group: int, position: int, row: int) -> str:
        """What weighs most within the group for this customer, with its value; nothing where no graph says that."""
        if self.features is None:
            return ""
        name = self.groups.parts[group]
        sizes = np.abs(self.features.contributions[row, position])
        members = [part for part, other in enumerate(self.features.parts) if self.schema.by_name[other].group == name]
        feature = self.schema.by_name[self.features.parts[max(members, key=lambda member: sizes[member])]]
        if feature.kind == "calendar":
            return feature.label
        value = (
            self.words[feature.name][row]
            if feature.kind == "category"
            else write_number(feature, self.numbers[feature.name][row], self.currency)
        )
        return f"{self.labels[feature.name]}: {value}"

    def _plottable(self, answers: Answers, order: Sequence[int], position: int, rows: Ints) -> list[int]:
        """Not the season, of which a sample has a few days, nor what nobody of the sample has a value of."""
        contributions = answers.contributions[rows, position]

        def is_plottable(part: int) -> bool:
            feature = self.schema.by_name[answers.parts[part]]
            if feature.kind == "calendar" or not np.abs(contributions[:, part]).max() > 0:
                return False
            return feature.kind == "category" or not np.isnan(self.numbers[feature.name][rows]).all()

        return [part for part in order if is_plottable(part)][:FEATURES_PLOTTED]

    def _panel(self, answers: Answers, part: int, position: int, rows: Ints) -> draw.Numbers | draw.Words:
        feature = self.schema.by_name[answers.parts[part]]
        label, contributions = self.labels[feature.name], answers.contributions[rows, position, part]
        reference = self.contract.reference[feature.name]
        if feature.kind == "category":
            shares = dict(reference.shares or {})
            known = {**shares, NOT_KNOWN: reference.missing_share, ANOTHER: shares.get("(unseen)", 0.0)}
            return draw.Words(label, self.words[feature.name][rows].tolist(), contributions, known)
        unit = f" ({self.currency})" if feature.unit == "currency" and self.currency else ""
        values, write = self.numbers[feature.name][rows], partial(write_number, feature, currency="")
        return draw.Numbers(label + unit, values, contributions, reference.quantiles, write)

    def _ranks(self, name: str, rows: Ints) -> Doubles:
        """Share of the customers with a lower value; NaN for what has no order."""
        ranks = np.full(len(rows), np.nan)
        if self.schema.by_name[name].kind in ("numeric", "elapsed"):
            values = self.numbers[name][rows]
            known = ~np.isnan(values)
            below = np.searchsorted(np.sort(values[known]), values[known])
            ranks[known] = below / max(below.max(initial=0), 1)
        return ranks

    def _spread(self, what: str, swarms: Iterable[draw.Swarm], scale: Scale) -> str:
        ends = ((swarm.label, *np.quantile(swarm.contributions, [0.05, 0.95])) for swarm in swarms)
        said = (f"{label}: {scale.span(low, high)}" for label, low, high in ends)
        return f"{what} Nine of ten customers lie within: {'; '.join(said)}."

    def _label(self, answers: Answers, part: int) -> str:
        name = answers.parts[part]
        return self.labels[name] if answers.explainer.by_feature else self.schema.groups[name]

    def _group(self, answers: Answers, part: int) -> str:
        name = answers.parts[part]
        return self.schema.groups[self.schema.by_name[name].group if answers.explainer.by_feature else name]


def unique_labels(schema: FeatureSchema) -> Mapping[str, str]:
    """Feature -> its label, with its name where another feature has the same label."""
    labels = [feature.label for feature in schema.features]
    return {
        feature.name: feature.label if labels.count(feature.label) == 1 else f"{feature.label} ({feature.name})"
        for feature in schema.features
    }


def write_number(feature: Feature, value: float, currency: str) -> str:
    """A value as people write it: `GBP 1,204`, `12%`, `3`. Its label says what it counts."""
    if np.isnan(value):
        return "not known"
    if feature.unit == "share":
        return f"{value:.0%}"
    text = f"{value:,.0f}" if value == round(value) else draw.digits(value)
    return f"{currency} {text}" if feature.unit == "currency" and currency else text
