"""What a model's scores rest on, over a sample of its customers: as its contract says it."""

from collections.abc import Mapping

from feature_client.contract import Contract, Task
from service.protocol import ImportanceRanking, ImportanceResponse, PartImportance, TaskImportance


def importance_of(contract: Contract, version: str) -> ImportanceResponse:
    """Tasks in the contract's order; what the contract holds no figures of is null."""
    importance = contract.explanation.importance
    return ImportanceResponse(
        model=contract.model,
        version=version,
        rows=importance.rows,
        tasks={
            task.name: TaskImportance(
                label=task.label,
                unit=task.unit,
                base=contract.explanation.base[task.name],
                groups=_ranking(contract, task, importance.groups, by_feature=False),
                features=_ranking(contract, task, importance.features, by_feature=True),
            )
            for task in contract.tasks
        },
    )


def _ranking(
    contract: Contract, task: Task, importance: Mapping[str, Mapping[str, float]], *, by_feature: bool
) -> ImportanceRanking | None:
    explainers = [one for one in contract.explanation.explainers.values() if one.by_feature == by_feature]
    means = importance.get(task.name)
    if not means or not explainers:
        return None
    closest = max(explainers, key=lambda explainer: explainer.rows)
    total = sum(means.values())
    return ImportanceRanking(
        method=closest.method,
        expected_error=closest.error.scores[task.name],
        parts=[
            PartImportance(
                name=name,
                label=contract.schema.by_name[name].label if by_feature else contract.schema.groups[name],
                group=contract.schema.by_name[name].group if by_feature else name,
                mean_absolute_contribution=mean,
                share=mean / total if total else None,
            )
            for name, mean in sorted(means.items(), key=lambda item: -item[1])
        ],
    )
