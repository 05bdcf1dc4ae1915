"""Golden rows: inputs with the answers that every backend must give for them before it may answer anybody."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_client.contract import Contract, attribution_scale, discrepancy
from feature_client.errors import RapportError

INPUTS = ("numeric", "categorical")

SPLIT_UP = {"attributions": "base", "margin_attributions": "margin_base"}
"""Outputs that are parts of a whole, with what the whole has besides them."""

MAX_ROWS = 1_000
"""Every backend runs them all at load, in every worker."""

Tensors = Mapping[str, npt.NDArray[Any]]


class GoldenError(RapportError):
    """Golden rows that cannot be read, or answers that differ from theirs."""


@dataclass(frozen=True, eq=False)
class Golden:
    """tensors: numeric [rows, N], categorical [rows, K]. answers: what one graph of the release gives for them."""

    tensors: Tensors
    answers: Tensors

    def __len__(self) -> int:
        return len(self.answers["scores"])

    @classmethod
    def from_bytes(cls, content: bytes, contract: Contract, explainer: str | None) -> "Golden":
        """content: of golden.npz, as NumPy's `savez` writes it, with every answer under its `golden_name`.

        Raises GoldenError where it does not hold inputs and answers of 1 to MAX_ROWS rows, of the contract's shapes.
        """
        names = {output: golden_name(explainer, output) for output in contract.outputs(1, explainer)}
        arrays = {}
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as file:
                for name in (*INPUTS, *names.values()):
                    arrays[name] = _array(file, name)
        except GoldenError:
            raise
        except Exception as exc:  # zipfile and NumPy break on a file of somebody else in ways that share no base
            raise GoldenError(f"golden.npz cannot be read: {exc}") from exc
        scores = arrays[names["scores"]]
        rows = len(scores) if scores.ndim else 0
        if not 1 <= rows <= MAX_ROWS:
            raise GoldenError(f"golden.npz has {rows} rows, not 1 to {MAX_ROWS}")
        shapes: dict[str, tuple[int, ...]] = {
            "numeric": (rows, len(contract.schema.numeric)),
            "categorical": (rows, len(contract.schema.categorical)),
            **{names[output]: shape for output, shape in contract.outputs(rows, explainer).items()},
        }
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise GoldenError(f"golden.npz: {name} is {list(arrays[name].shape)}, not {list(shape)}")
        answers = {output: arrays[name] for output, name in names.items()}
        if not all(np.isfinite(values).all() for values in answers.values()):
            raise GoldenError("golden.npz: not all answers are finite")
        return cls({name: arrays[name] for name in INPUTS}, answers)

    def first(self, rows: int) -> "Golden":
        """The first `rows` of them: proof enough of what has proven all."""
        return Golden(*({name: array[:rows] for name, array in part.items()} for part in (self.tensors, self.answers)))

    def check(self, outputs: Tensors) -> None:
        """outputs: what a backend gave for `tensors`, of the right shapes. Raises GoldenError (NaN never passes)."""
        for name, values in outputs.items():
            size: npt.ArrayLike = 0.0
            if name in SPLIT_UP:
                size = attribution_scale(self.answers[name], self.answers[SPLIT_UP[name]])
            if not (discrepancy(values, self.answers[name], size) <= 1).all():
                raise GoldenError(f"{name} differ from the golden answers")


def golden_name(explainer: str | None, output: str) -> str:
    """What golden.npz calls an output of an explainer's graph, or of the score graph (None)."""
    return output if explainer is None else f"{explainer}.{output}"


def _array(file: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """One member. NumPy's own reader allocates whatever its header and its compression promise; here is what is there.

    Raises GoldenError, and whatever zipfile and NumPy raise.
    """
    entry = file.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise GoldenError("golden.npz is compressed")
    member = io.BytesIO(file.read(entry))
    if np.lib.format.read_magic(member) != (1, 0):
        raise GoldenError(f"golden.npz: {name} is of another format")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(member)
    if by_column or dtype != (np.int64 if name == "categorical" else np.float32):
        raise GoldenError(f"golden.npz: {name} is {dtype}, or in Fortran's order")
    return np.frombuffer(member.read(), dtype).reshape(shape)
