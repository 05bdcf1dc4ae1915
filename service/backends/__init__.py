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


CONTRACT_KEY = "rapport.contract"
"""Where a graph's metadata holds the digest of its contract."""


class Backend(Protocol):
    async def load(self, name: str, directory: Path) -> str:
        """Makes model `name` (`engagement.3`, `engagement.3.explain`) ready.

        Returns the digest of the contract that the graph was exported with. Raises BackendUnavailable.
        """

    async def unload(self, name: str) -> None: ...

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs by name, checked: float32, as many rows as the input, finite.

        Raises BackendUnavailable and BadModelOutput, TimeoutError after `timeout_s`.
        """

    async def close(self) -> None: ...


def checked(name: str, outputs: Mapping[str, npt.NDArray[Any]], rows: int) -> dict[str, npt.NDArray[np.float32]]:
    """The outputs, where they can be an answer for `rows` rows. Raises BadModelOutput."""
    for output, values in outputs.items():
        if values.dtype != np.float32 or values.ndim == 0 or values.shape[0] != rows:
            raise BadModelOutput(f"{name}: {output} is {values.dtype} {list(values.shape)} for {rows} rows")
        if not np.isfinite(values).all():
            raise BadModelOutput(f"{name}: {output} is not finite")
    return dict(outputs)
