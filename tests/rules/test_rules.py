"""Each alert, with promtool: it is silent just below its threshold and just before its time, and fires just above and after."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from tests.rules import burn, gateways, pods, stored_calls
from tests.rules.harness import STEP, Case, alerts, check, groups, key, promtool, rule_of

CASES = [*burn.CASES, *pods.CASES, *gateways.CASES, *stored_calls.CASES]
FIRES = [case for case in CASES if case.description]
SILENT = [case for case in CASES if not case.description]
TIMED = [case for case in FIRES if "for" in rule_of(case)]


def title(case: Case) -> str:
    return f"{case.alert}-{case.severity}-{case.long_window}-{case.what}"


@pytest.mark.parametrize("case", FIRES, ids=title)
def test_an_alert_fires(case: Case, tmp_path: Path) -> None:
    check(case, case.minute, True, tmp_path)


@pytest.mark.parametrize("case", SILENT, ids=title)
def test_an_alert_is_silent(case: Case, tmp_path: Path) -> None:
    check(case, case.minute, False, tmp_path)


@pytest.mark.parametrize("case", TIMED, ids=title)
def test_an_alert_is_silent_before_its_time(case: Case, tmp_path: Path) -> None:
    check(case, case.minute - STEP / 60, False, tmp_path)


@pytest.mark.parametrize(("ours", "theirs"), [("first-percore", "second-percore"), ('"here"', '"there"')])
@pytest.mark.parametrize("case", [case for case in FIRES if case.alert != gateways.MISSING], ids=title)
def test_an_alert_is_silent_if_only_another_release_has_the_fault(case: Case, ours: str, theirs: str, tmp_path: Path) -> None:
    foreign = {name.replace(ours, theirs): values for name, values in case.series.items()}
    check(dataclasses.replace(case, series=foreign), case.minute, False, tmp_path)


def test_every_alert_has_a_case_that_fires_and_one_that_is_silent() -> None:
    every = {key(rule) for rule in alerts()}
    assert {case.key for case in FIRES} == every
    assert {case.key for case in SILENT} == every


@pytest.mark.parametrize("values", [(), ("autoscaling.enabled=false",), ("monitoring.rules.queueTimeSeconds=600",)])
def test_promtool_finds_nothing_wrong_with_the_rules(values: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups(*values)}))
    promtool("check", "rules", "--lint-fatal", tmp_path / "rules.yaml")


def test_the_recordings_have_the_interval_that_their_sums_assume() -> None:
    [calls] = [group for group in groups() if group["name"].endswith(".calls")]
    assert calls["interval"] == f"{STEP}s"
    assert all(f"* {STEP})" in rule["expr"] for rule in alerts() if rule["labels"].get("long_window") == "3d")
