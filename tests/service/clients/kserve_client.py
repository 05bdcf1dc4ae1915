"""Asks a gateway with KServe's own client, in a Python of its own, and writes what it got as JSON.

python kserve_client.py URL, with the key, the customers and the tensors to ask for on standard input.
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np
from httpx import HTTPStatusError
from kserve import (  # type: ignore[import-not-found]
    InferenceRESTClient,
    InferInput,
    InferRequest,
    InferResponse,
    RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput  # type: ignore[import-not-found]


def tensor(name: str, datatype: str, array: Any, *, binary: bool) -> InferInput:
    given = InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def listed(response: InferResponse) -> dict[str, Any]:
    outputs = {output.name: output.as_numpy().tolist() for output in response.outputs}
    return json.loads(json.dumps(outputs, default=lambda text: text.decode()))  # type: ignore[no-any-return]


async def main(url: str, question: dict[str, Any]) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    headers = {"Authorization": f"Bearer {question['key']}"}
    found: dict[str, Any] = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "engagement", headers=headers),
    }

    async def ask(inputs: list[InferInput], model: str = "engagement", **more: Any) -> dict[str, Any]:
        # It writes into the headers that it is given.
        response = await client.infer(url, InferRequest(model, inputs, **more), model_name=model, headers={**headers})
        return listed(response)

    numeric = np.array(question["numeric"], np.float32)
    categorical = np.array(question["categorical"], np.int64)
    customers = np.array(question["customers"], object)
    for name, binary in (("json", False), ("binary", True)):
        # NaN is no JSON.
        numbers = numeric if binary else np.nan_to_num(numeric)
        inputs = [
            tensor("numeric", "FP32", numbers, binary=binary),
            tensor("categorical", "INT64", categorical, binary=binary),
        ]
        found[f"tensors, {name}"] = await ask(inputs, parameters={"binary_data_output": binary})
        by_id = [tensor("customer_id", "BYTES", customers, binary=binary)]
        found[f"ids, {name}"] = await ask(by_id)
        found[f"explained, {name}"] = await ask(by_id, "engagement.explain")
    some = [RequestedOutput("status"), RequestedOutput("scores", {"binary_data": True})]
    found["some outputs"] = await ask([InferInput("customer_id", [1], "BYTES", ["c1"])], request_outputs=some)
    try:
        await ask([InferInput("customer_id", [1], "INT64", [1])])
    except HTTPStatusError as error:
        found["error"] = str(error)
    await client.close()
    return found


if __name__ == "__main__":
    json.dump(asyncio.run(main(sys.argv[1], json.load(sys.stdin))), sys.stdout)
