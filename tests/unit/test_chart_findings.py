"""Each finding of the scanners is corrected or listed with a reason, and the list has no other entries."""

import json
import sys
from pathlib import Path

import pytest

from tools import chart_findings

LISTED = {("checkov", "CKV_1", "Deployment/a"), ("kube-score", "probes", "Pod/b")}


def test_a_finding_without_a_reason_and_a_reason_without_a_finding_are_both_said() -> None:
    assert chart_findings.difference(LISTED, LISTED) == []
    new, old = chart_findings.difference({("checkov", "CKV_1", "Deployment/a"), ("checkov", "CKV_2", "Pod/b")}, LISTED)
    assert new.startswith("checkov: CKV_2: Pod/b: correct it, or give a reason")
    assert old.startswith("kube-score: probes: Pod/b: is found no more")


def test_an_entry_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="checkov: CKV_1: has no reason"):
        chart_findings.known("checkov: {CKV_1: {objects: [Pod/a]}}")


def test_every_entry_of_the_chart_s_file_is_of_an_object_that_the_chart_has() -> None:
    rendered = "".join(chart_findings.render(*values) for values in chart_findings.VALUES)
    for _, _, name in chart_findings.known(chart_findings.KNOWN.read_text()):
        kind, of = name.split("/")
        assert f"kind: {kind}\nmetadata:\n  name: {of}\n" in rendered


def test_the_output_of_the_scanners_is_read(tmp_path: Path) -> None:
    failed = {"check_id": "CKV_1", "resource": "Deployment.percore.percore-gateway"}
    score = {
        "object_name": "Pod/v1/percore/percore-test",
        "checks": [
            {"check": {"id": each}, "skipped": each == "c", "grade": grade} for each, grade in (("a", 10), ("b", 5), ("c", 1))
        ],
    }
    [one] = chart_findings.of_checkov(says({"results": {"failed_checks": [failed]}}), tmp_path)
    assert one == ("checkov", "CKV_1", "Deployment/percore-gateway")
    [other] = chart_findings.of_kube_score(says([score]), tmp_path)
    assert other == ("kube-score", "b", "Pod/percore-test")


def test_a_scanner_that_fails_is_not_one_that_finds_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such file"):
        list(chart_findings.of_checkov([sys.executable, "-c", "import sys; sys.exit('no such file')"], tmp_path))


def says(answer: object) -> list[str]:
    """Return a command that prints this and fails, as a scanner does if it finds something."""
    return [sys.executable, "-c", f"import sys; print({json.dumps(answer)!r}); sys.exit(1)"]
