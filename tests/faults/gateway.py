"""`rapport serve` as operators run it: a process of its own with workers, which can be killed and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.traffic import until
from tests.model_export.tiny_release import AS_OF

WORKERS = 2


class GatewayProcess:
    """On one port for all its lives, so that clients find the next one where the last one was."""

    def __init__(self, directory: Path, models: Path, redis: str, **settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.log = directory / "gateway.log"
        self.environment: Mapping[str, str] = {
            "PATH": os.environ["PATH"],
            "RAPPORT_PORT": str(self.port),
            "RAPPORT_MODELS": str(models),
            "RAPPORT_REDIS": redis,
            "RAPPORT_AS_OF": AS_OF.isoformat(),
            "RAPPORT_WORKERS": str(WORKERS),
            "RAPPORT_LOG_LEVEL": "warning",
            # A machine whose two cores load models for a Triton is slow, and no store is down for that.
            "RAPPORT_REDIS_TIMEOUT_MS": "500",
            # Clients, gateway, store and model server share two cores here, and the store is not what is tested.
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "GatewayProcess":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve"], stderr=log, env=dict(self.environment)
            )
        until(self._is_up, f"a gateway that is ready; its log is {self.log}")

    def stop(self) -> None:
        """SIGTERM, and whatever is in flight is answered."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def workers(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children()

    def total(self, metric: str, **labels: str) -> float:
        text = requests.get(f"{self.url}/metrics", timeout=10).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == metric and labels.items() <= sample.labels.items()
        )

    def events(self, level: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["level"] == level]

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the gateway ended; its log is {self.log}"
        try:
            # Several, over connections of their own: no worker may be left that is not ready.
            return all(requests.get(f"{self.url}/readyz", timeout=10).json()["ready"] for _ in range(4))
        except (requests.ConnectionError, requests.Timeout):
            return False
