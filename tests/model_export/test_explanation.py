import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from feature_client.contract import Errors, Explanation
from feature_client.release import Release
from feature_client.schema import FeatureSchema
from model_export.attribution import ExactShapley
from model_export.explanation import Explained, Sample, Settings, attributions_of, explain, hold, relative_errors
from model_export.game import AttributionError
from model_export.network import Network
from model_export.pipeline import Run, publish_run
from model_export.rows import Dataset
from tests.model_export.tiny_release import LIGHT

ROOT = Path(__file__).parents[2]
FASTER = replace(LIGHT, rows=120, selecting_rows=120, candidates=100, held_out=20)


def sample_of(dataset: Dataset, rows: int = 60) -> Sample:
    return Sample(dataset.test.numeric[:rows], dataset.test.categorical[:rows])


def regrouped(dataset: Dataset, groups: int) -> Dataset:
    """Its features dealt out to so many groups."""
    names = [f"group_{number}" for number in range(groups)]
    features = tuple(
        replace(feature, group=names[position % groups]) for position, feature in enumerate(dataset.schema.features)
    )
    return replace(dataset, schema=replace(dataset.schema, features=features, groups={name: name for name in names}))


class KnownEffects(Network):
    """Margins that are known sums: of every group's first column times its effect, and of one product of two groups."""

    def __init__(
        self, schema: FeatureSchema, tasks: Sequence[object], effects: Sequence[float], product: float
    ) -> None:
        super().__init__(schema, tasks)  # type: ignore[arg-type]
        groups = list(schema.groups)
        owners = [groups.index(schema.by_name[name].group) for name in self.inputs.owners]
        self.first = [owners.index(group) for group in range(len(groups))]
        self.effects, self.product = torch.tensor(effects), product

    def outcomes(self, lifted: Tensor) -> tuple[Tensor, Tensor]:
        columns = lifted[:, self.first]
        margin = columns @ self.effects + self.product * columns[:, 0] * columns[:, 1]
        margins = margin[:, None].repeat(1, len(self.kinds))
        return torch.sigmoid(margins), margins

    def slopes(self, lifted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        columns = lifted[:, self.first]
        by_columns = self.effects.repeat(len(lifted), 1)
        by_columns[:, :2] += self.product * columns[:, :2].flip(1)
        by_wide = torch.zeros(len(lifted), self.inputs.width)
        by_wide[:, self.inputs.fed(torch.arange(self.inputs.width))[self.first]] = by_columns
        return *self.outcomes(lifted), by_wide[:, None].repeat(1, len(self.kinds), 1)


@pytest.fixture(scope="module")
def known(dataset: Dataset) -> tuple[KnownEffects, Explained, Explanation]:
    effects = [0.5, -0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.0]
    network = KnownEffects(dataset.schema, dataset.tasks, effects, product=0.25)
    network.fit_inputs(dataset.train.numeric, dataset.train.labels)
    return network.eval(), *explain(network, dataset, sample_of(dataset, 200), LIGHT, seed=0)


def analytic(network: KnownEffects, explained: Explained, rows: Sample) -> npt.NDArray[np.float64]:
    """Shapley values of the margin [rows, G]: an effect times how far from the background's mean, products halved."""
    columns = rows.lifted(network)[:, network.first].astype(np.float64)
    background, weights = explained.background.rows[:, network.first].astype(np.float64), explained.background.weights
    found = (columns - weights @ background) * network.effects.numpy()
    a, b = columns[:, 0], columns[:, 1]
    mean_a, mean_b = weights @ background[:, :2]
    mean_product = weights @ (background[:, 0] * background[:, 1])
    alone_a, alone_b, both = a * mean_b - mean_product, b * mean_a - mean_product, a * b - mean_product
    found[:, 0] += network.product * (alone_a + both - alone_b) / 2
    found[:, 1] += network.product * (alone_b + both - alone_a) / 2
    return np.asarray(found)


@pytest.mark.parametrize(("explainer", "most"), [("exact", 1e-5), ("precise", 0.02), ("fast", 0.05)])
def test_known_effects_are_recovered(
    explainer: str, most: float, known: tuple[KnownEffects, Explained, Explanation], dataset: Dataset
) -> None:
    network, explained, _ = known
    rows = sample_of(dataset, 100)
    expected = analytic(network, explained, rows)
    graph = explained.graph(network, dataset.schema, explainer)
    found = attributions_of(graph, rows)[:, len(dataset.tasks)]
    assert relative_errors(found[:, None], expected[:, None])[0] <= most
    leading = np.abs(expected).argmax(axis=1)
    assert (np.abs(found).argmax(axis=1) == leading).mean() >= 0.95


def test_what_matters_on_the_whole_is_ranked_by_the_effects(
    known: tuple[KnownEffects, Explained, Explanation], dataset: Dataset
) -> None:
    network, explained, explanation = known
    rows = sample_of(dataset, 200)
    by_margin = np.abs(analytic(network, explained, rows)).mean(axis=0)
    for task in dataset.tasks:
        means = np.array(list(explanation.importance.groups[task.name].values()))
        apart = np.abs(np.subtract.outer(by_margin, by_margin)) > 0.2 * by_margin.max()
        in_order = np.sign(np.subtract.outer(means, means)) == np.sign(np.subtract.outer(by_margin, by_margin))
        assert in_order[apart].all()
    assert explanation.importance.rows == 200


def test_a_trained_model_is_explained_by_what_its_labels_follow_from(run: Run) -> None:
    """The tiny world: who bought often and lately buys again; country and category decide nothing."""
    for task in ("purchase_30d", "churn_90d"):
        groups = run.contract.explanation.importance.groups[task]
        ranked = sorted(groups, key=lambda name: groups[name], reverse=True)
        assert set(ranked[:2]) == {"recency", "frequency"}
        assert groups["products"] + groups["context"] < 0.05 * groups[ranked[0]]
    assert list(run.contract.explanation.importance.groups["spend_90d"]) == list(run.contract.schema.groups)


def test_a_poor_fit_is_refused_and_says_what_is_how_far_off(network: Network, dataset: Dataset) -> None:
    poor = replace(FASTER, fast_rows=2, fast_bound=0.08)
    with pytest.raises(AttributionError, match=r"fast explanations of \w+ are \d+\.\d% off on .*; at most 8%"):
        explain(network, dataset, sample_of(dataset), poor, seed=0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Errors({"churn_90d": 0.04}, {"churn_90d": 0.02}, {"churn_90d": 0.09}), "churn_90d are 4.0% off on held-out"),
        (Errors({"churn_90d": 0.02}, {"churn_90d": 0.04}, {"churn_90d": 0.09}), "4.0% off on the margins of held-out"),
        (
            Errors({"churn_90d": 0.02}, {"churn_90d": 0.02}, {"churn_90d": 0.10}),
            "10.0% off on shuffled rows; at most 9%",
        ),
        (Errors({"churn_90d": np.nan}, {"churn_90d": 0.02}, {"churn_90d": 0.09}), "nan% off on held-out rows"),
    ],
)
def test_every_stated_error_has_a_bound(error: Errors, said: str) -> None:
    with pytest.raises(AttributionError, match=said):
        hold("precise", error, 0.03)
    hold("precise", Errors({"churn_90d": 0.03}, {"churn_90d": 0.03}, {"churn_90d": 0.08}), 0.03)


