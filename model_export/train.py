"""Fits the network, and calibrates it on the newest rows whose labels are known before the test cutoffs.

Where a data set says what is known then (`Dataset.known`), the network is fitted on all of it, the newest rows counting
most, for a fixed number of epochs; else on the training rows, until the validation rows get no better. On few rows one
network is as good or bad as its seed: there several are fitted, and one learns their mean forecast, which costs the
gateway nothing (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from feature_client.contract import eligible_rows
from feature_client.errors import RapportError
from feature_client.schema import CALENDAR, YEAR_S, FeatureSchema, FloatArray
from model_export.calibration import factor
from model_export.network import Network
from model_export.nowcast import calibrating, slope_and_shift
from model_export.rows import Dataset, Rows
from model_export.scorer import Calibrated, Scorer

EPOCHS = 10
PATIENCE = 4
"""Epochs without a better validation loss before training stops."""

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.02
GRADIENT_NORM = 1.0
"""Of all parameters; longer gradients are shortened to it: a few enormous orders would steer a batch."""

MIN_BATCH, MAX_BATCH = 64, 2048

TEACHERS = 3
DISTILLED_ROWS = 250_000
"""With more rows one network is fitted and taken as it is."""

STUDENT_LEARNING_RATE = 4e-3
"""Higher than of those that learn from labels: a mean forecast has no noise that could be learned by heart."""

ANY_SEASON = 0.3
"""Of the rows of each batch, those that are shown with any day of the year where a year has been seen once: then a
season is not told from the year that it was seen in. It falls to none as the year has been seen twice, for it makes the
effect of a season smaller by as much."""

NODES = 16
"""Of the log-normal at which logarithms of amounts are averaged."""

CHUNK = 16_384
"""Rows of one forward pass without gradients."""


class TrainingError(RapportError):
    """A network that could not be fitted."""


@dataclass(frozen=True)
class Tensors:
    numeric: Tensor
    categorical: Tensor
    labels: Tensor
    weights: Tensor  # [rows, T]: what a row counts; 0 where a task is not defined

    @classmethod
    def of(cls, rows: Rows, recency: npt.NDArray[np.float32] | None = None) -> "Tensors":
        """recency [rows]: by default every row counts alike."""
        weights = rows.eligible.astype(np.float32)
        if recency is not None:
            weights *= recency[:, None]
        return cls(*(torch.from_numpy(a) for a in (rows.numeric, rows.categorical, rows.labels, weights)))

    def take(self, rows: Tensor | slice) -> "Tensors":
        return Tensors(self.numeric[rows], self.categorical[rows], self.labels[rows], self.weights[rows])

    def __len__(self) -> int:
        return len(self.numeric)


def train(dataset: Dataset, *, seed: int, epochs: int = EPOCHS) -> Network:
    """The network, calibrated. Deterministic for a seed, a machine and its threads. Raises TrainingError."""
    rows = dataset.fitted
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if dataset.known is None:
            network, validation = _fresh(dataset, rows), Tensors.of(dataset.validation)
            _descend(network, Tensors.of(rows), epochs, _shown(dataset, rows), validation=validation)
        elif len(rows) > DISTILLED_ROWS:
            network = _from_labels(dataset, rows, epochs)
        else:
            network = _distilled(dataset, rows, [_from_labels(dataset, rows, epochs) for _ in range(TEACHERS)], epochs)
    network.inputs.fit_unseen(rows.categorical)
    calibrate(network, dataset)
    return network.eval()


def predict(network: Scorer, rows: Rows) -> npt.NDArray[np.float32]:
    """Scores [rows, T]."""
    network.eval()
    data = Tensors.of(rows)
    with torch.no_grad():
        parts = [network(part.numeric, part.categorical) for part in _chunks(data)]
    return np.concatenate([part.numpy() for part in parts])


def predict_logs(network: Network, rows: Rows) -> FloatArray:
    """Of amounts, the expected log1p [rows, T], NaN for probabilities: what a forecast in logarithms is judged by.

    Not the logarithm of the score: the mean of a logarithm is far below the logarithm of a mean. Integrated over the
    log-normal by Gauss and Hermite's rule.
    """
    network.eval()
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    found = np.full((len(rows), len(network.kinds)), np.nan)
    chunks = _raw(network, Tensors.of(rows))
    for task, kind in enumerate(network.kinds):
        if kind == "amount":
            parts = network.ziln(task, torch.cat([chunk[task] for chunk in chunks]))
            logit, mu, sigma = (part.double().numpy() for part in parts)
            logs = np.logaddexp(0.0, mu + sigma * nodes) @ (weights / weights.sum())
            found[:, task] = expit(logit[:, 0]) * logs
    return found


@dataclass(frozen=True)
class Targets:
    """What a forecast should say, each [rows, T]: the chance of the event, or of any amount; of the logarithm of an
    amount, where there is any, mean and variance."""

    chance: Tensor
    log_mean: Tensor
    log_variance: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> "Targets":
        positive = labels > 0  # a label that is not a number is neither, and stays one in the loss
        chance = torch.where(positive, 1.0, labels.clamp(min=0))
        return cls(chance, torch.log(torch.where(positive, labels, 1.0)), torch.zeros_like(labels))

    @classmethod
    def taught(cls, teachers: Sequence[Network], data: Tensors) -> "Targets":
        """The mean forecast of the teachers: of amounts their mixture, as its first two moments."""
        with torch.no_grad():
            said = [_distributions(teacher, data) for teacher in teachers]
        chances, means, variances = (torch.stack(parts) for parts in zip(*said, strict=True))  # [teachers, rows, T]
        shares = chances / chances.sum(dim=0).clamp(min=1e-9)
        mean = (shares * means).sum(dim=0)
        return cls(chances.mean(dim=0), mean, (shares * (variances + (means - mean) ** 2)).sum(dim=0))


def loss_by_task(network: Network, data: Tensors, targets: Targets | None = None) -> Tensor:
    """Cross-entropy of each task [T] against the targets, by default the labels, of which it is the negative
    log-likelihood; the mean over the rows for which the task is defined.

    Amounts: the zero-inflated log-normal loss, cross-entropy of "any" plus the log-normal density of how much.
    """
    targets = targets or Targets.of(data.labels)
    losses = []
    for task, raw in enumerate(network.raw(network.inputs.lift(data.numeric, data.categorical))):
        chance, weight = targets.chance[:, task], data.weights[:, task]
        if network.kinds[task] == "probability":
            loss = binary_cross_entropy_with_logits(raw[:, 0], chance, reduction="none")
        else:
            logit, mu, sigma = (part[:, 0] for part in network.ziln(task, raw))
            squares = (targets.log_mean[:, task] - mu) ** 2 + targets.log_variance[:, task]
            density = squares / sigma**2 / 2 + torch.log(sigma)
            loss = binary_cross_entropy_with_logits(logit, chance, reduction="none") + chance * density
        losses.append((loss * weight).sum() / weight.sum().clamp(min=1e-3))
    return torch.stack(losses)


def calibrate(network: Calibrated, dataset: Dataset) -> None:
    """Platt's slope and shift for probabilities, a factor for amounts, so that the newest labels are met on average;
    kept inside the graph."""
    network.eval()
    rows = calibrating(dataset)
    chunks = _raw(network, Tensors.of(rows))
    scores = predict(network, rows).astype(np.float64)
    for task, kind in enumerate(network.kinds):
        if kind == "amount":
            keep = rows.eligible[:, task]
            label = rows.labels[keep, task].astype(np.float64)
            network.shift[task] += float(np.log(factor(scores[keep, task], label)))
        else:
            logits = np.concatenate([chunk[task][:, 0].numpy() for chunk in chunks]).astype(np.float64)
            network.slope[task], network.shift[task] = slope_and_shift(dataset, rows, task, logits)


def _fresh(dataset: Dataset, rows: Rows) -> Network:
    network = Network(dataset.schema, dataset.tasks)
    network.fit_inputs(rows.numeric, rows.labels, rows.evidenced())
    return network


def _from_labels(dataset: Dataset, rows: Rows, epochs: int) -> Network:
    network = _fresh(dataset, rows)
    _descend(network, Tensors.of(rows, rows.recency()), epochs, _shown(dataset, rows))
    return network.eval()


def _distilled(dataset: Dataset, rows: Rows, teachers: Sequence[Network], epochs: int) -> Network:
    """Also from rows whose labels are not known yet: a forecast needs none."""
    network = _fresh(dataset, rows)
    defined = eligible_rows(dataset.schema, dataset.tasks, rows.numeric)
    defined &= rows.eligible.any(axis=0)  # not of a task that the teachers know nothing of
    _descend(
        network,
        Tensors.of(replace(rows, eligible=defined), rows.recency()),
        epochs,
        _shown(dataset, rows),
        aims=lambda part: Targets.taught(teachers, part),
        rate=STUDENT_LEARNING_RATE,
    )
    return network


def _distributions(network: Network, data: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """What it forecasts, as in `Targets`; zero moments for probabilities."""
    raws = network.raw(network.inputs.lift(data.numeric, data.categorical))
    columns = []
    for task, raw in enumerate(raws):
        if network.kinds[task] == "probability":
            columns.append((torch.sigmoid(raw), torch.zeros_like(raw), torch.zeros_like(raw)))
        else:
            logit, mu, sigma = network.ziln(task, raw)
            columns.append((torch.sigmoid(logit), mu, sigma**2))
    chance, mean, variance = (torch.cat(parts, dim=1) for parts in zip(*columns, strict=True))
    return chance, mean, variance


def _shown(dataset: Dataset, rows: Rows) -> Callable[[Tensors], Tensors]:
    """What a batch of these rows is shown as."""
    seen_once = float(np.clip(2.0 - np.ptp(rows.cutoffs) / YEAR_S, 0.0, 1.0))  # of the year
    return lambda batch: in_any_season(dataset.schema, batch, ANY_SEASON * seen_once)


def in_any_season(schema: FeatureSchema, data: Tensors, share: float) -> Tensors:
    """The same rows, that share of them as if their cutoff had been on some other day of the year."""
    moved = torch.rand(len(data)) < share
    instants = torch.rand(int(moved.sum()), dtype=torch.float64).numpy() * YEAR_S
    numeric = data.numeric.clone()
    for position, feature in enumerate(schema.numeric):
        if feature.kind == "calendar":
            numeric[moved, position] = torch.from_numpy(CALENDAR[feature.name](instants)).float()
    return replace(data, numeric=numeric)


def _descend(
    network: Network,
    train: Tensors,
    epochs: int,
    shown: Callable[[Tensors], Tensors],
    *,
    aims: Callable[[Tensors], Targets] | None = None,
    rate: float = LEARNING_RATE,
    validation: Tensors | None = None,
) -> None:
    """shown: a batch as the network sees it. aims: the targets of some rows, by default their labels. validation:
    chooses the epoch; without it the last is taken, which the falling learning rate has made calm."""
    batch = min(max(len(train) // 64, MIN_BATCH), MAX_BATCH)
    steps = -(-len(train) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * steps)
    best, best_state, since = float("inf"), copy.deepcopy(network.state_dict()), 0
    with tqdm(total=epochs * steps, desc="train", unit="batch") as progress:
        for _ in range(epochs):
            network.train()
            for rows in torch.split(torch.randperm(len(train)), batch):
                part = shown(train.take(rows))
                optimizer.zero_grad()
                losses = loss_by_task(network, part, aims and aims(part))
                losses.sum().backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
                optimizer.step()
                schedule.step()
                progress.update()
            if validation is None:
                continue
            loss = _mean_loss(network, validation)
            progress.set_postfix(validation=f"{loss:.4f}")
            since = 0 if loss < best else since + 1
            if since == 0:
                best, best_state = loss, copy.deepcopy(network.state_dict())
            if since >= PATIENCE:
                break
    if validation is None:
        best, best_state = _mean_loss(network, train), network.state_dict()
    if not best < float("inf"):
        raise TrainingError("training never reached a finite loss: look for labels or features that are not finite")
    network.load_state_dict(best_state)


def _mean_loss(network: Network, data: Tensors) -> float:
    network.eval()
    with torch.no_grad():
        losses = torch.stack([loss_by_task(network, part) * len(part) for part in _chunks(data)])
    return float(losses.sum()) / len(data)


def _raw(network: Calibrated, data: Tensors) -> list[list[Tensor]]:
    """Of every chunk, what each head says."""
    with torch.no_grad():
        return [network.raw(network.inputs.lift(part.numeric, part.categorical)) for part in _chunks(data)]


def _chunks(data: Tensors) -> list[Tensors]:
    return [data.take(slice(start, start + CHUNK)) for start in range(0, len(data), CHUNK)]
