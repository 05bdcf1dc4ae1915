"""A Triton for the rows: started by the `rapport` command, sent graphs as a gateway sends them, asked what it has."""

import copy
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferenceServerClient, InferInput  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException, np_to_triton_dtype  # type: ignore[import-untyped]

from loadtests.answers import ATOL, RTOL, WrongAnswer
from loadtests.bench.explainers import INPUTS, champion
from loadtests.bench.home import RAPPORT, STOP_TIMEOUT_S, Home, rapport
from loadtests.bench.servers import ServerError, free_port, pinned

TIMEOUT_S = 30.0
Config = Mapping[str, Any]
Golden = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Graph:
    """What Triton runs under a name: config is its ModelConfig, content the graph's bytes."""

    name: str
    version: str
    config: Config
    content: bytes

    def varied(self, changes: Config, name: str | None = None) -> "Graph":
        """changes: fields of its ModelConfig, None takes one away."""
        config = {**copy.deepcopy(dict(self.config)), **changes, "name": name or self.name}
        kept = {field: value for field, value in config.items() if value is not None}
        return replace(self, name=name or self.name, config=kept)


@dataclass(frozen=True)
class Triton:
    """address: host:port of its gRPC. http: its URL, where it was asked for."""

    address: str
    http: str

    @cached_property
    def client(self) -> Any:
        return InferenceServerClient(self.address)

    def graph(self, name: str, file: Path) -> Graph:
        """What is loaded under this name, whoever loaded it. file: its graph. Raises ServerError."""
        try:
            [version] = self.client.get_model_metadata(name).versions
            config = self.client.get_model_config(name, as_json=True)["config"]
        except (InferenceServerException, ValueError) as exc:
            raise ServerError(f"Triton does not have {name} in one version: {exc}") from exc
        return Graph(name, version, config, file.read_bytes())

    def load(self, graph: Graph) -> None:
        """Whatever was loaded under that name goes first: Triton takes a load with the same config for done.

        Raises ServerError.
        """
        try:
            self.client.unload_model(graph.name)
            files = {f"file:{graph.version}/model.onnx": graph.content}
            self.client.load_model(graph.name, config=json.dumps(graph.config), files=files)
        except InferenceServerException as exc:
            raise ServerError(f"Triton does not take {graph.name} as it was varied: {exc}") from exc

    def check(self, graph: Graph, golden: Golden) -> None:
        """Golden rows, one a request, get the golden answers. Raises WrongAnswer, ServerError."""
        for row in range(len(golden["scores"])):
            inputs = [infer_input(name, golden[name][row : row + 1]) for name in INPUTS]
            try:
                answer = self.client.infer(graph.name, inputs, graph.version, client_timeout=TIMEOUT_S)
            except InferenceServerException as exc:
                raise ServerError(f"Triton does not answer {graph.name}: {exc}") from exc
            expected, given = golden["scores"][row : row + 1], answer.as_numpy("scores")
            # Written so that NaN never passes; and an empty answer is of another shape.
            if given.shape != expected.shape or not (abs(given - expected) <= ATOL + RTOL * abs(expected)).all():
                raise WrongAnswer(f"Triton answers golden row {row} of {graph.name} with other scores")


@contextmanager
def running(home: Home, core: int | None = None, *, http: bool = False) -> Iterator[Triton]:
    """A tritonserver with nothing loaded, until the block ends. core: None lets it use all of them.

    http: on a port of its own, too. Raises PreparationError, ServerError.
    """
    installed()
    port = free_port()
    directory = tempfile.mkdtemp(prefix="triton-", dir=home.scratch)
    command = [*RAPPORT, "triton", "serve", directory, *(["--http-port", str(port)] if http else [])]
    process = subprocess.Popen(  # noqa: S603  (our own command)
        pinned(command, core), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None  # noqa: S101  (it is a pipe)
        address = process.stdout.readline().strip()
        if not address:
            raise ServerError(f"no tritonserver: `rapport triton serve` ended with {process.wait()}")
        yield Triton(address, f"http://127.0.0.1:{port}" if http else "")
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def installed() -> Path:
    """Where Triton is; installs it the first time (minutes). Raises PreparationError, which says why it cannot be."""
    return Path(rapport("triton", "install").strip())


def release(home: Home) -> Path:
    """The directory of the champion."""
    return champion(home.models)


def golden_rows(directory: Path) -> Golden:
    """Inputs of a release and their scores: [rows, ...] each."""
    with np.load(directory / "golden.npz", allow_pickle=False) as file:
        return {name: file[name] for name in (*INPUTS, "scores")}


def on(triton: Triton, home: Home, **settings: object) -> Home:
    """The same, with gateways that run on this Triton. settings: RAPPORT_* in small letters, without the prefix."""
    named = {f"RAPPORT_{name.upper()}": str(value) for name, value in settings.items()}
    return replace(
        home, settings={**home.settings, "RAPPORT_BACKEND": "triton", "RAPPORT_TRITON": triton.address, **named}
    )


def infer_input(name: str, tensor: npt.NDArray[Any]) -> Any:
    put = InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
    put.set_data_from_numpy(np.ascontiguousarray(tensor))
    return put
