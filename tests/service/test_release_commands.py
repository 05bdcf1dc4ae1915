"""`rapport release ...`: what operators see and change, and what is left when a command is killed half-way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import requests

from feature_client.golden import golden_name
from feature_client.release import Release, ReleaseError, list_versions, read_release, release_directories
from feature_client.repository import LEFTOVER_AGE_S, prunable, prune, take_inventory
from feature_client.routes import Accepted, Canary, Route, change_route, read_routes
from model_export.pipeline import write_run
from model_export.publish import publish, set_champion
from model_export.republish import artifacts_of, take_over
from service import cli, watching
from service.local_triton import LocalTriton
from tests.model_export.tiny_release import build_tiny_release, tiny_run, with_contract, with_gates
from tests.service.conftest import Start
from tests.service.test_operations import answered_by
from tests.service.test_workers import two_workers


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    error: str


Rapport = Callable[..., Said]


@pytest.fixture
def rapport(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Rapport]:
    """`rapport release ...`, in this process."""
    monkeypatch.delenv("RAPPORT_MODELS", raising=False)
    terminated = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["rapport", "release", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        if isinstance(ended.value.code, str):  # which Python prints, and exits with 1
            return Said(1, said.out, ended.value.code)
        return Said(ended.value.code or 0, said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, terminated)


@pytest.fixture(scope="module")
def four(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of four releases, of which 3 is champion and 2 the previous one."""
    root = tmp_path_factory.mktemp("four") / "models"
    for _ in range(4):
        take_over(release.directory, root)
    set_champion(root, "engagement", 2)
    set_champion(root, "engagement", 3)
    return root


@pytest.fixture
def models(four: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(four, tmp_path / "models"))


def route(models: Path) -> Route:
    return read_routes(models)["engagement"]


def reroute(models: Path, **changes: object) -> None:
    change_route(models, "engagement", lambda _: Route(**changes))  # type: ignore[arg-type]


def age(path: Path) -> None:
    """As if nobody had touched it for a good hour."""
    then = time.time() - LEFTOVER_AGE_S - 60
    for inside in (*path.rglob("*"), path):
        os.utime(inside, (then, then))


# What is there.


def test_the_list_says_what_each_release_is_for(rapport: Rapport, models: Path) -> None:
    reroute(models, champion=3, previous=2, canary=Canary(4, 12.5), shadow=(1,), standby=(2, 9))
    (models / "engagement.4" / "manifest.sig").write_bytes(b"x")
    (models / "engagement.5").mkdir()
    (models / "engagement.5" / "config.pbtxt").write_text("x" * 1_000_000)
    (models / "engagement.6").mkdir()  # which only holds its number

    said = rapport("list", "--models", models)
    lines = [line.split("  ") for line in said.out.splitlines()]
    cells = [[cell.strip() for cell in line if cell] for line in lines]

    digest = read_release(models, "engagement", 1).contract.digest[:12]
    assert cells[0] == ["release", "role", "created", "contract", "signed", "size"]
    assert [(name, role, contract, signed) for name, role, _, contract, signed, _ in cells[1:5]] == [
        ("engagement.1", "shadow", digest, "no"),
        ("engagement.2", "previous, standby", digest, "no"),
        ("engagement.3", "champion", digest, "no"),
        ("engagement.4", "canary 12.5 %", digest, "yes"),
    ]
    assert cells[5][:3] == ["engagement.9", "standby", "not there"]
    assert said.out.splitlines()[6:] == ["leftover engagement.5, 1.0 MB, touched 0 min ago: an unfinished publish"]

    machine = json.loads(rapport("list", "engagement", "--models", models, "--json").out)
    assert [one["roles"] for one in machine["releases"]][:2] == [["shadow"], ["previous", "standby"]]
    assert machine["releases"][4]["problem"] == "not there"
    sizes = [path.stat().st_size for path in models.glob("engagement.1*/**/*") if path.is_file()]
    assert machine["releases"][0]["size"] == sum(sizes)  # with every explainer's
    assert machine["routes"]["engagement"]["canary"] == {"version": 4, "percent": 12.5}
    assert [one["name"] for one in machine["leftovers"]] == ["engagement.5"]
    assert json.loads(rapport("list", "other", "--models", models, "--json").out)["releases"] == []


