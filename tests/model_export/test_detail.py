"""Contributions of single features, against the definition of Owen values and what must be true of any."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from feature_client.contract import attribution_scale, discrepancy
from feature_client.release import Release, graph_file
from feature_client.schema import Feature, FeatureSchema
from model_export.detail import EstimatedOwen, draw_places, fit, select
from model_export.estimators import Target
from model_export.explanation import Sample, explain, relative_errors
from model_export.export import EXPLAIN_OUTPUTS
from model_export.game import AttributionError, Background, Game, base_outcomes, every_coalition, group_owners, outcomes
from model_export.network import Network
from model_export.owen import FeatureGame, draw_orders, sample_owen
from model_export.pipeline import Run
from model_export.rows import Dataset
from model_export.verify import Session, hostile_rows
from tests.model_export.tiny_release import LIGHT

SPACES = (("scores", "attributions", "base"), ("margins", "margin_attributions", "margin_base"))

Doubles = npt.NDArray[np.float64]


def session(release: Release) -> Session:
    return Session(graph_file(release.root / release.graph_name("features")), EXPLAIN_OUTPUTS)


def rows_of(run: Run, start: int, stop: int) -> Sample:
    numeric, categorical = run.rows
    return Sample(numeric[start:stop], categorical[start:stop])


def game_of(network: Network, run: Run) -> FeatureGame:
    return FeatureGame.of(network, run.contract.schema, run.explained.background)


def group_sums(schema: FeatureSchema, attributions: npt.NDArray[np.floating]) -> Doubles:
    """[rows, Q, F] -> [rows, Q, G]."""
    belongs = np.array([[feature.group == group for group in schema.groups] for feature in schema.features])
    return np.asarray(attributions.astype(np.float64) @ belongs)


@pytest.mark.parametrize("kind", ["ordinary", "hostile"])
def test_base_and_features_add_up_to_the_score_and_to_its_margin(
    kind: str, pristine: Release, network: Network, run: Run
) -> None:
    rows = rows_of(run, 0, 32)
    numeric, categorical = rows.numeric, rows.categorical
    if kind == "hostile":
        numeric, categorical = hostile_rows(network, numeric.shape[1])
    found, features = session(pristine).run(numeric, categorical), len(run.contract.schema.features)
    for whole, parts, base in SPACES:
        assert found[parts].shape == (len(numeric), len(run.contract.tasks), features)
        total = found[base] + found[parts].sum(axis=-1, dtype=np.float64)
        scale = attribution_scale(found[parts], found[base])[..., 0]
        assert (discrepancy(total, found[whole], scale) <= 1).all()


def test_features_of_a_group_sum_to_its_exact_shapley_value_within_the_stated_error(
    pristine: Release, network: Network, run: Run
) -> None:
    schema = run.contract.schema
    rows = rows_of(run, LIGHT.held_out, LIGHT.held_out + 60)
    game = Game(network, group_owners(network, schema), run.explained.background, every_coalition(len(schema.groups)))
    exact = game.attributions(rows.lifted(network), "fresh rows")
    found = session(pristine).run(rows.numeric, rows.categorical)
    sums = group_sums(schema, np.concatenate([found["attributions"], found["margin_attributions"]], axis=1))
    stated = run.contract.explanation.explainers["features"].error
    bounds = [errors[task.name] for errors in (stated.scores, stated.margins) for task in run.contract.tasks]
    assert (relative_errors(sums, exact) <= 1.5 * np.array(bounds)).all()  # half as much again for the luck of the draw


def test_on_fresh_rows_it_is_as_good_as_its_release_states(pristine: Release, network: Network, run: Run) -> None:
    explainer = run.contract.explanation.explainers["features"]
    assert explainer.method == f"owen-slopes-{LIGHT.features_rows}"
    assert explainer.by_feature
    rows = rows_of(run, LIGHT.held_out, LIGHT.held_out + 60)
    game = game_of(network, run)
    drawn = sample_owen(game, rows.lifted(network), 128, np.random.default_rng(1), "fresh rows")
    found = session(pristine).run(rows.numeric, rows.categorical)
    errors = relative_errors(np.concatenate([found["attributions"], found["margin_attributions"]], axis=1), drawn)
    stated = [e[task.name] for e in (explainer.error.scores, explainer.error.margins) for task in run.contract.tasks]
    assert (errors <= 1.5 * np.array(stated)).all()


SMALL = FeatureSchema(
    "rapport",
    (),
    tuple(
        Feature(name, "numeric", group, name, "", "view", name, "float64", default=0.0)
        for name, group in (("a", "one"), ("b", "one"), ("c", "two"), ("d", "two"), ("e", "two"), ("f", "three"))
    ),
    {},
    {"one": "One", "two": "Two", "three": "Three"},
)


@pytest.fixture(scope="module")
def small(dataset: Dataset) -> tuple[Network, FeatureGame, npt.NDArray[np.float32]]:
    """An untrained network on six features, of which `f` is not in any of its weights, and `a` and `b` are alike."""
    rng = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Network(SMALL, dataset.tasks).eval()
    rows = rng.normal(size=(1_000, 6)).astype(np.float32)
    with torch.no_grad():
        network.heads.weight.mul_(3.0)  # far from flat
        for layer in (*network.crosses, network.hidden[0]):
            weight = layer.get_parameter("weight")
            weight[:, 5] = 0.0
            weight[:, 1] = weight[:, 0]
        for cross in network.crosses:
            cross.get_parameter("weight")[5], cross.get_parameter("bias")[5] = 0.0, 0.0
            cross.get_parameter("weight")[1] = cross.get_parameter("weight")[0]
            cross.get_parameter("bias")[1] = cross.get_parameter("bias")[0]
        network.heads.weight[:, 5] = 0.0
        network.heads.weight[:, 1] = network.heads.weight[:, 0]
        lifted = network.inputs.lift(torch.from_numpy(rows), torch.zeros(len(rows), 0, dtype=torch.int64)).numpy()
    background = Background(lifted[:4], np.array([0.4, 0.3, 0.2, 0.1]))
    return network, FeatureGame.of(network, SMALL, background), lifted[4:]


def owen_by_definition(game: FeatureGame, customers: npt.NDArray[np.float32]) -> Doubles:
    """[n, L] -> [n, 2 T, F]: the mean gain of each feature over all orders in which groups stay together, counted."""
    features = len(game.groups)
    members = (np.arange(2**features)[:, None] >> np.arange(features)) % 2 == 1
    orders = [
        list(order)
        for order in permutations(range(features))
        if (np.diff(game.groups[list(order)]) != 0).sum() == game.groups.max()
    ]
    assert len(orders) == 6 * 2 * 6  # of 3 groups, and of 2, 3 and 1 features within them
    found = []
    for customer in customers:
        mixed = np.where(members[:, None, game.owners], customer, game.background.rows)
        every = outcomes(game.network, torch.from_numpy(mixed.reshape(-1, len(customer))))
        values = np.einsum("ckq,k->cq", every.reshape(*mixed.shape[:2], -1), game.background.weights)
        gains = np.zeros((features, values.shape[1]))
        for order in orders:
            joined = np.cumsum([0, *(1 << feature for feature in order)])
            gains[order] += np.diff(values[joined], axis=0) / len(orders)
        found.append(gains.T)
    return np.stack(found)


def test_drawn_values_are_owen_s_by_definition(small: tuple[Network, FeatureGame, npt.NDArray[np.float32]]) -> None:
    _, game, lifted = small
    customers = lifted[:4]
    exact = owen_by_definition(game, customers)
    errors = []
    for orders in (40, 4_000):
        drawn = sample_owen(game, customers, orders, np.random.default_rng(0), "orders")
        errors.append(relative_errors(drawn, exact))
        total = drawn.sum(axis=2) + base_outcomes(game.network, game.background)
        np.testing.assert_allclose(total, outcomes(game.network, torch.from_numpy(customers)), rtol=1e-5, atol=1e-6)
    assert (errors[1] < 0.02).all()
    assert (errors[1] < errors[0] / 3).all()  # ten times less, on average


def test_all_features_of_a_group_join_in_a_row_and_first_as_often_as_last() -> None:
    groups = np.array([0, 1, 0, 2, 1, 1])
    places = draw_orders(groups, 500, np.random.default_rng(0))
    assert (np.sort(places, axis=1) == np.arange(6)).all()
    for group in range(3):
        own = places[:, groups == group]
        assert (own.max(axis=1) - own.min(axis=1) == own.shape[1] - 1).all()
    np.testing.assert_allclose(places.mean(axis=0), 2.5)  # a reverse for every order


def fitted(game: FeatureGame, customers: npt.NDArray[np.float32], attributions: Doubles) -> EstimatedOwen:
    own = outcomes(game.network, torch.from_numpy(customers)).astype(np.float64)
    target = Target(customers, own, attributions, base_outcomes(game.network, game.background))
    places = select(game, draw_places(game, 40, np.random.default_rng(0)), target, 12)
    return EstimatedOwen(game.network, fit(game, places, target)).eval()


def explained(graph: EstimatedOwen, customers: npt.NDArray[np.float32]) -> Doubles:
    with torch.no_grad():
        return np.asarray(graph.explain(torch.from_numpy(customers))[1].double().numpy())


def test_the_estimate_is_close_to_owen_s_values_and_fair(
    small: tuple[Network, FeatureGame, npt.NDArray[np.float32]],
) -> None:
    """A feature in no weight gets next to nothing, and of two that are alike each gets what the other would."""
    _, game, lifted = small
    customers, fresh = lifted[:200], lifted[200:240]
    graph = fitted(game, customers, owen_by_definition(game, customers))
    found, exact = explained(graph, fresh), owen_by_definition(game, fresh)
    errors = relative_errors(found, exact)
    assert (errors < 0.25).all()
    assert (errors[[0, 1, 3, 4]] < 0.1).all()  # those of probabilities, which know bounds
    ignored = np.abs(found[:, :, 5]).mean(axis=0) / np.abs(found).mean(axis=(0, 2))
    assert (ignored < 1e-3).all()

    same, rows = fresh.copy(), game.background.rows.copy()
    same[:, 1], rows[:, 1] = same[:, 0], rows[:, 0]
    alike = replace(game, background=replace(game.background, rows=rows))
    parts = explained(fitted(alike, customers, owen_by_definition(alike, customers)), same)
    apart = np.abs(parts[:, :, 0] - parts[:, :, 1]).mean(axis=0) / np.abs(parts[:, :, 0]).mean(axis=0)
    assert (apart[[0, 1, 3, 4]] < 0.1).all()


class Straight(torch.nn.Module):
    """Inputs of which every row is as wide as the trunk already."""

    def widen(self, lifted: Tensor) -> Tensor:
        return lifted


def test_slopes_are_what_autograd_says(network: Network, run: Run) -> None:
    lifted = torch.from_numpy(rows_of(run, 0, 40).lifted(network))
    hostile = torch.from_numpy(Sample(*hostile_rows(network, run.rows[0].shape[1])).lifted(network))
    lifted = torch.cat([lifted, hostile])
    wide = network.inputs.widen(lifted).detach().requires_grad_()
    beyond = Network(run.contract.schema, run.contract.tasks).eval()
    beyond.load_state_dict(network.state_dict())
    beyond.inputs = Straight()  # type: ignore[assignment]
    expected_scores, expected_margins = beyond.outcomes(wide)
    with torch.no_grad():
        scores, margins, slopes = network.slopes(lifted)
        by_margins = network.score_slopes(scores)
    torch.testing.assert_close((scores, margins), (expected_scores, expected_margins))
    for task in range(len(run.contract.tasks)):
        [expected] = torch.autograd.grad(expected_margins[:, task].sum(), wide, retain_graph=True)
        torch.testing.assert_close(slopes[:, task], expected, rtol=1e-4, atol=1e-5)
        [expected] = torch.autograd.grad(expected_scores[:, task].sum(), wide, retain_graph=True)
        whole = slopes[:, task] * by_margins[:, task, None]
        torch.testing.assert_close(whole, expected, rtol=1e-3, atol=1e-4)


def test_a_step_is_what_swapping_one_lifted_column_moves(network: Network, run: Run) -> None:
    inputs = network.inputs
    customer, reference, mixed = (torch.from_numpy(rows_of(run, at, at + 20).lifted(network)) for at in (0, 20, 40))
    with torch.no_grad():
        steps = inputs.steps(mixed, customer, reference)
        for column in range(steps.shape[1]):
            there, back = mixed.clone(), mixed.clone()
            there[:, column], back[:, column] = customer[:, column], reference[:, column]
            expected = inputs.fed(inputs.widen(there) - inputs.widen(back))[:, column]
            torch.testing.assert_close(steps[:, column], expected, rtol=1e-4, atol=1e-5)


def test_every_feature_has_its_mean_contribution_stated(run: Run) -> None:
    importance, schema = run.contract.explanation.importance, run.contract.schema
    for task in run.contract.tasks:
        assert list(importance.features[task.name]) == list(schema.by_name)
        assert all(value >= 0 for value in importance.features[task.name].values())
    # The season never changes in the tiny world; how long ago somebody bought decides whether they buy again.
    soon = importance.features["purchase_30d"]
    assert soon["season_sin"] < 1e-3 * max(soon.values())
    assert max(soon, key=lambda name: soon[name]) in {"days_since_purchase", "orders_90d", "orders_365d"}


@pytest.mark.parametrize(
    "spoiled",
    [{"features_rows": 1, "features_fitted": 8, "features_bound": 0.3}, {"features_bound": 1e-3}],
    ids=["a poor fit", "a bound out of reach"],
)
def test_a_spoiled_fit_is_refused(spoiled: dict[str, float], network: Network, dataset: Dataset) -> None:
    small = {"rows": 120, "selecting_rows": 120, "candidates": 100, "held_out": 20, "features_held_out": 12}
    settings = replace(LIGHT, **{**small, **spoiled})  # type: ignore[arg-type]
    sample = Sample(dataset.test.numeric[:60], dataset.test.categorical[:60])
    with pytest.raises(AttributionError, match=r"features explanations of \w+ are \d+\.\d% off on"):
        explain(network, dataset, sample, settings, seed=0)
