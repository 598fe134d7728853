"""Runs checkov and kube-score on the chart, and compares their findings with `deploy/helm/static-findings.yaml`.

``python -m tools.chart_findings --checkov COMMAND --kube-score COMMAND``. Neither scanner is part of the development
environment: checkov pins other versions of its packages, and kube-score is written in Go.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
HELM = str(Path(sys.executable).parent / "helm")
CHART = ROOT / "deploy/helm/percore"
KNOWN = ROOT / "deploy/helm/static-findings.yaml"
VALUES: tuple[tuple[str, ...], ...] = ((), ("--values", str(ROOT / "deploy/helm/findings-everything.yaml")))
"""The defaults, and every object of the chart."""
KUBERNETES = "1.35"
BEST = 10
"""The grade that kube-score gives if it finds nothing."""
Finding = tuple[str, str, str]
"""A scanner, its check, and the object as ``Kind/name``."""


def of_checkov(command: list[str], manifests: Path) -> Iterator[Finding]:
    """Yield the findings of checkov. It runs without a connection to its vendor."""
    options = [
        "--skip-download",
        "--quiet",
        "--compact",
        "--framework",
        "kubernetes",
        "--output",
        "json",
        "--file",
        str(manifests),
    ]
    for each in _scan([*command, *options])["results"]["failed_checks"]:
        kind, _, name = each["resource"].split(".", 2)
        yield "checkov", each["check_id"], f"{kind}/{name}"


def of_kube_score(command: list[str], manifests: Path) -> Iterator[Finding]:
    """Yield the findings of kube-score, warnings included."""
    options = ["score", "--kubernetes-version", f"v{KUBERNETES}", "--output-format", "json", str(manifests)]
    for each in _scan([*command, *options]):
        kind, name = each["object_name"].split("/")[0], each["object_name"].rsplit("/", 1)[1]
        for check in each["checks"]:
            if not check["skipped"] and check["grade"] < BEST:
                yield "kube-score", check["check"]["id"], f"{kind}/{name}"


def known(text: str) -> set[Finding]:
    """Return the accepted findings; each must have a reason."""
    listed = yaml.safe_load(text)
    for tool, checks in listed.items():
        for check, entry in checks.items():
            if not entry.get("reason"):
                raise ValueError(f"{tool}: {check}: has no reason")
    return {
        (tool, check, name) for tool, checks in listed.items() for check, entry in checks.items() for name in entry["objects"]
    }


def difference(found: set[Finding], listed: set[Finding]) -> list[str]:
    """Return a line for each finding that is not listed, and for each listed finding that no longer occurs."""
    new = [
        f"{tool}: {check}: {name}: correct it, or give a reason in {KNOWN.name}" for tool, check, name in sorted(found - listed)
    ]
    return new + [
        f"{tool}: {check}: {name}: is found no more, remove it from {KNOWN.name}"
        for tool, check, name in sorted(listed - found)
    ]


def main() -> int:
    """Scan and compare; return 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    for tool in ("checkov", "kube-score"):
        parser.add_argument(f"--{tool}", type=shlex.split, required=True, help="the command that runs it")
    given = parser.parse_args()
    found: set[Finding] = set()
    for values in VALUES:
        with tempfile.TemporaryDirectory() as folder:
            manifests = Path(folder) / "chart.yaml"
            manifests.write_text(render(*values))
            found |= {*of_checkov(given.checkov, manifests), *of_kube_score(given.kube_score, manifests)}
    lines = difference(found, known(KNOWN.read_text()))
    print("\n".join(lines) or f"{len(found)} findings, each with its reason in {KNOWN.name}")
    return 1 if lines else 0


def render(*values: str) -> str:
    """Return the manifests."""
    command = [HELM, "template", "percore", str(CHART), "--namespace", "percore", "--kube-version", f"{KUBERNETES}.0", *values]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _scan(command: list[str]) -> Any:
    """Run a scanner and read its JSON.

    Its exit status is not 0 if it finds something. So only output that is not JSON means an error.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise RuntimeError(f"{command[0]}: {error}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}") from error


if __name__ == "__main__":
    sys.exit(main())
