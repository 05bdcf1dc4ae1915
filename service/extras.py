"""What a smaller installation leaves out, reached only where it is needed."""

from importlib import import_module
from typing import Any

from feature_client.errors import RapportError


def reach(module: str, extra: str) -> Any:
    """The module. Raises RapportError, naming `extra`, where something it imports is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as exc:
        raise RapportError(f"{exc.name} is not installed: pip install 'rapport[{extra}]'") from exc
