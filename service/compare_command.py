"""`rapport release compare`: the verdict on a shadow, from what the gateway kept of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from feature_client.errors import RapportError
from service.comparison import MIN_TIMED, Comparison, Latency, Thresholds, compare
from service.shadow_records import read_pairs

HOLD = 3
"""Exit status of a verdict to hold; 0 promotes, 1 is an error."""

DEFAULT = Thresholds()


def compare_releases(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    champion: Annotated[str, typer.Argument(help="The version that answered.")],
    shadow: Annotated[str, typer.Argument(help="The version that was its shadow.")],
    shadow_dir: Annotated[
        Path | None,
        typer.Option(envvar="RAPPORT_SHADOW_DIR", help="Where the gateway keeps what its shadows said."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as one JSON object.")] = False,  # noqa: FBT002  (Typer's way to say a flag)
    min_rows: Annotated[int, typer.Option(min=1, help="Customers with a score of both, for each task.")] = 1_000,
    max_psi: Annotated[float, typer.Option(help="Shift of the scores: PSI.")] = DEFAULT.max_psi,
    max_ks: Annotated[float, typer.Option(help="Shift of the scores: KS statistic.")] = DEFAULT.max_ks,
    max_mean_shift: Annotated[
        float, typer.Option(help="Shift of the mean, in standard deviations.")
    ] = DEFAULT.max_mean_shift,
    min_rank: Annotated[float, typer.Option(help="Rank agreement: Spearman.")] = DEFAULT.min_rank,
    min_top_overlap: Annotated[
        float, typer.Option(help="Share of the top tenth that stays in it.")
    ] = DEFAULT.min_top_overlap,
    max_segment_changes: Annotated[
        float, typer.Option(help="Share of customers whose segment changes.")
    ] = DEFAULT.max_segment_changes,
    max_undefined_changes: Annotated[
        float, typer.Option(help="Share of customers with a score of only one of the two.")
    ] = DEFAULT.max_undefined_changes,
    min_cosine: Annotated[float, typer.Option(help="Mean cosine of the attributions.")] = DEFAULT.min_cosine,
    max_latency: Annotated[
        float, typer.Option(help="Inference time of the shadow, in the champion's.")
    ] = DEFAULT.max_latency,
    max_more_degraded: Annotated[
        float, typer.Option(help="Share of degraded customers beyond the champion's.")
    ] = DEFAULT.max_more_degraded,
    max_failed: Annotated[
        float, typer.Option(help="Share of rows for which the shadow had no answer.")
    ] = DEFAULT.max_failed,
) -> None:
    """Champion against shadow on the same customers: promote (exit code 0) or hold (3), and why."""
    if shadow_dir is None:
        raise RapportError("where are the pairs? give --shadow-dir, or set RAPPORT_SHADOW_DIR as for the gateway")
    thresholds = Thresholds(
        min_rows=min_rows,
        max_psi=max_psi,
        max_ks=max_ks,
        max_mean_shift=max_mean_shift,
        min_rank=min_rank,
        min_top_overlap=min_top_overlap,
        max_segment_changes=max_segment_changes,
        max_undefined_changes=max_undefined_changes,
        min_cosine=min_cosine,
        max_latency=max_latency,
        max_more_degraded=max_more_degraded,
        max_failed=max_failed,
    )
    found = compare(read_pairs(shadow_dir, model, champion, shadow), thresholds)
    print(msgspec.json.format(msgspec.json.encode(found)).decode() if as_json else "\n".join(lines(found)))  # noqa: T201
    raise typer.Exit(0 if found.verdict == "promote" else HOLD)


def lines(found: Comparison) -> list[str]:
    """The comparison as a person reads it."""
    text = [
        f"{found.model}: champion {found.champion}, shadow {found.shadow}",
        (
            f"{found.customers:,} customers, the last of {found.pairs:,} answers of each, over {_time(found.seconds)}"
            f"; left out: {found.unknown:,} unknown customers, {found.failed:,} rows that the shadow failed, "
            f"{found.incomparable:,} that are not comparable"
        ),
        "",
        *_table(
            ("task", "customers", "mean", "shift", "PSI", "KS", "Spearman", "top tenth", "segments"),
            [
                (
                    task.task,
                    f"{task.rows:,}",
                    f"{task.mean:.4g}",
                    f"{task.mean_shift:+.3g}",
                    f"{task.psi:.3f}",
                    f"{task.ks:.3f}",
                    f"{task.rank:.3f}",
                    f"{task.top_decile_overlap:.0%} stay",
                    "-" if task.segment_changes is None else f"{task.segment_changes:.1%} change",
                )
                for task in found.tasks
            ],
        ),
        "",
        *_table(
            ("reasons of", "customers", "cosine", "same top 3", "same sign"),
            [
                (
                    task.task,
                    f"{task.explained:,}",
                    f"{task.cosine:.3f}",
                    f"{task.top_overlap:.0%}",
                    f"{task.same_sign:.0%}",
                )
                for task in found.tasks
            ],
        ),
        "",
        *_latency(found.latency),
        "",
        (
            f"degraded: {found.champion_degraded:.1%} of the customers with the champion, "
            f"{found.shadow_degraded:.1%} with the shadow"
        ),
    ]
    if found.own_reads:
        text.append(f"{found.own_reads:,} answers of the shadow are from a read of its own, a moment later")
    if found.damaged_lines or found.older_files:
        text.append(f"left out: {found.damaged_lines:,} damaged lines, {found.older_files:,} files of other contracts")
    return [*text, "", f"verdict: {found.verdict}", *(f"  {reason}" for reason in found.reasons)]


def _latency(latency: Sequence[Latency]) -> list[str]:
    if not latency:
        return [f"time: fewer than {MIN_TIMED} timed inferences of any size"]
    return _table(
        ("rows of a batch", "batches", "champion us/row", "shadow us/row", "times"),
        [
            (one.rows, f"{one.batches:,}", f"{one.champion_us:.1f}", f"{one.shadow_us:.1f}", f"{one.ratio:.2f}")
            for one in latency
        ],
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:,.0f} h"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Words to the left, figures to the right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
