"""Peer: a LitServe API that batches up to 64 requests.

python -m loadtests.peers.litserve_app PORT WORKERS queue|zeromq
"""

import sys
from typing import Any

import litserve  # type: ignore[import-not-found]

from loadtests.peers.job import Job

MAX_BATCH, BATCH_TIMEOUT_S = 64, 0.001


class Engagement(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: Any) -> None:  # noqa: ARG002  (LitServe's signature)
        self.job = Job.from_environment()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["customer_id"]

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, customers: list[str]) -> list[dict[str, float]]:
        return self.job.model.named(self.job.read(customers))

    def unbatch(self, output: list[dict[str, float]]) -> list[dict[str, float]]:
        return output

    def encode_response(self, output: dict[str, float]) -> dict[str, dict[str, float]]:
        return {"scores": output}


if __name__ == "__main__":
    port, workers, queue = sys.argv[1:]
    litserve.LitServer(
        Engagement(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S),
        accelerator="cpu",
        workers_per_device=int(workers),
        fast_queue=queue == "zeromq",
    ).run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)
