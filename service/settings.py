"""Everything an operator may set: `RAPPORT_<NAME>` in the environment, with units and how to choose."""

import re
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="RAPPORT_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to bind. Anything but loopback needs `keys_file`.")
    port: int = Field(8080, ge=0, le=65535, description="Port of the API; 0 takes a free one.")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port of /metrics alone, on the same address. Unset: on the API's port."
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that answer, on one port: the CPU limit of the container, rounded down, and 1 below 2. "
        "Limits that count something (quotas of keys, max_inflight_*) hold in each worker alone.",
    )
    models: str | Path = Field(
        "models",
        description="The model repository, releases and routes.toml: a path, or an address in object storage "
        "(s3://bucket/prefix, gs://..., as fsspec takes them), which is copied to `models_cache`.",
    )
    models_cache: Path | None = Field(
        None,
        description="Where releases from object storage are kept, on a disk that outlives the process: with it the "
        "gateway starts on the last good release while the storage is away. Processes of one machine share it.",
    )
    release_key: Path | None = Field(
        None,
        description="PEM with one or more public keys (`rapport release keygen`). Set: a release that none of them "
        "signed is refused. Unset: checksums alone, which find damage but no tampering.",
    )
    backend: Literal["embedded", "triton"] = Field(
        "embedded", description="What runs the models: ONNX Runtime in each worker, or Triton (see `triton`)."
    )
    triton: str = Field(
        "",
        description="host:port of Triton's gRPC, several separated by commas. Started with "
        "--model-control-mode=explicit; they are sent what to run and need share nothing. No client may reach them.",
    )
    redis: str = Field(
        "127.0.0.1:6379",
        description="Feast's connection string of the online store: host:port, then options after commas.",
    )
    keys_file: Path | None = Field(None, description="TOML with hashed API keys (`rapport keys new`). Unset: no keys.")
    shadow_dir: Path | None = Field(
        None,
        description="Where it is kept what shadows said, for `rapport release compare`: up to 512 MiB a pair of "
        "versions. Unset: shadows are scored and counted, and nothing is kept.",
    )
    as_of: datetime | None = Field(
        None, description="Replay: the instant at which everything is answered, with a time zone. Unset: wall time."
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="info has one line a request, warning only faults."
    )

    deadline_ms: int = Field(
        500, ge=1, description="Budget of a predict request that sends no X-Deadline-Ms. About 3 times your p99."
    )
    explain_deadline_ms: int = Field(5_000, ge=1, description="The same for requests that ask for reasons.")
    max_deadline_ms: int = Field(60_000, ge=1, description="The largest X-Deadline-Ms that is taken.")
    body_timeout_ms: int = Field(5_000, ge=1, description="A request body slower than this is answered 408.")
    max_body_bytes: int = Field(1_000_000, ge=1_000, description="A larger body is answered 413.")
    redis_timeout_ms: int = Field(
        50,
        ge=1,
        description="Longest wait for one reply (up to 200 entities) of the online store: a few times its p99.9.",
    )
    max_inflight_rows: int = Field(
        4_000, ge=1_000, description="Entities admitted and not yet answered; beyond it, 503. Bounds memory and queues."
    )
    max_inflight_explain_rows: int = Field(
        4_096,
        ge=32,
        description="The same for entities to explain by the default explainer. One that costs more counts as so many "
        "more: explained exactly, an entity of the built-in model counts as about a hundred.",
    )
    max_inflight_lookup_rows: int = Field(
        2_000, ge=1_000, description="The same for entities whose features are looked up (/v1/features)."
    )
    max_batch_rows: int = Field(
        1_024,
        ge=1_000,
        le=1_024,  # what a release's config.pbtxt lets Triton take
        description="Entities in one feature read and one inference.",
    )
    slice_rows: int = Field(
        128,
        ge=1,
        description="Entities that one request adds to a batch; it queues again with the rest, so that nobody waits "
        "for all of a large one. Smaller is fairer and costs the large one more batches.",
    )
    batches_in_flight: int = Field(2, ge=1, description="Batches a lane works on at once: one reads, one infers.")
    triton_batches_in_flight: int = Field(
        4,
        ge=1,
        description="Batches of scores at each Triton at once, from each worker, and as many of explanations; more "
        "wait here for their turn. Below `batches_in_flight` it is this that bounds them.",
    )
    triton_instances: int = Field(
        1, ge=1, description="Batches of one graph that a Triton runs at once, on each GPU or on its CPUs."
    )
    triton_timeout_ms: int = Field(
        1_000,
        ge=1,
        description="Longest wait for one inference, within the request's deadline. With several Tritons, a third of "
        "`deadline_ms`: enough is left to ask another when one hangs.",
    )
    model_threads: int = Field(
        1,
        ge=1,
        description="ONNX Runtime threads of one inference, in each worker and for each loaded graph. More workers use "
        "more CPUs better: a second thread made the built-in graphs no faster, not even with 1,000 rows. "
        "A model with layers of thousands may gain; workers x model_threads above the CPU limit is warned of.",
    )
    release_poll_s: float = Field(1.0, gt=0, description="How often routes.toml is looked at.")
    drain_s: int = Field(5, ge=0, description="After SIGTERM, requests in flight get this long.")

    @property
    def in_object_storage(self) -> bool:
        return "://" in str(self.models)

    @field_validator("as_of")
    @classmethod
    def _as_of_has_a_zone(cls, as_of: datetime | None) -> datetime | None:
        if as_of is not None and as_of.tzinfo is None:
            raise ValueError("write the instant with its time zone, for example 2011-09-01T00:00:00Z")
        return as_of

    @model_validator(mode="after")
    def _triton_is_named(self) -> "Settings":
        wrong = [address for address in self.triton_endpoints if not ADDRESS.fullmatch(address)]
        if wrong:
            raise ValueError(f"RAPPORT_TRITON is host:port[,host:port...], not {wrong[0]!r}")
        if self.backend == "triton" and not self.triton_endpoints:
            raise ValueError("RAPPORT_BACKEND=triton needs RAPPORT_TRITON=host:port of its gRPC")
        return self

    @property
    def triton_endpoints(self) -> list[str]:
        return [address.strip() for address in self.triton.split(",") if address.strip()]

    @model_validator(mode="after")
    def _object_storage_has_a_cache(self) -> "Settings":
        if self.in_object_storage and self.models_cache is None:
            raise ValueError("RAPPORT_MODELS is in object storage: set RAPPORT_MODELS_CACHE to a directory for copies")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> "Settings":
        if self.metrics_port is not None and self.metrics_port == self.port:
            raise ValueError("RAPPORT_METRICS_PORT is the API's port: leave it unset, or give it a port of its own")
        return self

    @model_validator(mode="after")
    def _only_loopback_without_keys(self) -> "Settings":
        if self.keys_file is None and not is_loopback(self.host):
            raise ValueError(
                f"without API keys the gateway binds loopback only, not {self.host}: "
                "make a key with `rapport keys new` and set RAPPORT_KEYS_FILE, or bind 127.0.0.1"
            )
        return self


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