def test_a_manifest_that_cannot_be_read_hides_no_other_release(rapport: Rapport, models: Path) -> None:
    (models / "engagement.1" / "manifest.json").write_text("{")

    said = rapport("list", "--models", models)

    assert (said.code, len(said.out.splitlines())) == (0, 5)
    assert "manifest.json cannot be read" in said.out.splitlines()[1]


def test_verify_says_what_it_checked_and_what_is_wrong(rapport: Rapport, models: Path) -> None:
    good = rapport("verify", "engagement", 1, "--models", models)
    assert good.code == 0
    assert [line.split()[2:5] for line in good.out.splitlines()] == [
        ["files", "are", "as"],
        ["signed"],
        ["golden", "rows", "give"],
    ]
    machine = json.loads(rapport("verify", "engagement", 1, "--models", models, "--json").out)
    files = read_release(models, "engagement", 1).manifest.files
    assert (machine["files"], machine["signature"]) == (len(files), "not signed")
    assert machine["golden_rows"] > 1

    graph = models / "engagement.1" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    bad = rapport("verify", "engagement", 1, "--models", models)
    assert bad.code == 1
    assert "engagement.1/1/model.onnx is damaged" in bad.error
    assert rapport("verify", "engagement", 8, "--models", models).error.startswith(
        "rapport: release engagement.8 does not exist"
    )


def test_verify_proves_the_golden_rows(rapport: Rapport, release: Release, tmp_path: Path) -> None:
    """A release whose files are all as published, but whose graph gives other answers than its golden rows have."""
    root = tmp_path / "models"
    other = take_over(release.directory, root)
    stranger = build_tiny_release(tmp_path / "there", tiny_run(rows=1_000, seed=3, epochs=1))
    assert stranger.contract.digest != release.contract.digest
    mixed = publish(
        root,
        other.contract,
        replace(artifacts_of(other), golden=stranger.golden),
    )

    said = rapport("verify", "engagement", mixed.version, "--models", root)

    assert said.code == 1
    assert "differ from the golden answers" in said.error


@pytest.mark.parametrize("explainer", [None, "fast", "exact"])
def test_verify_proves_the_golden_rows_of_every_graph(
    rapport: Rapport, release: Release, tmp_path: Path, explainer: str | None
) -> None:
    with np.load(release.golden) as file:
        arrays = dict(file)
    arrays[golden_name(explainer, "scores")] += np.float32(0.001)
    np.savez(tmp_path / "golden.npz", **arrays)
    artifacts = replace(artifacts_of(release), golden=tmp_path / "golden.npz")
    wrong = publish(tmp_path / "models", release.contract, artifacts)

    said = rapport("verify", "engagement", wrong.version, "--models", wrong.root)

    assert said.code == 1
    name = re.escape(wrong.graph_name(explainer))
    assert re.search(rf"{name}\.verify\d+: scores differ from the golden answers", said.error)


def test_verify_on_a_live_triton_leaves_what_answers_there_alone(
    rapport: Rapport, models: Path, triton: LocalTriton
) -> None:
    said = rapport("verify", "engagement", 1, "--models", models, "--triton", triton.address)

    assert said.code == 0, said.error
    assert said.out.splitlines()[-1].endswith(f"golden scores and explanations on Triton at {triton.address}")
    assert (
        "release engagement.1: "
        in rapport("verify", "engagement", 1, "--models", models, "--triton", "127.0.0.1:9").error
    )


# Publishing.


def test_publish_routes_nobody_and_says_what_comes_next(rapport: Rapport, models: Path, tmp_path: Path) -> None:
    write_run(tiny_run(rows=1_000, epochs=1), tmp_path / "workspace" / "run")
    before, digest = route(models), read_release(models, "engagement", 3).contract.digest
    command = ("publish", "--workspace", tmp_path / "workspace", "--models", models)

    refused = rapport(*command)
    said = rapport(*command, "--accept", "only to see it published")

    assert refused.code == 1
    assert "churn_90d, champion, auc: " in refused.error  # a model after one epoch is worse than one after six
    training = read_release(models, "engagement", 5).contract.training
    assert (training["gates_champion"], training["gates_champion_contract"]) == ("engagement.3", digest)
    assert "engagement.5: gates accepted because: only to see it published" in said.error
    assert (
        "| gates accepted because | only to see it published |"
        in read_release(models, "engagement", 5).card.read_text()
    )
    assert said.out.splitlines() == [
        f"published engagement.5 in {models}; nobody is sent to it yet",
        f"next: rapport release load engagement 5 --models {models}",
    ]
    assert read_release(models, "engagement", 5)
    assert route(models) == before


