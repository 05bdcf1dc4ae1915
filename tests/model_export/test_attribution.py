from dataclasses import replace
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import shap
import torch

from feature_client.contract import attribution_scale, discrepancy
from feature_client.release import Release, graph_file
from model_export.attribution import AttributionError, ExplainedNetwork, shapley_weights
from model_export.export import EXPLAIN_OUTPUTS
from model_export.network import Network
from model_export.pipeline import Run
from model_export.verify import Session

ROWS = 2


def answers(release: Release, run: Run, rows: int = ROWS) -> dict[str, npt.NDArray[np.float32]]:
    session = Session(graph_file(release.root / release.graph_name("fast")), EXPLAIN_OUTPUTS)
    return session.run(run.rows[0][:rows], run.rows[1][:rows])


def swapped_scores(network: Network, run: Run, row: int, taken: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """v(S) by the definition, on raw inputs: taken bool [coalitions, G] -> mean scores [coalitions, T]."""
    schema = run.contract.schema
    groups = list(schema.groups)
    member = [[groups.index(f.group) for f in features] for features in (schema.numeric, schema.categorical)]
    values = []
    for coalition in taken:
        mixed = [
            np.where(coalition[member[kind]], run.rows[kind][row], run.background[kind]).astype(run.rows[kind].dtype)
            for kind in (0, 1)
        ]
        with torch.no_grad():
            scores = network(torch.from_numpy(mixed[0]), torch.from_numpy(mixed[1]))
        values.append(scores.double().mean(dim=0).numpy())
    return np.stack(values)


def test_the_graph_equals_shap_s_exact_explainer(pristine: Release, network: Network, run: Run) -> None:
    groups, found = len(run.contract.schema.groups), answers(pristine, run)
    for row in range(ROWS):

        def game(taken: npt.NDArray[np.float64], row: int = row) -> npt.NDArray[np.float64]:
            return swapped_scores(network, run, row, taken.astype(bool))

        explainer = shap.ExactExplainer(game, np.zeros((1, groups)))
        expected = explainer(np.ones((1, groups))).values[0].T  # [T, G]
        scale = attribution_scale(expected, found["base"][row])
        assert (discrepancy(found["attributions"][row], expected, scale) <= 1).all()


def test_the_graph_equals_shapley_s_definition_over_all_orders(pristine: Release, network: Network, run: Run) -> None:
    """An independent count: every one of the 8! orders in which groups may join."""
    groups, found = len(run.contract.schema.groups), answers(pristine, run, rows=1)
    every = (np.arange(2**groups)[:, None] >> np.arange(groups)) % 2 == 1
    value = swapped_scores(network, run, 0, every)
    orders = np.array(list(permutations(range(groups))))
    joined = np.cumsum(1 << orders, axis=1)
    before = joined - (1 << orders)
    expected = np.empty((value.shape[1], groups))
    for group in range(groups):
        expected[:, group] = (value[joined[orders == group]] - value[before[orders == group]]).mean(axis=0)
    scale = attribution_scale(expected, found["base"][0])
    assert (discrepancy(found["attributions"][0], expected, scale) <= 1).all()


def test_base_and_reasons_add_up_to_the_score(pristine: Release, run: Run) -> None:
    found = answers(pristine, run, rows=32)
    total = found["base"] + found["attributions"].sum(axis=-1)
    scale = attribution_scale(found["attributions"], found["base"])[..., 0]
    assert (discrepancy(total, found["scores"], scale) <= 1).all()
    stated = [run.contract.explanation.base[task.name] for task in run.contract.tasks]
    assert (discrepancy(found["base"], np.tile(stated, (32, 1))) <= 1).all()


def test_a_group_that_decides_nothing_gets_nothing(pristine: Release, run: Run) -> None:
    """The season is the same in all training rows, so nothing but the country can matter in `context`."""
    schema = run.contract.schema
    numeric, categorical = run.rows[0][:1].copy(), run.rows[1][:1].copy()
    for position, feature in enumerate(schema.numeric):
        numeric[:, position] = np.nan if feature.kind == "calendar" else numeric[:, position]
    session = Session(graph_file(pristine.root / pristine.graph_name("fast")), EXPLAIN_OUTPUTS)
    with_season, without = (session.run(n, categorical) for n in (run.rows[0][:1], numeric))
    np.testing.assert_array_equal(with_season["attributions"], without["attributions"])


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_weights_split_a_game_that_only_all_together_win_into_equal_parts(groups: int) -> None:
    value = np.zeros(2**groups)
    value[-1] = 1.0
    np.testing.assert_allclose(shapley_weights(groups) @ value, np.full(groups, 1 / groups))


def test_more_groups_than_can_be_enumerated_are_refused(network: Network, run: Run) -> None:
    schema = run.contract.schema
    many = replace(schema, groups={**schema.groups, "another": "One too many"})
    with pytest.raises(AttributionError, match="9 groups"):
        ExplainedNetwork(network, many, *run.background)
