"""What reasons cost over scores, end to end and as graphs alone, and how far they are from exact ones."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from loadtests.answers import WrongAnswer, check_answer
from loadtests.bench.explainers import (
    EXACT,
    FAST,
    INPUTS,
    Explainer,
    Floats,
    Released,
    Tensors,
    champion,
    cpu_ms,
    first,
    read_rows,
    repeated,
    session,
)
from loadtests.bench.home import Home
from loadtests.bench.plan import Plan, ratios
from loadtests.bench.report import Row, absolute
from loadtests.bench.targets import EXPLAIN, Target, ask, bodies_of, gateway

CHECKED = 8
"""Customers whose explanations are checked before they are timed."""
MARK_P50 = 2.0
MARKS_GRAPH = {1: 6.0, 32: 45.0, 256: 85.0}
PART = 8
"""One of the many measurements of a graph alone takes this part of a load's time."""
MOST_ROWS = 300_000
"""Of the network in one run of a graph: beyond, its tensors take gigabytes."""
MARK_ERROR, AIM_ERROR = 0.08, 0.04
JUDGED = 256
"""Customers whose explanations say how exact a graph is."""
AT_ONCE = 4
"""Customers in one run of the exact graph where its time does not matter."""


def released(home: Home) -> Released:
    return Released(champion(home.models))


def held_out(home: Home) -> Tensors:
    """Real rows of the test cutoffs, which neither the network nor its explanations were fitted on."""
    return read_rows(home.workspace / "run/rows.npz")


def background(home: Home) -> tuple[Tensors, Floats]:
    """The rows that explanations compare with, and their weights, which sum to 1: those inside the graphs."""
    with np.load(home.workspace / "run/explained.npz", allow_pickle=False) as file:
        return {name: file[f"typical.{name}"] for name in INPUTS}, file["background.weights"]


def explain(plan: Plan) -> Iterator[Row]:
    """p50 of one client that asks for all reasons of one entity, over p50 of one that asks for its scores."""
    plain = bodies_of(plan.home, plan.home.customers)
    with gateway(plan.home, plan.cores) as ours:
        for name, explainer in released(plan.home).explainers.items():
            check(ours, plan.home.customers, explainer)
            bodies = bodies_of(plan.home, plan.home.customers, fields=explainer.asked)
            pairs = list(
                plan.interleaved(
                    partial(ours.drive, bodies, 1, plan.seconds, EXPLAIN), partial(ours.drive, plain, 1, plan.seconds)
                )
            )
            p50s = [(one.load.p50_ms, other.load.p50_ms) for one, other in pairs]
            yield Row(
                _named("explain", name),
                f"p50 of explain against predict, one client, one entity, {_told(explainer)}",
                ratios(p50s),
                "times",
                mark=MARK_P50 if name == FAST else None,
                details={
                    "explain_p50_ms": [one for one, _ in p50s],
                    "predict_p50_ms": [other for _, other in p50s],
                    "explain_p99_ms": [one.load.p99_ms for one, _ in pairs],
                    "explain_cpu_us": [one.cpu_us for one, _ in pairs],
                },
                absolute=absolute([one for one, _ in p50s], [other for _, other in p50s], "ms"),
            )


def check(target: Target, customers: Sequence[str], explainer: Explainer) -> None:
    """Some customers get whole explanations, by this graph. Raises WrongAnswer."""
    sample = random.Random(1).sample(list(customers), min(CHECKED, len(customers)))
    answer = ask(target, sample, explainer.asked, EXPLAIN)
    check_answer(answer, sample, explained=True)
    for prediction in json.loads(answer)["predictions"]:
        for explanation in filter(None, prediction["explanations"].values()):
            if explanation["method"] != explainer.method:
                told = f"{explanation['method']} answers where {explainer.method} was asked for"
                raise WrongAnswer(f"{target.name}: {told}")


