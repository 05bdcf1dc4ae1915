"""Users who ask the gateway for predictions and reasons, and fail on a wrong answer.

    python -m locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:8080 \
        --users 32 --spawn-rate 32 --run-time 30s --customers customers.txt

Run it in the root of the repository (`make loadtest` does). Three kinds of users, of whom Locust starts as many as
their weights say; naming classes at the end of the command line starts these alone:

    PredictUser (8)   one customer a request
    BatchUser   (1)   100 customers a request, some of them twice
    ExplainUser (1)   one customer, every task, every reason

Options beside Locust's own (each may come from the environment; `--help` names the variables):

    --customers FILE   whom to ask about, one id a line; loadtests/customers.txt by default
    --expected FILE    JSON lines {"customer_id": ..., "scores": {...}}: whoever is listed must get these scores,
                       within 1e-5 + 1e-5 * |expected|. Only a gateway that replays (RAPPORT_AS_OF) gives the same
                       scores tomorrow: recency is computed from the clock.
    --statuses LIST    which statuses are right: ok,degraded,unknown_entity by default. `--statuses ok` makes sure that
                       real features are measured, and not the defaults of customers whom the store has never seen.
    --canary           one batch may be answered by two versions
    --api-key KEY      sent as `Authorization: Bearer KEY`; better as RAPPORT_LOADTEST_API_KEY, which `ps` does not show
    --deadline-ms MS   sent as X-Deadline-Ms; an answer after it is a failure (504). 0 sends none.
    --rate R           every user asks R times a second. 0, the default, asks again once it is answered.

What makes an answer wrong is in answers.py: another status than 200, other entities or another order, impossible
scores, mixed versions, one customer with two scores in one batch, reasons that do not add up to the score, somebody
else's request id.

At the end it prints p50, p95 and p99 of every kind of request, and the offered and the achieved rate. The exit status
is 1 when any answer was wrong or none was given (Locust alone calls a run without requests a success).

How to read the figures: a Locust user waits for its answer before it asks again. With --rate 0 the offered rate is
whatever the gateway takes, so throughput means something and latency is that of a saturated server. With --rate, look
at latency only where achieved is close to offered: a user who is late asks less, which hides the worst waits. And one
Locust process is itself good for one to two thousand requests a second: where it uses a whole core, start more of them.
"""

import json
import math
import random
import sys
import time
import uuid
from array import array
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtests.answers import JOIN_KEY, STATUSES, WrongAnswer, check_answer, read_customers, read_expected

BATCH = 100
DUPLICATES = 5
TOLD = 20
"""Wrong answers that are told in full; Locust keeps every distinct message, and a message names a customer."""
TIMEOUT_S = 30.0
"""No answer at all by then is a failure of its own; deadlines are much shorter."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("Gateway")
    group.add_argument(
        "--customers", default=str(Path(__file__).with_name("customers.txt")), env_var="RAPPORT_LOADTEST_CUSTOMERS"
    )
    group.add_argument("--expected", default="", env_var="RAPPORT_LOADTEST_EXPECTED")
    group.add_argument("--statuses", default=",".join(STATUSES), env_var="RAPPORT_LOADTEST_STATUSES")
    group.add_argument("--canary", action="store_true", env_var="RAPPORT_LOADTEST_CANARY")
    group.add_argument("--api-key", default="", env_var="RAPPORT_LOADTEST_API_KEY")
    group.add_argument("--deadline-ms", type=int, default=0, env_var="RAPPORT_LOADTEST_DEADLINE_MS")
    group.add_argument("--rate", type=float, default=0.0, env_var="RAPPORT_LOADTEST_RATE")


class Run:
    """What the users of one run share: whom to ask about, what to expect, and what came back."""

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options
        if options is None:
            raise ValueError("these users need Locust's command line")
        self.customers = read_customers(Path(options.customers))
        self.expected = read_expected(Path(options.expected)) if options.expected else {}
        self.statuses = [status for status in options.statuses.split(",") if status]
        self.canary: bool = options.canary
        self.rate: float = options.rate
        self.headers = {"Content-Type": "application/json"}
        if options.api_key:
            self.headers["Authorization"] = f"Bearer {options.api_key}"
        if options.deadline_ms:
            self.headers["X-Deadline-Ms"] = str(options.deadline_ms)
        self.started_at = math.inf  # the first user's start, the last user's stop
        self.stopped_at = -math.inf
        self.user_seconds = 0.0
        # Locust rounds its own to whole milliseconds, which is a lot of a gateway that answers within three.
        self.milliseconds: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self.answered: Counter[str] = Counter()
        self.wrong = 0


RUNS: dict[Environment, Run] = {}
"""By Locust's environment: its listeners and users are given that and nothing else."""


