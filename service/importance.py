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
                groups=_ranking(contract, task, importance.groups, importance.GROUPS_BY),
                features=_ranking(contract, task, importance.features, importance.FEATURES_BY),
            )
            for task in contract.tasks
        },
    )


def _ranking(
    contract: Contract, task: Task, importance: Mapping[str, Mapping[str, float]], by: str
) -> ImportanceRanking | None:
    """by: the explainer whose contributions were averaged."""
    explainer, means = contract.explanation.explainers.get(by), importance.get(task.name)
    if explainer is None or not means:
        return None
    total = sum(means.values())
    return ImportanceRanking(
        explainer=by,
        method=explainer.method,
        expected_error=explainer.error.scores[task.name],
        parts=[
            _part(contract, name, mean, total, by_feature=explainer.by_feature)
            for name, mean in sorted(means.items(), key=lambda item: -item[1])
        ],
    )


def _part(contract: Contract, name: str, mean: float, total: float, *, by_feature: bool) -> PartImportance:
    schema = contract.schema
    share = mean / total if total else None
    if not by_feature:
        return PartImportance(name, schema.groups[name], name, mean, share)
    feature = schema.by_name[name]
    return PartImportance(name, feature.label, feature.group, mean, share)
