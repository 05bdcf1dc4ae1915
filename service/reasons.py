"""Why a score is what it is: reasons with their values, contributions and sentences, from the tensors of one graph run.

One feature speaks for each group: the one that matters most for the task, by the contract's importance, or that
contributes most to this very score where the graph attributes to features. Texts are written for what an answer shows
and for nothing else.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from feature_client.contract import EXPLAINERS, Contract, Distribution, Explainer, Task
from feature_client.golden import Tensors
from feature_client.schema import Encoded
from feature_client.texts import ENGLISH
from service.errors import InvalidRequest
from service.protocol import FeatureReason, FeatureValue, Reason, TaskExplanation
from service.wording import CURRENCY, Sentences, Space, Wording, currency_of

OTHER = "other"
"""The reason that sums up what `top` leaves out."""

NO_REFERENCE = Distribution(0.0)

OUTPUTS: Mapping[Space, tuple[str, str, str]] = {
    "score": ("scores", "attributions", "base"),
    "margin": ("margins", "margin_attributions", "margin_base"),
}
"""The tensors of a space: what is explained, its parts, and what they are counted from."""


@dataclass(frozen=True)
class Asked:
    """How a request wants to be explained. tasks: None for all. top: reasons of each; None for all.

    tolerance: the largest relative error of contributions that will do. budget_s: the longest that the explainer may be
    expected to run. explainer: whose graph runs, once it is chosen. within_budget: None where there is no budget.
    """

    tasks: Sequence[str] | None = None
    top: int | None = None
    space: Space = "score"
    detail: Literal["groups", "features"] = "groups"
    language: str = ENGLISH
    tolerance: float | None = None
    budget_s: float | None = None
    explainer: str = EXPLAINERS[0]
    within_budget: bool | None = None


@dataclass(frozen=True)
class Group:
    """names, positions: of its features, among all of the schema's. speakers: task -> names of those that matter for
    it, those first that matter most."""

    name: str
    names: Sequence[str]
    positions: Sequence[int]
    speakers: Mapping[str, Sequence[str]]


SILENT = 1e-6
"""A feature that moves scores by less than this share of what the foremost of its group does is never named for it: a
model may leave a feature out."""


class ReasonWriter:
    """Writes the explanations of one release: whatever does not depend on the customer is worked out once.

    Of features, by name: their position among the features, the column of a category, the unit, and how common a number
    or a category is among customers. says_missing: features whose missing values have words of their own.
    """

    def __init__(self, contract: Contract) -> None:
        schema = contract.schema
        self.contract = contract
        self.wordings = {language: Wording(contract, language) for language in schema.texts}
        self.positions = {feature.name: position for position, feature in enumerate(schema.features)}
        self.columns = {feature.name: column for column, feature in enumerate(schema.categorical)}
        currency = currency_of(contract) or CURRENCY
        self.units = {
            feature.name: currency if feature.unit == CURRENCY else feature.unit for feature in schema.features
        }
        reference = {feature.name: contract.reference.get(feature.name, NO_REFERENCE) for feature in schema.features}
        self.percentiles = {name: distribution.percentile for name, distribution in reference.items()}
        self.shares = {
            name: {word: round(share, 4) for word, share in (distribution.shares or {}).items()}
            for name, distribution in reference.items()
        }
        english = schema.texts[ENGLISH].features
        self.says_missing = {name for name, texts in english.items() if texts.say_missing}
        self.groups = [self._group(group) for group in schema.groups]

    def _group(self, group: str) -> Group:
        names = [feature.name for feature in self.contract.schema.features if feature.group == group]
        importance = self.contract.explanation.importance.features
        speakers = {}
        for task in self.contract.task_names:
            matters = importance.get(task, {})
            least = SILENT * max((matters.get(name, 0.0) for name in names), default=0.0)
            # Of one without a figure nothing is known.
            heard = [name for name in names if matters.get(name, math.inf) > least] or names
            speakers[task] = sorted(heard, key=lambda name: -matters.get(name, 0.0))
        return Group(group, names, [self.positions[name] for name in names], speakers)

    def wording(self, language: str) -> Wording:
        """Raises InvalidRequest for a language in which nobody wrote."""
        found = self.wordings.get(language)
        if found is None:
            raise InvalidRequest(f"language: this release speaks {', '.join(self.wordings)}")
        return found

    def explanations(
        self,
        asked: Asked,
        encoded: Encoded,
        outputs: Tensors,
        row: int,
        as_of: str,
        not_applicable: Collection[str] = (),
    ) -> dict[str, TaskExplanation | None]:
        """The reasons of one row; null for tasks that are not defined for this customer.

        outputs: of one run of the explainer's graph over `encoded`. as_of: its instant, ISO 8601.
        Raises InvalidRequest.
        """
        told = _Told(self, asked, encoded, row, as_of)
        wholes, parts, bases = (outputs[name][row].tolist() for name in OUTPUTS[asked.space])
        return {
            task.name: None
            if task.name in not_applicable
            else told.explanation(task, wholes[position], parts[position], bases[position])
            for position, task in enumerate(self.contract.tasks)
            if asked.tasks is None or task.name in asked.tasks
        }


class _Told:
    """One customer as a request is told of them: values are put into words once, for all tasks."""

    def __init__(self, writer: ReasonWriter, asked: Asked, encoded: Encoded, row: int, as_of: str) -> None:
        self.writer = writer
        self.asked = asked
        self.wording = writer.wording(asked.language)
        self.explainer = writer.contract.explanation.explainers[asked.explainer]
        self.encoded = encoded
        self.row = row
        self.month = int(as_of[5:7]) - 1
        self.values = writer.contract.schema.decode_row(encoded, row)
        self._said: dict[str, tuple[FeatureValue, str]] = {}
        self._inputs: dict[str, dict[str, float | str | None]] = {}

    def explanation(self, task: Task, score: float, parts: Sequence[float], base: float) -> TaskExplanation:
        """parts: of groups or, where the explainer attributes to them, of features."""
        groups, by_feature = self.writer.groups, self.explainer.by_feature
        of_groups = (
            [sum([parts[position] for position in group.positions]) for group in groups] if by_feature else parts
        )
        largest = _by_size(of_groups)
        top = len(largest) if self.asked.top is None else self.asked.top
        sentences = self.wording.sentences[self.asked.space][task.name]
        reasons = []
        for place in largest[:top]:
            of_features = [parts[position] for position in groups[place].positions] if by_feature else None
            reasons.append(self._reason(task.name, groups[place], of_groups[place], of_features, sentences))
        if top < len(largest):
            reasons.append(self._rest(sum([of_groups[place] for place in largest[top:]]), sentences))
        in_score = self.asked.space == "score"
        error = error_of(self.explainer, task.name, self.asked.space)
        explanation = TaskExplanation(
            score=score,
            base=base,
            unit=task.unit if in_score else "log_odds" if task.kind == "probability" else f"log_{task.unit}",
            explainer=self.asked.explainer,
            method=self.explainer.method,
            language=self.asked.language,
            expected_error=error,
            gap=abs(base + sum(of_groups) - score),
            reasons=reasons,
        )
        if self.asked.tolerance is not None:
            explanation.tolerance_met = error <= self.asked.tolerance
        if self.asked.within_budget is not None:
            explanation.within_budget = self.asked.within_budget
        return explanation

    def _reason(
        self,
        task: str,
        group: Group,
        contribution: float,
        of_features: Sequence[float] | None,
        sentences: Sentences,
    ) -> Reason:
        label, details = self.wording.group_labels[group.name], None
        if of_features is None:
            speaker = self._speaker(group.speakers[task])
        else:
            largest = _by_size(of_features)
            # One that pulls the other way would speak against what its group does.
            agreeing = [place for place in largest if of_features[place] * contribution > 0] or largest
            speaker = group.names[agreeing[0]] if agreeing else None
            if self.asked.detail == "features":
                details = [self._detail(group.names[place], of_features[place], sentences) for place in largest]
        value, what = (None, label) if speaker is None else self._value(speaker)
        reason = Reason(
            group.name,
            label,
            contribution,
            direction_of(contribution),
            sentences.write(what, contribution),
            value,
            self._inputs_of(group),
        )
        if details is not None:
            reason.details = details
        return reason

    def _speaker(self, names: Sequence[str]) -> str | None:
        """What matters most, unless it is missing and has no words for that: then the next that is there.

        names: those first that matter most; None where a group has no features.
        """
        for name in names:
            if self.values[name] is not None or (name == names[0] and name in self.writer.says_missing):
                return name
        return names[0] if names else None

    def _detail(self, name: str, contribution: float, sentences: Sentences) -> FeatureReason:
        value, what = self._value(name)
        return FeatureReason(
            value.feature,
            value.label,
            value.value,
            value.unit,
            value.text,
            value.percentile,
            value.share,
            contribution,
            direction_of(contribution),
            sentences.write(what, contribution),
        )

    def _rest(self, contribution: float, sentences: Sentences) -> Reason:
        sentence = sentences.write(self.wording.other, contribution)
        return Reason(OTHER, self.wording.other, contribution, direction_of(contribution), sentence, None, {})

    def _inputs_of(self, group: Group) -> dict[str, float | str | None]:
        inputs = self._inputs.get(group.name)
        if inputs is None:
            values = self.values
            inputs = self._inputs[group.name] = {name: values[name] for name in group.names}
        return inputs

    def _value(self, name: str) -> tuple[FeatureValue, str]:
        """A feature's value, and the phrase that names it."""
        said = self._said.get(name)
        if said is None:
            said = self._said[name] = self._put_into_words(name)
        return said

    def _put_into_words(self, name: str) -> tuple[FeatureValue, str]:
        writer, wording, value = self.writer, self.wording, self.values[name]
        percentile = share = None
        if value is None:
            text, phrase = wording.missing[name]
        elif isinstance(value, str):
            text, phrase = wording.categories[name][self.encoded.categorical[self.row, writer.columns[name]]]
            share = writer.shares[name].get(value)
        elif name in wording.months and not self.encoded.overridden[self.row, writer.positions[name]]:
            text, phrase = wording.months[name][self.month]
        else:
            text, phrase = wording.numbers[name](value)
            percentile = writer.percentiles[name](value)
        return FeatureValue(name, wording.labels[name], value, writer.units[name], text, percentile, share), phrase


def error_of(explainer: Explainer, task: str, space: Space) -> float:
    """Expected relative error of its contributions to a task."""
    return (explainer.error.scores if space == "score" else explainer.error.margins)[task]


def direction_of(contribution: float) -> str:
    return "raises" if contribution > 0 else "lowers" if contribution < 0 else "none"


def _by_size(contributions: Sequence[float]) -> list[int]:
    """Their places, the largest first, whichever its sign."""
    sizes = [abs(contribution) for contribution in contributions]
    return sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
