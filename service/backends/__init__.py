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
    async def load(self, name: str, directory: Path) -> None:
        """Makes model `name` (`engagement.3`, `engagement.3.explain`) ready. Raises BackendUnavailable."""

    async def unload(self, name: str) -> None: ...

    async def infer(self, name: str, tensors: Tensors, timeout_s: float) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs by name, checked: float32, as many rows as the input, finite.

        Raises BackendUnavailable and BadModelOutput, TimeoutError after `timeout_s`.
        """

    async def close(self) -> None: ...
