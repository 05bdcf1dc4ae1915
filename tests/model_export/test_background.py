import numpy as np
import torch

from model_export.background import choose_background, draw_probes
from model_export.explanation import Sample, relative_errors
from model_export.game import Background, Game, every_coalition, group_owners
from model_export.network import Network
from model_export.pipeline import Run
from model_export.rows import Dataset

POPULATION, CHOSEN = 200, 12


def test_chosen_rows_stand_for_the_population_better_than_random_ones(
    network: Network, run: Run, dataset: Dataset
) -> None:
    lifted = Sample(dataset.train.numeric[:300], dataset.train.categorical[:300]).lifted(network)
    population, others = lifted[:POPULATION], lifted[POPULATION:]
    fresh = Sample(run.rows[0][:20], run.rows[1][:20]).lifted(network)
    owners, coalitions = group_owners(network, run.contract.schema), every_coalition(8)

    def against(background: Background) -> np.ndarray:
        return Game(network, owners, background, coalitions).attributions(fresh, "rows")

    rng = np.random.default_rng(0)
    probes = draw_probes(others, coalitions.members, owners, 200, rng)
    chosen = choose_background(network, population, probes, CHOSEN)
    assert len(chosen.rows) <= CHOSEN
    assert (chosen.weights > 0).all()
    np.testing.assert_allclose(chosen.weights.sum(), 1.0)

    exact = against(Background(population, np.full(POPULATION, 1 / POPULATION)))
    drawn = population[rng.permutation(POPULATION)[:CHOSEN]]
    at_random = relative_errors(against(Background(drawn, np.full(CHOSEN, 1 / CHOSEN))), exact)
    assert relative_errors(against(chosen), exact).mean() < at_random.mean() / 2


def test_a_population_of_three_kinds_of_rows_is_three_rows_with_their_shares(network: Network, run: Run) -> None:
    kinds = Sample(run.rows[0][:3], run.rows[1][:3]).lifted(network)
    population = np.repeat(kinds, [7, 2, 1], axis=0)
    owners, coalitions = group_owners(network, run.contract.schema), every_coalition(8)
    customers = Sample(run.rows[0][3:50], run.rows[1][3:50]).lifted(network)
    probes = draw_probes(customers, coalitions.members, owners, 100, np.random.default_rng(0))
    chosen = choose_background(network, population, probes, 10)
    shares = [chosen.weights[(chosen.rows == kind).all(axis=1)].sum() for kind in kinds]
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.01)
    assert torch.from_numpy(chosen.mean).shape == (1, kinds.shape[1])
