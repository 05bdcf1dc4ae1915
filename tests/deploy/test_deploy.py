"""Compose file, image, scrape config and dashboard name each other's ports, paths, settings and metrics: they agree."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.local_triton import LocalTriton
from service.metrics import Metrics
from service.settings import Settings
from service.triton_install import find
from tests.triton_calls import connected

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
Yaml = dict[str, Any]


def load(path: str) -> Yaml:
    parsed: Yaml = yaml.safe_load((DEPLOY / path).read_text())
    return parsed


@pytest.fixture(scope="module")
def services() -> Yaml:
    parsed: Yaml = load("compose.yaml")["services"]
    return parsed


@pytest.fixture(scope="module")
def with_triton(services: Yaml) -> Yaml:
    """The same with compose.triton.yaml on top, as Compose puts it there: mappings are merged, the rest replaced."""
    return merged(services, load("compose.triton.yaml")["services"])


def merged(below: Yaml, above: Yaml) -> Yaml:
    mapping = dict(below)
    for key, value in above.items():
        was = below.get(key)
        mapping[key] = merged(was, value) if isinstance(was, dict) and isinstance(value, dict) else value
    return mapping


@pytest.fixture(scope="module")
def dashboard() -> Yaml:
    parsed: Yaml = json.loads((DEPLOY / "grafana/dashboards/gateway.json").read_text())
    return parsed


def image_settings() -> dict[str, str]:
    """RAPPORT_* of the Dockerfile's ENV."""
    return dict(re.findall(r"^(?:ENV)? +(RAPPORT_\w+)=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))


def gateway_settings(services: Yaml) -> dict[str, str]:
    """What the gateway is started with: the image's settings, and compose's on top. None is taken from the shell."""
    return image_settings() | {k: v for k, v in services["gateway"]["environment"].items() if v is not None}


def published_ports(service: Yaml) -> dict[int, str]:
    """Container port -> address it is published on."""
    mappings = (mapping.rsplit(":", 2) for mapping in service.get("ports", []))
    return {int(inner): address for address, _, inner in mappings}


def mounts(service: Yaml) -> Iterator[tuple[str, str]]:
    """Source and target; a source like ${MODELS:?...} has colons itself."""
    for volume in service.get("volumes", []):
        source, target = re.fullmatch(r"(\$\{[^}]*\}|[^:]+):([^:]+)(?::ro)?", volume).groups()  # type: ignore[union-attr]
        yield source, target


def promtool(*arguments: str) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: it is in Debian's package prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_setting_is_one_the_gateway_has(with_triton: Yaml) -> None:
    known = {f"RAPPORT_{name.upper()}" for name in Settings.model_fields}
    named = image_settings().keys() | with_triton["gateway"]["environment"].keys()

    assert image_settings()
    assert named <= known


def settings_of(services: Yaml, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in [name for name in os.environ if name.startswith("RAPPORT_")]:
        monkeypatch.delenv(name)
    for name, value in gateway_settings(services).items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_the_gateway_accepts_its_settings(services: Yaml, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(services, monkeypatch)

    # A container's loopback is nobody's: it listens for everybody, and so with keys.
    assert settings.host == "0.0.0.0"
    assert settings.keys_file == Path("/run/secrets/rapport_keys")
    assert settings.drain_s < int(services["gateway"]["stop_grace_period"].removesuffix("s"))


def test_what_is_mounted_is_there(with_triton: Yaml) -> None:
    compose = load("compose.yaml")
    for name, service in with_triton.items():
        for source, _ in mounts(service):
            if source.startswith("."):
                assert (DEPLOY / source).is_dir(), f"{name} mounts {source}"
            else:
                assert source in compose["volumes"] or source.startswith("${"), f"{name} mounts {source}"
    # What only the operator has is asked for in a sentence, and explained at the top of the file.
    text = (DEPLOY / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+)(?=:\?)", text))
    assert asked == set(re.findall(r"\$\{(\w+)", text)) == set(re.findall(r"(\w+)=", text.split("name:")[0]))


def test_ports_agree(services: Yaml) -> None:
    settings = gateway_settings(services)
    exposed = re.search(r"^EXPOSE (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert exposed[1].split() == [settings["RAPPORT_PORT"], settings["RAPPORT_METRICS_PORT"]]
    assert int(settings["RAPPORT_PORT"]) in published_ports(services["gateway"])
    assert settings["RAPPORT_REDIS"] == "redis:6379"
    assert 6379 in published_ports(services["redis"])

    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"]
        for job in load("prometheus/prometheus.yml")["scrape_configs"]
    }
    assert jobs == {"gateway": [f"gateway:{settings['RAPPORT_METRICS_PORT']}"], "triton": ["triton:8002"]}
    [source] = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert 9090 in published_ports(services["prometheus"])


def test_nothing_is_published_beyond_this_machine(with_triton: Yaml) -> None:
    assert {address for service in with_triton.values() for address in published_ports(service).values()} == {
        "127.0.0.1"
    }


def test_models_run_in_the_gateway_unless_triton_is_there(
    services: Yaml, with_triton: Yaml, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "triton" not in services
    assert settings_of(services, monkeypatch).backend == "embedded"

    settings = settings_of(with_triton, monkeypatch)

    assert settings.backend == "triton"
    assert settings.triton == "triton:8001"  # Triton's own default
    assert with_triton["gateway"]["depends_on"]["triton"] == {"condition": "service_healthy"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    built_with = with_triton["gateway"]["build"]["args"]["EXTRAS"].split(",")
    assert any(line.startswith("tritonclient[grpc]") for extra in built_with for line in extras[extra])


def test_triton_serves_the_gateways_repository_and_loads_only_what_it_is_told_to(with_triton: Yaml) -> None:
    [gateways] = with_triton["gateway"]["volumes"]
    triton = with_triton["triton"]
    assert triton["volumes"] == [gateways]
    assert gateways.endswith(":/models:ro")
    assert gateway_settings(with_triton)["RAPPORT_MODELS"] == "/models"
    assert "--model-repository=/models" in triton["command"]
    assert "--model-control-mode=explicit" in triton["command"]


def test_nobody_outside_reaches_triton(with_triton: Yaml) -> None:
    """Whoever may load a model runs code."""
    triton = with_triton["triton"]
    assert not published_ports(triton)
    assert "network_mode" not in triton
    assert "--http-address=127.0.0.1" in triton["command"]
    assert triton["healthcheck"]["test"][-1].startswith("http://127.0.0.1:8000/")
    assert triton["user"] not in {"root", "0"}


def test_triton_takes_every_option(with_triton: Yaml, triton: LocalTriton) -> None:
    """By the help of the same release as the image's, from the wheel."""
    installation = find()
    help_text = subprocess.run(
        [installation.server, "--help"], env=installation.environment(), capture_output=True, text=True, check=False
    )
    known = set(re.findall(r"--[a-z-]+", help_text.stdout + help_text.stderr))
    options = {option.partition("=")[0] for option in with_triton["triton"]["command"][1:]}
    assert options
    assert options <= known
    with connected(triton.address) as client:
        assert client.get_server_metadata().version == "2.51.0"
    assert with_triton["triton"]["image"].endswith(":24.10-py3")  # which holds 2.51.0
    exit_timeout = next(
        int(o.partition("=")[2]) for o in with_triton["triton"]["command"] if o.startswith("--exit-timeout-secs")
    )
    assert exit_timeout < int(with_triton["triton"]["stop_grace_period"].removesuffix("s"))


def test_grafana_finds_the_dashboard_and_the_dashboard_finds_prometheus(services: Yaml, dashboard: Yaml) -> None:
    sources = {target: source for source, target in mounts(services["grafana"])}
    [provider] = load("grafana/provisioning/dashboards/rapport.yaml")["providers"]
    assert sources[provider["options"]["path"]] == "./grafana/dashboards"
    assert sources["/etc/grafana/provisioning"] == "./grafana/provisioning"
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (DEPLOY / sources[str(home.parent)] / home.name).is_file()

    [source] = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def queries(dashboard: Yaml) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def exposed_series() -> dict[str, set[str]]:
    """Series of the gateway's metrics -> their labels, as service/metrics.py defines them."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    collectors: list[Any] = list(Metrics().registry._collector_to_names)
    return {
        metric._name + suffix: {*metric._labelnames, *(["le"] if suffix == "_bucket" else [])}
        for metric in collectors
        for suffix in suffixes[metric._type]
    }


def test_the_dashboard_asks_for_metrics_that_the_gateway_has_by_labels_that_they_have(dashboard: Yaml) -> None:
    series = exposed_series()
    for query in queries(dashboard):
        names = re.findall(r"\brapport_\w+", query)
        assert names, query
        assert set(names) <= series.keys(), query
        for labels in re.findall(r"\bby \(([^)]*)\)", query):
            for name in names:
                assert set(labels.split(", ")) <= series[name], query


def test_legends_name_only_labels_that_the_query_keeps(dashboard: Yaml) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            kept = {label for labels in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for label in labels.split(", ")}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, target


def test_promtool_accepts_the_scrape_config() -> None:
    assert "SUCCESS" in promtool("check", "config", str(DEPLOY / "prometheus/prometheus.yml"))


def test_promtool_accepts_the_dashboards_queries(dashboard: Yaml, tmp_path: Path) -> None:
    """As recording rules, which is where promtool parses PromQL."""
    rules = [
        {"record": f"dashboard:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries(dashboard))
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))
