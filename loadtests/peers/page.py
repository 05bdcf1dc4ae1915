"""The peers' part of docs/performance.md."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = """
## Beside other systems

The same job for each: POST a customer's id, read the features of the same feature service from the same Redis with
Feast's SDK, encode them for the same ONNX file, run it with ONNX Runtime, answer the scores as JSON. Each runs as its
own documentation recommends, in its own virtual environment, with all its processes on the core that the gateway and
the empty endpoint get in turn, one after the other in every round. Where the documentation leaves a choice, the
fastest at 64 clients is shown. Before it is timed, a peer has to give 20 customers, asked for at once, the gateway's
scores (to 1e-5, absolute plus relative). Keys, deadlines, freshness, statuses and metrics are the gateway's alone: no
peer pays for them. Feast's own server does the lookup and no more.

`make bench PEERS=1` measures these after everything else, `make bench ROWS=peer_mlserver` one of them; the first time
each is installed (some 700 MB) into `.rapport/bench/peers`.
"""
CLIENTS = (1, 16, 64)


def section(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown. results: rows as JSON, of which those of peers are taken; without any, there is nothing."""
    rows = {row["name"]: row for row in results if row["group"].startswith("peer_")}
    peers = dict.fromkeys(row["group"] for row in rows.values())
    if not peers:
        return []
    lines = [
        HEAD,
        "| requests/s, times the empty endpoint's | 1 client | 16 clients | 64 clients | p99 | rapport, 64 clients |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for peer in peers:
        last = rows.get(f"{peer}_{CLIENTS[-1]}")
        if last is None:
            continue
        about = last["details"]
        cells = [_cell(rows, f"{peer}_{clients}_to_empty") for clients in CLIENTS]
        p99 = f"{statistics.median(about['p99_ms']):.0f} ms"
        mark = "" if last["met"] is None else f" ({'' if last['met'] else 'not '}at least {last['mark']:g})"
        lines.append(f"| {about['title']} | {' | '.join(cells)} | {p99} | {last['figure']:.1f} times as many{mark} |")
        notes.append(_note(about))
    return [*lines, "", *notes]


def _cell(rows: Mapping[str, Mapping[str, Any]], name: str) -> str:
    row = rows[name]
    return f"{statistics.median(row['details']['requests_per_s']):,.0f}, {row['figure']:.2f}"


def _note(about: Mapping[str, Any]) -> str:
    ways = ", ".join(f"{way} {ratio:.2f}" for way, ratio in about["ways_to_empty"].items())
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    tried = f" Tried at 64 clients, times the empty endpoint: {ways}." if ways else ""
    return f"* **{about['title']}**: {about['settings']}.{tried} {versions}. After *{about['documentation']}*."