def explain_graph(plan: Plan) -> Iterator[Row]:
    """CPU time of one run of an explanation graph over one of the score graph, the same rows, one thread."""
    release, rows = released(plan.home), held_out(plan.home)
    score = session(release.score_file)
    for name, explainer in release.explainers.items():
        graph = session(explainer.file)
        for size, mark in MARKS_GRAPH.items():
            if size * explainer.rows > MOST_ROWS:
                continue
            inputs, seconds = repeated(rows, size), plan.seconds / PART
            pairs = list(
                plan.interleaved(
                    partial(cpu_ms, partial(graph.run, None, inputs), seconds),
                    partial(cpu_ms, partial(score.run, None, inputs), seconds),
                )
            )
            yield Row(
                f"{_named('explain_graph', name)}_{size}",
                f"CPU of the graph alone, {size} at once, against the score graph, {_told(explainer)}",
                ratios(pairs),
                "times",
                mark=mark if name == FAST else None,
                details={"explain_ms": [one for one, _ in pairs], "score_ms": [other for _, other in pairs]},
                absolute=absolute([one for one, _ in pairs], [other for _, other in pairs], "ms"),
            )


def explain_error(plan: Plan) -> Iterator[Row]:
    """Mean |difference| to the exact graph over mean |exact|, of real rows that nothing was fitted on; worst task."""
    release, rows = released(plan.home), first(held_out(plan.home), JUDGED)
    exact = attributions(session(release.explainer(EXACT).file), rows, AT_ONCE)
    for name, explainer in release.explainers.items():
        if name != EXACT:
            errors = relative_error(in_groups(explainer, release, rows), exact)
            told = ", ".join(f"{task} {error:.3f}" for task, error in zip(release.tasks, errors, strict=True))
            yield Row(
                _named("explain_error", name),
                f"error{' of sums by group' if explainer.by_feature else ''} against exact values, "
                f"{len(rows['numeric'])} real rows, worst task, {_told(explainer)}",
                (float(max(errors)),),
                "of 1",
                mark=MARK_ERROR if name == FAST else None,
                details={"errors": errors.tolist(), "stated": explainer.error},
                absolute=f"{told}; the aim is {AIM_ERROR:g}, the contract says {explainer.error:.3f}"
                + (" of single features" if explainer.by_feature else ""),
            )


def in_groups(explainer: Explainer, release: Released, rows: Tensors) -> Floats:
    """[rows, T, G], summed over the features of a group where they are of single features."""
    graph = session(explainer.file)
    found = attributions(graph, rows, max(1, MOST_ROWS // 10 // explainer.rows))
    if not explainer.by_feature:
        return found
    members = np.eye(len(release.groups))[release.group_of["features"]]  # [F, G]
    return np.asarray(found @ members)


def attributions(graph: InferenceSession, rows: Tensors, at_once: int) -> Floats:
    """[rows, T, G or F]. Raises WrongAnswer where they and the base are not the score."""
    parts = []
    for start in range(0, len(rows["numeric"]), at_once):
        batch = {name: values[start : start + at_once] for name, values in rows.items()}
        outputs = dict(zip((one.name for one in graph.get_outputs()), graph.run(None, batch), strict=True))
        check_sums(outputs)
        parts.append(outputs["attributions"].astype(np.float64))
    return np.concatenate(parts)


def check_sums(outputs: Mapping[str, npt.NDArray[np.float32]]) -> None:
    parts = np.concatenate([outputs["base"][..., None], outputs["attributions"]], axis=2).astype(np.float64)
    off = np.abs(parts.sum(axis=2) - outputs["scores"])
    # Float32 resolves a score no better than the parts it is made of. Written so that NaN never passes.
    if not (off <= 1e-5 + 1e-5 * np.abs(parts).sum(axis=2)).all():
        raise WrongAnswer(f"base and attributions miss the score by {off.max():.2g}")


def relative_error(estimate: Floats, exact: Floats) -> Floats:
    """[T] of [rows, T, G]: mean |difference| over mean |exact|."""
    return np.asarray(np.abs(estimate - exact).mean(axis=(0, 2)) / np.abs(exact).mean(axis=(0, 2)))


def _named(row: str, explainer: str) -> str:
    return row if explainer == FAST else f"{row}_{explainer}"


def _told(explainer: Explainer) -> str:
    return f"{explainer.name} ({explainer.method})"
