"""The graphs of a release as files, run by ONNX Runtime in this process. Imports nothing that a GPU machine lacks."""

import json
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession, SessionOptions

MODEL = "engagement"
INPUTS = ("numeric", "categorical")
FAST, EXACT = "fast", "exact"
Tensors = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]


class MissingGraph(Exception):
    """A release without a graph that a row is about."""


@dataclass(frozen=True)
class Explainer:
    """One explanation graph. rows: of the network, for each customer. error: what the contract states, worst task."""

    name: str
    file: Path
    method: str
    rows: int
    error: float
    by_feature: bool

    @property
    def asked(self) -> Mapping[str, object]:
        """The fields of a request that this graph answers: the cheapest one that is exact enough does."""
        if self.by_feature:
            return {"detail": "features"}
        return {} if self.name == FAST else {"tolerance": self.error}


@dataclass(frozen=True)
class Released:
    """directory: of the champion."""

    directory: Path

    @cached_property
    def contract(self) -> Mapping[str, Any]:
        return dict(json.loads((self.directory / "contract.json").read_bytes()))

    @property
    def tasks(self) -> list[str]:
        return [task["name"] for task in self.contract["tasks"]]

    @property
    def groups(self) -> list[str]:
        return list(self.contract["schema"]["groups"])

    @property
    def group_of(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Input, or `features` for all in the order of the schema -> the group of each column, as a position."""
        features = self.contract["schema"]["features"]
        of = {
            "numeric": [feature for feature in features if feature["kind"] != "category"],
            "categorical": [feature for feature in features if feature["kind"] == "category"],
            "features": features,
        }
        return {name: np.array([self.groups.index(one["group"]) for one in columns]) for name, columns in of.items()}

    @property
    def score_file(self) -> Path:
        return self.directory / "1/model.onnx"

    @cached_property
    def explainers(self) -> Mapping[str, Explainer]:
        """Those whose graphs are there, the default one first. Raises MissingGraph where that is not."""
        found = {}
        for name, stated in self.contract["explanation"]["explainers"].items():
            suffix = "explain" if name == FAST else f"explain_{name}"
            file = self.directory.with_name(f"{self.directory.name}.{suffix}") / "1/model.onnx"
            if file.exists():
                error = max(stated["error"]["scores"].values())
                found[name] = Explainer(name, file, stated["method"], stated["rows"], error, stated["by_feature"])
        if FAST not in found:
            raise MissingGraph(f"{self.directory.name} has no explanation graph")
        return found

    def explainer(self, name: str) -> Explainer:
        """Raises MissingGraph."""
        if name not in self.explainers:
            raise MissingGraph(f"{self.directory.name} has no graph of {name} explanations")
        return self.explainers[name]


def champion(models: Path) -> Path:
    """The directory of the release that a model repository's route names."""
    routes = tomllib.loads((models / "routes.toml").read_text())
    return (models / f"{MODEL}.{routes[MODEL]['champion']}").absolute()


def session(file: Path, threads: int = 1) -> InferenceSession:
    options = SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return InferenceSession(file, options, providers=["CPUExecutionProvider"])


def read_rows(path: Path) -> Tensors:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in INPUTS}


def first(rows: Tensors, count: int) -> Tensors:
    return {name: values[:count] for name, values in rows.items()}


def repeated(rows: Tensors, size: int) -> Tensors:
    """The first `size` rows, over again from the first where there are fewer."""
    at = np.arange(size) % len(rows["numeric"])
    return {name: values[at] for name, values in rows.items()}


def cpu_ms(call: Callable[[], object], seconds: float, least: int = 3) -> float:
    """Median CPU time of this thread a call, over as many calls as take `seconds` of it, `least` at least.

    Not the time of a clock: on a busy machine that is also the time of others.
    """
    call()  # warm
    took: list[float] = []
    while len(took) < least or sum(took) < seconds:
        started = time.thread_time()
        call()
        took.append(time.thread_time() - started)
    return float(np.median(took)) * 1e3
