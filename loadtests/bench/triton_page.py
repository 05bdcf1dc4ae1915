"""docs/performance-triton.md: what its rows mean, and what they recommend."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = """# Performance on Triton

What `make bench`, or `make bench ROWS=on_triton`, measured on one machine; it rewrites this page as it does
[the other one](performance.md), which says what a figure is.

The gateway with `RAPPORT_BACKEND=triton`, features and all, on a real tritonserver on the same cores; only what
executes a graph there is Python, in place of NVIDIA's C++ ([deploy/triton](../deploy/triton)). Nobody is pinned where
nothing else is said: each load, with its generator and what it needs, has the whole machine beside Triton.
perf_analyzer keeps as many single rows in flight as the gateway has clients, over gRPC, ready-made from golden rows,
to the same running Triton and model, and reads no features, checks no keys and answers nobody.
"""
SETTINGS = "triton_settings"
CLIENTS = 64
ENOUGH = 1.05
"""A setting has to be so much better than the defaults before another one is recommended."""
DEFAULTS = {"batches_in_flight": 2, "triton_batches_in_flight": 2}
"""Of the gateway: one batch reads while another infers, and so Triton's own limit is never reached."""


def is_triton(group: str) -> bool:
    return group.startswith("triton")


def recommended(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown; none where settings were not measured."""
    settings = [row for row in results if row["group"] == SETTINGS]
    if not settings:
        return []
    # The defaults against themselves: how much better nothing is.
    noise = max([ENOUGH, *(max(row["values"]) for row in settings if row["details"]["gateway"] == DEFAULTS)])
    better = [row for row in settings if row["figure"] >= noise and min(row["values"]) > 1]
    better = [row for row in better if row["details"]["gateway"] != DEFAULTS]
    if not better:
        reason = f"in the median {noise:.2f} times as good: so far apart are two of the same, or 5 %"
        return [f"\nRecommended here: the defaults. No other setting was better in every round and {reason}."]
    best = max(better, key=lambda row: float(row["figure"]))
    gateway, model = best["details"]["gateway"], best["details"]["model"]
    said = [f"`RAPPORT_{name.upper()}={value}`" for name, value in gateway.items()]
    said += [f"`{json.dumps(model)}` in the model's config"] if model else []
    times = f"{best['figure']:.2f} times the throughput of the defaults with {CLIENTS} clients"
    worst = f"{min(best['values']):.2f} in the worst round; {best['absolute']}"
    return [f"\nRecommended here: {', '.join(said)}: {times}, {worst}."]
