"""Shadows, through a real gateway: what they score, what is kept, the verdict, and that nobody ever notices them."""

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import requests
import typer
from onnx import numpy_helper
from redis import Redis
from typer.testing import CliRunner, Result

import service.shadow
from feature_client.golden import Tensors, golden_name
from feature_client.release import Release, read_release
from model_export.publish import Artifacts, publish
from model_export.verify import Session
from service.app import create_app
from service.backends import BackendUnavailable
from service.backends.embedded import EmbeddedBackend
from service.compare_command import HOLD, compare_releases
from service.settings import Settings
from service.shadow import QUEUED_BATCHES
from service.shadow_records import HASH_BYTES, SALT, Pairs, hash_of, read_pairs
from tests.feast_layout import Value, store
from tests.model_export.tiny_release import (
    AS_OF,
    CATEGORIES,
    CHANNELS,
    COUNTRIES,
    build_tiny_release,
    tiny_run,
)
from tests.service.conftest import DAY_S, NOW, Rows, Start, wait_ready
from tests.service.serving import running
from tests.service.test_operations import total, until

ENGAGEMENT = ("sessions_30d", "preferred_channel")
"""The features of a view of their own."""

CHAMPION, NARROW, TWIN, FLIPPED, RECALIBRATED = "1", "2", "3", "4", "5"
"""The versions of the repository: with all features, without a view, and the champion again: as it is, with another
ranking of one task, and with the same ranking at another level."""

CUSTOMERS, PER_REQUEST = 1_024, 64
PURCHASE = 0
"""The task's column of scores, and of the heads."""

Edit = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def published_again(release: Release, scratch: Path, edits: Mapping[str, Edit]) -> Release:
    """The release as the next version, with some weights edited in every graph, and golden answers that agree."""
    scratch.mkdir()
    inputs = release.graphs()[0].golden.tensors
    answers: dict[str, npt.NDArray[Any]] = {}
    files: dict[str | None, Path] = {}
    for graph in release.graphs():
        files[graph.explainer] = path = scratch / f"{graph.name}.onnx"
        model = onnx.load(graph.file)
        found = set()
        for weights in model.graph.initializer:
            name = weights.name.removeprefix("network.")
            if name in edits:
                edited = edits[name](numpy_helper.to_array(weights).copy())
                weights.CopyFrom(numpy_helper.from_array(edited, weights.name))
                found.add(name)
        # Of `features`, which shadows are never asked for, they are folded into other constants.
        assert found == set(edits) or graph.explainer == "features"
        path.write_bytes(model.SerializeToString())
        given = Session(path, tuple(graph.outputs(1))).run(inputs["numeric"], inputs["categorical"])
        answers |= {golden_name(graph.explainer, output): values for output, values in given.items()}
    np.savez(scratch / "golden.npz", **inputs, **answers)  # type: ignore[arg-type]
    graphs = {explainer: path for explainer, path in files.items() if explainer is not None}
    artifacts = Artifacts(files[None], graphs, scratch / "golden.npz", release.card)
    return publish(release.root, release.contract, artifacts)


