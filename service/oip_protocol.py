"""The JSON of the Open Inference Protocol at /v2. Changing this file changes the public API."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Parameters = dict[str, bool | int | float | str | None]


class InputTensor(msgspec.Struct, forbid_unknown_fields=True):
    """data: row by row, in one list or in one a row; null is NaN.

    parameters: `binary_data_size` where the data is behind the JSON.
    """

    name: str
    shape: Annotated[list[int], Meta(min_length=1, max_length=2)]
    datatype: str
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    parameters: Parameters | None = None


class RequestedOutput(msgspec.Struct, forbid_unknown_fields=True):
    """parameters: `binary_data`, whether this output is to be binary."""

    name: str
    parameters: Parameters | None = None


class InferRequest(msgspec.Struct, forbid_unknown_fields=True):
    """parameters: `binary_data_output`, whether all outputs are to be binary; `timeout` in microseconds.

    model_name, model_version: what some clients repeat of the path.
    """

    inputs: Annotated[list[InputTensor], Meta(min_length=1, max_length=16)]
    outputs: Annotated[list[RequestedOutput], Meta(max_length=16)] | None = None
    id: Annotated[str, Meta(max_length=256)] | None = None
    parameters: Parameters | None = None
    model_name: str | None = None
    model_version: str | None = None


class OutputTensor(msgspec.Struct, omit_defaults=True):
    """data: row by row, null for NaN. parameters: `binary_data_size` where the data is behind the JSON."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters | None = None


class InferResponse(msgspec.Struct, omit_defaults=True):
    """model_version: left out where several versions answered. parameters: `as_of`, where features were read."""

    model_name: str
    outputs: list[OutputTensor]
    model_version: str | None = None
    id: str | None = None
    parameters: Parameters | None = None


class ServerMetadata(msgspec.Struct):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct):
    """shape: -1 is any number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """parameters: `columns`, the names of the tensors' columns, where those of a category have one for each index (0 is
    missing, 1 in no vocabulary); `instead_of_tensors`, the inputs that may stand in their place, with the outputs that
    then come on top; `max_rows`.
    """

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Any]
