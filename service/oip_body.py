"""The bodies of the Open Inference Protocol: JSON, with tensors in it or, by the binary extension, behind it.

Nothing here knows a model: what is read is bytes that agree with what the JSON says of them.
"""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from service.bodies import decode
from service.errors import InvalidRequest
from service.oip_protocol import InferRequest, InferResponse, InputTensor, OutputTensor, Parameters, RequestedOutput

NUMPY_TYPES: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8"), "BOOL": np.dtype("?")}
FLOAT32_MAX = float(np.finfo(np.float32).max)

NESTED = re.compile(rb"\s*\[\s*\[")

T = TypeVar("T")

REQUEST = msgspec.json.Decoder(InferRequest)
FLOATS = msgspec.json.Decoder(list[float | None]), msgspec.json.Decoder(list[list[float | None]])
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
INTEGERS = msgspec.json.Decoder(list[Int64]), msgspec.json.Decoder(list[list[Int64]])
TEXTS = msgspec.json.Decoder(list[str]), msgspec.json.Decoder(list[list[str]])


@dataclass(frozen=True)
class Input:
    """One input as it was sent. binary: its data from behind the JSON; None where it is in the JSON."""

    tensor: InputTensor
    binary: bytes | None

    def floats(self, columns: int, max_rows: int) -> npt.NDArray[np.float32]:
        """[rows, columns], NaN where there is no number. Raises InvalidRequest, InvalidJson."""
        rows = self._rows("FP32", columns, max_rows)
        if self.binary is not None:
            values = self._binary(NUMPY_TYPES["FP32"], rows, columns).astype(np.float32)
            wrong = np.isinf(values)
        else:
            # None becomes NaN.
            exact = np.array(self._listed(FLOATS, rows, columns), dtype=np.float64).reshape(rows, columns)
            wrong = np.abs(exact) > FLOAT32_MAX
            with np.errstate(over="ignore"):
                values = exact.astype(np.float32)
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            raise InvalidRequest(f"{self.tensor.name}[{row}, {column}]: not a finite number of float32")
        return values

    def integers(self, columns: int, max_rows: int) -> npt.NDArray[np.int64]:
        """[rows, columns]. Raises InvalidRequest, InvalidJson."""
        rows = self._rows("INT64", columns, max_rows)
        if self.binary is not None:
            return self._binary(NUMPY_TYPES["INT64"], rows, columns).astype(np.int64)
        return np.array(self._listed(INTEGERS, rows, columns), dtype=np.int64).reshape(rows, columns)

    def texts(self, max_rows: int) -> list[str]:
        """One a row, of shape [rows] or [rows, 1]. Raises InvalidRequest, InvalidJson."""
        rows = self._rows("BYTES", 1, max_rows, flat=True)
        if self.binary is not None:
            return list(_texts(self.tensor.name, self.binary, rows))
        return self._listed(TEXTS, rows, 1)

    def _rows(self, datatype: str, columns: int, max_rows: int, *, flat: bool = False) -> int:
        tensor = self.tensor
        if tensor.datatype != datatype:
            raise InvalidRequest(f"{tensor.name}: its datatype is {datatype}")
        rows, *rest = tensor.shape
        if rest != [columns] and not (flat and not rest):
            raise InvalidRequest(f"{tensor.name}: its shape is [rows, {columns}]{' or [rows]' if flat else ''}")
        if not 1 <= rows <= max_rows:
            raise InvalidRequest(f"{tensor.name}: 1 to {max_rows} rows")
        return rows

    def _binary(self, dtype: np.dtype[Any], rows: int, columns: int) -> npt.NDArray[Any]:
        binary = self.binary or b""
        if len(binary) != rows * columns * dtype.itemsize:
            raise InvalidRequest(f"{self.tensor.name}: binary_data_size is not what its shape takes")
        return np.frombuffer(binary, dtype).reshape(rows, columns)

    def _listed(
        self,
        decoders: tuple[msgspec.json.Decoder[list[T]], msgspec.json.Decoder[list[list[T]]]],
        rows: int,
        columns: int,
    ) -> list[T]:
        """The values of the JSON, in one list."""
        name, data = self.tensor.name, bytes(self.tensor.data)
        flat, nested = decoders
        try:
            if NESTED.match(data) and len(self.tensor.shape) == 2:
                lists = decode(data, nested)
                uneven = any(len(values) != columns for values in lists)
                listed = [value for values in lists for value in values]
            else:
                listed, uneven = decode(data, flat), False
        except InvalidRequest as exc:
            raise InvalidRequest(f"{name}: {exc}") from exc
        if uneven or len(listed) != rows * columns:
            raise InvalidRequest(f"{name}: not as many values as its shape says")
        return listed


@dataclass(frozen=True)
class Question:
    """An infer request, read. outputs: name -> whether it is to be binary; none where all are wanted.

    model, version: which it believes to ask, where it says so. timeout_s: how long the client is willing to wait.
    """

    id: str | None
    inputs: Mapping[str, Input]
    outputs: Mapping[str, bool]
    binary_outputs: bool
    model: str | None
    version: str | None
    timeout_s: float | None

    def wanted(self, available: Sequence[str]) -> Mapping[str, bool]:
        """Output -> whether it is to be binary, in the order of the answer. Raises InvalidRequest."""
        for position, name in enumerate(self.outputs):
            if name not in available:
                raise InvalidRequest(f"outputs[{position}]: what was asked has {', '.join(available)}")
        return self.outputs or dict.fromkeys(available, self.binary_outputs)


