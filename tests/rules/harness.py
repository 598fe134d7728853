"""Runs promtool on the rules as the chart renders them."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.chart.harness import one, render

Rule = dict[str, Any]
STEP = 30
"""Seconds between two samples, and between two evaluations. The recording rules assume the latter."""


@dataclass(frozen=True, slots=True)
class Case:
    """One alert and the series of the test.

    If the case has a ``description``, the alert fires at ``minute`` with this description; otherwise it is silent. If the rule
    has a ``for``, the alert must be silent one evaluation earlier, so ``minute`` is the first one.
    """

    alert: str
    what: str
    series: Mapping[str, str]
    minute: float
    description: str = ""
    severity: str = "warning"
    long_window: str = ""
    """The long window, if the alert has rules for several windows."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels in addition to those of the rule."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies the rule of this case."""
        return self.alert, self.severity, self.long_window


@functools.cache
def groups(*values: str) -> list[dict[str, Any]]:
    """Return the groups of the release ``first`` in the namespace ``here``."""
    found: list[dict[str, Any]] = one(render(*values), "PrometheusRule", "-rules")["spec"]["groups"]
    return found


def alerts(*values: str) -> list[Rule]:
    return [rule for group in groups(*values) for rule in group["rules"] if "alert" in rule]


def key(rule: Rule) -> tuple[str, str, str]:
    return rule["alert"], rule["labels"]["severity"], rule["labels"].get("long_window", "")


def rule_of(case: Case) -> Rule:
    [rule] = [rule for rule in alerts() if key(rule) == case.key]
    return rule


def promtool(*arguments: str | Path) -> str:
    """Run promtool; if it fails, fail with its output."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(case: Case, minute: float, fires: bool, folder: Path) -> None:
    """Let promtool test one rule with all recording rules, without other alerts of the same name."""
    rule = rule_of(case)
    kept = [
        {"name": group["name"], "rules": [each for each in group["rules"] if "record" in each or each is rule]}
        for group in groups()
    ]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": kept}))
    annotations = {**rule["annotations"], "description": case.description}
    alert = {"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": annotations}
    look = {"alertname": case.alert, "eval_time": f"{round(minute * 60)}s", "exp_alerts": [alert] if fires else []}
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    test = {"interval": f"{STEP}s", "input_series": series, "alert_rule_test": [look]}
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": f"{STEP}s", "tests": [test]}
    (folder / "test.yaml").write_text(yaml.safe_dump(document))
    promtool("test", "rules", folder / "test.yaml")


def gateway(name: str, **labels: str) -> str:
    """Return a series of a gateway, as Prometheus has it."""
    return _series(name, namespace="here", service="first-percore-gateway", pod="first-gateway-1", **labels)


def status_server(name: str, **labels: str) -> str:
    """Return a series of a pod's status server."""
    return _series(name, namespace="here", service="first-percore-inference", pod="first-inference-1", **labels)


def kubernetes(name: str, **labels: str) -> str:
    """Return a series of kube-state-metrics, which names the namespace of the object and not its own."""
    return _series(name, namespace="here", service="kube-state-metrics", **labels)


def _series(name: str, **labels: str) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{inside}}}"
