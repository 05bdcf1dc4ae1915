from itertools import combinations

import numpy as np
import pytest

from model_export.game import AttributionError, coalitions_for, every_coalition, sampled_coalitions

RNG_SEED = 7


def uneven_game(members: np.ndarray, players: int) -> np.ndarray:
    """v [coalitions] with effects of one, two and three players."""
    rng = np.random.default_rng(RNG_SEED)
    value = members @ rng.normal(size=players)
    for size, effect in ((2, 0.5), (3, 0.25)):
        for together in combinations(range(players), size):
            value += effect * rng.normal() * members[:, together].all(axis=1)
    return np.asarray(value)


@pytest.mark.parametrize("players", [1, 2, 5])
def test_what_only_all_together_win_is_split_into_equal_parts(players: int) -> None:
    value = np.zeros(2**players)
    value[-1] = 1.0
    np.testing.assert_allclose(every_coalition(players).weights @ value, np.full(players, 1 / players))


@pytest.mark.parametrize("players", [3, 9, 12])
def test_sampled_coalitions_are_exact_where_players_only_add_up_and_in_pairs(players: int) -> None:
    """Complements are drawn together, so effects of two players are split without an error, too."""
    coalitions = sampled_coalitions(players, 300, np.random.default_rng(0))
    assert not coalitions.members[0].any()
    assert coalitions.members[-1].all()
    rng = np.random.default_rng(1)
    alone, pairs = rng.normal(size=players), np.triu(rng.normal(size=(players, players)), 1)
    members = coalitions.members.astype(float)
    value = 4.0 + members @ alone + np.einsum("cp,pq,cq->c", members, pairs, members)
    np.testing.assert_allclose(coalitions.weights @ value, alone + (pairs + pairs.T).sum(axis=1) / 2, atol=1e-9)


def test_the_more_coalitions_are_sampled_the_closer_they_come() -> None:
    players, rng = 9, np.random.default_rng(0)
    every = every_coalition(players)
    expected = every.weights @ uneven_game(every.members, players)
    errors = []
    for count in (40, 160, 480):
        sampled = [sampled_coalitions(players, count, rng) for _ in range(10)]
        found = [one.weights @ uneven_game(one.members, players) for one in sampled]
        # Every sample keeps the sum, whatever its error.
        np.testing.assert_allclose([one.sum() for one in found], expected.sum())
        errors.append(np.abs(np.array(found) - expected).mean() / np.abs(expected).mean())
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]
    assert errors[2] < 0.05


def test_coalitions_are_sampled_only_where_there_are_too_many() -> None:
    rng = np.random.default_rng(0)
    assert len(coalitions_for(8, 256, rng)) == 256
    assert len(coalitions_for(9, 256, rng)) <= 256


def test_too_few_coalitions_are_refused() -> None:
    with pytest.raises(AttributionError, match="6 coalitions are too few for 12 groups"):
        sampled_coalitions(12, 6, np.random.default_rng(0))