def read_question(body: bytes, header: bytes | None) -> Question:
    """header: Inference-Header-Content-Length, how much of the body is JSON; None for all.

    Raises InvalidJson, InvalidRequest.
    """
    size = len(body)
    if header is not None:
        if not (header.isdigit() and len(header) <= 9 and int(header) <= len(body)):
            raise InvalidRequest("Inference-Header-Content-Length is not the length of a part of the body")
        size = int(header)
    request = decode(body[:size], REQUEST)
    parameters = request.parameters or {}
    if parameters.get("sequence_id", 0) not in (0, "", None):
        raise InvalidRequest("parameters.sequence_id: no model here keeps a state between requests")
    return Question(
        id=request.id,
        inputs=_inputs(request.inputs, body[size:], has_header=header is not None),
        outputs=_outputs(request.outputs, binary := _flag(parameters, "binary_data_output", "parameters") or False),
        binary_outputs=binary,
        model=request.model_name or None,
        version=request.model_version or None,
        timeout_s=_timeout_s(parameters),
    )


def _inputs(tensors: Sequence[InputTensor], rest: bytes, *, has_header: bool) -> Mapping[str, Input]:
    """rest: what is behind the JSON, the binary data of the inputs in their order."""
    inputs: dict[str, Input] = {}
    taken = 0
    for position, tensor in enumerate(tensors):
        where = f"inputs[{position}]"
        parameters = tensor.parameters or {}
        _refuse_shared_memory(parameters, where)
        binary = None
        if (size := parameters.get("binary_data_size")) is not None:
            if not has_header:
                raise InvalidRequest(f"{where}: binary data needs the header Inference-Header-Content-Length")
            if tensor.data:
                raise InvalidRequest(f"{where}: either data or binary_data_size")
            if type(size) is not int or not 0 <= size <= len(rest) - taken:
                raise InvalidRequest(f"{where}: binary_data_size is more than what is left of the body, or no size")
            binary = rest[taken : taken + size]
            taken += size
        elif not tensor.data:
            raise InvalidRequest(f"{where}: data is missing")
        if tensor.name in inputs:
            raise InvalidRequest(f"{where}: an input that was there before")
        inputs[tensor.name] = Input(tensor, binary)
    if taken < len(rest):
        raise InvalidRequest("the body goes on behind the data of the last input")
    return inputs


def _outputs(requested: Sequence[RequestedOutput] | None, binary: bool) -> Mapping[str, bool]:  # noqa: FBT001
    outputs: dict[str, bool] = {}
    for position, output in enumerate(requested or ()):
        where = f"outputs[{position}]"
        parameters = output.parameters or {}
        _refuse_shared_memory(parameters, where)
        if parameters.get("classification", 0) != 0:
            raise InvalidRequest(f"{where}: classification is not offered; scores are what they are")
        if output.name in outputs:
            raise InvalidRequest(f"{where}: an output that was there before")
        wanted = _flag(parameters, "binary_data", where)
        outputs[output.name] = binary if wanted is None else wanted
    return outputs


def _refuse_shared_memory(parameters: Parameters, where: str) -> None:
    if "shared_memory_region" in parameters:
        raise InvalidRequest(f"{where}: shared memory is not offered")


def _flag(parameters: Parameters, name: str, where: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{where}: {name} is true or false")
    return value


def _timeout_s(parameters: Parameters) -> float | None:
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise InvalidRequest("parameters.timeout: whole microseconds")
    # Triton's: none.
    return timeout / 1e6 if timeout else None


def _texts(name: str, binary: bytes, rows: int) -> Iterator[str]:
    """Each with its length in front, in four bytes."""
    at = 0
    for row in range(rows):
        begins = at + 4
        if begins > len(binary):
            raise InvalidRequest(f"{name}: binary data for fewer rows than its shape says")
        (length,) = struct.unpack_from("<I", binary, at)
        at = begins + length
        if at > len(binary):
            raise InvalidRequest(f"{name}[{row}]: longer than what is left of the binary data")
        try:
            yield binary[begins:at].decode()
        except UnicodeDecodeError as exc:
            raise InvalidRequest(f"{name}[{row}]: not UTF-8") from exc
    if at < len(binary):
        raise InvalidRequest(f"{name}: binary data for more rows than its shape says")


@dataclass(frozen=True)
class Output:
    """values: [rows, ...] of FP32 or BOOL, or one string a row."""

    name: str
    datatype: str
    values: npt.NDArray[Any] | list[str]

    def as_json(self) -> OutputTensor:
        # Row by row in one list; msgspec writes NaN as null.
        listed = self.values if isinstance(self.values, list) else self.values.ravel().tolist()
        return OutputTensor(self.name, self._shape, self.datatype, data=listed)

    def as_binary(self) -> tuple[OutputTensor, bytes]:
        if isinstance(self.values, list):
            encoded = [text.encode() for text in self.values]
            data = b"".join([part for text in encoded for part in (struct.pack("<I", len(text)), text)])
        else:
            data = self.values.astype(NUMPY_TYPES[self.datatype]).tobytes()
        return OutputTensor(self.name, self._shape, self.datatype, parameters={"binary_data_size": len(data)}), data

    @property
    def _shape(self) -> list[int]:
        return [len(self.values)] if isinstance(self.values, list) else list(self.values.shape)


def write_answer(
    response: InferResponse, outputs: Sequence[Output], wanted: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """The body, with the outputs that are wanted, and how much of it is JSON where that is not all."""
    by_name = {output.name: output for output in outputs}
    behind: list[bytes] = []
    for name, binary in wanted.items():
        if binary:
            tensor, data = by_name[name].as_binary()
            behind.append(data)
        else:
            tensor = by_name[name].as_json()
        response.outputs.append(tensor)
    head = msgspec.json.encode(response)
    return b"".join([head, *behind]), len(head) if any(wanted.values()) else None
