"""The page of `rapport explain report`: its figures are the released graphs', its pictures say something, and it is
whole in itself."""

import base64
import io
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from feature_client.contract import Task
from feature_client.errors import RapportError
from feature_client.offline.workspace import Workspace
from feature_client.release import Release
from feature_client.schema import Feature
from model_export import explain_figures as draw
from model_export.explain_report import _of_groups, report_workspace
from model_export.explain_sample import Answers, Sample, ask, draw_sample
from model_export.explain_sections import SectionWriter, unique_labels, write_number
from model_export.page import Report, write_report
from model_export.pipeline import Run, write_run
from tests.model_export.tiny_release import tiny_run

ROWS = 60
SEED = 3

PROBABILITY = Task("churn_90d", "Does not buy for 90 days", "probability", "probability", 90)
AMOUNT = Task("spend_90d", "Spends within 90 days", "amount", "GBP", 90)


@pytest.fixture(scope="module")
def workspace(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """What training leaves."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    write_run(run, workspace.root / "run")
    return workspace


@pytest.fixture(scope="module")
def report(workspace: Workspace, pristine: Release) -> Report:
    return report_workspace(workspace, pristine.root, rows=ROWS, seed=SEED)


@pytest.fixture(scope="module")
def page(report: Report) -> ET.Element:
    return ET.fromstring(report.html)


@pytest.fixture(scope="module")
def sample(run: Run) -> Sample:
    return draw_sample(run, ROWS, SEED)


@pytest.fixture(scope="module")
def graphs(pristine: Release, sample: Sample) -> dict[str, dict[str, np.ndarray]]:
    """Explainer -> the answers of its graph for the very customers of the page, by ONNX Runtime and nothing of ours."""
    answers = {}
    for graph in pristine.graphs():
        if graph.explainer is not None:
            session = onnxruntime.InferenceSession(graph.file, providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            tensors = {"numeric": sample.numeric, "categorical": sample.categorical}
            answers[graph.explainer] = dict(zip(names, session.run(names, tensors), strict=True))
    return answers


def text_of(element: ET.Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def tables(page: ET.Element, task: str, head: str) -> dict[str, list[str]]:
    """Of a task's table whose first column is `head`: first cell -> the others."""
    section = page.find(f".//section[@id='{task}']")
    assert section is not None
    for table in section.iter("table"):
        if text_of(next(table.iter("th"))) == head:
            body = table.find("tbody")
            assert body is not None
            return {text_of(row[0]): [text_of(cell) for cell in row[1:]] for row in body}
    raise AssertionError(f"no table of {head}")


def is_written(text: str, value: float, factor: float) -> bool:
    """Whether the first number of `text` is `value` in the unit of the page, to the digits that are shown."""
    found = re.search(r"[-+]?(?:[A-Z]{3} )?([\d,]+(?:\.(\d+))?)", text)
    assert found is not None, text
    shown = float(found[1].replace(",", "")) * (-1 if text.startswith("-") else 1)
    # What is less than 0.005 is written as 0.
    return abs(shown - value * factor) <= max(0.5 * 10.0 ** -len(found[2] or ""), 0.005 if shown == 0 else 0.0) + 1e-4


def factor_of(task: Task) -> float:
    return 100.0 if task.kind == "probability" else 1.0


def test_the_page_is_well_formed_and_can_be_found_through_by_any_reader(report: Report, page: ET.Element) -> None:
    ids = [element.get("id") for element in page.iter() if element.get("id")]

    assert report.html.startswith("<!DOCTYPE html>")
    assert page.get("lang") == "en"
    assert page.findtext("head/title") == text_of(next(page.iter("h1")))
    assert len(list(page.iter("h1"))) == 1
    assert len(ids) == len(set(ids))
    assert {link.get("href") for link in page.iter("a")} == {f"#{name}" for name in ids}
    assert all(len(image.get("alt") or "") > 40 for image in page.iter("img"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.iter("th"))
    assert all(text_of(table[0]) for table in page.iter("table") if table[0].tag == "caption")


def test_every_score_every_group_and_every_feature_is_named(page: ET.Element, pristine: Release) -> None:
    contract = pristine.contract
    labels = set(contract.schema.groups.values())

    for task in contract.tasks:
        section = page.find(f".//section[@id='{task.name}']")
        assert section is not None
        assert text_of(section).startswith(task.label)
        assert set(tables(page, task.name, "Group")) == labels
        if "features" in contract.explanation.explainers:
            assert set(tables(page, task.name, "Feature")) == set(unique_labels(contract.schema).values())


def test_the_figures_of_groups_are_those_of_the_most_exact_graph(
    page: ET.Element, pristine: Release, sample: Sample, graphs: dict[str, dict[str, np.ndarray]]
) -> None:
    answers = graphs["exact"]
    labels = list(pristine.contract.schema.groups.values())

    check_importance(page, pristine, sample, answers, labels, "Group")


def test_the_most_exact_graph_may_be_a_cheap_one(pristine: Release) -> None:
    """Of three groups, every coalition is fewer rows than an estimate takes."""
    stated = pristine.contract.explanation
    cheap = {**stated.explainers, "exact": replace(stated.explainers["exact"], rows=49)}
    contract = replace(pristine.contract, explanation=replace(stated, explainers=cheap))
    assert _of_groups(contract, None) == "exact"


def test_the_figures_of_features_are_those_of_the_graph_of_features(
    page: ET.Element, pristine: Release, sample: Sample, graphs: dict[str, dict[str, np.ndarray]]
) -> None:
    labels = list(unique_labels(pristine.contract.schema).values())

    if "features" in graphs:
        check_importance(page, pristine, sample, graphs["features"], labels, "Feature")


@pytest.fixture(scope="module")
def shared_out(pristine: Release, sample: Sample) -> tuple[Answers, Answers]:
    """Answers of a release by groups, and by single features, where each feature has an equal part of its group's."""
    schema = pristine.contract.schema
    groups = ask(next(graph for graph in pristine.graphs() if graph.explainer == "exact"), sample)
    members = [[feature.group for feature in schema.features].count(group) for group in groups.parts]
    part_of = [groups.parts.index(feature.group) for feature in schema.features]
    features = replace(
        groups,
        explainer=replace(groups.explainer, by_feature=True),
        parts=tuple(schema.by_name),
        contributions=groups.contributions[..., part_of] / np.array(members)[part_of],
    )
    return groups, features


def test_single_features_have_their_own_table_and_pictures(
    pristine: Release, sample: Sample, shared_out: tuple[Answers, Answers]
) -> None:
    groups, features = shared_out
    schema = pristine.contract.schema
    section = SectionWriter(pristine.contract, sample, groups, features).section(1)
    here = sample.eligible[:, 1]
    means = dict(zip(features.parts, np.abs(features.contributions[here, 1]).mean(axis=0), strict=True))
    ordered = sorted(means, key=lambda name: -means[name])

    assert [figure.name.removeprefix("churn_90d-") for figure in section.figures] == [
        "importance", "groups", "features", "dependence", "customer-high", "customer-middle", "customer-low"
    ]  # fmt: skip
    assert {line.label for line in section.features} == set(unique_labels(schema).values())
    assert all(is_written(line.mean, means[name], 100) for name, line in zip(ordered, section.features, strict=True))
    swarmed, plotted = (figure.alt for figure in section.figures[2:4])
    # As many as there is room for, and of those without an order the calendar cannot be plotted.
    labels = unique_labels(schema)
    assert all((labels[name] in swarmed) == (position < 12) for position, name in enumerate(ordered))
    can_be = [name for name in ordered if schema.by_name[name].kind != "calendar"]
    assert all((labels[name] in plotted) == (position < 6) for position, name in enumerate(can_be))
    assert "Season" not in plotted


def test_a_step_says_which_feature_weighs_most_within_its_group(
    pristine: Release, sample: Sample, shared_out: tuple[Answers, Answers]
) -> None:
    groups, features = shared_out
    contributions = features.contributions.copy()
    at = {name: features.parts.index(name) for name in features.parts}
    contributions[..., [at["orders_365d"], at["top_category"], at["season_cos"]]] *= -100.0
    writer = SectionWriter(pristine.contract, sample, groups, replace(features, contributions=contributions))
    row = int(np.flatnonzero(sample.categorical[:, 0] >= 2)[0])
    orders = sample.numeric[row, [feature.name for feature in pristine.contract.schema.numeric].index("orders_365d")]
    word = pristine.contract.schema.by_name["top_category"].vocabulary[sample.categorical[row, 0] - 2]

    assert writer.note(groups.parts.index("frequency"), 0, row) == f"Orders 365d: {orders:.0f}"
    assert writer.note(groups.parts.index("products"), 0, row) == f"Top category: {word}"
    assert writer.note(groups.parts.index("context"), 0, row) == "Season (cosine)"
    assert SectionWriter(pristine.contract, sample, groups, None).note(0, 0, row) == ""


def test_the_contract_averages_what_the_page_does(pristine: Release, run: Run) -> None:
    """Over all rows that training left, by the explainer that it names, where a score is defined."""
    everybody = draw_sample(run, 10**6, 0)
    importance = pristine.contract.explanation.importance
    graphs = {graph.explainer: graph for graph in pristine.graphs()}
    answers = ask(graphs[importance.GROUPS_BY], everybody)

    assert importance.rows == len(everybody)
    for position, task in enumerate(pristine.contract.tasks):
        means = np.abs(answers.contributions[everybody.eligible[:, position], position]).mean(axis=0)
        assert importance.groups[task.name] == pytest.approx(dict(zip(answers.parts, means, strict=True)), rel=1e-3)


def check_importance(
    page: ET.Element,
    release: Release,
    sample: Sample,
    answers: dict[str, np.ndarray],
    labels: Sequence[str],
    head: str,
) -> None:
    for position, task in enumerate(release.contract.tasks):
        here = sample.eligible[:, position]
        contributions = answers["attributions"][here, position].astype(float)  # [rows, parts]
        means = np.abs(contributions).mean(axis=0)
        low, high = np.quantile(contributions, [0.05, 0.95], axis=0)
        lines = tables(page, task.name, head)
        assert list(lines) == [labels[part] for part in np.argsort(-means, kind="stable")]
        for part, label in enumerate(labels):
            mean, share, raises, middle = lines[label][-4:]
            assert is_written(mean, means[part], factor_of(task)), (label, mean, means[part])
            assert float(share.rstrip("%")) == pytest.approx(100 * means[part] / means.sum(), abs=0.051)
            raised = (contributions[:, part] * factor_of(task) >= 0.005).mean()
            assert float(raises.rstrip("%")) == pytest.approx(100 * raised, abs=0.51)
            assert is_written(middle.partition(" to ")[0], low[part], factor_of(task)), (label, middle, low[part])
            assert is_written(middle.partition(" to ")[2], high[part], factor_of(task)), (label, middle, high[part])


def test_scores_are_those_of_customers_for_whom_they_are_defined(
    page: ET.Element, pristine: Release, sample: Sample, graphs: dict[str, dict[str, np.ndarray]]
) -> None:
    for position, task in enumerate(pristine.contract.tasks):
        eligible = sample.eligible[:, position]
        section = page.find(f".//section[@id='{task.name}']")
        assert section is not None
        base, mean, rows = (text_of(fact) for fact in section.iter("dd"))
        assert rows == str(eligible.sum())
        assert is_written(base, graphs["exact"]["base"][0, position], factor_of(task))
        assert is_written(mean, graphs["exact"]["scores"][eligible, position].mean(), factor_of(task))
        assert ("not defined for the other" in text_of(section)) == (not eligible.all())
    assert not sample.eligible.all(), "a control: some customer has no churn"


def test_single_customers_are_explained_from_the_typical_ones_to_their_own_score(
    page: ET.Element, pristine: Release, sample: Sample, graphs: dict[str, dict[str, np.ndarray]]
) -> None:
    answers, labels = graphs["exact"], list(pristine.contract.schema.groups.values())
    explained = 0
    for position, task in enumerate(pristine.contract.tasks):
        section = page.find(f".//section[@id='{task.name}']")
        assert section is not None
        titles = [text_of(title) for title in section.iter("h3")]
        for title, figure in zip(titles, section.iter("figure"), strict=True):
            if not (found := re.search(r"\(row (\d+)\)", title)):
                continue
            explained += 1
            row = sample.positions.tolist().index(int(found[1]))
            assert sample.eligible[row, position]
            alt = next(figure.iter("img")).get("alt") or ""
            _, first, *steps, last = re.split(r"Typical customers |; ", alt.rstrip("."))
            assert is_written(first, answers["base"][row, position], factor_of(task))
            assert is_written(last.removeprefix("this customer "), answers["scores"][row, position], factor_of(task))
            for part, label in enumerate(labels):
                [step] = [step for step in steps if step.startswith(label)]
                said = step.removeprefix(label).strip()
                assert is_written(said, answers["attributions"][row, position, part], factor_of(task)), alt
    assert explained == 3 * len(pristine.contract.tasks)


def test_every_picture_is_in_the_page_and_shows_something(report: Report, page: ET.Element) -> None:
    sources = [image.get("src") or "" for image in page.iter("img")]

    assert len(sources) == len(report.figures) > 0
    for source, figure in zip(sources, report.figures, strict=True):
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True) == figure.png
        with Image.open(io.BytesIO(figure.png)) as image:
            assert image.format == "PNG"
            assert image.width > 800
            assert image.height > 200
            pixels = np.asarray(image.convert("L"))
        assert 0.5 < (pixels > 250).mean() < 0.99, figure.name
        # Nothing is cut off at the edges.
        assert (np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) > 250).all(), figure.name
        assert len(figure.png) < 150_000, figure.name


