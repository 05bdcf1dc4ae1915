"""Each peer's requests a second beside ours and beside the empty endpoint, once its scores are known to be ours."""

import json
import random
import shutil
import statistics
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from loadtests.answers import ATOL, JOIN_KEY, RTOL, WrongAnswer
from loadtests.bench.plan import Plan, in_turn, ratios
from loadtests.bench.report import Row
from loadtests.bench.servers import free_port, server
from loadtests.bench.targets import Cost, Target, ask, bodies_of, empty, gateway
from loadtests.bench.throughput import CLIENTS
from loadtests.peers import venvs
from loadtests.peers.catalog import PEERS, Peer, Scores, Start
from loadtests.peers.model import AS_OF, RELEASE, REPO, Model

MODEL = "engagement"
MARK = 10.0
"""DESIGN's: at least this many times the best peer, hence every peer, at MARKED clients."""
MARKED = 64
CHECKED = 20
ASKING = 16
"""Customers asked for at once while a peer's answers are checked, so that its batches are checked, too."""
TIMEOUT_S = 30.0
WARM_UP_S = 2.0
ROOT = Path(__file__).parent.parent.parent

STORE = """\
project: {project}
provider: local
registry:
  path: registry.db
  cache_ttl_seconds: 0  # never read again
entity_key_serialization_version: 3
offline_store:
  type: file
online_store:
  type: redis
  connection_string: "{redis}"
"""
"""Feast's settings of a peer: the store that our gateway reads."""


@dataclass(frozen=True)
class Stage:
    """What all peers share in one run. expected: the gateway's scores of the customers that are checked."""

    release: Path
    model: Model
    repo: Path
    environment: Mapping[str, str]
    expected: Mapping[str, Mapping[str, float | None]]


def measure(plan: Plan, peer: Peer) -> Iterator[Row]:
    """Raises WrongAnswer where a peer's scores are not the gateway's, PreparationError, ServerError, LoadError."""
    python = venvs.ensure(peer.name, plan.home.workspace.parent / "peers")
    ours_bodies, bodies = bodies_of(plan.home, plan.home.customers), questions(plan, peer)
    with gateway(plan.home, plan.cores) as ours, empty(plan.home, plan.cores) as yardstick:
        stage = prepare(plan, scores_of_gateway(ours, plan.home.customers))
        found = {}
        for way in peer.ways if len(peer.ways) > 1 else ():
            with running(plan, stage, peer, way, python) as target:
                # Beside the yardstick: the machine may be slower for one way than it was for another.
                pairs = plan.interleaved(
                    partial(target.drive, bodies, MARKED, plan.seconds, peer.path(way)),
                    partial(yardstick.drive, ours_bodies, MARKED, plan.seconds),
                )
                found[way] = statistics.median(
                    theirs.load.requests_per_s / nothing.load.requests_per_s for theirs, nothing in pairs
                )
        best = max(found, key=found.__getitem__) if found else next(iter(peer.ways))
        about = {
            "title": f"{peer.title} ({best})",
            "ways_to_empty": {way: round(ratio, 3) for way, ratio in found.items()},
            "settings": peer.settings,
            "documentation": peer.documentation,
            "versions": venvs.versions(python, peer.packages),
        }
        with running(plan, stage, peer, best, python) as target:
            for clients in CLIENTS:
                drives = (
                    partial(target.drive, bodies, clients, plan.seconds, peer.path(best)),
                    partial(ours.drive, ours_bodies, clients, plan.seconds),
                    partial(yardstick.drive, ours_bodies, clients, plan.seconds),
                )
                yield from rows(peer, clients, list(in_turn(plan.rounds, drives)), about)


PEER_ROWS: Mapping[str, Callable[[Plan], Iterator[Row]]] = {
    f"peer_{peer.name}": partial(measure, peer=peer) for peer in PEERS
}
"""A group of rows a peer: one that fails or cannot be installed leaves the others."""


def rows(peer: Peer, clients: int, rounds: Sequence[Sequence[Cost]], about: Mapping[str, Any]) -> Iterator[Row]:
    """rounds: of each, the cost of the peer, of ours, of the empty endpoint."""
    rates = [[cost.load.requests_per_s for cost in costs] for costs in rounds]
    title = f"{about['title']}, {clients} client{'s' * (clients > 1)}"
    details = {
        **about,
        "requests_per_s": [round(theirs, 1) for theirs, _, _ in rates],
        "rapport_requests_per_s": [round(ours, 1) for _, ours, _ in rates],
        "empty_requests_per_s": [round(nothing, 1) for _, _, nothing in rates],
        "p50_ms": [costs[0].load.p50_ms for costs in rounds],
        "p99_ms": [costs[0].load.p99_ms for costs in rounds],
        "cpu_us": [round(costs[0].cpu_us, 1) for costs in rounds],
        "rapport_cpu_us": [round(costs[1].cpu_us, 1) for costs in rounds],
    }
    yield Row(
        f"peer_{peer.name}_{clients}_to_empty",
        f"{title}, against the empty endpoint",
        ratios([(theirs, nothing) for theirs, _, nothing in rates]),
        "times",
        details=details,
    )
    yield Row(
        f"peer_{peer.name}_{clients}",
        f"rapport against {title}",
        ratios([(ours, theirs) for theirs, ours, _ in rates]),
        "times",
        mark=MARK if clients == MARKED and peer.whole_job else None,
        at_least=True,
        details=details,
    )


