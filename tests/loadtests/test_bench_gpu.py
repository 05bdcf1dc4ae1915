"""The figures of a GPU, where there is none: the same program on the CPU alone, and its graphs on torch."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from loadtests.answers import WrongAnswer
from loadtests.bench import gpu
from loadtests.bench.explainers import Released, Tensors, champion, first, read_rows, session
from loadtests.bench.gpu_page import page
from loadtests.bench.gpu_ways import Way, halved, on_torch_cpu, outputs_of, ways
from loadtests.bench.onnx_torch import OnnxOnTorch, UnknownNode
from tests.loadtests.test_bench_explanations import scaled
from tests.model_export.tiny_release import build_tiny_release

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    build_tiny_release(root)
    return root


@pytest.fixture
def release(models: Path) -> Released:
    return Released(champion(models))


@pytest.fixture
def rows(release: Released) -> Tensors:
    return gpu.shuffled(read_rows(release.directory / "golden.npz"), 64)


def test_rows_are_drawn_from_those_of_the_release(release: Released, rows: Tensors) -> None:
    golden = read_rows(release.directory / "golden.npz")

    for name, values in rows.items():
        assert values.dtype == golden[name].dtype
        for column, given in zip(values.T, golden[name].T, strict=True):
            assert np.isin(column, given).all() or np.isnan(given).any()
    assert len(np.unique(rows["numeric"], axis=0)) == 64


def test_every_graph_of_a_release_runs_on_torch(release: Released, rows: Tensors) -> None:
    batch = first(rows, 3)
    for file in (release.score_file, *(explainer.file for explainer in release.explainers.values())):
        with on_torch_cpu(file, batch) as ready:
            ready.run()
            assert gpu.worst_error(ready.read(), outputs_of(session(file), batch)) < 1e-4


def test_products_of_half_precision_are_rounded_and_nothing_else(
    release: Released, rows: Tensors, tmp_path: Path
) -> None:
    right = outputs_of(session(release.score_file), rows)
    (tmp_path / "half.onnx").write_bytes(halved(release.score_file))
    by_torch = OnnxOnTorch(release.score_file, "cpu", torch.float16)
    tensors = {name: torch.from_numpy(values) for name, values in rows.items()}

    for answers in (
        outputs_of(session(tmp_path / "half.onnx"), rows),
        {name: value.numpy() for name, value in by_torch(tensors).items()},
    ):
        assert answers["scores"].dtype == np.float32
        assert 1e-6 < gpu.worst_error(answers, right) < 0.02


def graph(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"]
) -> Path:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info(name, kind, ["batch", 4]) for name, kind in
              (("numeric", TensorProto.FLOAT), ("categorical", TensorProto.INT64))]  # fmt: skip
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_a_constant_may_be_an_operand_and_a_size(tmp_path: Path) -> None:
    """And a shape may be computed from the batch, as in explanation graphs."""
    nodes = [
        helper.make_node("Gather", ["numeric", "one"], ["column"], axis=1),
        helper.make_node("Slice", ["numeric", "one", "four", "one"], ["others"]),
        helper.make_node("ReduceMean", ["others", "one"], ["mean"]),
        helper.make_node("Shape", ["categorical"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "one"], ["shape"], axis=0),
        helper.make_node("Expand", ["mean", "shape"], ["spread"]),
        helper.make_node("Add", ["column", "spread"], ["scores"]),
    ]
    file = graph(tmp_path / "graph.onnx", nodes, {"one": np.array([1]), "four": np.array([4])})
    numeric = np.arange(12, dtype=np.float32).reshape(3, 4)
    rows: Tensors = {"numeric": numeric, "categorical": np.zeros((3, 4), np.int64)}

    with on_torch_cpu(file, rows) as ready:
        scores = ready.read()["scores"]
    np.testing.assert_allclose(scores, numeric[:, 1:2] + numeric[:, 1:].mean(axis=1, keepdims=True))
    np.testing.assert_allclose(scores, outputs_of(session(file), rows)["scores"])


def test_a_node_that_nobody_translated_is_named(tmp_path: Path) -> None:
    file = graph(tmp_path / "graph.onnx", [helper.make_node("Erf", ["numeric"], ["scores"])], {})

    with pytest.raises(UnknownNode, match=r"Erf in .*graph\.onnx"):
        OnnxOnTorch(file, "cpu")


@pytest.mark.parametrize("factor", [1.01, math.nan])
def test_a_way_with_other_answers_is_not_timed(release: Released, rows: Tensors, tmp_path: Path, factor: float) -> None:
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(release.score_file.read_bytes())
    scaled(wrong, "scores", factor)
    way = Way("another graph", "cpu", lambda _, batch: on_torch_cpu(wrong, batch))

    with pytest.raises(WrongAnswer, match=r"another graph is .* off"):
        gpu.measured({"": release.score_file}, [way], rows, rounds=1, seconds=0.0)


def test_every_size_is_measured_in_every_way(release: Released, rows: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SCORED", (1, 64))
    monkeypatch.setattr(gpu, "EXPLAINED", (1, 2))
    monkeypatch.setattr(gpu, "MOST_ROWS", {"cpu": release.explainers["exact"].rows})
    every = ways(2, cuda=False)

    scores = gpu.scores(release, every, rows, rounds=2, seconds=0.0)
    explained = gpu.explanations(release, every, rows, rounds=2, seconds=0.0)

    assert list(scores) == ["CPU, 1 thread", "CPU, 2 threads", "torch on the CPU"]
    for sizes in scores.values():
        assert list(sizes) == [1, 64]
        assert all(len(figures["ms"]) == 2 and min(figures["ms"]) > 0 for figures in sizes.values())
    assert list(explained) == list(release.explainers)
    assert list(explained["exact"]["ways"]["CPU, 1 thread"]) == [1]
    assert list(explained["fast"]["ways"]["CPU, 1 thread"]) == [1, 2]
    told = page({"scores": scores, "explanations": explained, **gpu.circumstances(), "commit": "abc", "rounds": 2})
    assert "no GPU" in told
    assert told.count("| CPU, 1 thread |") == 1 + len(explained)


def test_what_cannot_be_run_says_so() -> None:
    refused = {"ms": [], "refused": "no such kernel"}
    good = {"ms": [2.0], "error": 1e-6}
    explained = {"fast": {"method": "shapley", "rows": 64, "ways": {"ORT": {1: {"explain": refused, "score": good}}}}}
    told = page({
        "scores": {"ORT": {1: good, 8: refused}}, "explanations": explained, "commit": "abc", "rounds": 1,
        **gpu.circumstances(),
    })  # fmt: skip

    assert "| ORT | 500 | not possible | 1e-06 |" in told
    assert "| ORT | not possible |  |" in told


def test_the_program_writes_its_page(models: Path, tmp_path: Path) -> None:
    """With sizes that a test can wait for."""
    small = "import loadtests.bench.gpu as gpu; gpu.SCORED, gpu.EXPLAINED = (1,), (1,); gpu.main()"
    options = ["--models", str(models), "--rounds", "1", "--seconds", "0", "--docs", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-c", small, *options],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert json.loads(run.stdout.splitlines()[-1])["gpu"] is None
    assert "# Performance on a GPU" in (tmp_path / "performance-gpu.md").read_text()
