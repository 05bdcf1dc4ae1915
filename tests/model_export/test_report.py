"""The page of `rapport report`: its figures are those of the test rows, it is whole in itself, and it says so where
there is too little to say anything."""

import base64
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy.stats import binomtest  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score

from feature_client.contract import Contract
from feature_client.release import REPORT, Release
from model_export.gates import judge
from model_export.holdout import Holdout
from model_export.page import Report
from model_export.pipeline import Run, write_run
from model_export.report import make_report
from model_export.report_facts import TENTHS, Rows, facts_of, rows_of, wilson
from model_export.report_words import money, percent, sentences
from service import cli

HOSTILE = '<script>alert("x")</script> & \'**bold'


@pytest.fixture(scope="module")
def folder(run: Run, pristine: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves, of a run whose release is the champion."""
    root = tmp_path_factory.mktemp("workspace")
    shutil.copytree(pristine.root, root / "models")
    write_run(run, root / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rapport", "report", "--workspace", str(root)])
        patch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0
    return root / "report"


@pytest.fixture(scope="module")
def page(folder: Path) -> ET.Element:
    return ET.fromstring((folder / REPORT).read_text(encoding="utf-8"))


def some(holdout: Holdout, rows: Sequence[int] | slice, tasks: slice = slice(None)) -> Holdout:
    """Some of its rows and tasks."""
    of_rows = {name: getattr(holdout, name)[rows] for name in ("numeric", "categorical", "customers", "cutoffs")}
    both = {name: getattr(holdout, name)[rows][:, tasks] for name in ("scores", "labels", "eligible", "naive")}
    return replace(holdout, **of_rows, **both, naive_features=holdout.naive_features[tasks])


def report_of(contract: Contract, holdout: Holdout) -> tuple[Report, ET.Element]:
    report, _ = make_report(contract, holdout, judge(contract, holdout, None), None)
    return report, ET.fromstring(report.html)


def text_of(element: ET.Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def section(page: ET.Element, name: str) -> str:
    found = page.find(f".//section[@id='{name}']")
    assert found is not None
    return text_of(found)


def tables(page: ET.Element, caption: str) -> list[list[list[str]]]:
    """All tables of that caption, one a task: rows of cells."""
    found = [table for table in page.iter("table") if text_of(table[0]) == caption]
    return [
        [[text_of(cell) for cell in row] for row in table.iter("tr") if row[0].get("scope") == "row"] for table in found
    ]


def of_task(run: Run, position: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of the rows for which a task is defined, the highest scores first."""
    kept = run.holdout.eligible[:, position]
    scores, labels = (array[kept, position].astype(float) for array in (run.holdout.scores, run.holdout.labels))
    order = np.argsort(-scores, kind="stable")
    return scores[order], labels[order]


def test_the_page_is_well_formed_and_asks_nothing_of_a_network(folder: Path, page: ET.Element) -> None:
    html = (folder / REPORT).read_text(encoding="utf-8")
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    links = {element.get("href") for element in page.iter("a")}

    assert html.startswith("<!DOCTYPE html>")
    assert (page.get("lang"), len(list(page.iter("h1")))) == ("en", 1)
    assert len(ids) == len(set(ids))
    assert links == {*(f"#{name}" for name in ids), "card.md"}
    assert not [element.tag for element in page.iter() if element.tag in ("script", "link", "iframe", "object", "base")]
    assert all((image.get("src") or "").startswith("data:image/png;base64,") for image in page.iter("img"))
    assert not re.search(r"url\(|@import|https?://|\bon[a-z]+=", html.split("<body>")[0])
    assert all(len(image.get("alt") or "") > 40 for image in page.iter("img"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.iter("th"))
    assert page.find(".//meta[@name='viewport']") is not None


def test_pictures_lie_beside_it_and_the_card_links_to_it(folder: Path, page: ET.Element) -> None:
    inside = {base64.b64decode((image.get("src") or "").partition(",")[2]) for image in page.iter("img")}
    beside = {path.read_bytes() for path in folder.glob("*.png")}

    assert inside == beside
    assert len(beside) == 20
    assert max(map(len, beside)) < 100_000
    card = (folder / "card.md").read_text(encoding="utf-8")
    assert f"[{REPORT}]({REPORT})" in card
    assert (folder / REPORT).exists()


def test_it_names_the_release_and_what_its_gates_said(folder: Path, page: ET.Element, pristine: Release) -> None:
    verdicts = tables(page, "What was checked before publishing, and what was found")[0]

    assert pristine.name in text_of(page)
    assert len(verdicts) == 10
    assert {row[3] for row in verdicts} == {"passed", "not judged"}
    assert [row[4] for row in verdicts if row[1] == "champion"] == [
        "it is the champion itself, and replaced nobody"
    ] * 3
    assert pristine.contract.digest in section(page, "appendix")


def test_the_hundred_ranked_highest_are_counted(page: ET.Element, run: Run) -> None:
    for position, words in ((0, "bought within 30 days"), (1, "did not buy for 90 days")):
        scores, labels = of_task(run, position)
        first, chance = int(labels[:100].sum()), round(100 * labels.mean())
        wanted = binomtest(first, 100).proportion_ci(method="wilson")

        said = section(page, run.contract.tasks[position].name)
        assert (
            f"Of the 100 customers we rank highest, {first} {words} . Of 100 picked at random it would be {chance}."
            in said
        )
        assert f"it might have been {round(100 * wanted.low)} to {round(100 * wanted.high)} of 100" in said
        reached = labels[: len(labels) // 5].sum() / labels.sum()
        assert re.search(r"highest fifth of the list alone, and you have (\d+) %", said)[1] == f"{100 * reached:.0f}"  # type: ignore[index]
        assert f"in {100 * roc_auc_score(labels, scores):.0f} of 100 such pairs" in said
        assert "not surely better" not in said


def test_what_is_no_advantage_is_said_to_be_none(run: Run) -> None:
    """Against a single fact that says the very same."""
    same = replace(run.holdout, naive=run.holdout.scores)

    facts = facts_of(rows_of(run.contract, same, 0))

    assert facts.advantage is not None
    assert (facts.advantage.low, facts.advantage.high) == (0.0, 0.0)
    assert any("which we are not surely better than" in sentence for sentence in sentences(run.contract, facts))


def test_the_worth_is_what_was_said_and_what_came(page: ET.Element, run: Run) -> None:
    scores, labels = of_task(run, 2)
    said = section(page, "spend_90d")

    assert f"we expected {money(scores.sum(), 'GBP')} within 90 days, and {money(labels.sum(), 'GBP')} came" in said
    tenth = labels[: len(labels) // 10].sum() / labels.sum()
    assert f"of whom we expect most brought {percent(tenth)} of it" in said
    assert f"{percent((labels == 0).mean())} of the customers brought nothing" in said


def test_tenths_are_the_rows_cut_in_ten(page: ET.Element, run: Run) -> None:
    shown = tables(page, "By tenth, the highest scores first")
    for position, task in enumerate(run.contract.tasks):
        scores, labels = of_task(run, position)
        write = percent if task.kind == "probability" else lambda value: money(value, "GBP")
        ends = np.cumsum([0, *(int(row[1].replace(",", "")) for row in shown[position])])
        assert ends[-1] == len(scores)
        for place, row in enumerate(shown[position]):
            here = slice(ends[place], ends[place + 1])
            assert row[2] == write(scores[here].mean())
            assert row[3] == write(labels[here].mean())
            assert row[5] == percent(labels[here].sum() / labels.sum())


def test_bins_lose_nothing(run: Run) -> None:
    for position in range(3):
        rows = rows_of(run.contract, run.holdout, position)
        facts = facts_of(rows)
        for bins in (facts.tenths, facts.bins):
            assert sum(one.rows for one in bins) == len(rows)
            assert sum(one.rows * one.came.value for one in bins) == pytest.approx(rows.label.sum())
            assert sum(one.rows * one.said for one in bins) == pytest.approx(rows.score.sum())
            assert sum(one.share for one in bins) == pytest.approx(1.0)
            assert all(one.came.low <= one.came.value <= one.came.high for one in bins)
        assert rows.risked is not None
        assert sum(one.risked for one in facts.tenths) == pytest.approx(rows.risked.sum())
        assert facts.gains[0] == 0
        assert facts.gains[100] == pytest.approx(1.0)


def test_metrics_are_those_of_the_contract_with_intervals_around_them(page: ET.Element, run: Run) -> None:
    names = {"AUC (area under the ROC curve)": "auc", "average precision": "average_precision",
             "ECE (expected calibration error)": "ece", "RMSE of log(1 + amount)": "log_rmse",
             "Spearman's rank correlation": "spearman", "sum said / sum came": "sum_ratio"}  # fmt: skip
    for task, rows in zip(run.contract.tasks, tables(page, "Metrics"), strict=True):
        for name, value, interval, _ in rows:
            low, high = (float(end) for end in interval.strip("[]").split(", "))
            assert low <= float(value) <= high
            if name in names:
                assert float(value) == pytest.approx(run.contract.metrics[task.name][names[name]], abs=6e-4)
        baselines = {name: baseline for name, _, _, baseline in rows}
        if task.kind == "probability":
            kept, place = run.holdout.eligible, run.contract.task_names.index(task.name)
            here = kept[:, place]
            naive = roc_auc_score(run.holdout.labels[here, place], run.holdout.naive[here, place])
            assert baselines["AUC (area under the ROC curve)"] == f"{naive:.3f}"


def test_slices_are_of_the_rows_of_their_kind(page: ET.Element, run: Run) -> None:
    schema, kept = run.contract.schema, run.holdout
    column = [feature.name for feature in schema.categorical].index("country")
    vocabulary = schema.categorical[column].vocabulary
    days = kept.numeric[:, [feature.name for feature in schema.numeric].index("days_since_purchase")]
    france = kept.categorical[:, column] == 2 + vocabulary.index("France")
    recent = days < 30
    shown = {row[1]: row for row in tables(page, "By kind of customers")[0]}

    for name, rows in (("France", france), ("within 30 days", recent)):
        auc = roc_auc_score(kept.labels[rows, 0], kept.scores[rows, 0])
        assert shown[name][2:5] == [
            f"{rows.sum():,}", percent(kept.scores[rows, 0].mean()), percent(kept.labels[rows, 0].mean())
        ]  # fmt: skip
        assert shown[name][5].startswith(f"{auc:.3f} [")


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (7, 20), (20, 20), (1, 1)])
def test_shares_have_wilsons_interval(hits: int, trials: int) -> None:
    wanted = binomtest(hits, trials).proportion_ci(method="wilson")

    found = wilson(hits / trials, trials)

    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_a_customer_with_two_rows_is_one_witness(run: Run) -> None:
    rows = rows_of(run.contract, run.holdout, 0)
    twice = Rows(
        **{
            **vars(rows),
            **{name: np.tile(getattr(rows, name), 2) for name in ("score", "label", "naive", "customers", "risked")},
            "cutoffs": np.repeat([1.0, 2.0], len(rows)),
            "slices": (),
        }
    )
    once, again = facts_of(rows), facts_of(twice)

    assert len(twice) == 2 * len(rows)
    assert again.top.came == once.top.came
    for first, second in zip(once.tenths[:TENTHS], again.tenths, strict=True):
        assert (second.came.high - second.came.low) == pytest.approx(first.came.high - first.came.low, rel=0.15)
        assert second.risked == pytest.approx(first.risked, rel=0.2)  # a date, not both together


def test_the_words_of_others_are_words(run: Run) -> None:
    """And one score alone is enough for a page."""
    schema = run.contract.schema
    features = tuple(
        replace(
            feature,
            label=HOSTILE,
            vocabulary=tuple(HOSTILE if word == "France" else word for word in feature.vocabulary),
        )
        for feature in schema.features
    )
    groups = {group: f"{HOSTILE} {label}" for group, label in schema.groups.items()}
    contract = replace(
        run.contract,
        schema=replace(schema, features=features, groups=groups),
        tasks=(replace(run.contract.tasks[0], label=HOSTILE),),
        training={"data": HOSTILE, "gates_accepted_because": HOSTILE},
    )

    report, page = report_of(contract, some(run.holdout, slice(None), slice(0, 1)))

    assert "<script" not in report.html
    assert not list(page.iter("script"))
    assert text_of(page).count('alert("x")</script>') >= 10
    assert [heading.text for heading in page.iter("h2")] == [
        "Who will buy? ",
        "How sure are we?",
        "Technical appendix ",
    ]
    assert {figure.name for figure in report.figures} == {
        f"purchase_30d-{name}" for name in ("top", "lift", "gains", "calibration", "slices", "drivers", "curves")
    }


def test_few_customers_are_said_to_be_few_and_nothing_is_drawn(run: Run) -> None:
    report, page = report_of(run.contract, some(run.holdout, slice(90)))

    assert report.figures == []
    assert not list(page.iter("img"))
    for task in run.contract.tasks:
        assert "too few" in section(page, task.name)
    assert "could not be judged" in section(page, "sure")


def test_a_score_that_is_defined_for_nobody_is_said_to_be(run: Run) -> None:
    nobody = replace(run.holdout, eligible=np.zeros_like(run.holdout.eligible))

    report, page = report_of(run.contract, nobody)

    assert report.figures == []
    for task in run.contract.tasks:
        assert "is defined for nobody among the customers of the test" in section(page, task.name)


def test_scores_that_never_came_true_are_no_reason_to_fail(run: Run) -> None:
    never = replace(run.holdout, labels=np.zeros_like(run.holdout.labels))

    report, page = report_of(run.contract, never)

    assert report.figures == []
    assert "0 of its 2,000 rows came true" in section(page, "purchase_30d")
