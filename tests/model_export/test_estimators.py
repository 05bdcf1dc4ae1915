import numpy as np

from model_export.attribution import EstimatedShapley
from model_export.estimators import MaskedRows, Target, draw_masked_rows, fit, select
from model_export.explanation import Sample, attributions_of
from model_export.game import Game, every_coalition, group_owners
from model_export.network import Network
from model_export.pipeline import Run

ROWS = 150


def game_of(network: Network, run: Run) -> Game:
    schema = run.contract.schema
    return Game(network, group_owners(network, schema), run.explained.background, every_coalition(len(schema.groups)))


def planted(network: Network, run: Run, rows: MaskedRows) -> Target:
    """Attributions that follow from these rows alone: group g gets what row g differs from row g + 1 in."""
    game = game_of(network, run)
    customers = Sample(run.rows[0][:ROWS], run.rows[1][:ROWS]).lifted(network)
    values = rows.outcomes(network, customers).astype(np.float64)
    differences = values - np.roll(values, -1, axis=1)  # they sum to nothing
    target = Target.of(game, customers[:1], "base")
    own = MaskedRows(np.ones_like(rows.taken[:1]), rows.references[:1]).outcomes(network, customers)[:, 0]
    outcomes = np.asarray(own, dtype=np.float64)
    share = (outcomes - target.base)[:, :, None] / len(rows)
    return Target(customers, outcomes, differences.transpose(0, 2, 1) + share, target.base)


def test_the_rows_that_attributions_follow_from_are_found_among_many(network: Network, run: Run) -> None:
    candidates = draw_masked_rows(game_of(network, run), 60, np.random.default_rng(0))
    first = candidates[np.array([3, 20, 37, 50, 11, 28, 44, 59])]
    target = planted(network, run, first)
    chosen = select(network, candidates, target, 12)
    found = {
        row.tobytes() + reference.tobytes() for row, reference in zip(chosen.taken, chosen.references, strict=True)
    }
    wanted = {row.tobytes() + reference.tobytes() for row, reference in zip(first.taken, first.references, strict=True)}
    assert len(wanted & found) >= 7

    estimate = fit(network, first, target)
    rows = Sample(run.rows[0][:ROWS], run.rows[1][:ROWS])
    found_parts = attributions_of(EstimatedShapley(network, estimate), rows)
    missed = np.abs(found_parts - target.attributions).mean(axis=(0, 2)) / target.sizes
    assert (missed < 0.01).all()


def test_parts_sum_to_the_score_less_the_base_however_poor_the_fit(network: Network, run: Run) -> None:
    game = game_of(network, run)
    customers = Sample(run.rows[0][:20], run.rows[1][:20]).lifted(network)
    rows = draw_masked_rows(game, 40, np.random.default_rng(0))  # more columns than rows to fit them to
    estimate = fit(network, rows, Target.of(game, customers, "exact"))
    width, parts = len(estimate.base), len(run.contract.schema.groups)
    np.testing.assert_allclose(estimate.weights.reshape(-1, width, parts).sum(axis=-1), 0.0, atol=1e-9)
    np.testing.assert_allclose(estimate.own.reshape(width, width, parts).sum(axis=-1), np.eye(width), atol=1e-9)
    np.testing.assert_allclose(estimate.constant.reshape(width, parts).sum(axis=-1), -estimate.base, rtol=1e-9)


def test_no_estimate_leans_on_another_amount_s_score(network: Network, run: Run) -> None:
    """It knows no bounds: a customer who spends a fortune would upset the reasons for everything else."""
    tasks = [task.kind for task in run.contract.tasks]
    amount, width = tasks.index("amount"), 2 * len(tasks)
    for estimate in run.explained.estimates.values():
        weights = estimate.weights.reshape(-1, width, width, len(run.contract.schema.groups))[:, amount]
        own = estimate.own.reshape(width, width, -1)[amount]
        for outcome in range(width):
            assert (outcome == amount) == bool((weights[:, outcome] != 0).any())
            assert (outcome == amount) == bool((own[outcome] != 0).any())
