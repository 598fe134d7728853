"""The files for one machine (the systemd unit, compose.yaml, Prometheus) match percore's settings and metrics."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from percore.gateway import gateway_settings
from percore.gateway.process import SPARE_DESCRIPTORS
from percore.worker_metrics import WorkerMetrics

from deploy.monitoring import dashboard
from tests.grafana import queries
from tests.promql import selectors

ROOT = Path(__file__).resolve().parent.parent.parent
UNIT = (ROOT / "deploy/systemd/percore.service").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose/prometheus.yaml").read_text())
SERVED: dict[str, Any] = COMPOSE["services"]["percore"]
UNITS = {"h": 3600, "m": 60, "s": 1}
EXPOSURE = 20
"""Ten times the largest exposure that `systemd-analyze security` may show. It shows 1.7, because the unit may use the network
and compile code."""
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")


def unit(key: str) -> str:
    """Return the only value that the systemd unit gives this key."""
    [value] = re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)
    return str(value)


ENVIRONMENTS = {
    "systemd": dict(each.split("=", 1) for each in re.findall(r"^Environment=(.*)$", UNIT, re.MULTILINE)),
    "compose": SERVED["environment"],
}


@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_every_setting_is_one_that_percore_takes(where: str) -> None:
    assert ENVIRONMENTS[where]
    gateway_settings.load(ENVIRONMENTS[where], on_machine=True)


def test_calls_have_all_their_time_before_they_are_killed() -> None:
    longest = gateway_settings.load({}).limits.shutdown_timeout
    number, letter = re.fullmatch(r"(\d+)([hms])", SERVED["stop_grace_period"]).groups()  # type: ignore[union-attr]
    assert int(number) * UNITS[letter] > longest
    # The supervisor asks systemd for the time of the calls. See test_systemd.py among the tests of the service.
    assert unit("NotifyAccess") == "main"
    assert unit("KillMode") == "mixed"


def test_the_gateway_may_open_as_many_files_as_it_asks_for() -> None:
    known = gateway_settings.load({})
    needed = 2 * (known.limits.queue_length + known.gateway.uploads) + known.gateway.connections + SPARE_DESCRIPTORS
    assert int(unit("LimitNOFILE")) >= needed
    assert SERVED["ulimits"]["nofile"] >= needed


def test_systemd_creates_the_folders_that_the_unit_names() -> None:
    environment = ENVIRONMENTS["systemd"]
    assert environment["PERCORE_STATE_DIR"] == f"/run/{unit('RuntimeDirectory')}"
    states = [f"/var/lib/{each}" for each in unit("StateDirectory").split()]
    assert {unit("WorkingDirectory"), environment["PERCORE_GATEWAY_SPOOL_DIR"]} <= set(states)


def test_the_dashboard_finds_every_series_of_percore_by_the_labels_that_prometheus_sets() -> None:
    [job] = PROMETHEUS["scrape_configs"]
    [target] = job["static_configs"]
    [rule] = job["metric_relabel_configs"]
    assert target["targets"] == ["percore:9090"]
    chosen = {"namespace": target["labels"]["namespace"], "release": target["labels"]["app_kubernetes_io_instance"]}
    seen = set()
    for query in queries(dashboard.build()):
        for found in selectors(query.filled({**chosen, "full": "percore", "__range": "1h"})):
            # Rules are the chart's, and series of Kubernetes are a cluster's: their panels stay empty.
            if not found.name.startswith("percore_"):
                continue
            of_workers = re.fullmatch(rule["regex"], found.name)
            service = rule["replacement"] if of_workers else target["labels"]["service"]
            assert found.labels["service"] == service, found.text
            assert found.labels["namespace"] == chosen["namespace"]
            seen.add(service)
    assert seen == {"percore-gateway", "percore-inference"}


def test_prometheus_labels_the_series_of_workers_as_on_a_cluster() -> None:
    [job] = PROMETHEUS["scrape_configs"]
    [rule] = job["metric_relabel_configs"]
    names = {name for names in WorkerMetrics().registry._collector_to_names.values() for name in names}
    assert {name for name in names if not re.fullmatch(rule["regex"], name)} == {"percore_build_info"}


def test_the_files_that_compose_mounts_exist_and_images_have_a_version() -> None:
    files = [each["file"] for each in COMPOSE["configs"].values()]
    assert [file for file in files if not (ROOT / file).is_file()] == []
    used = {mount["source"] for service in COMPOSE["services"].values() for mount in service.get("configs", [])}
    assert used == COMPOSE["configs"].keys()
    volumes = [mount.split(":")[0] for service in COMPOSE["services"].values() for mount in service.get("volumes", [])]
    assert sorted(volumes) == sorted(COMPOSE["volumes"]), (
        "the schema takes a volume that is not declared; Docker Compose does not"
    )
    for service in COMPOSE["services"].values():
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"])


def test_compose_publishes_every_port_on_loopback_only() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service["ports"]]
    assert len(ports) == 4
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


@needs_systemd
def test_systemd_takes_the_unit_and_finds_it_little_exposed(tmp_path: Path) -> None:
    unit_file = tmp_path / "percore.service"
    program = re.search(r"^ExecStart=(\S+)", UNIT, re.MULTILINE)
    assert program
    unit_file.write_text(UNIT.replace(program[1], sys.executable))  # the program that the unit starts must exist
    for command in (["verify"], ["security", "--offline=true", f"--threshold={EXPOSURE}"]):
        done = subprocess.run(["systemd-analyze", *command, unit_file], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout[-300:]


def test_pip_installs_a_lock_file_without_dependencies() -> None:
    """tf_keras asks for `tensorflow`, and the lock file has `tensorflow-cpu` in its place: pip alone would refuse the file."""
    texts = [path.read_text() for path in (ROOT / "Dockerfile", *sorted(ROOT.glob("docs/**/*.md")))]
    lines = [
        line for text in texts for line in text.splitlines() if re.search(r"pip.* install .*requirements/(runtime|demo)", line)
    ]
    assert len(lines) >= 3
    for line in lines:
        assert "--no-deps" in line, line