def test_the_page_asks_nothing_of_a_network(report: Report, page: ET.Element) -> None:
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", report.html)

    assert not re.search(r"https?:|//[a-z]|url\(|@import", without_pictures)
    assert not {element.tag for element in page.iter()} & {"script", "link", "iframe", "object", "embed", "form"}


def test_the_page_says_what_it_was_made_of(page: ET.Element, pristine: Release) -> None:
    contract, files = pristine.contract, pristine.manifest.files
    said = text_of(page)

    for expected in (
        pristine.name,
        contract.digest,
        contract.digests["code"],
        contract.digests["data"],
        files[f"{pristine.graph_name('exact')}/1/model.onnx"],
        f"{contract.explanation.background_rows} typical customers",
        f"seed {SEED}",
    ):
        assert expected in said
    lines = [text_of(row) for row in page.findall(".//section[@id='sure']//tbody/tr")]
    asked = [name for name in ("exact", "features") if name in contract.explanation.explainers]
    assert len(lines) == len(asked) * len(contract.tasks)
    for explainer in asked:
        assert files[f"{pristine.graph_name(explainer)}/1/model.onnx"] in said
        stated = contract.explanation.explainers[explainer]
        for task in contract.tasks:
            [line] = [
                line for line in lines if line.startswith(f"{pristine.graph_name(explainer)} ") and task.label in line
            ]
            assert stated.method in line
            assert f" {stated.error.scores[task.name]:.1%} {stated.error.shifted[task.name]:.1%} " in line


