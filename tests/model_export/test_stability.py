import numpy as np

from model_export.network import Network
from model_export.rows import Dataset
from model_export.stability import Moved, between_backgrounds, tables
from tests.model_export.tiny_release import LIGHT, tiny_dataset


def test_explanations_that_are_alike_have_not_moved_and_opposite_ones_have() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0.9, 1.1, (50, 2, 6)) * rng.choice([-1, 1], (50, 2, 6)) * np.arange(1, 7)
    same = Moved.between(first, first)
    np.testing.assert_allclose([same.difference, same.same_first, same.ranks], [[0, 0], [1, 1], [1, 1]])
    turned = Moved.between(first, first[..., ::-1])
    np.testing.assert_allclose(turned.ranks, [-1, -1])
    assert (turned.difference > 0.5).all()
    assert (turned.same_first == 0).all()


def test_chosen_backgrounds_move_explanations_less_than_random_ones(network: Network, dataset: Dataset) -> None:
    found = dict(between_backgrounds(network, dataset, LIGHT, (12,), seed=0))
    assert found["12, chosen"].difference.mean() < found["12, random"].difference.mean() / 1.5


def test_the_tables_have_a_line_for_every_background_and_for_the_trainings() -> None:
    lines = list(tables(tiny_dataset(rows=900), LIGHT, seeds=(0, 1), epochs=1))
    names = [line.split("|")[1].strip() for line in lines if line.startswith("|") and "---" not in line]
    sizes = [f"{size}, {how}" for size in (8, 16, 32, 64) for how in ("random", "chosen")]
    assert names == ["background", *sizes, "training", "contributions", "scores less base"]
    assert all("nan" not in line for line in lines)