def test_the_report_goes_where_its_card_goes(rapport: Rapport, models: Path, tmp_path: Path) -> None:
    write_run(tiny_run(rows=1_000, epochs=1), tmp_path / "workspace" / "run")
    rapport("publish", "--workspace", tmp_path / "workspace", "--models", models, "--accept", "to see its report")
    made = read_release(models, "engagement", 5)
    assert made.report is not None
    page = made.report.read_text()
    assert 'href="card.md"' in page
    assert "the one that this page lies in" in page
    assert made.contract.digest in page
    assert "to see its report" in page

    rapport("publish", "--from", made.directory, "--models", tmp_path / "other")
    reroute(models, champion=5)
    rapport("push", f"file://{tmp_path / 'bucket'}", "--models", models)
    copied = read_release(tmp_path / "other", "engagement", 1), read_release(tmp_path / "bucket", "engagement", 5)
    for release in (made, *copied):
        assert "[report.html](report.html)" in release.card.read_text()
        assert release.report is not None
        assert release.report.read_text() == page

    assert made.report.write_text("x")
    assert "report.html is damaged" in rapport("verify", "engagement", 5, "--models", models).error
    made.report.unlink()
    assert "missing engagement.5/report.html" in rapport("verify", "engagement", 5, "--models", models).error


def test_a_card_without_a_report_links_to_none(models: Path) -> None:
    plain = read_release(models, "engagement", 1)

    assert plain.report is None
    assert "](" not in plain.card.read_text().partition("## Report")[2].partition("##")[0]
    (plain.directory / "report.html").write_text("x")
    with pytest.raises(ReleaseError, match=r"not in its manifest: engagement\.1/report\.html"):
        read_release(models, "engagement", 1)


def test_a_release_of_another_repository_is_taken_over_under_the_next_number(
    rapport: Rapport, models: Path, release: Release
) -> None:
    said = rapport("publish", "--from", release.directory, "--models", models)

    assert said.out.startswith("published engagement.5 ")
    assert read_release(models, "engagement", 5).contract == release.contract
    assert 'name: "engagement.5"' in (models / "engagement.5" / "config.pbtxt").read_text()

    assert "not the directory of a release" in rapport("publish", "--from", models, "--models", models).error
    (models / "engagement.5" / "card.md").write_text("x")
    damaged = rapport("publish", "--from", models / "engagement.5", "--models", models)
    assert (damaged.code, list_versions(models, "engagement")) == (1, [1, 2, 3, 4, 5])
    assert "card.md is damaged" in damaged.error


def test_what_its_gates_speak_against_is_not_taken_over_unless_somebody_says_why(
    rapport: Rapport, models: Path, release: Release, tmp_path: Path
) -> None:
    unasked = with_gates(release, tmp_path / "there")
    failed = with_gates(release, tmp_path / "there", passed="9 of 10", failed="churn_90d, calibration, ece: 0.2")
    for there, reason in (
        (unasked, "engagement.1 is not published: its gates were not asked when it was made"),
        (failed, "engagement.2 is not published: it does not pass its gates: churn_90d, calibration, ece: 0.2"),
    ):
        command = ("publish", "--from", there.directory, "--models", models)
        assert rapport(*command).error.startswith(f"rapport: {reason}. --accept")
        assert "a reason that others can read" in rapport(*command, "--accept", " ").error
    assert list_versions(models, "engagement") == [1, 2, 3, 4]

    for there, version in ((unasked, 5), (failed, 6)):
        command = ("publish", "--from", there.directory, "--models", models)
        said = rapport(*command, "--accept", "a supplier's\n model")
        assert f"engagement.{version}: gates accepted because: a supplier's model" in said.error
        taken = read_release(models, "engagement", version)
        assert "| gates accepted because | a supplier's model |" in taken.card.read_text()
        assert rapport("verify", "engagement", version, "--models", models).code == 0
        assert rapport("route", "engagement", "--champion", version, "--models", models).code == 0
    assert read_release(models, "engagement", 6).contract.training["gates_failed"] == "churn_90d, calibration, ece: 0.2"
    assert route(models) == Route(champion=6, previous=5)