def test_the_seed_says_who_is_in_the_sample(run: Run, sample: Sample) -> None:
    everybody, others = draw_sample(run, 10**6, SEED), draw_sample(run, ROWS, SEED + 1)

    assert draw_sample(run, ROWS, SEED).positions.tolist() == sample.positions.tolist()
    assert others.positions.tolist() != sample.positions.tolist()
    assert everybody.positions.tolist() == list(range(len(run.rows[0])))


def test_another_graph_can_be_asked_and_one_customer_is_enough(workspace: Workspace, pristine: Release) -> None:
    fast = report_workspace(workspace, pristine.root, rows=1, explainer="fast")

    assert fast.rows == 1
    assert text_of(ET.fromstring(fast.html)).count(f"{pristine.graph_name('fast')} ") >= len(pristine.contract.tasks)
    with pytest.raises(RapportError, match=r"explains groups by fast, .*not by features"):
        report_workspace(workspace, pristine.root, explainer="features")


def test_a_score_that_is_defined_for_nobody_has_no_pictures(pristine: Release, sample: Sample) -> None:
    exact = next(graph for graph in pristine.graphs() if graph.explainer == "exact")
    nobody = replace(sample, eligible=np.zeros_like(sample.eligible))
    section = SectionWriter(pristine.contract, nobody, ask(exact, nobody), None).section(0)

    assert section.rows == 0
    assert section.figures == ()


