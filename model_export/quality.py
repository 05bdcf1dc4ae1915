"""`make quality`: how good the network is on customers' future that it has not seen, beside what anybody would try
first. From a file of events to tables for people and one JSON object, everything recomputed in the same run.

Which rows do what, for test cutoffs t: settings are chosen between training and validation cutoffs, whose labels end
before the first t; then the network and its rivals are fitted to every label that is known at the first t, calibrated
on the newest of those, and measured once at t.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from feature_client.errors import RapportError
from feature_client.offline import aggregates, cutoffs, events, registry
from feature_client.offline.workspace import Workspace
from model_export.baselines import Forecast, best_feature, linear, trees
from model_export.dataset import build
from model_export.measure import Measure, Measured, keys
from model_export.pipeline import code_digest, one_thread
from model_export.quality_tables import tables
from model_export.rows import Dataset
from model_export.slices import slices
from model_export.train import EPOCHS, predict, predict_logs, train

NETWORK, TREES, LINEAR, FEATURE = "network", "lightgbm", "logistic", "best_feature"
SEEDS = 3
DRAWS = 300
SLICE_DRAWS = 100


@dataclass(frozen=True)
class Quality:
    """tables: for people. result: the JSON object, figures of the network by task, and those of each rival."""

    tables: str
    result: Mapping[str, Any]


def quality(
    workspace: Workspace,
    data: Path | None,
    test: Sequence[datetime] | None = None,
    *,
    seeds: int = SEEDS,
) -> Quality:
    """data: a file of events, by default what the workspace holds. test: its cutoffs, by default the last that can be.

    Raises RapportError where data or cutoffs allow no split.
    """
    return measure(prepare(workspace, data, test), seeds=seeds)


def prepare(workspace: Workspace, data: Path | None, test: Sequence[datetime] | None = None) -> Dataset:
    """Loads the events, and builds features and labels at every cutoff of the split.

    A workspace that is measured where it stands keeps what it serves and trains on: the default cutoffs, as_of with
    them, are built as well. Other events take nobody's place: raises RapportError where there is a model repository.
    """
    if data is not None:
        if workspace.models.exists():
            raise RapportError(
                f"{workspace.root} serves a model of the events in it: name another workspace to measure {data} in"
            )
        events.load_events(workspace, data)
    dataset = workspace.dataset()
    split = cutoffs.split(dataset, test)
    served = cutoffs.default_cutoffs(dataset) if data is None else []
    registry.apply(workspace)
    aggregates.build(workspace, [*split.known, *split.validation, *split.test, *served])
    return build(workspace, code_digest(), test)


@one_thread()
def measure(dataset: Dataset, *, seeds: int = SEEDS, epochs: int = EPOCHS, draws: int = DRAWS) -> Quality:
    models: dict[str, list[Forecast]] = {NETWORK: []}
    with tqdm(total=seeds + 3, desc="models", unit=" models") as progress:
        feature, chosen = best_feature(dataset)
        progress.update()
        models |= {TREES: [trees(dataset)]}
        progress.update()
        models |= {LINEAR: [linear(dataset)], FEATURE: [feature]}
        progress.update()
        for seed in range(seeds):
            models[NETWORK].append(network_forecast(dataset, seed=seed, epochs=epochs))
            progress.update()
    measured = Measure(dataset.test, dataset.tasks)
    whole = measured.all(models, draws)
    rivals = {name: models[name] for name in (NETWORK, TREES)}
    sliced = [
        (part, measured.all(rivals, min(draws, SLICE_DRAWS), part.rows))
        for part in slices(dataset.schema, dataset.test)
    ]
    every = np.arange(len(dataset.test))
    by_seed = [measured.one(forecast, every) for forecast in models[NETWORK]]
    return Quality(tables(dataset, measured, whole, by_seed, sliced, chosen), _result(dataset, whole))


def network_forecast(dataset: Dataset, *, seed: int, epochs: int = EPOCHS) -> Forecast:
    """Of the network that `rapport train` would publish."""
    network = train(dataset, seed=seed, epochs=epochs)
    scores = predict(network, dataset.test).astype(np.float64)
    return Forecast(scores, predict_logs(network, dataset.test))


def _result(dataset: Dataset, whole: Measured) -> dict[str, Any]:
    by_model: dict[str, dict[str, dict[str, float | None]]] = {}
    for model, figures in whole.figures.items():
        tasks = by_model.setdefault(model, {})
        for (task, name), figure in zip(keys(dataset.tasks), figures, strict=True):
            tasks.setdefault(task, {})[name] = round(float(figure), 4) if math.isfinite(figure) else None
    return {**by_model.pop(NETWORK), **by_model}
