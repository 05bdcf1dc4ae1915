"""One tiny model, really trained and exported, for all tests of this package."""

import shutil
from pathlib import Path

import pytest
import torch

from feature_client.release import Release, graph_file
from model_export.attribution import ExplainedNetwork
from model_export.network import Network
from model_export.pipeline import Run
from model_export.rows import Dataset
from model_export.verify import Graphs
from tests.model_export.tiny_release import build_tiny_release, tiny_dataset, tiny_run


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return tiny_dataset()


@pytest.fixture(scope="session")
def run() -> Run:
    return tiny_run()


@pytest.fixture(scope="session")
def network(run: Run) -> Network:
    network = Network(run.contract.schema, run.contract.tasks)
    network.load_state_dict(dict(run.weights))
    return network.eval()


@pytest.fixture(scope="session")
def explained(run: Run, network: Network) -> dict[str, ExplainedNetwork]:
    schema, explainers = run.contract.schema, run.contract.explanation.explainers
    return {name: run.explained.graph(network, schema, name) for name in explainers}


@pytest.fixture(scope="session")
def pristine(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A published release that no test changes."""
    return build_tiny_release(tmp_path_factory.mktemp("pristine") / "models", run)


@pytest.fixture
def release(pristine: Release, tmp_path: Path) -> Release:
    """A copy of it to damage."""
    root = shutil.copytree(pristine.root, tmp_path / "models")
    return Release(Path(root), pristine.manifest, pristine.contract)


@pytest.fixture
def graphs(network: Network, explained: dict[str, ExplainedNetwork], pristine: Release) -> Graphs:
    files = {name: graph_file(pristine.root / pristine.graph_name(name)) for name in explained}
    return Graphs(network, graph_file(pristine.directory), explained, files)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)
