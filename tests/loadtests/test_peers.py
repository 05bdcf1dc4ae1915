"""The peers' side of `make bench PEERS=1`, as far as it can be held without installing them: that their encoder is
ours to the last bit, that a wrong score is seen, and that an environment is used again exactly while it is the same."""

import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest

from feature_client.release import Release
from feature_client.schema import DAY_S, FeatureSchema
from loadtests.answers import WrongAnswer
from loadtests.bench.home import PreparationError
from loadtests.bench.load import Load
from loadtests.bench.plan import in_turn
from loadtests.bench.targets import Cost
from loadtests.peers import venvs
from loadtests.peers.catalog import NO_MOMENT, PEERS, Peer, Start
from loadtests.peers.encode import Columns, Encoder
from loadtests.peers.model import Model
from loadtests.peers.page import section
from loadtests.peers.rows import PEER_ROWS, compare, rows
from model_export.rows import fit_vocabularies
from tests.model_export.tiny_release import AS_OF, build_tiny_release, tiny_run, tiny_schema, tiny_world
from tests.test_architecture import ROOT, imports_of, inside, reached

NOW = AS_OF.timestamp()
FASTAPI, MLSERVER, LITSERVE, FEAST = PEERS
IN_THEIR_VENVS = ("encode", "model", "job", "fastapi_app", "mlserver_runtime", "litserve_app")


def trained_schema() -> FeatureSchema:
    schema = tiny_schema()
    return fit_vocabularies(schema, tiny_world(schema, 2_000, AS_OF, np.random.default_rng(1)).batch)


def contract_of(schema: FeatureSchema) -> Any:
    """As it is written into a release."""
    return json.loads(msgspec.json.encode({"schema": schema, "tasks": [{"name": "purchase_30d"}]}))


def random_columns(schema: FeatureSchema, rows: int, seed: int) -> Columns:
    """What Feast's SDK may answer: nulls, values beyond float32, moments around now, words in and out of training."""
    rng = np.random.default_rng(seed)

    def value(kind: str, words: tuple[str, ...]) -> object:
        if rng.random() < 0.15:
            return None
        if kind == "category":
            return str(rng.choice([*words, "never seen", ""]))
        if kind == "elapsed":
            return datetime.fromtimestamp(int(NOW + rng.choice([-400 * DAY_S, -3.0, 0.0, 59.0, 60.0, 61.0, 1e6])), UTC)
        return rng.choice([0, int(rng.integers(-(2**53), 2**53)), rng.normal(0, 1e3), 1e39, -1e300, 1e-46, -0.0])

    return {
        str(feature.field): [value(feature.kind, feature.vocabulary) for _ in range(rows)]
        for feature in schema.features
        if feature.field is not None
    }


def ours(schema: FeatureSchema, columns: Columns, as_of: float) -> dict[str, np.ndarray[Any, Any]]:
    """The same rows through FeatureSchema.encode."""
    stored = {
        name: [value.timestamp() if isinstance(value, datetime) else value for value in column]
        for name, column in columns.items()
    }
    for feature in schema.stored_numbers:
        stored[str(feature.field)] = [math.nan if value is None else value for value in stored[str(feature.field)]]
    rows = len(next(iter(columns.values())))
    return schema.encode(schema.batch(stored, np.full((rows, len(schema.views)), as_of)), as_of).tensors


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("seed", range(20))
def test_the_peers_encoder_gives_our_tensors_to_the_last_bit(rows: int, seed: int) -> None:
    schema = trained_schema()
    columns = random_columns(schema, rows, seed)

    theirs = Encoder(contract_of(schema)).encode(columns, NOW)

    expected = ours(schema, columns, NOW)
    assert theirs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert theirs[name].dtype == tensor.dtype
        assert theirs[name].shape == tensor.shape
        assert theirs[name].tobytes() == tensor.tobytes(), name


def test_an_encoder_that_would_have_to_drop_stale_values_says_so() -> None:
    contract = contract_of(trained_schema())
    contract["schema"]["features"][0]["on_stale"] = "default"

    with pytest.raises(ValueError, match="orders_30d"):
        Encoder(contract)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return build_tiny_release(tmp_path_factory.mktemp("peers"), tiny_run(rows=1_500, epochs=1))


def directory_of(release: Release) -> Path:
    return Path(release.directory)


def test_a_peer_scores_as_the_release_does(release: Release) -> None:
    schema = release.contract.schema
    columns = random_columns(schema, 8, seed=3)

    named = Model(directory_of(release), NOW).named(columns)

    session = onnxruntime.InferenceSession(str(directory_of(release) / "1" / "model.onnx"))
    [scores] = session.run(["scores"], ours(schema, columns, NOW))
    assert [list(row) for row in named] == [[task.name for task in release.contract.tasks]] * 8
    np.testing.assert_allclose([list(row.values()) for row in named], scores, rtol=1e-5, atol=1e-5)


