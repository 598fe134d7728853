"""The runbook has a heading for each alert and no other. Its commands and queries name things that exist."""

import re

import promql_parser
import pytest
from percore import __version__
from percore.gateway.gateway_metrics import GatewayMetrics
from percore.gateway.store.store_metrics import StoreMetrics
from percore.worker_metrics import WorkerMetrics
from prometheus_client import CollectorRegistry

from tests.chart.harness import ROOT
from tests.rules.harness import alerts

RUNBOOK = (ROOT / "docs/runbook.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in RUNBOOK.split("\n## ")[1:]}
NAMES = sorted({rule["alert"] for rule in alerts()})


def test_each_alert_has_its_heading_and_each_heading_its_alert() -> None:
    assert sorted(SECTIONS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_heading_has_meaning_impact_diagnosis_and_mitigation(name: str) -> None:
    parts = re.findall(r"^\*\*(\w+)\.\*\*", SECTIONS[name], re.MULTILINE)
    assert parts == ["Meaning", "Impact", "Look", "Fix"]
    assert "```" in SECTIONS[name]


def test_every_alert_has_a_severity_and_links_to_its_heading() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        runbook = f"https://github.com/percore/percore/blob/v{__version__}/docs/runbook.md"
        assert rule["annotations"]["runbook_url"] == f"{runbook}#{rule['alert'].lower()}"


def test_links_within_the_runbook_lead_to_headings() -> None:
    anchors = {name.lower() for name in SECTIONS}
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= anchors


def test_every_query_of_the_runbook_parses_and_reads_exported_series() -> None:
    known = set()
    for metrics in (WorkerMetrics(), GatewayMetrics(), StoreMetrics(CollectorRegistry())):
        known |= set(metrics.registry._names_to_collectors)
    queries = [line for block in re.findall(r"```promql\n(.*?)```", RUNBOOK, re.DOTALL) for line in block.splitlines()]
    assert len(queries) > 15
    for query in queries:
        promql_parser.parse(query)
        assert set(re.findall(r"percore_[a-z_]+", query)) <= known, query
