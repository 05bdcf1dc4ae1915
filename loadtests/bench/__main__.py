"""Measures the rows that were asked for; the last line of stdout is one JSON object with everything."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loadtests.answers import WrongAnswer
from loadtests.bench import __doc__ as about
from loadtests.bench.explain_flood import explain_flood, triton_explain_flood
from loadtests.bench.explain_peers import explain_peers
from loadtests.bench.explainers import MissingGraph
from loadtests.bench.explanations import explain, explain_error, explain_graph
from loadtests.bench.home import PreparationError, home
from loadtests.bench.lanes import mixed
from loadtests.bench.load import LoadError, find_wrk
from loadtests.bench.offline import offline
from loadtests.bench.plan import Plan
from loadtests.bench.reads import reads
from loadtests.bench.report import OFFLINE, Row, circumstances, line, pages
from loadtests.bench.scaling import batch, customers, models
from loadtests.bench.servers import ServerError
from loadtests.bench.stages import stages
from loadtests.bench.start import startup
from loadtests.bench.tail import tail
from loadtests.bench.targets import Cores
from loadtests.bench.throughput import floor, one_client, throughput
from loadtests.bench.triton import triton
from loadtests.bench.triton_page import is_triton
from loadtests.bench.triton_rows import triton_rows
from loadtests.bench.triton_settings import triton_settings
from loadtests.bench.triton_shm import triton_shm
from loadtests.bench.triton_tail import triton_tail
from loadtests.peers.rows import PEER_ROWS

ROWS: Mapping[str, Callable[[Plan], Iterator[Row]]] = {
    "throughput": throughput,
    "floor": floor,
    "one_client": one_client,
    "stages": stages,
    "tail": tail,
    "reads": reads,
    "batch": batch,
    "customers": customers,
    "models": models,
    "startup": startup,
    "mixed": mixed,
    "explain": explain,
    "explain_graph": explain_graph,
    "explain_error": explain_error,
    "explain_peers": explain_peers,
    "explain_flood": explain_flood,
    "triton": triton,
    "triton_rows": triton_rows,
    "triton_tail": triton_tail,
    "triton_settings": triton_settings,
    "triton_shm": triton_shm,
    "triton_explain_flood": triton_explain_flood,
}
PATIENT = {
    "RAPPORT_DEADLINE_MS": "30000",
    "RAPPORT_EXPLAIN_DEADLINE_MS": "30000",
    "RAPPORT_REDIS_TIMEOUT_MS": "30000",
}
"""Not a faster gateway, but one that refuses nothing: so a test of this program does not depend on how fast it runs."""
LONG_ROWS = {OFFLINE: offline}
"""Measured when they are named: half an hour, and more with more customers."""
ALL_ROWS = {**ROWS, **LONG_ROWS, **PEER_ROWS}
ON_TRITON = [name for name in ROWS if is_triton(name)]
FAULTS = (WrongAnswer, LoadError, ServerError, PreparationError, MissingGraph)


def main() -> None:
    options = parse()
    # So that a run that is ended ends its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cores = sorted(os.sched_getaffinity(0))
    results: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    try:
        find_wrk()
        with home(options.home, options.base, PATIENT if options.patient else {}) as prepared:
            plan = Plan(
                prepared,
                Cores(cores[0], cores[-1]),
                options.seconds,
                options.rounds,
                options.customers,
                options.models,
                options.sizes or (options.customers // 10, options.customers),
            )
            facts = circumstances(prepared.redis)
            for name in options.rows:
                print(f"bench: {name} ...", file=sys.stderr, flush=True)  # noqa: T201
                try:
                    for row in ALL_ROWS[name](plan):
                        results.append({"group": name, **row.as_json()})
                        say(line(row))
                except FAULTS as exc:
                    failed[name] = str(exc)
                    say(f"{name} FAILED: {exc}")
    except FAULTS as exc:
        sys.exit(f"bench: {exc}")
    asked = {"seconds": options.seconds, "rounds": options.rounds, "rows": options.rows, "patient": options.patient}
    result = {**facts, **asked, "results": results, "failed": failed}
    if options.docs is not None:
        for name, text in pages(result).items():
            (options.docs / name).write_text(text, encoding="utf-8")
    say(json.dumps(result))
    sys.exit(1 if failed else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path(".rapport/bench"), help="made where it is not there")
    parser.add_argument("--rows", type=names, default=list(ROWS), help=f"on_triton, or some of {','.join(ALL_ROWS)}")
    parser.add_argument("--peers", action="store_true", help="other systems, too; installs them the first time")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one load")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each comparison")
    parser.add_argument("--base", type=int, default=20_000, help="customers of the data set that is made")
    parser.add_argument("--customers", type=int, default=1_000_000, help="of the large store")
    parser.add_argument(
        "--sizes", type=sizes, help="numbers of customers for offline; by default --customers and a tenth of them"
    )
    parser.add_argument("--models", type=int, default=50, help="of the large repository")
    parser.add_argument(
        "--patient", action="store_true", help="long timeouts, for a machine that is busy with something else"
    )
    parser.add_argument("--docs", type=Path, help="the folder of the pages to (re)write with the results")
    options = parser.parse_args()
    if options.peers:
        options.rows = list(dict.fromkeys([*options.rows, *PEER_ROWS]))
    return options


def names(text: str) -> list[str]:
    wanted = ON_TRITON if text == "on_triton" else [name for name in text.split(",") if name]
    if unknown := sorted(set(wanted) - set(ALL_ROWS)):
        raise argparse.ArgumentTypeError(f"no such rows: {', '.join(unknown)}")
    return wanted


def sizes(text: str) -> list[int]:
    return sorted({int(word) for word in text.split(",")})


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