def flipped(heads: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Some of the strongest weights of the head change their sign."""
    strongest = np.argsort(-np.abs(heads[PURCHASE]))[:20]
    heads[PURCHASE, strongest] *= -1
    return heads


def raised(bias: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    bias[PURCHASE] += 1.0
    return bias


@pytest.fixture(scope="module")
def repository(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shadows")
    models = Path(shutil.copytree(release.root, root / "models"))
    build_tiny_release(models, tiny_run(rows=1_000, seed=1, epochs=2, without=ENGAGEMENT))
    champion = read_release(models, "engagement", int(CHAMPION))
    published_again(champion, root / "twin", {})
    published_again(champion, root / "flipped", {"heads.weight": flipped})
    published_again(champion, root / "recalibrated", {"heads.bias": raised})
    return models


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """The same releases, and routes of its own."""
    return Path(shutil.copytree(repository, tmp_path / "models", copy_function=os.link))


def route(models: Path, champion: str, *shadows: str, **more: object) -> None:
    lines = ["[engagement]", f"champion = {champion}", f"shadow = [{', '.join(shadows)}]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in more.items()]
    (models / "routes.toml.new").write_text("\n".join(lines) + "\n")
    (models / "routes.toml.new").replace(models / "routes.toml")


def wait_for_shadows(url: str, *shadows: str) -> None:
    """Nobody waits for them but a test: a gateway is ready before they are."""
    for shadow in shadows:
        until(lambda: total(url, "rapport_release_info", version=shadow, role="shadow") == 1, f"no shadow {shadow}")  # noqa: B023


def some_rows(rng: np.random.Generator, customer: str) -> Rows:
    year = float(rng.poisson(6))
    quarter = float(rng.binomial(int(year), 0.3))
    spend = float(rng.lognormal(3.5, 0.7))
    orders: dict[str, Value] = {
        "customer_id": customer,
        "orders_30d": float(rng.binomial(int(quarter), 0.3)),
        "orders_90d": quarter,
        "orders_365d": year,
        "spend_90d": quarter * spend,
        "spend_365d": year * spend,
        "returns_365d": float(rng.binomial(int(year), 0.1)),
        "top_category": rng.choice(np.array(CATEGORIES, dtype=object)),
    }
    lifetime: dict[str, Value] = {
        "customer_id": customer,
        "last_purchase_at": NOW - float(rng.uniform(1, 170)) * DAY_S,
        "lifetime_orders": year + float(rng.poisson(4)),
        "mean_gap_days": float(rng.uniform(5, 100)),
        "country": rng.choice(np.array(COUNTRIES, dtype=object)),
    }
    engagement: dict[str, Value] = {
        "customer_id": customer,
        "sessions_30d": int(rng.poisson(4)),
        "preferred_channel": rng.choice(np.array(CHANNELS, dtype=object)),
    }
    at = NOW - 600.0
    return {"orders": (at, orders), "lifetime": (at, lifetime), "engagement": (at, engagement)}


def ask(url: str, *customers: str, **more: Any) -> dict[str, Any]:
    body = {"entities": [{"customer_id": customer} for customer in customers], **more}
    response = requests.post(f"{url}/v1/predict", json=body, headers={"X-Deadline-Ms": "30000"}, timeout=30)
    assert response.status_code == 200, response.text
    return dict(response.json())


def rows(url: str, outcome: str, **labels: str) -> float:
    return total(url, "rapport_shadow_rows_total", outcome=outcome, **labels)


def seen(url: str) -> float:
    """Rows of whatever outcome."""
    return total(url, "rapport_shadow_rows_total")


def compare(directory: Path, shadow: str, *options: str, champion: str = CHAMPION) -> Result:
    app = typer.Typer()
    app.command()(compare_releases)
    return CliRunner().invoke(app, ["engagement", champion, shadow, "--shadow-dir", str(directory), *options])


def verdict(directory: Path, shadow: str, *options: str) -> dict[str, Any]:
    # The machine may be busy with something else: no verdict of a test is about time.
    result = compare(directory, shadow, "--json", "--max-latency", "1000", *options)
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if found["verdict"] == "promote" else HOLD)
    return found


@pytest.fixture(scope="module")
def kept(repository: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Where the pairs of one gateway are, which four shadows followed through one round of all customers; its URL."""
    host, _, port = redis_url.rpartition(":")
    rng = np.random.default_rng(7)
    schema = read_release(repository, "engagement", int(CHAMPION)).contract.schema
    route(repository, CHAMPION, NARROW, TWIN, FLIPPED, RECALIBRATED)
    directory = tmp_path_factory.mktemp("pairs")
    with Redis(host, int(port)) as redis, ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.shadow, "SHARE", 0.9)  # nobody else waits for this gateway
        redis.flushall()
        names = [f"c{number}" for number in range(CUSTOMERS)]
        for name in names:
            store(redis, schema, name, some_rows(rng, name))
        settings = Settings(models=repository, redis=redis_url, as_of=AS_OF, log_level="warning", shadow_dir=directory)
        url = stack.enter_context(running(create_app(settings)))
        wait_ready(url)
        wait_for_shadows(url, NARROW, TWIN, FLIPPED, RECALIBRATED)
        for start in range(0, CUSTOMERS, PER_REQUEST):
            ask(url, *names[start : start + PER_REQUEST])
            until(lambda: seen(url) == 4 * (start + PER_REQUEST), "rows are missing")  # noqa: B023  (waited for here)
        yield directory, url


