"""From tensors to the HTTP answer: scores, statuses, segments and reasons of one entity."""

from collections.abc import Mapping, Sequence

import numpy as np

from feature_client.contract import Contract, Task
from feature_client.schema import Encoded
from service.backends import Tensors
from service.protocol import FeatureReport, Prediction, Reason, TaskExplanation

OTHER = "other"
"""The reason that sums up what `top` leaves out."""


def predictions_of(
    contract: Contract, version: str, entities: Sequence[Mapping[str, str]], encoded: Encoded, scores: Tensors
) -> list[Prediction]:
    """One prediction a row. scores: the output `scores`, [rows, tasks]."""
    eligible = contract.eligible(encoded)
    rows = scores["scores"].tolist()
    return [
        _prediction(contract, version, dict(entity), encoded, row, rows[row], eligible[row].tolist())
        for row, entity in enumerate(entities)
    ]


def explanations_of(
    contract: Contract, encoded: Encoded, outputs: Tensors, row: int, tasks: Sequence[str], top: int | None
) -> dict[str, TaskExplanation | None]:
    """The reasons of one row for `tasks`; null where the task is not defined for this customer.

    outputs: scores [rows, tasks], attributions [rows, tasks, groups], base [rows, tasks], all from one graph run.
    """
    values = contract.schema.decode_row(encoded, row)
    inputs = {
        group: {feature.name: values[feature.name] for feature in contract.schema.features if feature.group == group}
        for group in contract.schema.groups
    }
    eligible = contract.eligible(encoded)[row]
    return {
        task.name: _explanation(contract, task, outputs, row, position, inputs, top) if eligible[position] else None
        for position, task in enumerate(contract.tasks)
        if task.name in tasks
    }


def status_of(encoded: Encoded, row: int) -> str:
    if encoded.unknown[row]:
        return "unknown_entity"
    return "degraded" if encoded.defaulted[row].any() or encoded.stale[row].any() else "ok"


def _prediction(
    contract: Contract,
    version: str,
    entity: dict[str, str],
    encoded: Encoded,
    row: int,
    scores: list[float],
    eligible: list[bool],
) -> Prediction:
    answered = {
        task.name: score if defined else None
        for task, score, defined in zip(contract.tasks, scores, eligible, strict=True)
    }
    return Prediction(
        entity=entity,
        version=version,
        status=status_of(encoded, row),
        scores=answered,
        segments={
            task.name: task.segment(score)
            for task in contract.tasks
            if task.segments and (score := answered[task.name]) is not None
        },
        not_applicable=[name for name, score in answered.items() if score is None],
        features=_report(contract, encoded, row),
    )


def _report(contract: Contract, encoded: Encoded, row: int) -> FeatureReport:
    features = contract.schema.features

    def named(mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[str]:
        return [features[position].name for position in np.flatnonzero(mask)]

    return FeatureReport(
        age_s=None if encoded.unknown[row] else round(float(encoded.age_s[row]), 3),
        # For an entity without any row the status says it all; a list of every feature would say nothing more.
        defaulted=[] if encoded.unknown[row] else named(encoded.defaulted[row]),
        stale=named(encoded.stale[row]),
        overridden=named(encoded.overridden[row]),
    )


def _explanation(
    contract: Contract,
    task: Task,
    outputs: Tensors,
    row: int,
    position: int,
    inputs: Mapping[str, dict[str, float | str | None]],
    top: int | None,
) -> TaskExplanation:
    contributions = outputs["attributions"][row, position].tolist()
    score, base = float(outputs["scores"][row, position]), float(outputs["base"][row, position])
    groups = contract.schema.groups
    reasons = [
        _reason(group, groups[group], contribution, inputs[group])
        for group, contribution in zip(groups, contributions, strict=True)
    ]
    reasons.sort(key=lambda reason: -abs(reason.contribution))
    if top is not None and top < len(reasons):
        rest = sum(reason.contribution for reason in reasons[top:])
        reasons = [*reasons[:top], _reason(OTHER, "Everything else", rest, {})]
    return TaskExplanation(
        score=score,
        base=base,
        unit=task.unit,
        method=contract.explanation.method,
        expected_error=contract.explanation.expected_error[task.name],
        gap=abs(base + sum(contributions) - score),
        reasons=reasons,
    )


def _reason(group: str, label: str, contribution: float, inputs: dict[str, float | str | None]) -> Reason:
    direction = "raises" if contribution > 0 else "lowers" if contribution < 0 else "none"
    return Reason(group=group, label=label, contribution=contribution, direction=direction, features=inputs)