def test_with_a_key_only_what_it_signed_is_verified_and_routed(
    rapport: Rapport, models: Path, release: Release, tmp_path: Path
) -> None:
    for name in ("ours", "theirs"):
        assert rapport("keygen", tmp_path / name).code == 0
    assert rapport("keygen", tmp_path / "ours").code == 1
    ours, theirs = tmp_path / "ours.pub", tmp_path / "theirs.pub"
    rapport("publish", "--from", release.directory, "--models", models, "--sign-with", tmp_path / "ours")

    listed = json.loads(rapport("list", "--models", models, "--json").out)["releases"]
    assert [one["signed"] for one in listed] == [False, False, False, False, True]
    assert f"signed by a key of {ours}" in rapport("verify", "engagement", 5, "--models", models, "--key", ours).out
    assert "signed, which nobody checked" in rapport("verify", "engagement", 5, "--models", models).out
    assert (
        "not signed by a trusted key" in rapport("verify", "engagement", 5, "--models", models, "--key", theirs).error
    )
    for arguments in (
        ("verify", "engagement", 4),
        ("load", "engagement", 4),
        ("route", "engagement", "--champion", 4),
        ("route", "engagement", "--canary", "4:1"),
        ("rollback", "engagement"),
    ):
        assert "not signed" in rapport(*arguments, "--models", models, "--key", ours).error
    assert route(models) == Route(champion=3, previous=2)
    rapport("route", "engagement", "--champion", 5, "--models", models, "--key", ours)
    assert route(models) == Route(champion=5, previous=3)


# Routing.


def test_a_promotion_remembers_the_champion_before_and_ends_the_canary_that_won(rapport: Rapport, models: Path) -> None:
    reroute(models, champion=3, previous=2, canary=Canary(4, 10), shadow=(1,), standby=(4,))

    said = rapport("route", "engagement", "--champion", 4, "--models", models)

    assert said.out.splitlines() == [
        "engagement  champion  3 -> 4",
        "engagement  previous  2 -> 3",
        "engagement  canary    4 at 10 % -> none",
        "engagement  standby   4 -> none",
    ]
    assert route(models) == Route(champion=4, previous=3, shadow=(1,))


def test_what_is_not_said_stays(rapport: Rapport, models: Path) -> None:
    for options, expected in (
        (("--canary", "4:2.5"), Route(3, 2, Canary(4, 2.5))),
        (("--shadow", 1, "--shadow", 2, "--shadow", 1), Route(3, 2, Canary(4, 2.5), (1, 2))),
        (("--unknown", "reject", "--salt", "w48"), Route(3, 2, Canary(4, 2.5), (1, 2), unknown="reject", salt="w48")),
        (("--no-canary",), Route(3, 2, None, (1, 2), unknown="reject", salt="w48")),
        (("--no-shadow", "--salt", ""), Route(3, 2, unknown="reject")),
    ):
        said = rapport("route", "engagement", *options, "--models", models, "--json")
        assert said.code == 0, said.error
        assert route(models) == expected
        assert json.loads(said.out)["after"]["champion"] == 3

    written = (models / "routes.toml").stat().st_mtime_ns
    same = rapport("route", "engagement", "--unknown", "reject", "--models", models)
    assert same.out == "engagement stays as it is: champion 3, previous 2, unknown reject\n"
    assert (models / "routes.toml").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--champion", 9), "engagement.9 does not exist"),
        (("--canary", "9:10"), "engagement.9 does not exist"),
        (("--shadow", 9), "engagement.9 does not exist"),
        (("--canary", "3:10"), "the canary is the champion"),
        (("--shadow", 3), "a version that answers cannot be a shadow as well"),
        (("--canary", "4:1", "--shadow", 4), "a version that answers cannot be a shadow as well"),
        (("--champion", 4, "--canary", "4:10"), "the canary is the champion"),
        (("--canary", "4"), "VERSION:PERCENT"),
        (("--canary", "4:x"), "VERSION:PERCENT"),
        (("--canary", "4:nan"), "from 0 to 100"),
        (("--canary", "4:101"), "from 0 to 100"),
        (("--canary", "0:10"), "counts from 1"),
        (("--canary", "4:10", "--no-canary"), "not both"),
        (("--unknown", "guess"), "score or reject"),
    ],
)
def test_nonsense_changes_nothing(rapport: Rapport, models: Path, options: tuple[object, ...], reason: str) -> None:
    before = (models / "routes.toml").read_bytes()

    said = rapport("route", "engagement", *options, "--models", models)

    assert (said.code, said.out) == (1, "")
    assert reason in said.error
    assert "\n" not in said.error
    assert (models / "routes.toml").read_bytes() == before