@pytest.fixture(scope="module")
def pairs(kept: tuple[Path, str]) -> Path:
    return kept[0]


def test_every_row_is_scored_or_counted_and_the_role_is_said(kept: tuple[Path, str]) -> None:
    _, url = kept

    for shadow in (NARROW, TWIN, FLIPPED, RECALIBRATED):
        assert rows(url, "scored", model="engagement", version=shadow) == CUSTOMERS
        assert total(url, "rapport_release_info", version=shadow, role="shadow") == 1
    assert rows(url, "failed") == rows(url, "dropped") == rows(url, "incomparable") == 0
    assert total(url, "rapport_predictions_total", version=TWIN) == 0


def test_the_same_model_is_promoted(pairs: Path) -> None:
    found = verdict(pairs, TWIN)

    assert found["verdict"] == "promote", found["reasons"]
    assert (found["customers"], found["pairs"]) == (CUSTOMERS, CUSTOMERS)
    for task in found["tasks"]:
        assert task["rows"] == CUSTOMERS
        assert (task["psi"], task["ks"], task["segment_changes"]) == pytest.approx((0, 0, 0), abs=1e-3)
        assert task["rank"] == pytest.approx(1, abs=1e-6)
        assert task["explained"] >= 30
        assert task["cosine"] == pytest.approx(1, abs=1e-4)


def test_another_ranking_is_held_with_the_task_named(pairs: Path) -> None:
    found = verdict(pairs, FLIPPED)

    assert found["verdict"] == "hold"
    assert any(reason.startswith("purchase_30d: customers are ranked differently") for reason in found["reasons"])
    # Scores of the others are what they were. Their explanations are not: estimates take outcomes of all tasks, and
    # were fitted to the network before its weights were edited.
    others = [reason for reason in found["reasons"] if reason.startswith(("churn_90d", "spend_90d"))]
    assert not any("ranked" in reason or "shifts" in reason for reason in others)


def test_the_same_ranking_at_another_level_is_held_for_the_shift_alone(pairs: Path) -> None:
    found = verdict(pairs, RECALIBRATED)

    assert found["verdict"] == "hold"
    assert found["tasks"][PURCHASE]["rank"] == pytest.approx(1, abs=1e-4)
    assert found["tasks"][PURCHASE]["mean_shift"] > 0
    assert any(reason.startswith("purchase_30d: the distribution shifts: PSI") for reason in found["reasons"])
    assert any(reason.startswith("purchase_30d: the mean shifts by +") for reason in found["reasons"])
    # Fast explanations are estimated from the scores of all tasks: a level that was edited, and that they were not
    # fitted to, moves the reasons of the others as well. Their scores it does not move.
    others = [reason for reason in found["reasons"] if not reason.startswith("purchase_30d")]
    assert all("the reasons differ" in reason for reason in others)
    assert not any("ranked" in reason for reason in found["reasons"])


def test_too_few_rows_are_held(pairs: Path) -> None:
    found = verdict(pairs, TWIN, "--min-rows", "5000")

    assert found["verdict"] == "hold"
    assert found["reasons"][0] == "purchase_30d: 1,024 customers with a score of both, fewer than 5,000"


