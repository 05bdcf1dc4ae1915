"""The rows of explanations on a really trained tiny release: figures of the right things, and none of wrong answers."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from loadtests.answers import WrongAnswer
from loadtests.bench import explain_flood, explain_peers, explanations
from loadtests.bench.explainers import EXACT, FAST, Explainer, MissingGraph, cpu_ms, first, repeated, session
from loadtests.bench.explanations import background, explain_error, explain_graph, held_out, relative_error, released
from loadtests.bench.home import Home
from loadtests.bench.plan import Plan
from loadtests.bench.report import Row
from loadtests.bench.targets import Cores, bodies_of
from model_export.pipeline import publish_run, write_run
from tests.loadtests.test_bench_harness import CUSTOMERS, core, fake_gateway, wrk  # noqa: F401  (a fixture)
from tests.model_export.tiny_release import tiny_run


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    run = tiny_run()
    write_run(run, root / "run")
    publish_run(run, root / "models")
    return root


@pytest.fixture
def home(workspace: Path, tmp_path: Path) -> Home:
    """Of its own: what is in it may be damaged."""
    own = shutil.copytree(workspace, tmp_path / "generated")
    return Home(own, "127.0.0.1:1", "", CUSTOMERS, tmp_path / "keys.toml", "secret", tmp_path, {})


@pytest.fixture
def plan(home: Home) -> Plan:
    return Plan(home, Cores(core(), core()), seconds=0.01, rounds=2, customers=1, models=1)


def named(rows: Sequence[Row]) -> dict[str, Row]:
    assert all(math.isfinite(value) for row in rows for value in row.values)
    return {row.name: row for row in rows}


def test_what_a_release_explains_with_is_read_from_its_files(home: Home) -> None:
    release = released(home)
    contract = release.contract["explanation"]["explainers"]

    assert list(release.explainers) == list(contract)
    for name, explainer in release.explainers.items():
        assert explainer.file.is_file()
        assert explainer.rows == contract[name]["rows"]
        assert explainer.error == max(contract[name]["error"]["scores"].values())
    shutil.rmtree(release.explainers[EXACT].file.parents[1])
    fewer = released(home)
    assert EXACT not in fewer.explainers
    with pytest.raises(MissingGraph, match="no graph of exact explanations"):
        fewer.explainer(EXACT)


@pytest.mark.parametrize(
    ("name", "by_feature", "fields"),
    [
        (FAST, False, {}),
        ("precise", False, {"tolerance": 0.01}),
        (EXACT, False, {"tolerance": 0.01}),
        ("features", True, {"detail": "features"}),
    ],
)
def test_a_request_asks_for_the_graph_that_is_measured(name: str, by_feature: bool, fields: object) -> None:  # noqa: FBT001
    assert Explainer(name, Path("model.onnx"), "shapley", 64, 0.01, by_feature).asked == fields


def test_graphs_are_measured_at_every_size_that_fits(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    explainers = released(plan.home).explainers
    monkeypatch.setattr(explanations, "MOST_ROWS", explainers[EXACT].rows)
    rows = named(list(explain_graph(plan)))

    assert rows["explain_graph_exact_1"].mark is None
    assert "explain_graph_exact_32" not in rows
    assert rows["explain_graph_1"].mark == 6
    for row in rows.values():
        assert len(row.values) == plan.rounds
        assert row.values[0] == row.details["explain_ms"][0] / row.details["score_ms"][0]
        assert row.figure > 1  # the scores are part of the explanation


def test_errors_are_of_the_worst_task(plan: Plan) -> None:
    rows = named(list(explain_error(plan)))

    assert rows["explain_error"].mark == 0.08
    assert "explain_error_exact" not in rows
    for row in rows.values():
        assert row.figure == max(row.details["errors"])
        assert len(row.details["errors"]) == len(released(plan.home).tasks)
        # What the contract states for single features is not what their sums miss.
        by_feature = row.name == "explain_error_features"
        assert row.what.startswith("error of sums by group") == by_feature
        assert row.absolute.endswith("of single features") == by_feature


def test_the_relative_error_of_each_task() -> None:
    exact = np.array([[[1.0, -3.0], [10.0, 10.0]], [[-2.0, 2.0], [0.0, 20.0]]])  # [2 rows, 2 tasks, 2 groups]
    estimate = exact + np.array([[[0.2, 0.0], [0.0, 0.0]], [[0.0, -0.2], [4.0, 0.0]]])

    assert relative_error(estimate, exact) == pytest.approx([0.4 / 8, 4 / 40])


@pytest.mark.parametrize("factor", [1.1, math.nan])
def test_a_graph_whose_parts_are_not_the_score_has_no_error_and_no_peers(plan: Plan, factor: float) -> None:
    scaled(released(plan.home).explainers[FAST].file, "attributions", factor)

    for row in (explain_error, explain_peers.explain_peers):
        with pytest.raises(WrongAnswer, match="base and attributions miss the score by"):
            list(row(plan))


def scaled(file: Path, output: str, factor: float) -> None:
    """The graph gives a multiple of this output."""
    model = onnx.load(file)
    [node] = [node for node in model.graph.node if output in node.output]
    node.output[list(node.output).index(output)] = "right"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], [output]))
    onnx.save(model, file)


def test_shap_answers_the_same_question_with_no_larger_error(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_peers, "COMPARED", 3)
    monkeypatch.setattr(explain_peers, "TIMED", 1)
    monkeypatch.setattr(explain_peers, "PERMUTATIONS", (1, 2))
    rows = named(list(explain_peers.explain_peers(plan)))

    assert set(rows) == {"explain_peers_KernelExplainer", "explain_peers_PermutationExplainer"}
    for row in rows.values():
        assert row.mark == 10
        assert row.at_least
        assert row.values[0] == row.details["shap_ms"][0] / row.details["fast_ms"][0]
    kernel = rows["explain_peers_KernelExplainer"].details
    assert kernel["error"] <= max(kernel["fast_error"], 1e-5)


def test_shap_with_another_background_is_no_peer(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weights = background(plan.home)
    monkeypatch.setattr(explain_peers, "COMPARED", 2)
    monkeypatch.setattr(explain_peers, "background", lambda home: (rows, np.eye(len(weights))[0]))

    with pytest.raises(WrongAnswer, match="of the largest attribution off the exact graph"):
        list(explain_peers.explain_peers(plan))


def test_the_game_is_the_customer_or_the_background(plan: Plan) -> None:
    release, rows = released(plan.home), first(held_out(plan.home), 1)
    others, weights = background(plan.home)
    score = session(release.score_file)
    customer = explain_peers.customer_of(rows, 0)
    game = explain_peers.Game(score, others, weights, release.group_of, customer)

    nobody, everybody = game(np.array([[0.0] * len(release.groups), [1.0] * len(release.groups)]))

    assert everybody == pytest.approx(score.run(["scores"], dict(rows))[0][0], abs=1e-5, rel=1e-5)
    assert nobody == pytest.approx(weights @ score.run(["scores"], dict(others))[0], abs=1e-5, rel=1e-5)


def test_rows_repeat_and_time_is_of_this_thread() -> None:
    rows = {"numeric": np.arange(3)[:, None], "categorical": np.arange(3)[:, None]}

    assert repeated(rows, 7)["numeric"].ravel().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert cpu_ms(lambda: sum(range(100_000)), 0.0) > 0


@pytest.mark.usefixtures("wrk")
@pytest.mark.parametrize(("wrong", "refused", "late"), [("", 0, 0), ("sheds", 0.5, 0), ("late", 0, 0.5)])
def test_a_flood_is_told_with_what_it_got(home: Home, wrong: str, refused: float, late: float) -> None:
    with fake_gateway(wrong) as target:
        single, flood = bodies_of(home, CUSTOMERS), bodies_of(home, CUSTOMERS, 32)
        flooded = explain_flood.beside(target, single, flood, rate=20, seconds=0.5)

    assert flooded.predict.errors == 0
    assert flooded.explained_per_s > 0
    assert flooded.refused == pytest.approx(refused, abs=0.1)
    assert flooded.late == pytest.approx(late, abs=0.1)
    told = explain_flood.row("explain_flood", "p99", [(flooded, replace(flooded.predict, p99_ms=1.0))])
    assert told.figure == flooded.predict.p99_ms
    assert told.mark == 1.5


@pytest.mark.usefixtures("wrk")
def test_a_flood_that_breaks_the_gateway_is_no_figure(home: Home) -> None:
    with fake_gateway("breaks") as target, pytest.raises(WrongAnswer, match=r"the flood was answered with \{'500': "):
        explain_flood.beside(target, bodies_of(home, CUSTOMERS), bodies_of(home, CUSTOMERS, 32), rate=20, seconds=0.5)


@pytest.mark.usefixtures("wrk")
def test_answers_by_another_explainer_are_wrong(home: Home) -> None:
    asked = Explainer(FAST, Path("model.onnx"), "shapley-fitted-64", 64, 0.01, by_feature=False)
    with fake_gateway("") as target:
        explanations.check(target, CUSTOMERS, replace(asked, method="constant"))
        with pytest.raises(WrongAnswer, match="constant answers where shapley-fitted-64 was asked for"):
            explanations.check(target, CUSTOMERS, asked)