def test_a_damaged_release_gets_no_traffic(rapport: Rapport, models: Path) -> None:
    (models / "engagement.4" / "card.md").write_text("x")
    before = route(models)

    for options in (("--champion", 4), ("--canary", "4:10"), ("--shadow", 4)):
        assert "card.md is damaged" in rapport("route", "engagement", *options, "--models", models).error
    assert "card.md is damaged" in rapport("load", "engagement", 4, "--models", models).error
    assert route(models) == before


def test_a_damaged_champion_is_not_what_a_rollback_goes_to(rapport: Rapport, models: Path) -> None:
    (models / "engagement.3" / "card.md").write_text("x")

    rapport("route", "engagement", "--champion", 4, "--models", models)

    assert route(models) == Route(champion=4, previous=2)


def test_the_first_route_of_a_model_is_its_champion(rapport: Rapport, models: Path) -> None:
    (models / "routes.toml").unlink()

    assert "has no route yet" in rapport("route", "engagement", "--canary", "4:1", "--models", models).error
    assert "has no route yet" in rapport("load", "engagement", 4, "--models", models).error
    assert rapport("route", "engagement", "--champion", 1, "--canary", "4:1", "--models", models).code == 0
    assert route(models) == Route(champion=1, canary=Canary(4, 1))


def test_a_rollback_goes_back_and_a_second_one_goes_forth(rapport: Rapport, models: Path) -> None:
    reroute(models, champion=3, previous=2, canary=Canary(4, 10))

    assert rapport("rollback", "engagement", "--models", models).code == 0
    assert route(models) == Route(champion=2, previous=3)
    assert rapport("rollback", "engagement", "--models", models).code == 0
    assert route(models) == Route(champion=3, previous=2)


def test_a_rollback_to_nowhere_is_refused(rapport: Rapport, models: Path) -> None:
    (models / "engagement.2" / "card.md").write_text("x")
    assert "engagement.2" in rapport("rollback", "engagement", "--models", models).error
    assert route(models) == Route(champion=3, previous=2)

    reroute(models, champion=3)
    assert "no previous champion" in rapport("rollback", "engagement", "--models", models).error
    assert "has no route yet" in rapport("rollback", "other", "--models", models).error


def test_load_puts_on_standby_and_unload_takes_off(rapport: Rapport, models: Path) -> None:
    rapport("load", "engagement", 4, "--models", models)
    rapport("load", "engagement", 4, "--models", models)
    rapport("load", "engagement", 3, "--models", models)
    assert route(models) == Route(champion=3, previous=2, standby=(4,))

    assert "it is previous" in rapport("unload", "engagement", 2, "--models", models).error
    rapport("unload", "engagement", 4, "--models", models)
    assert route(models) == Route(champion=3, previous=2)


def test_a_repository_by_url_is_refused_in_one_sentence(rapport: Rapport) -> None:
    said = rapport("rollback", "engagement", "--models", "s3://bucket/models")

    assert said.code == 1
    assert "is not a directory" in said.error


def test_push_copies_what_is_routed_to_object_storage(rapport: Rapport, models: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'bucket'}"

    assert rapport("push", url, "--models", models).out == f"{url} has engagement.3, engagement.2 and routes.toml\n"
    assert list_versions(tmp_path / "bucket", "engagement") == [2, 3]
    assert read_routes(tmp_path / "bucket") == read_routes(models)
    assert read_release(tmp_path / "bucket", "engagement", 3)

    (models / "engagement.3" / "card.md").write_text("x")
    assert "card.md is damaged" in rapport("push", url, "--models", models).error