def test_the_table_says_what_the_json_says(pairs: Path) -> None:
    result = compare(pairs, RECALIBRATED, "--max-latency", "1000")

    assert result.exit_code == HOLD
    assert "engagement: champion 1, shadow 5" in result.stdout
    assert "verdict: hold" in result.stdout
    for task in ("purchase_30d", "churn_90d", "spend_90d"):
        assert task in result.stdout


def by_customer(pairs: Pairs, directory: Path) -> dict[str, int]:
    """Customer -> row."""
    salt = (directory / SALT).read_bytes()
    at = {int(entity): row for row, entity in enumerate(pairs.entities.tolist())}
    names = [f"c{number}" for number in range(CUSTOMERS)]
    return {name: at[int.from_bytes(hash_of((name,), salt), "little")] for name in names}


@pytest.mark.parametrize("shadow", [NARROW, TWIN, FLIPPED])
def test_what_is_kept_is_what_both_versions_answer(kept: tuple[Path, str], shadow: str) -> None:
    """Asked by number, a version reads with a plan of its own."""
    directory, url = kept
    found = read_pairs(directory, "engagement", CHAMPION, shadow)
    at = by_customer(found, directory)
    asked = list(at)[:200]

    for version, scores in ((CHAMPION, found.champion), (shadow, found.shadow)):
        answers = ask(url, *asked, version=version)["predictions"]
        given = [list(answer["scores"].values()) for answer in answers]
        kept_scores = scores[[at[customer] for customer in asked]]
        np.testing.assert_allclose(kept_scores, np.array(given, dtype=float), rtol=1e-5, atol=1e-5)


def test_no_id_is_written(pairs: Path) -> None:
    text = b"".join(path.read_bytes() for path in pairs.iterdir())

    assert len(text) > HASH_BYTES * CUSTOMERS
    assert b"c1023" not in text


def test_a_shadow_that_needs_another_feature_than_the_champion(
    start: Start, models: Path, tmp_path: Path, customers: list[str]
) -> None:
    """The champion reads no view `engagement`; its answers say nothing of it, not even where it is stale."""
    route(models, NARROW)
    url = start(models=models)
    alone = ask(url, *customers, "nobody")
    route(models, NARROW, CHAMPION)
    url = start(models=models, shadow_dir=tmp_path / "pairs")
    wait_for_shadows(url, CHAMPION)

    with_shadow = ask(url, *customers, "nobody")

    until(lambda: seen(url) == 4, "rows are missing")
    assert with_shadow["predictions"] == alone["predictions"]
    found = read_pairs(tmp_path / "pairs", "engagement", NARROW, CHAMPION)
    assert found.own_reads == 0
    answers = ask(url, *customers, "nobody", version=CHAMPION)["predictions"]
    order = np.argsort([list(answer["scores"].values())[2] for answer in answers])
    given = np.array([list(answers[row]["scores"].values()) for row in order], dtype=float)
    kept = found.shadow[np.argsort(found.shadow[:, 2])]
    np.testing.assert_allclose(kept, given, rtol=1e-5, atol=1e-5)
    assert sorted(found.shadow_statuses.tolist()) == [0, 0, 0, 2]


def test_a_value_that_only_the_shadow_cannot_read_costs_the_champion_nothing(
    start: Start, models: Path, tmp_path: Path, customers: list[str], redis: "Redis", release: Release
) -> None:
    store(redis, release.contract.schema, "c1", {"engagement": (NOW - 600, {"sessions_30d": b"\x12\x01x"})})
    route(models, NARROW, CHAMPION)
    url = start(models=models, shadow_dir=tmp_path / "pairs")
    wait_for_shadows(url, CHAMPION)

    [first, again] = [ask(url, "c1") for _ in range(2)]

    assert first["predictions"] == again["predictions"]
    assert first["predictions"][0]["status"] == "ok"
    # It saw the first; then the champion reads alone for a while.
    until(lambda: (rows(url, "scored"), rows(url, "dropped")) == (1, 1), "not counted")
    assert read_pairs(tmp_path / "pairs", "engagement", NARROW, CHAMPION).shadow_statuses.tolist() == [1]


