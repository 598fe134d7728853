"""The gateway's settings: for each one its default, its valid values, and the error for a value that breaks its rule."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
from percore.errors import SettingsError
from percore.gateway.endpoints import Endpoint, State
from percore.gateway.gateway_settings import GatewaySettings, load
from percore.gateway.store.webhook_hosts import parse_hosts
from percore.gateway.store.webhooks import HOSTS_RULE, SECRETS_RULE

NAME_RULE = "empty, or up to 100 letters, digits, `.`, `_` or `-`"
ENDPOINTS_RULE = "empty, or `ADDRESS:PORT/STATUS_PORT` entries with commas between them"
HEADER_RULE = "empty, or a header's name"
WEEK = 7 * 24 * 3600

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()


@dataclass(frozen=True)
class Row:
    """One setting: its field, its default, valid texts with their values, its rule, and texts that break the rule."""

    name: str
    default: Any
    valid: dict[str, Any]
    rule: str = ""
    invalid: tuple[str, ...] = ()
    """Empty if every text is valid."""
    beside: dict[str, str] = field(default_factory=dict)
    """Other settings that it needs."""
    is_secret: bool = False
    """Whether errors must not show the value."""

    @property
    def key(self) -> str:
        return f"PERCORE_GATEWAY_{self.name.upper()}"


def whole(low: int, high: int) -> dict[str, Any]:
    """Return the rule for whole numbers and texts that break it, as fields of a row."""
    return {
        "rule": f"a whole number from {low} to {high}",
        "invalid": (str(low - 1), str(high + 1), "1.5", "1e3", "many"),
    }


ROWS = [
    Row(
        "name",
        "",
        {"gateway-0": "gateway-0", "a.b_c-1": "a.b_c-1", "a" * 100: "a" * 100},
        NAME_RULE,
        ("a b", "a" * 101, "a/b", "a\r\nHost: b"),
    ),
    Row("service", "", {"inference": "inference"}),
    Row("namespace", "default", {"models": "models"}),
    Row(
        "endpoints",
        (),
        {
            "10.0.0.5:8080/9090,10.0.0.6:81/91": (Endpoint("10.0.0.5", 8080, 9090), Endpoint("10.0.0.6", 81, 91)),
            "[::1]:8080/9090": (Endpoint("::1", 8080, 9090),),
            "10.0.0.5:8080/9090=terminating": (Endpoint("10.0.0.5", 8080, 9090, State.TERMINATING),),
        },
        ENDPOINTS_RULE,
        ("10.0.0.5", "10.0.0.5:8080", "10.0.0.5:0/9090", "10.0.0.5:8080/65536", "10.0.0.555:1/2", "10.0.0.5:1/2=unknown"),
    ),
    Row("endpoints_file", Path(), {"/run/endpoints": Path("/run/endpoints")}),
    Row("pod_port", 8080, {"1": 1, "65535": 65535}, **whole(1, 65535)),
    Row("pod_status_port", 9090, {"1": 1, "65535": 65535}, **whole(1, 65535)),
    Row("connections", 4096, {"1": 1, "1048576": 2**20}, **whole(1, 2**20)),
    Row(
        "idle_timeout",
        620.0,
        {"0.5": 0.5, str(WEEK): float(WEEK)},
        f"seconds, more than 0, at most {WEEK}",
        ("0", "-1", str(WEEK + 1), "nan", "inf", "10s"),
    ),
    Row("uploads", 256, {"1": 1, "65535": 65535}, **whole(1, 65535)),
    Row("upload_bytes", 2**30, {"1": 1, str(2**50): 2**50}, **whole(1, 2**50)),
    Row("spool_dir", Path(), {"/var/spool/percore": Path("/var/spool/percore")}),
    Row("spool_bytes", 2**31, {"0": 0, str(2**50): 2**50}, **whole(0, 2**50)),
    Row("spool_memory_bytes", 2**26, {"0": 0, str(2**40): 2**40}, **whole(0, 2**40)),
    Row(
        "shutdown_delay",
        0.0,
        {"0": 0.0, "2.5": 2.5, "600": 600.0},
        "seconds, from 0 to 600",
        ("-0.1", "600.1", "nan", "inf", "soon"),
    ),
    Row("priority_header", "", {"X-Priority": "X-Priority"}, HEADER_RULE, ("X Priority", "X-Priority:", "X\r\nY")),
    Row("caller_header", "", {"X-Tenant": "X-Tenant"}, HEADER_RULE, ("X Tenant",)),
    Row("calls_enabled", True, {"yes": True, "no": False}, "`yes` or `no`", ("true", "on")),
    Row("calls_dir", Path(), {"/var/lib/percore": Path("/var/lib/percore")}),
    Row(
        "calls_database",
        "",
        {"postgresql://u:p@h/d": "postgresql://u:p@h/d", "postgres://h/d?sslmode=require": "postgres://h/d?sslmode=require"},
        "empty, or a URL that begins with `postgresql://`",
        ("mysql://u:p@h/d", "h/d", "postgresql://u:p@h/d x"),
        is_secret=True,
    ),
    Row("calls_limit", 10000, {"1": 1, "10000000": 10**7}, **whole(1, 10**7)),
    Row("calls_bytes", 10 * 2**30, {"1": 1, str(2**50): 2**50}, **whole(1, 2**50)),
    Row("calls_free_bytes", 2**29, {"0": 0, str(2**50): 2**50}, **whole(0, 2**50)),
    Row(
        "calls_retention",
        86400.0,
        {"0.5": 0.5, str(WEEK): float(WEEK)},
        f"seconds, more than 0, at most {WEEK}",
        ("0", "-1", str(WEEK + 1), "nan", "1d"),
    ),
    Row("calls_max_runs", 2, {"1": 1, "10": 10}, **whole(1, 10)),
    Row(
        "webhook_hosts",
        (),
        {"example.com": parse_hosts("example.com"), "*.example.com,10.0.0.0/8": parse_hosts("*.example.com,10.0.0.0/8")},
        HOSTS_RULE,
        ("http://example.com", "example.com,", "10.0.0.0/33"),
        beside={"PERCORE_GATEWAY_WEBHOOK_SECRETS": SECRET},
    ),
    Row("webhook_secrets", (), {SECRET: (SECRET,)}, SECRETS_RULE, ("secret", "whsec_", f"{SECRET},"), is_secret=True),
    Row(
        "webhook_timeout",
        15.0,
        {"0.5": 0.5, str(WEEK): float(WEEK)},
        f"seconds, more than 0, at most {WEEK}",
        ("0", "-1", str(WEEK + 1), "nan", "15s"),
    ),
    Row(
        "health_paths",
        frozenset(),
        {"/": frozenset({"/"}), "/, /health/check": frozenset({"/", "/health/check"})},
        "empty, or paths that begin with `/`, with commas between them",
        ("health", "/a,", "/a b", "/a?b", "/a#b"),
    ),
    Row("deletion_costs", "yes", {"yes": "yes", "no": "no"}, "one of `yes`, `no`", ("true", "Yes", "1")),
    Row(
        "pod_selector",
        "",
        {"app=model": "app=model", "example.com/app=model,tier=": "example.com/app=model,tier="},
        "empty, or `LABEL=VALUE` entries with commas between them",
        ("app", "=model", "app=model,", "app in (a,b)", "app=-"),
    ),
]


def read(environ: dict[str, str], name: str) -> Any:
    return getattr(load(environ).gateway, name)


def cases(choose: Any) -> list[Any]:
    """Return one case for each value of each row."""
    return [pytest.param(row, value, id=f"{row.name}={value[:30]!r}") for row in ROWS for value in choose(row)]


def test_every_setting_of_the_gateway_has_a_row_here() -> None:
    assert {row.name: row.key for row in ROWS} == {each.name: each.metadata["key"] for each in fields(GatewaySettings)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_setting_that_is_missing_or_empty_has_its_default(row: Row) -> None:
    for environ in ({}, {row.key: ""}):
        found = read(environ, row.name)
        assert (found, type(found)) == (row.default, type(row.default))


@pytest.mark.parametrize(("row", "value"), cases(lambda row: row.valid))
def test_a_value_that_keeps_the_rule_is_taken(row: Row, value: str) -> None:
    found = read({row.key: value, **row.beside}, row.name)
    assert (found, type(found)) == (row.valid[value], type(row.default))


@pytest.mark.parametrize(("row", "value"), cases(lambda row: row.invalid))
def test_a_value_that_breaks_the_rule_is_an_error_that_names_setting_rule_and_value(row: Row, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({row.key: value})
    shown = f"{row.key}: the value" if row.is_secret else f"{row.key}={value!r}:"
    assert str(caught.value) == f"{shown} must be {row.rule}"


def test_a_setting_that_does_not_exist_is_an_error_that_names_it_and_those_that_do() -> None:
    with pytest.raises(SettingsError, match=r"PERCORE_GATEWAY_UPLOAD: no such setting; known: .*PERCORE_GATEWAY_UPLOADS"):
        load({"PERCORE_GATEWAY_UPLOAD": "1"})


SOURCES = {
    "PERCORE_GATEWAY_SERVICE": "inference",
    "PERCORE_GATEWAY_ENDPOINTS": "10.0.0.5:8080/9090",
    "PERCORE_GATEWAY_ENDPOINTS_FILE": "/run/endpoints",
}


@pytest.mark.parametrize("without", [*SOURCES, None])
def test_two_sources_of_endpoints_are_an_error_that_names_all_three_and_how_many_are_set(without: str | None) -> None:
    environ = {key: value for key, value in SOURCES.items() if key != without}
    with pytest.raises(SettingsError) as caught:
        load(environ)
    for key in SOURCES:
        assert key in str(caught.value)
    assert str(caught.value).endswith(f"set one of them, not {len(environ)}")


@pytest.mark.parametrize("key", SOURCES)
def test_one_source_of_endpoints_is_enough(key: str) -> None:
    load({key: SOURCES[key]})


def test_stored_calls_have_one_place() -> None:
    with pytest.raises(SettingsError, match="PERCORE_GATEWAY_CALLS_DIR and PERCORE_GATEWAY_CALLS_DATABASE: set one of them"):
        load({"PERCORE_GATEWAY_CALLS_DIR": "/a", "PERCORE_GATEWAY_CALLS_DATABASE": "postgresql://h/d"})


def test_webhooks_need_a_secret() -> None:
    with pytest.raises(SettingsError, match="PERCORE_GATEWAY_WEBHOOK_SECRETS must be set too"):
        load({"PERCORE_GATEWAY_WEBHOOK_HOSTS": "example.com"})
