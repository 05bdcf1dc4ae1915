"""docs/performance-gpu.md: what the figures of gpu.py mean, as tables."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = """# Performance on a GPU

What `python -m loadtests.bench.gpu --models .rapport/generated/models --docs docs` measured on one machine; it rewrites
this page. The graphs of one release alone: no gateway, no features, no network.

* **CPU**: ONNX Runtime in the process, on that machine's processor.
* **ORT, with copies**: ONNX Runtime's CUDA provider, from arrays in memory to arrays in memory, so with the way over
  the bus and back. It is what a server does that was sent rows.
* **ORT**: the same on rows that are on the GPU, with results that stay there. TF32 is off, as in every config that we
  generate, where it is not said to be on; fp16 has the operands of matrix products in 16 bits and all else in 32.
  **CUDA graph**: recorded once and launched as one.
* **torch**: the nodes of the same file, one torch operation each, recorded as one CUDA graph; rows and results on the
  GPU. bf16 and fp16 as above.

A figure is the median of the rounds, and in each of them of many runs one after the other, timed until the results are
there; all ways take turns. Every way first gave ONNX Runtime's answers on the CPU: the error is the largest difference
in any output of any row, relative to the largest value of that output for its task.
"""


def page(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if number)
    lines = [
        HEAD,
        f"Machine: {result['gpu'] or 'no GPU'}; {result['machine']}. Commit {result['commit']}, {result['date']}.",
        f"{result['rounds']} rounds. {versions}.",
        "\n## Scores\n\nRows a second, by rows in one run:\n",
        *_scores(result["scores"]),
        "\n## Explain against predict\n",
        "Time of one run of an explanation graph over one of the score graph for the same customers, run the same way;",
        "in brackets the explanations a second.",
    ]
    for name, explainer in result["explanations"].items():
        rows = f"{explainer['rows']:,} rows of the network for each customer"
        lines += [f"\n### {name}: {explainer['method']}, {rows}\n", *_explanations(explainer["ways"])]
    return "\n".join(lines) + "\n"


def _scores(ways: Mapping[str, Any]) -> list[str]:
    sizes = list(next(iter(ways.values())))
    lines = [_line("", *(f"{size:,}" for size in sizes), "worst error"), _rule(len(sizes) + 2)]
    for name, figures in ways.items():
        lines.append(_line(name, *(_rate(figures[size], size) for size in sizes), _error(list(figures.values()))))
    return lines


def _explanations(ways: Mapping[str, Any]) -> list[str]:
    sizes = sorted({size for figures in ways.values() for size in figures}, key=int)
    lines = [_line("", *(f"{int(size):,}" for size in sizes), "worst error"), _rule(len(sizes) + 2)]
    for name, figures in ways.items():
        cells = [_times(figures[size], size) if size in figures else "" for size in sizes]
        lines.append(_line(name, *cells, _error([one["explain"] for one in figures.values()])))
    return lines


def _rate(figures: Mapping[str, Any], size: int) -> str:
    if not figures["ms"]:
        return "not possible"
    return f"{_short(int(size) / statistics.median(figures['ms']) * 1e3)}"


def _times(figures: Mapping[str, Any], size: int) -> str:
    explain, score = figures["explain"], figures["score"]
    if not explain["ms"] or not score["ms"]:
        return "not possible"
    ratio = statistics.median(one / other for one, other in zip(explain["ms"], score["ms"], strict=True))
    return f"{ratio:.1f} ({_rate(explain, size)}/s)"


def _error(figures: Sequence[Mapping[str, Any]]) -> str:
    errors = [one["error"] for one in figures if "error" in one]
    return f"{max(errors):.0e}" if errors else ""


def _short(number: float) -> str:
    """Three digits that say something."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"