def test_who_asks_for_a_version_or_for_reasons_is_not_shadowed(
    start: Start, models: Path, customers: list[str], tmp_path: Path
) -> None:
    route(models, CHAMPION, TWIN)
    url = start(models=models, shadow_dir=tmp_path / "pairs")
    wait_for_shadows(url, TWIN)

    ask(url, "c1", version=CHAMPION)
    ask(url, "c1", version=TWIN)
    ask(url, "c1", explain=3)
    ask(url, "c2", "c3")

    until(lambda: seen(url) == 2, "rows are missing")
    assert len(read_pairs(tmp_path / "pairs", "engagement", CHAMPION, TWIN)) == 2


def test_a_canarys_customers_are_not_shadowed(start: Start, models: Path, tmp_path: Path) -> None:
    route(models, CHAMPION, TWIN)
    with (models / "routes.toml").open("a") as file:
        file.write(f"canary = {{ version = {FLIPPED}, percent = 50 }}\n")
    url = start(models=models)
    wait_for_shadows(url, TWIN)

    answers = ask(url, *[f"c{number}" for number in range(40)])["predictions"]

    of_champion = [answer for answer in answers if answer["version"] == CHAMPION]
    assert 0 < len(of_champion) < 40
    until(lambda: seen(url) >= len(of_champion), "rows are missing")
    assert (seen(url), rows(url, "scored")) == (len(of_champion), len(of_champion))


def test_what_the_shadow_is_asked_and_does_not_know_is_no_comparison(
    start: Start, models: Path, customers: list[str], tmp_path: Path
) -> None:
    route(models, CHAMPION, NARROW)
    url = start(models=models, shadow_dir=tmp_path / "pairs")
    wait_for_shadows(url, NARROW)

    answer = ask(url, "c1", "c2", features=[{"sessions_30d": 40}, {"orders_90d": 7}])

    assert [p["features"]["overridden"] for p in answer["predictions"]] == [["sessions_30d"], ["orders_90d"]]
    until(lambda: seen(url) == 2, "rows are missing")
    assert (rows(url, "incomparable"), rows(url, "scored")) == (1, 1)
    found = read_pairs(tmp_path / "pairs", "engagement", CHAMPION, NARROW)
    assert (len(found), found.incomparable) == (1, 1)
    [expected] = ask(url, "c2", features=[{"orders_90d": 7}], version=NARROW)["predictions"]
    np.testing.assert_allclose(found.shadow[0], list(expected["scores"].values()), rtol=1e-5)


def test_rejected_customers_are_not_shadowed(start: Start, models: Path, customers: list[str]) -> None:
    route(models, CHAMPION, TWIN, unknown="reject")
    url = start(models=models)
    wait_for_shadows(url, TWIN)

    ask(url, "nobody", "c1")

    until(lambda: seen(url) == 1, "rows are missing")


