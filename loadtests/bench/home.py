"""What is measured on: a data set, its release and a Redis that holds its features, made by the `rapport` command."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
from redis import Redis

RAPPORT = (sys.executable, "-m", "service.cli")
STOP_TIMEOUT_S = 30.0


class PreparationError(Exception):
    """A command that failed; what it said went to stderr."""


@dataclass(frozen=True)
class Home:
    """customers: every id that the store at `redis` knows. scratch: for the files of this run.

    settings: of every gateway, RAPPORT_* by name, beside what is set here.
    """

    workspace: Path
    redis: str
    as_of: str
    customers: Sequence[str]
    keys_file: Path
    key: str
    scratch: Path
    settings: Mapping[str, str]

    @property
    def models(self) -> Path:
        return self.workspace / "models"

    def gateway_env(self, port: int, *, models: Path | None = None, redis: str | None = None) -> dict[str, str]:
        """Everything else is at its default, the log line of every request, too."""
        return {
            **self.settings,
            "RAPPORT_PORT": str(port),
            "RAPPORT_MODELS": str(models or self.models),
            "RAPPORT_REDIS": redis or self.redis,
            "RAPPORT_KEYS_FILE": str(self.keys_file),
            "RAPPORT_AS_OF": self.as_of,
        }


@contextmanager
def home(directory: Path, customers: int, settings: Mapping[str, str]) -> Iterator[Home]:
    """Builds whatever in `directory` is not there or stale (minutes, the first time). Raises PreparationError."""
    workspace = directory / "generated"
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as scratch,
        local_redis(workspace / "redis", persistent=True) as address,
    ):
        prepare = ("prepare", "--home", str(directory), "--redis", address, "--customers", str(customers))
        rapport(*prepare, quiet=False)
        as_of, known = known_customers(workspace)
        with client(address) as redis:
            # `prepare` believes what it noted: a store may be empty, or hold customers of an earlier data set, too.
            if redis.dbsize() != len(known):
                redis.flushdb()
                rapport("features", "materialize", "--workspace", str(workspace), "--redis", address, quiet=False)
        keys_file = Path(scratch) / "keys.toml"
        scopes = ("--scope", "predict", "--scope", "explain", "--scope", "admin")
        key = rapport("keys", "new", "bench", *scopes, "--file", str(keys_file)).strip()
        yield Home(workspace, address, as_of, known, keys_file, key, Path(scratch), settings)


def known_customers(workspace: Path) -> tuple[str, list[str]]:
    """The instant at which the data set is served, and who has features then."""
    as_of = str(json.loads((workspace / "dataset.json").read_text())["as_of"])
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT customer_id FROM read_parquet(?) WHERE event_timestamp = CAST(? AS TIMESTAMPTZ) ORDER BY 1",
            [str(workspace / "features" / "lifetime.parquet"), as_of],
        ).fetchall()
    return as_of, [customer for (customer,) in rows]


@contextmanager
def local_redis(directory: Path, *, persistent: bool = False) -> Iterator[str]:
    """host:port of a redis-server that ends with the block, free to use every core."""
    command = [*RAPPORT, "redis", str(directory), *(["--persistent"] if persistent else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None  # noqa: S101  (it is a pipe)
            address = process.stdout.readline().strip()
            if not address:
                raise PreparationError(f"no redis-server: `{' '.join(command[1:])}` ended with {process.wait()}")
            yield address
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def client(address: str) -> "Redis":
    host, _, port = address.rpartition(":")
    return Redis(host, int(port))


def rapport(*arguments: str, quiet: bool = True) -> str:
    """What the command printed. Raises PreparationError."""
    run = subprocess.run(  # noqa: S603  (our own command)
        [*RAPPORT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        raise PreparationError(f"rapport {' '.join(arguments[:2])} failed: {(run.stderr or '').strip()}")
    return run.stdout
