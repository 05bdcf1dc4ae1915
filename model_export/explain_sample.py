"""Real customers, and what a release's explanation graphs say of them: the figures of `rapport explain report`."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from feature_client.contract import Explainer, eligible_rows
from feature_client.release import ReleaseGraph
from feature_client.schema import FeatureSchema
from model_export.pipeline import Run
from model_export.verify import Floats, Ints, Session

BATCH = 8
"""Customers of one run of a graph: each of them is hundreds to thousands of rows of the network."""

OUTPUTS = ("scores", "attributions", "base")

NOT_KNOWN, ANOTHER = "(not known)", "(another)"
"""What stands for a missing word, and for one that is not in the vocabulary."""

Doubles = npt.NDArray[np.float64]
Words = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Sample:
    """Model inputs of real customers. positions [B]: in the run's rows. eligible [B, T]: which tasks are defined."""

    positions: Ints
    numeric: Floats  # [B, N], NaN is missing
    categorical: Ints  # [B, K]
    eligible: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Answers:
    """What one explanation graph says of the sample, in the scores' own units. parts: its groups, or its features."""

    graph: ReleaseGraph
    explainer: Explainer
    parts: tuple[str, ...]
    scores: Doubles  # [B, T]
    contributions: Doubles  # [B, T, P]
    base: Doubles  # [T]

    @property
    def gap(self) -> Doubles:
        """[T]: by how much base plus contributions is not the score, at worst."""
        return np.asarray(np.abs(self.base + self.contributions.sum(axis=-1) - self.scores).max(axis=0))


def draw_sample(run: Run, rows: int, seed: int) -> Sample:
    """That many of the run's rows, or all of them if there are no more, without repetition."""
    numeric, categorical = run.rows
    positions = np.sort(np.random.default_rng(seed).permutation(len(numeric))[:rows])
    eligible = eligible_rows(run.contract.schema, run.contract.tasks, numeric[positions])
    return Sample(positions, numeric[positions], categorical[positions], eligible)


def ask(graph: ReleaseGraph, sample: Sample) -> Answers:
    """Every customer of the sample, by ONNX Runtime on one thread: the same answers on any machine."""
    contract = graph.contract
    explainer = contract.explanation.explainers[str(graph.explainer)]
    session = Session(graph.file, OUTPUTS)
    found = []
    for start in tqdm(range(0, len(sample), BATCH), desc=graph.name, unit="batch"):
        here = slice(start, start + BATCH)
        found.append(session.run(sample.numeric[here], sample.categorical[here]))
    joined = {name: np.concatenate([part[name] for part in found]).astype(np.float64) for name in OUTPUTS}
    schema = contract.schema
    parts = tuple(schema.by_name) if explainer.by_feature else tuple(schema.groups)
    return Answers(graph, explainer, parts, joined["scores"], joined["attributions"], joined["base"][0])


def numbers_of(schema: FeatureSchema, sample: Sample) -> Mapping[str, Doubles]:
    """Feature -> the customers' numbers [B], NaN where there is none."""
    return {feature.name: sample.numeric[:, column].astype(np.float64) for column, feature in enumerate(schema.numeric)}


def words_of(schema: FeatureSchema, sample: Sample) -> Mapping[str, Words]:
    """Category -> the customers' words [B]."""
    found = {}
    for column, feature in enumerate(schema.categorical):
        words = np.array([NOT_KNOWN, ANOTHER, *feature.vocabulary], dtype=object)
        found[feature.name] = words[sample.categorical[:, column]]
    return found