def test_every_answer_has_the_same_meaning(release: Release) -> None:
    """Each in the form in which its server sent it."""
    model = Model(directory_of(release), NOW)
    scores = {task: 0.25 * position for position, task in enumerate(model.tasks)}
    tensor = {"name": "scores", "shape": [1, 3], "datatype": "FP32", "data": list(scores.values())}

    assert FASTAPI.scores({"scores": scores}, model) == scores
    assert LITSERVE.scores({"scores": scores}, model) == scores
    assert MLSERVER.scores({"model_name": "engagement", "outputs": [tensor]}, model) == scores


def test_a_lookup_is_judged_by_what_its_features_score(release: Release) -> None:
    schema = release.contract.schema
    columns = random_columns(schema, 1, seed=5)
    # The server has seconds for moments, and the smallest integer where there is none.
    sent = {
        name: [NO_MOMENT if moment is None else int(moment.timestamp()) for moment in column]
        if name == "last_purchase_at"
        else column
        for name, column in columns.items()
    }
    answer = {
        "metadata": {"feature_names": ["customer_id", *sent]},
        "results": [{"values": values} for values in [["7"], *sent.values()]],
    }
    model = Model(directory_of(release), NOW)

    assert FEAST.scores(answer, model) == model.named(columns)[0]


@pytest.mark.parametrize(
    ("peer", "question"),
    [
        (FASTAPI, {"customer_id": "7"}),
        (LITSERVE, {"customer_id": "7"}),
        (
            MLSERVER,
            {"inputs": [{"name": "customer_id", "shape": [1, 1], "datatype": "BYTES", "data": ["7"]}]},
        ),
        (FEAST, {"feature_service": "engagement", "entities": {"customer_id": ["7"]}}),
    ],
)
def test_every_peer_is_asked_in_its_own_form(peer: Peer, question: dict[str, Any]) -> None:
    assert peer.question("7") == question


EXPECTED = {"purchase_30d": 0.25, "churn_90d": None, "spend_90d": 1_000.0}


def test_equal_scores_pass_and_what_the_gateway_does_not_answer_is_not_compared() -> None:
    compare("peer", "7", {"purchase_30d": 0.25 + 9e-6, "churn_90d": 0.9, "spend_90d": 1_000.0 + 9e-3}, EXPECTED)


@pytest.mark.parametrize(
    "wrong",
    [
        {"purchase_30d": 0.25 + 2e-5},
        {"purchase_30d": math.nan},
        {"spend_90d": 1_000.02},
        {"spend_90d": 0.25, "purchase_30d": 1_000.0},
    ],
)
def test_another_score_fails(wrong: dict[str, float]) -> None:
    right = {"purchase_30d": 0.25, "churn_90d": 0.9, "spend_90d": 1_000.0}

    with pytest.raises(WrongAnswer, match="peer"):
        compare("peer", "7", right | wrong, EXPECTED)


@pytest.mark.parametrize("scores", [{}, {"purchase_30d": 0.25}, {"purchase_30d": 0.25, "spend_90d": 1_000.0}])
def test_scores_that_are_missing_fail(scores: dict[str, float]) -> None:
    with pytest.raises(WrongAnswer, match="peer"):
        compare("peer", "7", scores, EXPECTED)


def test_a_customer_of_whom_the_gateway_says_nothing_proves_nothing() -> None:
    with pytest.raises(WrongAnswer):
        compare("peer", "7", dict.fromkeys(EXPECTED, 0.5), dict.fromkeys(EXPECTED))


def test_who_goes_first_changes_and_the_answers_keep_their_order() -> None:
    order: list[int] = []

    def drive(number: int) -> Cost:
        order.append(number)
        return Cost(Load(1, 1.0, 1.0, 1.0, 0), float(number))

    drives = [lambda number=number: drive(number) for number in range(3)]
    rounds = list(in_turn(4, drives))

    assert [[cost.cpu_us for cost in costs] for costs in rounds] == [[0.0, 1.0, 2.0]] * 4
    assert order == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]