def test_what_was_computed_once_is_kept_for_the_same_network_alone(
    network: Network, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sample_of(dataset)

    def again(settings: Settings = FASTER, seed: int = 0) -> tuple[Explained, Explanation]:
        return explain(network, dataset, sample, settings, seed=seed, cache=tmp_path)

    made, stated = again()
    assert len(list(tmp_path.iterdir())) == 1
    with monkeypatch.context() as patched:
        patched.setattr("model_export.explanation.choose_background", None)  # any work would fail
        kept, stated_again = again()
        assert stated_again == stated
        for name, array in made.arrays().items():
            np.testing.assert_array_equal(kept.arrays()[name], array)
        for change in ({"settings": replace(FASTER, fast_rows=31)}, {"seed": 1}):
            with pytest.raises(TypeError):
                again(**change)
        weight = network.heads.weight
        with torch.no_grad():
            weight[0, 0] += 1e-3
            try:
                with pytest.raises(TypeError):
                    again()
            finally:
                weight[0, 0] -= 1e-3
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    assert again()[1] == stated  # a file that was cut short is made anew


def test_with_more_groups_coalitions_are_sampled_and_their_own_error_counts(dataset: Dataset, tmp_path: Path) -> None:
    many = regrouped(dataset, 10)
    network = Network(many.schema, many.tasks)
    network.fit_inputs(many.train.numeric, many.train.labels)
    with torch.no_grad():
        network.heads.weight.mul_(3.0)  # an untrained network that is anything but flat
    sampled = replace(FASTER, coalitions=200)
    explained, stated = explain(network.eval(), many, sample_of(many), sampled, seed=0)
    assert set(stated.explainers) == {"fast", "precise", "features"}
    assert all(stated.explainers[name].method.startswith("shapley-sampled-") for name in ("fast", "precise"))

    full = replace(FASTER, coalitions=1_024)
    _, complete = explain(network, many, sample_of(many), full, seed=0)
    assert set(complete.explainers) == {"fast", "precise", "features"}  # exact, but too many rows to answer customers
    for task in many.tasks:
        errors = [one.explainers["precise"].error.scores[task.name] for one in (stated, complete)]
        assert errors[0] > errors[1]
    graph = explained.graph(network, many.schema, "fast")
    assert attributions_of(graph, sample_of(many, 3)).shape == (3, 2 * len(many.tasks), 10)


def test_more_groups_than_can_be_sampled_are_refused(network: Network, dataset: Dataset) -> None:
    with pytest.raises(AttributionError, match="13 groups; explanations take at most 12"):
        explain(network, regrouped(dataset, 13), sample_of(dataset), FASTER, seed=0)


def test_one_group_alone_is_refused(network: Network, dataset: Dataset) -> None:
    with pytest.raises(AttributionError, match="1 group; a score is explained by what at least 2 contribute"):
        explain(network, regrouped(dataset, 1), sample_of(dataset), FASTER, seed=0)


@pytest.mark.parametrize("how", ["hardly varies", "never varies"])
def test_a_score_that_is_nearly_the_same_for_everybody_is_explained(how: str, run: Run, dataset: Dataset) -> None:
    """As of a task with one label only. Contributions are then below what float32 resolves of the score."""
    flat = Network(run.contract.schema, run.contract.tasks)
    flat.load_state_dict(dict(run.weights))
    with torch.no_grad():
        flat.heads.weight[1].mul_(0.0 if how == "never varies" else 1e-3)
        flat.heads.bias[1] = 8.0
    explained, stated = explain(flat.eval(), dataset, sample_of(dataset), FASTER, seed=0)
    assert all(one.error.scores["churn_90d"] < 0.5 for one in stated.explainers.values())
    found = attributions_of(explained.graph(flat, dataset.schema, "fast"), sample_of(dataset))
    assert np.abs(found[:, 1]).max() < 1e-5


def test_an_exact_graph_that_is_not_what_it_says_is_refused(
    network: Network, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(*arguments: object) -> ExactShapley:
        graph = ExactShapley(*arguments)  # type: ignore[arg-type]
        graph.weights *= 1.001
        return graph

    monkeypatch.setattr("model_export.explanation.ExactShapley", spoiled)
    with pytest.raises(AttributionError, match=r"exact explanations of held-out rows are off by \d+"):
        explain(network, dataset, sample_of(dataset), FASTER, seed=0)


def test_a_release_without_an_exact_graph_is_exported_verified_and_published(
    network: Network, run: Run, tmp_path: Path
) -> None:
    explainers = dict(run.contract.explanation.explainers)
    del explainers["exact"]
    explanation = replace(run.contract.explanation, explainers=explainers)
    without = replace(run, contract=replace(run.contract, explanation=explanation))
    release: Release = publish_run(without, tmp_path)
    assert set(release.explain_names) == {"fast", "precise", "features"}


def test_an_explanation_does_not_depend_on_the_number_of_cores() -> None:
    """Nor does anything else of a release: torch and BLAS would sum in another order with more threads."""
    script = "from tests.model_export.tiny_release import tiny_run\nprint(tiny_run(rows=600, epochs=1).contract.digest)"
    digests = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
        )
        digests.add(run.stdout.split()[-1])
    assert len(digests) == 1


def test_errors_are_of_those_for_whom_an_outcome_is_defined() -> None:
    exact = np.ones((4, 2, 3))
    found = exact.copy()
    found[2:, 0] += 0.5  # rows for which the first is not defined
    counts = np.array([[True, False], [True, False], [False, False], [False, False]])

    assert relative_errors(found, exact).tolist() == [0.25, 0.0]
    assert relative_errors(found, exact, counts=counts).tolist() == [0.0, 0.0]
    found[:, 1] += 0.1
    assert relative_errors(found, exact, counts=counts)[1] == pytest.approx(0.1)  # defined for nobody: of all
