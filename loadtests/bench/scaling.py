"""What a request costs when more comes together: entities in it, customers in the store, models in the gateway."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from loadtests.answers import WrongAnswer
from loadtests.bench.home import Home, PreparationError, client, local_redis, rapport
from loadtests.bench.plan import Plan, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.targets import Target, bodies_of, gateway, get

SIZES = (10, 100, 1000)
CLIENTS = 16
ASKED = 100_000
"""Customers of a large store that are asked about: more would only fill the memory of the load."""
MODEL = "engagement"
TIMEOUT_S = 300.0
"""Until every model is loaded: each has five graphs, which are measured and proven one after the other."""


def batch(plan: Plan) -> Iterator[Row]:
    """Server CPU an entity in requests of 10, 100 and 1,000 entities, over that in requests of one; one client."""
    single = bodies_of(plan.home, plan.home.customers)
    with gateway(plan.home, plan.cores) as ours:
        for size in SIZES:
            bodies = bodies_of(plan.home, plan.home.customers, size)
            pairs = list(
                plan.interleaved(
                    partial(ours.drive, bodies, 1, plan.seconds), partial(ours.drive, single, 1, plan.seconds)
                )
            )
            yield Row(
                f"batch_{size}",
                f"server CPU an entity in requests of {size:,}, against requests of 1, one client",
                ratios([(many.cpu_us / size, one.cpu_us) for many, one in pairs]),
                "times",
                mark=0.1 if size == SIZES[-1] else None,
                details={
                    "entity_cpu_us": [many.cpu_us / size for many, _ in pairs],
                    "single_cpu_us": [one.cpu_us for _, one in pairs],
                    "p50_ms": [many.load.p50_ms for many, _ in pairs],
                },
                absolute=absolute([many.cpu_us / size for many, _ in pairs], [one.cpu_us for _, one in pairs], "us"),
            )


def customers(plan: Plan) -> Iterator[Row]:
    """CPU of gateway and Redis together, a request, with many customers in the store over a few."""
    small = plan.home.customers
    with local_redis(plan.home.scratch / "many") as address:
        large = copies(plan.home, address, plan.customers)
        with client(address) as redis:
            stored, memory = redis.dbsize(), redis.info("memory")["used_memory"]
        with (
            gateway(plan.home, plan.cores) as few,
            gateway(plan.home, plan.cores, redis=address, customers=large, name="many customers") as many,
        ):
            pairs = list(
                plan.interleaved(
                    partial(whole_cost, many, address, bodies_of(plan.home, large), plan.seconds),
                    partial(whole_cost, few, plan.home.redis, bodies_of(plan.home, small), plan.seconds),
                )
            )
    yield Row(
        "customers",
        f"CPU a request, gateway and Redis, with {stored:,} customers against {len(small):,}",
        ratios([(sum(one), sum(other)) for one, other in pairs]),
        "times",
        mark=1.1,
        details={
            "many_gateway_and_redis_us": [one for one, _ in pairs],
            "few_gateway_and_redis_us": [other for _, other in pairs],
            "customers": stored,
            "store_gib": round(memory / 1024**3, 2),
        },
        absolute=absolute([sum(one) for one, _ in pairs], [sum(other) for _, other in pairs], "us")
        + f"; the store takes {memory / 1024**3:.2g} GiB",
    )


def models(plan: Plan) -> Iterator[Row]:
    """Server CPU a request to one model, with many loaded over with it alone; and when all are asked in turn."""
    names = [MODEL, *(f"model_{number}" for number in range(1, plan.models))]
    repository = plan.home.scratch / "models"
    rapport("republish", *names, "--workspace", str(plan.home.workspace), "--models", str(repository))
    to_one = bodies_of(plan.home, plan.home.customers, fields={"model": MODEL})
    to_all = addressed(plan.home, names)
    with (
        gateway(plan.home, plan.cores) as alone,
        gateway(plan.home, plan.cores, models=repository, name="many models", model=MODEL) as many,
    ):
        wait_for_models(many, names)
        memory = {"mib_alone": alone.server.resident_mib(), "mib_many": many.server.resident_mib()}
        for name, what, bodies, clients, mark in (
            ("models", "loaded, one asked, 16 clients", to_one, CLIENTS, 1.1),
            ("models_asked", "loaded and all asked, one client", to_all, 1, None),
        ):
            pairs = list(
                plan.interleaved(
                    partial(many.drive, bodies, clients, plan.seconds),
                    partial(alone.drive, to_one, clients, plan.seconds),
                )
            )
            yield Row(
                name,
                f"server CPU a request, {len(names)} models {what}, against 1",
                ratios([(one.cpu_us, other.cpu_us) for one, other in pairs]),
                "times",
                mark=mark,
                details={
                    "many_cpu_us": [one.cpu_us for one, _ in pairs],
                    "alone_cpu_us": [other.cpu_us for _, other in pairs],
                    **memory,
                },
                absolute=absolute([one.cpu_us for one, _ in pairs], [other.cpu_us for _, other in pairs], "us")
                + f"; {memory['mib_many']:.0f} against {memory['mib_alone']:.0f} MiB",
            )


def wait_for_models(target: Target, names: Sequence[str]) -> None:
    """A gateway is ready with its first model; until it has them all. Raises WrongAnswer."""
    ends = time.monotonic() + TIMEOUT_S
    while True:
        served = {model["model"] for model in json.loads(get(target, "/v1/models"))["models"]}
        if served.issuperset(names):
            return
        if time.monotonic() > ends:
            raise WrongAnswer(f"{target.name}: {len(served)} of {len(names)} models are served")
        time.sleep(0.1)


def copies(home: Home, address: str, wanted: int) -> list[str]:
    """Fills the store at `address` with copies of every customer; some of their ids. Raises PreparationError."""
    times = max(1, round(wanted / len(home.customers)))
    load = ("features", "load", "--copies", str(times), "--workspace", str(home.workspace), "--redis", address)
    rapport(*load)
    rng = random.Random(0)
    asked = min(ASKED, times * len(home.customers))
    drawn = rng.sample(range(times * len(home.customers)), asked)
    found = [(home.customers[number % len(home.customers)], number // len(home.customers)) for number in drawn]
    with client(address) as redis:
        if redis.dbsize() < 0.9 * wanted:
            raise PreparationError(f"`rapport features load` left {redis.dbsize():,} of {wanted:,} customers")
    return [f"{customer}~{copy}" if copy else customer for customer, copy in found]


def addressed(home: Home, names: Sequence[str]) -> Path:
    """Requests for one customer each, to every model in turn."""
    path = home.scratch / "bodies-to-all.jsonl"
    entities = ({"entities": [{"customer_id": customer}]} for customer in home.customers)
    path.write_text(
        "".join(f"{json.dumps({'model': names[at % len(names)], **body})}\n" for at, body in enumerate(entities))
    )
    return path


def whole_cost(target: Target, address: str, bodies: Path, seconds: float) -> tuple[float, float]:
    """CPU microseconds a request, of the gateway and of Redis."""
    before = redis_cpu_s(address)
    cost = target.drive(bodies, CLIENTS, seconds)
    return cost.cpu_us, (redis_cpu_s(address) - before) / cost.load.requests * 1e6


def redis_cpu_s(address: str) -> float:
    with client(address) as redis:
        usage = redis.info("cpu")
    return float(usage["used_cpu_user"] + usage["used_cpu_sys"])
