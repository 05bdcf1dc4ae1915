"""Explanation graphs, as exported and run by ONNX Runtime, against definitions and implementations of others."""

import warnings
from dataclasses import replace
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from feature_client.contract import attribution_scale, discrepancy
from feature_client.release import Release, graph_file
from model_export.attribution import ExactShapley, ExplainedNetwork
from model_export.explanation import Sample, attributions_of, relative_errors
from model_export.export import EXPLAIN_OUTPUTS
from model_export.game import AttributionError, Game, every_coalition, group_owners
from model_export.network import Network
from model_export.pipeline import Run
from model_export.verify import Session, hostile_rows
from tests.model_export.tiny_release import LIGHT

with warnings.catch_warnings():
    warnings.simplefilter("ignore", PendingDeprecationWarning)  # its colours, where Matplotlib is a new one
    import shap

ROWS = 2
SPACES = (("scores", "attributions", "base"), ("margins", "margin_attributions", "margin_base"))
EXPLAINERS = ("fast", "precise", "exact")

Answers = dict[str, npt.NDArray[np.float32]]


def session(release: Release, explainer: str) -> Session:
    return Session(graph_file(release.root / release.graph_name(explainer)), EXPLAIN_OUTPUTS)


def answers(release: Release, run: Run, explainer: str, rows: int = ROWS) -> Answers:
    return session(release, explainer).run(run.rows[0][:rows], run.rows[1][:rows])