def prepare(plan: Plan, expected: Mapping[str, Mapping[str, float | None]]) -> Stage:
    """Feast's settings in a folder of their own, over a copy of the registry, so that nothing writes into ours."""
    routes = tomllib.loads((plan.home.models / "routes.toml").read_text())
    release = (plan.home.models / f"{MODEL}.{routes[MODEL]['champion']}").absolute()
    as_of = datetime.fromisoformat(plan.home.as_of).timestamp()
    project = json.loads((release / "contract.json").read_bytes())["schema"]["project"]
    repo = Path(mkdtemp(prefix="feast-", dir=plan.home.scratch))
    shutil.copy(plan.home.workspace / "registry.db", repo)
    (repo / "feature_store.yaml").write_text(STORE.format(project=project, redis=plan.home.redis))
    environment = {"PYTHONPATH": str(ROOT), REPO: str(repo), RELEASE: str(release), AS_OF: repr(as_of)}
    return Stage(release, Model(release, as_of), repo, environment, expected)


@contextmanager
def running(plan: Plan, stage: Stage, peer: Peer, way: str, python: Path) -> Iterator[Target]:
    """The peer on the gateway's core, checked and warm."""
    start = Start(python, free_port(), stage.repo, Path(mkdtemp(prefix=f"{peer.name}-", dir=plan.home.scratch)))
    url = f"http://127.0.0.1:{start.port}"
    command = peer.ways[way](start)
    # Where it stands it may leave files: some peers do.
    with server(command, stage.environment, url + peer.ready, plan.cores.server, cwd=start.folder) as process:
        target = Target(f"{peer.title} ({way})", url, process, None, plan.cores.client)
        check(url + peer.path(way), peer, stage)
        target.drive(questions(plan, peer), ASKING, WARM_UP_S, peer.path(way))
        yield target


def questions(plan: Plan, peer: Peer) -> Path:
    """A file of one request a customer, as the peer takes them."""
    customers = random.Random(0).sample(plan.home.customers, len(plan.home.customers))
    path = plan.home.scratch / f"questions-{peer.name}.jsonl"
    path.write_text("".join(f"{json.dumps(peer.question(customer))}\n" for customer in customers))
    return path


def scores_of_gateway(ours: Target, customers: Sequence[str]) -> Mapping[str, Mapping[str, float | None]]:
    sample = random.Random(2).sample(customers, CHECKED)
    answer = json.loads(ask(ours, sample, {}))
    return {row["entity"][JOIN_KEY]: row["scores"] for row in answer["predictions"]}


def check(url: str, peer: Peer, stage: Stage) -> None:
    """Every customer's scores are the gateway's. Raises WrongAnswer."""
    with ThreadPoolExecutor(ASKING) as threads:
        answers = threads.map(lambda customer: (customer, post(url, peer.question(customer))), stage.expected)
        for customer, answer in answers:
            try:
                scores = peer.scores(json.loads(answer), stage.model)
            except (ValueError, KeyError, TypeError) as exc:
                raise WrongAnswer(f"{peer.title}: not the form of an answer: {answer[:200]!r}") from exc
            compare(peer.title, customer, scores, stage.expected[customer])


def compare(who: str, customer: str, scores: Scores, expected: Mapping[str, float | None]) -> None:
    """Where the gateway has none (a task that is not applicable) there is nothing to compare. Raises WrongAnswer."""
    known = {task: score for task, score in expected.items() if score is not None}
    if not known or set(scores) != set(expected):
        raise WrongAnswer(f"{who}: scores of {sorted(scores)} for {customer}, the gateway's are of {sorted(expected)}")
    for task, score in known.items():
        # Written so that NaN never passes.
        if not abs(scores[task] - score) <= ATOL + RTOL * abs(score):
            raise WrongAnswer(f"{who}: {task} of {customer} is {scores[task]}, the gateway's is {score}")


def post(url: str, question: Mapping[str, Any]) -> bytes:
    """Raises WrongAnswer."""
    request = urllib.request.Request(  # noqa: S310  (our own server)
        url, json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            answer: bytes = response.read()
    except urllib.error.HTTPError as exc:
        raise WrongAnswer(f"{url} answered {exc.code}: {exc.read()[:200]!r}") from exc
    except OSError as exc:
        raise WrongAnswer(f"{url} did not answer: {exc}") from exc
    return answer