# Routing and gates.


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "its gates were not asked when it was made"),
        ({"passed": "9 of 10", "failed": "churn_90d, champion, auc: x"}, "it does not pass its gates: churn_90d"),
    ],
)
def test_nobody_is_sent_to_what_its_gates_speak_against_unless_somebody_says_why(
    rapport: Rapport, models: Path, release: Release, said: dict[str, str], reason: str
) -> None:
    assert with_gates(release, models, **said).version == "5"
    change = ("route", "engagement", "--models", models)
    before = (models / "routes.toml").read_bytes()
    for options in (
        ("--champion", 5),
        ("--canary", "5:100"),
        ("--canary", "5:1"),
        ("--champion", 4, "--canary", "5:1"),
    ):
        refused = rapport(*change, *options)
        assert (refused.code, refused.out) == (1, "")
        assert refused.error.startswith(f"rapport: engagement.5 gets no customers: {reason}")
        assert "a reason that others can read" in rapport(*change, *options, "--accept", "").error
    assert (models / "routes.toml").read_bytes() == before

    assert rapport(*change, "--shadow", 5).code == 0  # which answers nobody
    let = rapport(*change, "--no-shadow", "--champion", 5, "--accept", "Black  Friday")
    assert "engagement  accepted  none -> 5 because: Black Friday" in let.out.splitlines()
    [accepted] = route(models).accepted
    assert route(models) == Route(champion=5, previous=3, accepted=(Accepted(5, "Black Friday", accepted.at),))
    assert f"engagement.5 may answer against its gates, since {accepted.at[:10]}: Black Friday" in (
        rapport("list", "--models", models).out.splitlines()
    )
    machine = json.loads(rapport("list", "--models", models, "--json").out)
    assert machine["routes"]["engagement"]["accepted"][0]["because"] == "Black Friday"
    # Once said, it is said for good.
    for version in (4, 1, 5):
        assert rapport(*change, "--champion", version).code == 0
    assert route(models) == Route(champion=5, previous=1, accepted=(accepted,))


def test_the_way_back_asks_nobody(rapport: Rapport, models: Path, release: Release) -> None:
    """Also where the champion before is of a time when no gates were asked."""
    for _ in range(2):
        with_gates(release, models)
    reroute(models, champion=5, previous=6)
    change = ("route", "engagement", "--models", models)

    assert rapport("rollback", "engagement", "--models", models).code == 0
    assert rapport(*change, "--champion", 5).code == 0
    assert rapport(*change, "--champion", 5, "--canary", "6:10").code == 0
    assert rapport(*change, "--no-canary", "--champion", 4).code == 0
    assert rapport("rollback", "engagement", "--models", models).code == 0
    assert route(models) == Route(champion=5, previous=4)
    assert "engagement.6 gets no customers" in rapport(*change, "--champion", 6).error


def test_who_was_compared_with_another_champion_is_promoted_with_a_word_of_it(
    rapport: Rapport, models: Path, release: Release
) -> None:
    contract = read_release(models, "engagement", 3).contract
    states = contract.metrics

    def promoted(**changes: object) -> str:
        """What is said when a model whose contract is changed so becomes champion in place of 3."""
        made = with_contract(release, models, replace(contract, **changes))  # type: ignore[arg-type]
        reroute(models, champion=3)
        said = rapport("route", "engagement", "--champion", made.version, "--models", models)
        assert said.code == 0, said.error
        assert route(models).champion == int(made.version)
        return said.error.replace(made.name, "it")

    def met(name: str, digest: str) -> dict[str, str]:
        return {**contract.training, "gates_champion": name, "gates_champion_contract": digest}

    worse = {
        "purchase_30d": {**states["purchase_30d"], "auc": states["purchase_30d"]["auc"] - 0.02},
        "churn_90d": {**states["churn_90d"], "auc": states["churn_90d"]["auc"] - 0.009},
        "spend_90d": {**states["spend_90d"], "rmse_capped": 1.03 * states["spend_90d"]["rmse_capped"]},
    }
    another = met("engagement.2", "another")
    begins = "rapport: it: its gates compared it with engagement.2, and not with the champion of now, engagement.3; "

    assert promoted(training=met("champion.1", contract.digest), metrics=worse) == ""
    assert (
        promoted(training=another) == f"{begins}of the same data its contract states nothing worse than is tolerated\n"
    )
    assert promoted(training=another, digests={"data": "other"}) == (
        f"{begins}their figures are of other data, and cannot be compared\n"
    )
    said = promoted(training=another, metrics=worse)
    assert said.startswith(f"{begins}of the same data its contract states worse, perhaps by chance: purchase_30d auc ")
    assert "; spend_90d rmse_capped " in said
    assert said.endswith(", where 2 % worse is tolerated\n")
    assert "churn_90d" not in said
    assert "its gates compared it with no champion, and not" in promoted(metrics=worse)