def test_mlserver_finds_its_settings_where_it_is_told_to_look(tmp_path: Path) -> None:
    start = Start(tmp_path / "bin" / "python", 4711, tmp_path / "repo", tmp_path)

    for command in MLSERVER.ways.values():
        assert command(start) == [str(tmp_path / "bin" / "mlserver"), "start", str(tmp_path)]
        server = json.loads((tmp_path / "settings.json").read_text())
        model = json.loads((tmp_path / "model-settings.json").read_text())
        assert (server["http_port"], server["debug"]) == (4711, False)
        assert (model["max_batch_size"], model["max_batch_time"]) == (64, 0.001)
        module, _, runtime = model["implementation"].rpartition(".")
        assert f"class {runtime}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()


def test_what_runs_in_their_environments_is_theirs_alone() -> None:
    imports = imports_of(ROOT)

    for name in IN_THEIR_VENVS:
        module = f"loadtests.peers.{name}"
        assert module in imports
        ours_too = {one for one in reached(module, imports) if inside(one, ("feature_client", "service", "loadtests"))}
        assert all(one == "loadtests" or inside(one, ("loadtests.peers",)) for one in ours_too), (module, ours_too)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_pinned(peer: Peer) -> None:
    lines = (venvs.REQUIREMENTS / f"{peer.name}.txt").read_text().splitlines()
    alone = venvs.REQUIREMENTS / f"{peer.name}.no-deps.txt"
    pinned = {line.split("==")[0].split("[")[0] for line in lines if "==" in line}
    pinned |= {line.split("==")[0] for line in alone.read_text().splitlines()} if alone.is_file() else set()

    assert {"feast", peer.name} <= pinned
    assert f"peer_{peer.name}" in PEER_ROWS


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    folder = tmp_path / "requirements"
    folder.mkdir()
    (folder / "nothing.txt").write_text("# an environment with nothing in it\n")
    return folder


def test_an_environment_is_used_again_while_its_requirements_are_the_same(tmp_path: Path, requirements: Path) -> None:
    python = venvs.ensure("nothing", tmp_path, requirements)
    mark = python.parent / "mark"
    mark.touch()
    assert venvs.versions(python, ["pip"]).keys() == {"pip"}

    assert venvs.ensure("nothing", tmp_path, requirements) == python
    assert mark.exists()

    (requirements / "nothing.txt").write_text("# another\n")
    assert venvs.ensure("nothing", tmp_path, requirements) == python
    assert not mark.exists()


def test_an_environment_that_could_not_be_finished_is_not_used(tmp_path: Path, requirements: Path) -> None:
    (requirements / "nothing.txt").write_text(f"{tmp_path}/no-such-1.0-py3-none-any.whl\n")

    for _ in range(2):
        with pytest.raises(PreparationError, match=r"nothing cannot be installed: .*no-such"):
            venvs.ensure("nothing", tmp_path, requirements)


def test_the_digest_is_of_all_that_decides_what_is_installed(
    requirements: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [venvs.digest("nothing", requirements)]
    (requirements / "nothing.no-deps.txt").write_text("feast==0.67.0\n")
    digests.append(venvs.digest("nothing", requirements))
    (requirements / "nothing.no-deps.txt").write_text("feast==0.67.1\n")
    digests.append(venvs.digest("nothing", requirements))
    monkeypatch.setattr(sys, "version", "another Python")
    digests.append(venvs.digest("nothing", requirements))
    (requirements / "another.txt").write_text("of no concern\n")

    assert len(set(digests)) == 4
    assert venvs.digest("nothing", requirements) == digests[-1]


def test_the_page_says_of_each_peer_how_it_was_run_and_what_it_reached() -> None:
    def cost(rate: float) -> Cost:
        return Cost(Load(int(rate), 1.0, 2.0, 30.0, 0), 100.0)

    about = {
        "title": "MLServer (in process)",
        "settings": "batches",
        "ways_to_empty": {"in process": 0.25, "one worker": 0.125},
        "versions": {"mlserver": "1.7.1"},
        "documentation": "Adaptive Batching",
    }
    rounds = [[cost(200), cost(rate), cost(1_000)] for rate in (1_800, 1_900, 9_000)]
    results = [
        {"group": "peer_mlserver", **row.as_json()}
        for clients in (1, 16, 64)
        for row in rows(MLSERVER, clients, rounds, about)
    ]

    page = "\n".join(section([{"group": "throughput", "name": "throughput_64"}, *results]))

    assert (
        "| MLServer (in process) | 200, 0.20 | 200, 0.20 | 200, 0.20 | 30 ms | 9.5 times as many (not at least 10) |"
        in page
    )
    assert "Tried at 64 clients, times the empty endpoint: in process 0.25, one worker 0.12." in page
    assert "mlserver 1.7.1. After *Adaptive Batching*." in page


def test_without_peers_the_page_has_no_section() -> None:
    assert section([{"group": "throughput", "name": "throughput_64"}]) == []