def test_without_a_directory_shadows_are_scored_and_a_warning_says_that_nothing_is_kept(
    start: Start, models: Path, customers: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    route(models, CHAMPION, TWIN)
    url = start(models=models)
    wait_for_shadows(url, TWIN)

    ask(url, "c1")

    until(lambda: rows(url, "scored") == 1, "not scored")
    assert any("RAPPORT_SHADOW_DIR" in record.getMessage() for record in caplog.records)


def test_a_directory_that_cannot_be_written_is_counted_and_no_answer_fails(
    start: Start, models: Path, customers: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pairs").write_text("a file where the directory should be")
    route(models, CHAMPION, TWIN)
    url = start(models=models, shadow_dir=tmp_path / "pairs")
    wait_for_shadows(url, TWIN)

    for customer in ("c1", "c2"):
        ask(url, customer)

    until(lambda: total(url, "rapport_shadow_unwritten_rows_total", version=TWIN) == 2, "not counted")
    assert rows(url, "scored") == 2
    assert len([record for record in caplog.records if record.getMessage() == "pairs of a shadow are not kept"]) == 1


class Spoiled(EmbeddedBackend):
    """Whatever is inferred aside for the shadow goes wrong."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.let_go = threading.Event()
        self.asked = 0

    async def infer_aside(self, name: str, tensors: Tensors, timeout_s: float) -> Tensors:
        if not name.startswith(f"engagement.{TWIN}"):
            return await super().infer_aside(name, tensors, timeout_s)
        self.asked += 1
        if self.how == "raises":
            raise BackendUnavailable("no")
        if self.how == "a defect":
            raise KeyError(name)
        if self.how == "hangs":
            await asyncio.sleep(3600)
        if self.how == "holds its thread":
            await asyncio.get_running_loop().run_in_executor(self.aside, self.let_go.wait)
        outputs = dict(await super().infer_aside(name, tensors, timeout_s))
        if self.how == "NaN":
            outputs["scores"] = outputs["scores"] * np.nan
        if self.how == "another shape":
            outputs["scores"] = outputs["scores"][:, :1]
        return outputs

    async def close(self) -> None:
        self.let_go.set()
        await super().close()


@pytest.mark.parametrize("how", ["raises", "a defect", "hangs", "holds its thread", "NaN", "another shape"])
def test_whatever_a_shadow_does_nobody_notices(
    start: Start, models: Path, customers: list[str], tmp_path: Path, how: str
) -> None:
    route(models, CHAMPION)
    alone = ask(start(models=models), *customers)["predictions"]
    route(models, CHAMPION, TWIN)
    backend = Spoiled(how)
    url = start(backend, models=models, shadow_dir=tmp_path / "pairs")
    wait_for_shadows(url, TWIN)

    # Each answer comes while the shadow is at work on the one before, or has given up on it.
    for _ in range(20):
        assert ask(url, *customers)["predictions"] == alone
    until(lambda: seen(url) == 60, "rows are missing")

    assert rows(url, "scored") == 0
    assert rows(url, "failed") >= 3
    assert backend.asked < 20  # after a failure it rests
    result = compare(tmp_path / "pairs", TWIN)
    assert result.exit_code == HOLD
    assert "the shadow had no answer for 100.00% of the rows" in result.stdout


def test_a_shadow_that_is_too_slow_sees_less_and_holds_up_nobody(
    start: Start, models: Path, customers: list[str]
) -> None:
    route(models, CHAMPION, TWIN)
    backend = Spoiled("holds its thread")
    url = start(backend, models=models)
    wait_for_shadows(url, TWIN)

    sent = QUEUED_BATCHES + 5
    for _ in range(sent):
        ask(url, "c1")

    # One at work, a queue full, and the rest dropped at once; or all of them once it has failed.
    until(lambda: rows(url, "dropped") >= sent - QUEUED_BATCHES - 1, "nothing was dropped")


def test_shadows_come_and_go_with_the_routes(start: Start, models: Path, customers: list[str], tmp_path: Path) -> None:
    route(models, CHAMPION)
    url = start(models=models, shadow_dir=tmp_path / "pairs")
    ask(url, "c1")

    route(models, CHAMPION, TWIN)
    wait_for_shadows(url, TWIN)
    ask(url, "c2")
    until(lambda: rows(url, "scored") == 1, "not scored")

    route(models, TWIN, CHAMPION)
    until(lambda: total(url, "rapport_release_info", version=TWIN, role="champion") == 1, "not promoted")
    ask(url, "c3")
    until(lambda: rows(url, "scored", version=CHAMPION) == 1, "the former champion is no shadow")

    assert len(read_pairs(tmp_path / "pairs", "engagement", CHAMPION, TWIN)) == 1
    assert len(read_pairs(tmp_path / "pairs", "engagement", TWIN, CHAMPION)) == 1
