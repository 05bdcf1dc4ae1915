from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from feature_client.contract import CONTRACT_KEY, discrepancy
from feature_client.release import Release, graph_file
from feature_client.schema import UNSEEN
from model_export.export import SCORE_OUTPUTS, export
from model_export.network import Network
from model_export.pipeline import Run
from model_export.verify import Graphs, ParityError, Session, verify


@pytest.fixture(params=["score", "fast", "precise", "exact"])
def onnx_file(request: pytest.FixtureRequest, pristine: Release) -> Path:
    explainer = None if request.param == "score" else request.param
    return graph_file(pristine.root / pristine.graph_name(explainer))


@pytest.mark.parametrize("rows", [1, 2, 7, 32, 64, 256])
def test_onnx_runtime_scores_as_torch_does_at_any_batch(
    rows: int, pristine: Release, network: Network, run: Run
) -> None:
    numeric, categorical = run.rows[0][:rows], run.rows[1][:rows]
    assert len(numeric) == rows
    answer = Session(graph_file(pristine.directory), SCORE_OUTPUTS).run(numeric, categorical)["scores"]
    with torch.no_grad():
        expected = network(torch.from_numpy(numeric), torch.from_numpy(categorical)).numpy()
    assert (discrepancy(answer, expected) <= 1).all()


def test_unseen_and_missing_categories_are_scored(pristine: Release, network: Network, run: Run) -> None:
    numeric = np.tile(run.rows[0][:1], (2, 1))
    categorical = np.array([[0], [UNSEEN]], dtype=np.int64) * np.ones_like(run.rows[1][:2])
    answer = Session(graph_file(pristine.directory), SCORE_OUTPUTS).run(numeric, categorical)["scores"]
    with torch.no_grad():
        expected = network(torch.from_numpy(numeric), torch.from_numpy(categorical)).numpy()
    assert np.isfinite(answer).all()
    assert (discrepancy(answer, expected) <= 1).all()


def test_a_file_is_one_whole_graph_that_names_its_contract(onnx_file: Path, pristine: Release) -> None:
    onnx.checker.check_model(onnx_file, full_check=True)
    model = onnx.load(onnx_file)
    assert {prop.key: prop.value for prop in model.metadata_props} == {CONTRACT_KEY: pristine.contract.digest}
    assert [entry.name for entry in onnx_file.parent.iterdir()] == ["model.onnx"]  # no external data
    batch = {value.name: value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input}
    assert set(batch) == {"numeric", "categorical"}
    assert all(batch.values())


def test_a_file_says_nothing_about_the_machine_that_wrote_it(onnx_file: Path) -> None:
    content = onnx_file.read_bytes()
    for trace in (b".py", b"stack_trace", b"/site-packages", b"forward(", str(Path.cwd()).encode(), b'File "'):
        assert trace not in content, trace


def test_real_rows_and_hostile_ones_pass(graphs: Graphs, run: Run) -> None:
    parity = verify(graphs, *run.rows)
    assert max(parity.scores, parity.attributions, parity.additivity) <= 1


def test_a_wrong_weight_is_found(graphs: Graphs, run: Run) -> None:
    assert isinstance(graphs.network, Network)
    weight = graphs.network.heads.weight
    original = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] += 0.01
        with pytest.raises(ParityError, match="times what is allowed"):
            verify(graphs, *run.rows)
    finally:
        with torch.no_grad():
            weight.copy_(original)


def test_a_graph_that_answers_nan_is_found_even_if_torch_does_too(run: Run, tmp_path: Path) -> None:
    network = Network(run.contract.schema, run.contract.tasks)
    network.load_state_dict({**run.weights, "log_ceiling": torch.full((len(run.contract.tasks),), torch.nan)})
    explained = {"fast": run.explained.graph(network.eval(), run.contract.schema, "fast")}
    path = tmp_path / "model.onnx"
    export(network, run.contract, path)
    with pytest.raises(ParityError, match="nan"):
        verify(Graphs(network, path, explained, {"fast": path}), *run.rows)