def test_a_failed_model_that_was_accepted_is_promoted_with_a_word_of_it(
    rapport: Rapport, models: Path, release: Release
) -> None:
    with_gates(release, models, passed="9 of 10", failed="churn_90d: bad", accepted_because="only as a shadow")
    reroute(models, champion=3)

    said = rapport("route", "engagement", "--champion", 5, "--models", models)

    assert said.error.splitlines()[0] == "rapport: engagement.5: churn_90d: bad; accepted because: only as a shadow"
    assert route(models) == Route(champion=5, previous=3)


# Pruning.


def test_prune_removes_what_nobody_names_and_no_number_comes_again(
    rapport: Rapport, models: Path, release: Release
) -> None:
    assert [take_over(release.directory, models).version for _ in range(3)] == ["5", "6", "7"]
    reroute(models, champion=3, previous=2, canary=Canary(1, 5), standby=(5,))
    (models / "engagement.8").mkdir()
    (models / "engagement.8" / "config.pbtxt").write_text("x")
    (models / "engagement.8.explain_exact" / "1").mkdir(parents=True)
    (models / "engagement.8.explain_exact" / "1" / "model.onnx").write_bytes(b"x" * 1_000)
    (models / ".staging-x").mkdir()
    (models / ".staging-x" / "model.onnx").write_bytes(b"x")
    keeping = ("prune", "--models", models, "--keep")

    said = rapport(*keeping, 1, "--dry-run")
    assert said.out.startswith("would remove engagement.4, engagement.6: ")
    assert list_versions(models, "engagement") == [1, 2, 3, 4, 5, 6, 7]
    assert "say --yes" in rapport(*keeping, 1).error
    assert rapport(*keeping, 9, "--yes").out == "nothing to remove\n"

    age(models / "engagement.8")
    age(models / ".staging-x")
    assert rapport(*keeping, 9, "--yes").out.startswith("removed .staging-x: ")
    age(models / "engagement.8.explain_exact")
    assert rapport("prune", "other", "--keep", 0, "--models", models, "--yes").out == "nothing to remove\n"
    assert rapport(*keeping, 0, "--yes").out.startswith(
        "removed engagement.4, engagement.6, engagement.7, engagement.8: "
    )
    assert list_versions(models, "engagement") == [1, 2, 3, 5]
    assert not (models / ".staging-x").exists()
    assert not (models / "engagement.4").exists()
    assert not list(models.glob("*.[4678].explain*"))
    assert "leftover" not in rapport("list", "--models", models).out
    assert take_over(release.directory, models).version == "9"


def test_prune_spares_what_was_routed_meanwhile(models: Path) -> None:
    pruning = prunable(models, None, keep=0)
    assert pruning.names == ["engagement.1", "engagement.4"]
    reroute(models, champion=3, canary=Canary(4, 1))

    assert prune(models, pruning).names == ["engagement.1"]
    assert read_release(models, "engagement", 4)


def test_of_two_who_prune_at_once_each_says_what_it_removed(models: Path) -> None:
    pruning = prunable(models, None, keep=0)

    assert prune(models, pruning).names == ["engagement.1", "engagement.4"]
    assert prune(models, pruning).names == []


def test_the_list_outlives_a_publisher_that_finishes_meanwhile(models: Path) -> None:
    """Its scratch goes while it is looked at."""
    done = threading.Event()

    def publish_and_publish() -> None:
        while not done.is_set():
            for deep in range(20):
                (models / ".staging-x" / f"engagement.{deep}" / "1").mkdir(parents=True)
            shutil.rmtree(models / ".staging-x")

    publisher = threading.Thread(target=publish_and_publish)
    publisher.start()
    try:
        for _ in range(100):
            assert len(take_inventory(models).releases) == 4
    finally:
        done.set()
        publisher.join()


def test_prune_without_routes_removes_nothing(rapport: Rapport, models: Path) -> None:
    (models / "routes.toml").unlink()
    assert "nothing says which releases are in use" in rapport("prune", "--models", models, "--yes").error
    (models / "routes.toml").write_text("[engagement")
    assert rapport("prune", "--models", models, "--yes").code == 1
    assert list_versions(models, "engagement") == [1, 2, 3, 4]


# Killed half-way.


def killed_everywhere(models: Path, copies: Path, *arguments: object) -> list[Path]:
    """The command in copies of the repository, killed a step later in each; in the last one it got through."""
    copies.mkdir()
    command = [sys.executable, "-m", "tests.service.killed_command", models, copies, "release", *arguments]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return sorted(copies.iterdir(), key=lambda path: int(path.name))


