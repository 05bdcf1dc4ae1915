"""Scores for ready-made input tensors, which no feature store is asked for: the path of /v2 beside Predictor's."""

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from feature_client.contract import EXPLAINERS
from feature_client.golden import Tensors
from feature_client.schema import FeatureSchema
from service.admission import Admission
from service.asker import Asker
from service.backends import Backend, check_outputs
from service.coalescer import Run
from service.errors import DeadlineExceeded, InvalidRequest
from service.explainers import weight_of
from service.metrics import Metrics
from service.oip_body import Input
from service.protocol import MAX_ENTITIES, MAX_EXPLAINED
from service.queues import Limits, Queues
from service.releases import Loaded, Releases

STATUS = "tensors"
"""Of such rows in rapport_predictions_total: whether they are anybody's is not known."""


class TensorRows(msgspec.Struct, frozen=True):
    """numeric [rows, N] float32, categorical [rows, K] int64."""

    tensors: Tensors

    def __len__(self) -> int:
        return len(self.tensors["numeric"])

    def part(self, rows: slice) -> "TensorRows":
        return TensorRows({name: values[rows] for name, values in self.tensors.items()})


class Inferred(msgspec.Struct, frozen=True):
    outputs: Tensors
    seconds: float


def max_rows(explainer: str | None) -> int:
    return MAX_ENTITIES if explainer is None else MAX_EXPLAINED


def tensor_rows(schema: FeatureSchema, inputs: Mapping[str, Input], most: int) -> TensorRows:
    """What the graph may be asked: NaN is a missing number, categories are indices of their vocabularies.

    Raises InvalidRequest, InvalidJson.
    """
    numeric = inputs["numeric"].floats(len(schema.numeric), most)
    categorical = inputs["categorical"].integers(len(schema.categorical), most)
    if len(numeric) != len(categorical):
        raise InvalidRequest("numeric and categorical have not as many rows")
    # ONNX takes a negative index as one from the end: a wrong score that nobody would see.
    beyond = np.array([len(feature.vocabulary) + 2 for feature in schema.categorical])
    wrong = (categorical < 0) | (categorical >= beyond)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise InvalidRequest(f"categorical[{row}, {column}]: indices are 0 to {beyond[column] - 1}")
    return TensorRows({"numeric": numeric, "categorical": categorical})


class TensorScorer:
    """A queue for each graph: rows that wait for it at the same time are inferred together."""

    def __init__(
        self, releases: Releases, backend: Backend, admission: Admission, metrics: Metrics, limits: Limits
    ) -> None:
        self.backend = backend
        self.admission = admission
        self.metrics = metrics
        self.queues = Queues(releases, limits, self._inferring)

    async def score(self, loaded: Loaded, rows: TensorRows, asker: Asker, explainer: str | None) -> Tensors:
        """The outputs of the graph for these rows. Raises the errors of service/errors.py."""
        contract = loaded.release.contract
        lane = "predict" if explainer is None else "explain"
        weight = len(rows) * (1 if explainer is None else weight_of(contract, explainer))
        asker.model, asker.rows = contract.model, len(rows)
        row_s = 0.0 if explainer is None else loaded.paces[EXPLAINERS[0]].row_s
        self.admission.enter(lane, weight, row_s, asker.deadline)
        try:
            admitted = time.monotonic()
            asker.stages["admit"] = admitted - asker.since
            parts = await self.queues.of(loaded, explainer).submit(rows, asker)
        finally:
            self.admission.leave(lane, weight)
        asker.since = time.monotonic()
        asker.stages["infer"] = sum(part.seconds for part in parts)
        # The slices of a large request overlap: together they may take longer than it waited.
        asker.stages["queue"] = max(asker.since - admitted - asker.stages["infer"], 0.0)
        if len(parts) == 1:
            return parts[0].outputs
        return {name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs}

    def close(self) -> None:
        self.queues.close()

    def _inferring(self, loaded: Loaded, explainer: str | None) -> Run[TensorRows, Inferred]:
        async def infer(
            batch: Sequence[TensorRows], seconds: float, has_read: Callable[[], None]
        ) -> list[Inferred | Exception]:
            has_read()
            return await self._infer(loaded, explainer, batch, seconds)

        return infer

    async def _infer(
        self, loaded: Loaded, explainer: str | None, batch: Sequence[TensorRows], seconds: float
    ) -> list[Inferred | Exception]:
        started = time.monotonic()
        contract, rows = loaded.release.contract, sum(map(len, batch))
        name = loaded.release.graph_name(explainer)
        self.metrics.batch("infer", rows)
        tensors = batch[0].tensors
        if len(batch) > 1:
            tensors = {key: np.concatenate([part.tensors[key] for part in batch]) for key in tensors}
        try:
            outputs = await self.backend.infer(name, tensors, max(seconds, 0.0))
        except TimeoutError as exc:
            raise DeadlineExceeded from exc
        expected = contract.outputs(rows, explainer)
        check_outputs(name, outputs, expected)
        scores = outputs["scores"]
        # Their scores are not among those that tell how customers score.
        self.metrics.predictions(
            contract, loaded.release.version, [STATUS] * rows, scores, np.zeros(scores.shape, bool)
        )
        spent = time.monotonic() - started
        answers: list[Inferred | Exception] = []
        first = 0
        for part in batch:
            own = slice(first, first + len(part))
            answers.append(Inferred({key: outputs[key][own] for key in expected}, spent))
            first = own.stop
        return answers
