"""Runs whose models are bad in a known way, and whose test rows say so."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from model_export.network import Network
from model_export.pipeline import Run
from model_export.rows import Dataset, Rows
from model_export.train import predict, train


def with_weights(run: Run, weights: Mapping[str, torch.Tensor]) -> Run:
    """The run with other weights, and what they say of its test rows."""
    network = Network(run.contract.schema, run.contract.tasks)
    network.load_state_dict(dict(weights))
    kept = run.holdout
    nobody = np.full(len(kept), "", dtype=object)
    rows = Rows(
        kept.numeric, kept.categorical, kept.labels, kept.eligible, nobody, kept.cutoffs, np.full(len(kept), np.inf)
    )
    return replace(run, weights=weights, holdout=replace(kept, scores=predict(network, rows)))


def overconfident(run: Run, task: str, by: float) -> Run:
    """The logits of one task are moved: the ranking stays, the probabilities are wrong."""
    shift = run.weights["shift"].clone()
    shift[run.contract.task_names.index(task)] += by
    return with_weights(run, {**run.weights, "shift": shift})


def shuffled_weights(run: Run) -> Run:
    weight = run.weights["heads.weight"]
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
    return with_weights(run, {**run.weights, "heads.weight": weight[:, order]})


def shuffled_labels(run: Run, dataset: Dataset) -> Run:
    """Trained on the labels of other customers: it learns how many buy, and not who."""
    order = np.random.default_rng(0).permutation(len(dataset.train))
    lies = replace(dataset.train, labels=dataset.train.labels[order])
    return with_weights(run, train(replace(dataset, train=lies), seed=0, epochs=1).state_dict())
