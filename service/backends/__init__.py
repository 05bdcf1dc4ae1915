"""What runs models: the protocol every backend keeps, and what can go wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[Any]]


class BackendUnavailable(Exception):
    """The backend did not answer, or does not have the model."""


class BadModelOutput(Exception):
    """The backend answered something that cannot be an answer: wrong name, shape or dtype, or not finite."""


class Backend(Protocol):
    async def load(self, name: str, directory: Path) -> str:
        """Makes model `name` (`engagement.3`, `engagement.3.explain`) ready.

        Returns the digest of the contract that the graph was exported with. Raises BackendUnavailable.
        """

    async def unload(self, name: str) -> None: ...

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        """Outputs by name, as the model gave them: whoever uses them checks them (`check_outputs`).

        Raises BackendUnavailable; TimeoutError after `timeout_s`.
        """

    async def close(self) -> None: ...


def check_outputs(name: str, outputs: Tensors, expected: Mapping[str, tuple[int, ...]]) -> None:
    """expected: output -> shape. Raises BadModelOutput where these outputs are not float32, of that shape, finite."""
    for output, shape in expected.items():
        values = outputs.get(output)
        if values is None or values.dtype != np.float32 or values.shape != shape:
            found = "missing" if values is None else f"{values.dtype} {list(values.shape)}"
            raise BadModelOutput(f"{name}: {output} is {found}, not float32 {list(shape)}")
        if not np.isfinite(values).all():
            raise BadModelOutput(f"{name}: {output} is not finite")