@pytest.mark.parametrize(
    ("arguments", "after"),
    [
        (("route", "engagement", "--champion", 4, "--shadow", 1), Route(champion=4, previous=3, shadow=(1,))),
        (("rollback", "engagement"), Route(champion=2, previous=3)),
    ],
)
def test_a_killed_change_of_a_route_leaves_the_old_or_the_new_one(
    four: Path, tmp_path: Path, arguments: tuple[object, ...], after: Route
) -> None:
    copies = killed_everywhere(four, tmp_path / "copies", *arguments)

    found = [route(models) for models in copies]
    assert len(found) > 3
    assert set(map(repr, found)) == {repr(route(four)), repr(after)}
    assert found[-1] == after
    for models in copies:
        for version in route(models).named:
            read_release(models, "engagement", version)
        # A killed command is in nobody's way.
        reroute(models, champion=1)
        assert route(models) == Route(champion=1)


def test_a_killed_prune_leaves_whole_releases_and_the_next_one_goes_on(
    four: Path, release: Release, tmp_path: Path
) -> None:
    copies = killed_everywhere(four, tmp_path / "copies", "prune", "--keep", 0, "--yes")

    assert len(copies) > 20
    assert {tuple(list_versions(models, "engagement")) for models in copies} == {(1, 2, 3, 4), (2, 3, 4), (2, 3)}
    assert list_versions(copies[-1], "engagement") == [2, 3]
    for models in copies:
        assert route(models) == route(four)
        there = list_versions(models, "engagement")
        for version in there:
            read_release(models, "engagement", version)
        for path in models.glob("engagement.*"):
            if int(path.name.split(".")[1]) not in there:
                age(path)
        prune(models, prunable(models, None, keep=0))
        left = [release_directories(f"engagement.{version}", release.manifest.explainers) for version in (2, 3)]
        assert {path.name for path in models.glob("engagement*")} == {*left[0], *left[1], "engagement.4"}
        assert take_over(release.directory, models).version == "5"


# With a gateway.


def test_a_change_waits_until_the_gateway_serves_it(
    rapport: Rapport, start: Start, customers: list[str], models: Path, release: Release
) -> None:
    with_gates(release, models)
    url = start(models=models)
    for arguments, answer in (
        (("route", "engagement", "--champion", 5, "--accept", "a test"), "5"),
        (("rollback", "engagement"), "3"),
        (("load", "engagement", 4), "3"),
        (("route", "engagement", "--champion", 4), "4"),
        (("rollback", "engagement"), "3"),
        (("route", "engagement", "--canary", "1:100"), "1"),
    ):
        said = rapport(*arguments, "--models", models, "--gateway", url)
        assert said.code == 0, said.error
        assert f"every answer of {url} says so after " in said.out
        assert answered_by(url) == answer
    served = requests.get(f"{url}/v1/models", timeout=5).json()["models"][0]
    assert {"1", "3", "4"} <= set(served["versions"])


def test_a_gateway_that_does_not_follow_is_told_of(
    rapport: Rapport, start: Start, customers: list[str], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "TIMEOUT_S", 0.2)
    url = start(models=models, release_poll_s=3_600)

    said = rapport("route", "engagement", "--champion", 4, "--models", models, "--gateway", url)

    assert said.code == 1
    assert "routes.toml is as asked" in said.error
    assert "its champion is 3" in said.error
    assert route(models).champion == 4
    gone = rapport("rollback", "engagement", "--models", models, "--gateway", "http://127.0.0.1:9")
    assert "does not answer" in gone.error
    assert "starts with http" in rapport("rollback", "engagement", "--models", models, "--gateway", "x:1").error


def test_every_worker_has_followed_when_the_command_returns(
    rapport: Rapport, release: Release, customers: list[str], redis_url: str, models: Path, tmp_path: Path
) -> None:
    served = Release(models, release.manifest, release.contract)
    with two_workers(tmp_path, served, redis_url) as workers:
        for arguments, answer in ((("route", "engagement", "--champion", 4), "4"), (("rollback", "engagement"), "3")):
            said = rapport(*arguments, "--models", models, "--gateway", workers.url)
            assert said.code == 0, said.error
            assert {answered_by(workers.url) for _ in range(40)} == {answer}