def swapped(network: Network, run: Run, row: int, taken: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """v(S) by the definition: taken bool [coalitions, G] -> weighted mean scores and margins [coalitions, 2 T]."""
    schema, background = run.contract.schema, run.explained.background
    groups = list(schema.groups)
    member = [groups.index(schema.by_name[name].group) for name in network.inputs.owners]
    customer = Sample(*run.rows)[row : row + 1].lifted(network)
    values = []
    for coalition in taken:
        mixed = np.where(coalition[member], customer, background.rows)
        with torch.no_grad():
            outcomes = torch.cat(network.outcomes(torch.from_numpy(mixed)), dim=1).double().numpy()
        values.append(np.average(outcomes, axis=0, weights=background.weights))
    return np.stack(values)


def assert_equal(found: Answers, row: int, expected: npt.NDArray[np.float64]) -> None:
    """expected [2 T, G]."""
    tasks = len(expected) // 2
    for (_, parts, base), part in zip(SPACES, (expected[:tasks], expected[tasks:]), strict=True):
        scale = attribution_scale(part, found[base][row])
        assert (discrepancy(found[parts][row], part, scale) <= 1).all(), parts


def test_the_exact_graph_equals_shap_s_exact_explainer(pristine: Release, network: Network, run: Run) -> None:
    groups, found = len(run.contract.schema.groups), answers(pristine, run, "exact")
    for row in range(ROWS):

        def game(taken: npt.NDArray[np.float64], row: int = row) -> npt.NDArray[np.float64]:
            return swapped(network, run, row, taken.astype(bool))

        explainer = shap.ExactExplainer(game, np.zeros((1, groups)))
        assert_equal(found, row, explainer(np.ones((1, groups))).values[0].T)


def test_the_exact_graph_equals_shapley_s_definition_over_all_orders(
    pristine: Release, network: Network, run: Run
) -> None:
    """An independent count: every one of the 8! orders in which groups may join."""
    groups, found = len(run.contract.schema.groups), answers(pristine, run, "exact", rows=1)
    every = (np.arange(2**groups)[:, None] >> np.arange(groups)) % 2 == 1
    value = swapped(network, run, 0, every)
    orders = np.array(list(permutations(range(groups))))
    joined = np.cumsum(1 << orders, axis=1)
    before = joined - (1 << orders)
    expected = np.empty((value.shape[1], groups))
    for group in range(groups):
        expected[:, group] = (value[joined[orders == group]] - value[before[orders == group]]).mean(axis=0)
    assert_equal(found, 0, expected)


def test_what_float32_rounds_off_the_exact_graph_is_within_what_counts_as_equal(network: Network, run: Run) -> None:
    numeric, categorical = (torch.from_numpy(array[:4]) for array in run.rows)
    owners = group_owners(network, run.contract.schema)
    precise = Network(run.contract.schema, run.contract.tasks)
    precise.load_state_dict(dict(run.weights))
    outputs = {}
    for dtype, model in ((torch.float32, network), (torch.float64, precise.eval())):
        graph = ExactShapley(model, owners, run.explained.background).to(dtype)
        if dtype == torch.float64:  # its weights, too, as they were before they became float32
            graph.weights = torch.from_numpy(every_coalition(len(run.contract.schema.groups)).weights.T.copy())
            graph.shares = torch.from_numpy(run.explained.background.weights[:, None])
        with torch.no_grad():
            outputs[dtype] = dict(zip(EXPLAIN_OUTPUTS, graph(numeric.to(dtype), categorical), strict=True))
    for _, parts, base in SPACES:
        expected = outputs[torch.float64][parts].numpy()
        scale = attribution_scale(expected, outputs[torch.float64][base].numpy())
        assert (discrepancy(outputs[torch.float32][parts].numpy(), expected, scale) <= 1).all()


@pytest.mark.parametrize("explainer", EXPLAINERS)
@pytest.mark.parametrize("kind", ["ordinary", "hostile"])
def test_base_and_reasons_add_up_to_the_score_and_to_its_margin(
    explainer: str, kind: str, pristine: Release, network: Network, run: Run
) -> None:
    numeric, categorical = run.rows[0][:32], run.rows[1][:32]
    if kind == "hostile":
        numeric, categorical = hostile_rows(network, numeric.shape[1])
    found = session(pristine, explainer).run(numeric, categorical)
    stated = run.contract.explanation
    for (whole, parts, base), bases in zip(SPACES, (stated.base, stated.margin_base), strict=True):
        total = found[base] + found[parts].sum(axis=-1, dtype=np.float64)
        scale = attribution_scale(found[parts], found[base])[..., 0]
        assert (discrepancy(total, found[whole], scale) <= 1).all()
        expected = [bases[task.name] for task in run.contract.tasks]
        assert (discrepancy(found[base], np.tile(expected, (len(numeric), 1))) <= 1).all()


@pytest.mark.parametrize("explainer", ["fast", "precise"])
def test_on_fresh_rows_an_estimate_is_as_good_as_its_release_states(
    explainer: str, pristine: Release, network: Network, run: Run
) -> None:
    """Rows that neither the fit nor the measured error has seen; half as much again for the luck of the draw."""
    fresh = slice(LIGHT.held_out, LIGHT.held_out + 100)
    rows = Sample(run.rows[0][fresh], run.rows[1][fresh])
    schema = run.contract.schema
    game = Game(network, group_owners(network, schema), run.explained.background, every_coalition(len(schema.groups)))
    exact = game.attributions(rows.lifted(network), "fresh rows")
    found = session(pristine, explainer).run(rows.numeric, rows.categorical)
    estimated = np.concatenate([found["attributions"], found["margin_attributions"]], axis=1)
    stated = run.contract.explanation.explainers[explainer].error
    bounds = [errors[task.name] for errors in (stated.scores, stated.margins) for task in run.contract.tasks]
    assert (relative_errors(estimated, exact) <= 1.5 * np.array(bounds)).all()


def test_the_more_rows_an_explanation_costs_the_better_it_is(run: Run) -> None:
    explainers = [run.contract.explanation.explainers[name] for name in EXPLAINERS]
    assert [one.method for one in explainers] == ["shapley-fitted-32", "shapley-fitted-96", "shapley-exact"]
    assert [one.rows for one in explainers] == [33, 97, 1 + 254 * run.contract.explanation.background_rows]
    for task in run.contract.tasks:
        fast, precise, exact = (one.error.scores[task.name] for one in explainers)
        assert fast > precise > 100 * exact
        assert explainers[0].error.shifted[task.name] > fast  # nobody is like shuffled rows


def test_a_group_that_decides_nothing_gets_nothing(pristine: Release, run: Run) -> None:
    """The season is the same in all training rows, so nothing but the country can matter in `context`."""
    schema = run.contract.schema
    numeric, categorical = run.rows[0][:1].copy(), run.rows[1][:1].copy()
    for position, feature in enumerate(schema.numeric):
        numeric[:, position] = np.nan if feature.kind == "calendar" else numeric[:, position]
    graph = session(pristine, "exact")
    with_season, without = (graph.run(n, categorical) for n in (run.rows[0][:1], numeric))
    np.testing.assert_array_equal(with_season["attributions"], without["attributions"])


def test_attributions_do_not_depend_on_the_rest_of_the_batch(explained: dict[str, ExplainedNetwork], run: Run) -> None:
    rows = Sample(run.rows[0][:20], run.rows[1][:20])
    for graph in explained.values():
        together = attributions_of(graph, rows)
        alone = np.concatenate([attributions_of(graph, rows[row : row + 1]) for row in range(20)])
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5 * np.abs(together).max())


def test_more_groups_than_a_graph_can_enumerate_are_refused(network: Network, run: Run) -> None:
    owners = group_owners(network, run.contract.schema)
    with pytest.raises(AttributionError, match="9 groups"):
        ExactShapley(network, np.append(owners[:-1], 8), run.explained.background)


def test_groups_are_counted_in_the_order_of_the_schema(network: Network, run: Run) -> None:
    schema = run.contract.schema
    turned = replace(schema, groups=dict(reversed(list(schema.groups.items()))))
    assert (group_owners(network, turned) == len(schema.groups) - 1 - group_owners(network, schema)).all()