def test_a_release_without_a_graph_of_features_is_explained_by_groups(pristine: Release, sample: Sample) -> None:
    exact = next(graph for graph in pristine.graphs() if graph.explainer == "exact")
    section = SectionWriter(pristine.contract, sample, ask(exact, sample), None).section(0)

    assert [figure.name.rpartition("purchase_30d-")[2] for figure in section.figures] == [
        "importance", "groups", "customer-high", "customer-middle", "customer-low"
    ]  # fmt: skip
    assert section.features == ()


def test_what_is_missing_is_said_in_a_sentence(workspace: Workspace, pristine: Release, tmp_path: Path) -> None:
    with pytest.raises(RapportError, match="run `rapport train` first"):
        report_workspace(Workspace(tmp_path), pristine.root)
    with pytest.raises(RapportError, match=r"no release of engagement in .*: run `rapport publish` first"):
        report_workspace(workspace, tmp_path)
    with pytest.raises(RapportError, match="no release of other in"):
        report_workspace(workspace, pristine.root, model="other")
    with pytest.raises(RapportError, match=r"engagement.9 does not exist"):
        report_workspace(workspace, pristine.root, version=9)


def test_rows_of_other_features_are_refused(pristine: Release, tmp_path: Path) -> None:
    write_run(tiny_run(rows=300, epochs=1, without=("returns_365d",)), tmp_path / "run")

    with pytest.raises(RapportError, match=r"engagement.1 reads other features"):
        report_workspace(Workspace(tmp_path), pristine.root)


