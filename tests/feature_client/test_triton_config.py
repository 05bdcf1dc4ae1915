"""Every configuration of a release, loaded into the real server."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2  # type: ignore[import-untyped]

from feature_client.contract import CONTRACT_KEY, ENTITIES_AT_ONCE_KEY
from feature_client.release import Release, ReleaseGraph
from feature_client.triton_config import EXPLAIN_MAX_ROWS, SCORE_MAX_ROWS, config_json
from model_export.pipeline import Run, publish_run, train_run
from model_export.rows import Dataset, Rows
from service.local_triton import LocalTriton
from service.triton_install import find
from tests.model_export.tiny_release import LIGHT, build_tiny_release, tiny_dataset
from tests.triton_calls import connected, infer, loaded


def numbers_only() -> Run:
    """A model whose contract has no category."""
    full = tiny_dataset(rows=1_200)
    features = tuple(feature for feature in full.schema.features if feature.kind != "category")
    used = {feature.group for feature in features}
    groups = {group: label for group, label in full.schema.groups.items() if group in used}

    def without(rows: Rows) -> Rows:
        return replace(rows, categorical=rows.categorical[:, :0])

    dataset = Dataset(
        replace(full.schema, features=features, groups=groups), full.tasks,
        without(full.train), without(full.validation), without(full.test), full.about, full.digest,
    )  # fmt: skip
    return train_run(dataset, epochs=1, settings=LIGHT)


@pytest.fixture(scope="module", params=["categories", "numbers only"])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Release:
    root = tmp_path_factory.mktemp("config") / "models"
    return build_tiny_release(root) if request.param == "categories" else publish_run(numbers_only(), root)


@pytest.fixture(scope="module")
def plain(release: Release, triton: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """A Triton that reads the repository itself, as one without a gateway does."""
    with LocalTriton(tmp_path_factory.mktemp("plain"), models=release.root, installation=find()) as server:
        yield server


def from_text(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def from_json(text: str) -> Any:
    return json_format.Parse(text, model_config_pb2.ModelConfig())


def test_what_the_repository_says_loads_and_gives_the_golden_answers(release: Release, plain: LocalTriton) -> None:
    with connected(plain.address) as client:
        for graph in release.graphs():
            client.load_model(graph.name)
            graph.golden.check(infer(client, graph, graph.golden.tensors))
            client.unload_model(graph.name)


def test_what_a_gateway_sends_loads_and_gives_the_golden_answers(release: Release, triton: LocalTriton) -> None:
    for graph in release.graphs():
        with loaded(triton.address, graph) as client:
            graph.golden.check(infer(client, graph, graph.golden.tensors))


def test_both_say_the_same(release: Release) -> None:
    for graph in release.graphs():
        assert from_json(config_json(graph)) == from_text(graph.config.read_text())


def test_triton_reports_what_it_was_told(release: Release, triton: LocalTriton) -> None:
    for graph in release.graphs():
        with loaded(triton.address, graph) as client:
            config = client.get_model_config(graph.name).config
            # Each is named after its model; those of models that were just unloaded may still be on their way out.
            words = [
                w for pid in triton.python_processes() for w in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            ]
            assert len({word for word in words if re.fullmatch(rf"{re.escape(graph.name)}(_\d+)+", word)}) == 1

        assert config.parameters[CONTRACT_KEY].string_value == release.contract.digest
        explained = {
            key: int(value.string_value) for key, value in config.parameters.items() if key == ENTITIES_AT_ONCE_KEY
        }
        if graph.explainer is None:
            assert explained == {}
        else:
            cost = release.contract.explanation.explainers[graph.explainer]
            assert explained == {ENTITIES_AT_ONCE_KEY: cost.entities_at_once}
        assert config.max_batch_size == (EXPLAIN_MAX_ROWS if graph.explains else SCORE_MAX_ROWS)
        assert list(config.version_policy.specific.versions) == [1]
        assert [set(warm.inputs) for warm in config.model_warmup] == [{"numeric", "categorical"}] * 2
        assert max(warm.batch_size for warm in config.model_warmup) <= config.max_batch_size
        [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})


@pytest.mark.parametrize(("gpu", "kind"), [(None, "KIND_AUTO"), (False, "KIND_CPU"), (True, "KIND_GPU")])
def test_instances_and_where_they_run_are_said(release: Release, *, gpu: bool | None, kind: str) -> None:
    for graph in release.graphs():
        [group] = from_json(config_json(graph, instances=3, gpu=gpu)).instance_group
        assert (group.count, group.Kind.Name(group.kind)) == (3, kind)


def test_no_configuration_has_a_queue_policy(release: Release) -> None:
    """Triton 2.51 answers some requests 500 ms late where there is one, whatever it says."""

    def policies(config: Any) -> list[str]:
        return [field.name for field, _ in config.dynamic_batching.ListFields()]

    def made(graph: ReleaseGraph) -> Iterator[Any]:
        yield from_text(graph.config.read_text())
        for gpu in (None, False, True):
            for instances in (1, 4):
                yield from_json(config_json(graph, instances=instances, gpu=gpu))

    planted = "dynamic_batching { default_queue_policy { max_queue_size: 8 } }"
    assert policies(from_text(planted)) == ["default_queue_policy"]
    for graph in release.graphs():
        for config in made(graph):
            assert config.HasField("dynamic_batching")
            assert policies(config) == []


def test_a_gateway_can_send_to_a_triton_that_has_the_repository(release: Release, plain: LocalTriton) -> None:
    """What it sent is what runs, not what the directory holds."""
    graph = release.graphs()[0]
    with loaded(plain.address, graph, {"max_batch_size": 100}) as client:
        assert client.get_model_config(graph.name).config.max_batch_size == 100
        graph.golden.check(infer(client, graph, graph.golden.tensors))