@events.init.add_listener  # type: ignore[untyped-decorator]
def start(environment: Environment, **_: Any) -> None:
    try:
        run = RUNS[environment] = Run(environment)
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"The load test cannot start: {exc}\n")
        sys.exit(1)

    def keep(name: str, response_time: float, **_: Any) -> None:
        run.milliseconds[name].append(response_time)

    environment.events.request.add_listener(keep)  # type: ignore[no-untyped-call]


class GatewayUser(FastHttpUser):
    abstract = True
    connection_timeout = network_timeout = TIMEOUT_S

    def on_start(self) -> None:
        self.run_ = RUNS[self.environment]
        self.pace = constant_throughput(self.run_.rate) if self.run_.rate > 0 else None
        if self.pace:
            # Started together, users at one rate would ask together for ever: bursts, not a rate.
            time.sleep(random.random() / self.run_.rate)
        self.started_at = time.perf_counter()
        self.run_.started_at = min(self.run_.started_at, self.started_at)

    def on_stop(self) -> None:
        stopped_at = time.perf_counter()
        self.run_.user_seconds += stopped_at - self.started_at
        self.run_.stopped_at = max(self.run_.stopped_at, stopped_at)

    def wait_time(self) -> float:
        return self.pace(self) if self.pace else 0.0

    def ask(self, route: str, name: str, customers: list[str], *, explained: bool = False) -> None:
        run = self.run_
        request_id = uuid.uuid4().hex
        with self.client.post(
            route,
            data=json.dumps({"entities": [{JOIN_KEY: customer} for customer in customers]}),
            headers={**run.headers, "X-Request-Id": request_id},
            name=name,
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                # 0: no answer at all.
                response.failure(f"status {response.status_code} {_problem_code(response.content)}")
                return
            try:
                statuses = check_answer(
                    response.content or b"",
                    customers,
                    explained=explained,
                    request_id=request_id,
                    statuses=run.statuses,
                    one_version=not run.canary,
                    expected=run.expected,
                )
            except WrongAnswer as exc:
                run.wrong += 1
                response.failure(f"wrong answer: {exc}" if run.wrong <= TOLD else f"more than {TOLD} wrong answers")
            else:
                run.answered.update(statuses)
                response.success()


class PredictUser(GatewayUser):
    weight = 8

    @task
    def predict(self) -> None:
        self.ask("/v1/predict", "predict 1", [random.choice(self.run_.customers)])


class BatchUser(GatewayUser):
    weight = 1

    @task
    def predict(self) -> None:
        customers = random.choices(self.run_.customers, k=BATCH - DUPLICATES)
        customers += random.choices(customers, k=DUPLICATES)
        self.ask("/v1/predict", f"predict {BATCH}", customers)


class ExplainUser(GatewayUser):
    weight = 1

    @task
    def explain(self) -> None:
        self.ask("/v1/explain", "explain 1", [random.choice(self.run_.customers)], explained=True)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def report(environment: Environment, **_: Any) -> None:
    run = RUNS[environment]
    total = environment.stats.total
    if total.num_requests == 0:
        sys.stderr.write("No request was made, so nothing was tested.\n")
        environment.process_exit_code = 1
        return
    lines = [f"{'':12} {'requests':>9} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9}"]
    for name, values in sorted(run.milliseconds.items()):
        ordered = sorted(values)
        p50, p95, p99 = (_percentile(ordered, share) for share in (0.50, 0.95, 0.99))
        lines.append(f"{name:12} {len(ordered):9} {p50:9.2f} {p95:9.2f} {p99:9.2f}")
    seconds = run.stopped_at - run.started_at
    achieved = total.num_requests / seconds
    offered = f"{run.user_seconds * run.rate / seconds:.1f} requests/s" if run.rate > 0 else "closed loop"
    shares = ", ".join(f"{status} {count}" for status, count in run.answered.most_common())
    lines += [
        f"offered {offered}, achieved {achieved:.1f} requests/s, failed {total.num_failures} of {total.num_requests}",
        f"entities answered: {shares or 'none'}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _percentile(ordered: list[float], share: float) -> float:
    """Nearest rank: a value that some request really took."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _problem_code(body: bytes | None) -> str:
    try:
        return str(json.loads(body or b"{}").get("code", ""))
    except (ValueError, AttributeError):
        return ""