def test_a_page_that_cannot_be_written_is_an_error_with_its_path(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(RapportError, match=r"cannot write .*file"):
        write_report(report, tmp_path / "file" / "report.html", None)


def command(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nimport sys; from service.cli import main; sys.argv = ['rapport', *sys.argv[1:]]; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_the_command_writes_the_same_page_for_the_same_seed_and_its_pictures(
    workspace: Workspace, pristine: Release, report: Report, tmp_path: Path
) -> None:
    places = ["--workspace", str(workspace.root), "--models", str(pristine.root)]
    wanted = [
        "--rows",
        str(ROWS),
        "--seed",
        str(SEED),
        "--out",
        str(tmp_path / "out.html"),
        "--pngs",
        str(tmp_path / "p"),
    ]
    done = command("explain", "report", *places, *wanted)

    assert done.returncode == 0, done.stderr
    assert f"{ROWS} customers" in done.stdout
    assert (tmp_path / "out.html").read_text(encoding="utf-8") == report.html
    assert {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()} == {
        f"{figure.name}.png": figure.png for figure in report.figures
    }


def test_a_missing_extra_is_named(workspace: Workspace) -> None:
    done = command(
        "explain", "report", "--workspace", str(workspace.root), before="import sys; sys.modules['matplotlib'] = None"
    )

    assert done.returncode == 1
    assert done.stderr == "rapport: matplotlib is not installed: pip install 'rapport[report]'\n"


def test_the_command_costs_the_others_nothing() -> None:
    """`serve` forks, and must not have imported what starts threads."""
    code = "import sys, service.cli, service.explain_commands; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "service.explain_commands" in loaded
    assert not set(loaded) & {"numpy", "matplotlib", "jinja2", "PIL", "torch", "onnxruntime"}


@pytest.mark.parametrize(
    ("task", "value", "contribution", "score"),
    [
        (PROBABILITY, 0.1234, "+12.3 points", "12.3 %"),
        (PROBABILITY, -0.00123, "-0.12 points", None),
        (PROBABILITY, 0.00001, "0 points", "0 %"),
        (PROBABILITY, 1.0, "+100 points", "100 %"),
        (AMOUNT, 1234.5, "+GBP 1,234", "GBP 1,234"),
        (AMOUNT, -42.21, "-GBP 42.2", None),
        (AMOUNT, -0.001, "GBP 0", None),
    ],
)
def test_contributions_are_in_points_or_in_currency(
    task: Task, value: float, contribution: str, score: str | None
) -> None:
    scale = draw.Scale.of(task)

    assert scale.contribution(value) == contribution
    assert score is None or scale.score(value) == score


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("currency", 1204.3, "GBP 1,204"),
        ("share", 0.123, "12%"),
        ("days", 12.34, "12.3"),
        ("orders", 3.0, "3"),
        ("days", float("nan"), "not known"),
    ],
)
def test_values_are_as_people_write_them(unit: str, value: float, text: str) -> None:
    feature = Feature("f", "numeric", "g", "F", unit, "v", "f", "float64", default=0.0)

    assert write_number(feature, value, "GBP") == text


@pytest.mark.parametrize("rows", [1, 300])
def test_pictures_can_be_drawn_of_anything(rows: int) -> None:
    """Nothing warns, breaks or hangs: labels that look like markup, values that are all alike, missing or huge."""
    money, long, markup = "Ca$h in $", "A label that nobody would ever read out loud, or " * 3, "<b>&"
    scale = draw.Scale.of(AMOUNT)
    huge = np.random.default_rng(0).standard_cauchy(rows) * 1e6
    zeros, missing, few = np.zeros(rows), np.full(rows, np.nan), np.asarray(np.arange(rows) % 3.0, np.float64)
    quantiles = tuple(np.linspace(0, 1e6, 21))
    words = [money, long, markup] * rows
    panels: list[draw.Numbers | draw.Words] = [
        draw.Numbers(money, zeros, zeros, quantiles, str),
        draw.Numbers(long, missing, huge, (), str),
        draw.Numbers(markup, huge, huge, quantiles, str),
        draw.Numbers(markup, np.abs(huge), huge, (), str),
        draw.Numbers(markup, few, huge, (0.0,) * 21, str),
        draw.Words(long, words[:rows], huge, {money: 0.5}),
        draw.Words(long, [str(row) for row in range(rows)], zeros, {}),
    ]
    figures = [
        draw.bars([draw.Bar(money, 0.0), draw.Bar(long, 1e9)], scale),
        draw.beeswarm([draw.Swarm(long, huge, missing), draw.Swarm(markup, zeros, zeros)], scale),
        draw.beeswarm([draw.Swarm(money, zeros)], scale),
        draw.dependence(panels, scale),
        draw.waterfall(0.0, -5.0, [draw.Step(long, long, -5.0), draw.Step(markup, "", 0.0)], scale),
        draw.waterfall(1e6, 0.0, [draw.Step(money, money, -1e6)], scale),
    ]

    assert all(len(draw.png(figure)) > 1_000 for figure in figures)


def test_gaps_of_the_answers_are_what_additivity_is_missed_by() -> None:
    contributions = np.array([[[0.1, 0.2]], [[0.3, -0.1]]])
    scores = np.array([[0.8], [0.75]])
    answers = Answers(None, None, ("a", "b"), scores, contributions, np.array([0.5]))  # type: ignore[arg-type]

    assert answers.gap == pytest.approx([0.05])
