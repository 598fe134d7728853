"""The gateway's settings, and HAProxy's configuration from them."""

import re
from pathlib import Path

import pytest
from percore import settings as pod_settings
from percore.errors import SettingsError
from percore.gateway import render
from percore.gateway.endpoints import Endpoint, State
from percore.gateway.settings import Settings, load


def configured(**given: str) -> str:
    return render.configuration(load({f"PERCORE_{key.upper()}": value for key, value in given.items()}), "gw-1")


def line(configuration: str, start: str) -> str:
    (found,) = {each.strip() for each in configuration.splitlines() if each.strip().startswith(start)}
    return found


def test_one_set_of_limits_serves_pods_and_gateway() -> None:
    environ = {"PERCORE_WAIT_LIMIT": "5", "PERCORE_RUN_LIMIT": "7", "PERCORE_PORT": "81", "PERCORE_QUEUE_MAX": "9000"}
    assert load(environ).limits == pod_settings.load(environ).limits
    assert load(environ).server == pod_settings.load(environ).server


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("PERCORE_GATEWAY_SLOTS", "0", "a whole number from 1 to 10000"),
        ("PERCORE_GATEWAY_NAME", "my gateway", "letters, digits"),
        ("PERCORE_GATEWAY_PRIORITY_HEADER", "X Priority", "a header's name"),
        ("PERCORE_GATEWAY_ENDPOINTS", "10.0.0.1:8080", "`ADDRESS:PORT/EXPORTER_PORT`"),
        ("PERCORE_GATEWAY_ENDPOINTS", "pod:8080/9090", "`ADDRESS:PORT/EXPORTER_PORT`"),
        ("PERCORE_GATEWAY_ENDPOINTS", "10.0.0.1:0/9090", "`ADDRESS:PORT/EXPORTER_PORT`"),
        ("PERCORE_GATEWAY_DELETION_COSTS", "maybe", "`yes`, `no`"),
        ("PERCORE_WAIT_LIMIT", "0", "seconds, more than 0"),
    ],
)
def test_a_bad_value_is_refused_naming_key_value_and_rule(key: str, value: str, rule: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({key: value})
    assert f"{key}={value!r}: must be" in str(caught.value)
    assert rule in str(caught.value)


def test_a_misspelt_key_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"PERCORE_GATEWAY_SLOT='5'.*PERCORE_GATEWAY_SLOTS"):
        load({"PERCORE_GATEWAY_SLOT": "5"})


def test_pods_come_from_one_place_only() -> None:
    with pytest.raises(SettingsError, match="set one of them, not 2"):
        load({"PERCORE_GATEWAY_SERVICE": "x", "PERCORE_GATEWAY_ENDPOINTS": "10.0.0.1:1/2"})


def test_pods_may_be_listed() -> None:
    listed = load({"PERCORE_GATEWAY_ENDPOINTS": "10.0.0.1:8080/9090, [fd00::1]:81/91=terminating"}).gateway.endpoints
    assert listed == (Endpoint("10.0.0.1", 8080, 9090), Endpoint("fd00::1", 81, 91, State.TERMINATING))


def test_each_life_of_haproxy_has_its_own_name() -> None:
    settings = load({"PERCORE_GATEWAY_NAME": "gw"})
    assert re.fullmatch(r"gw-[0-9a-f]{8}", render.new_name(settings))
    assert render.new_name(settings) != render.new_name(settings)
    assert render.new_name(load({})) != render.new_name(load({}))


def test_every_placeholder_is_filled() -> None:
    assert "$" not in re.sub(r"\$( |$|\))", "", configured(), flags=re.MULTILINE)


def test_clocks_are_those_of_the_limits_and_haproxy_s_is_the_longest() -> None:
    configuration = configured(wait_limit="0.5", run_limit="10", body_limit="2")
    assert line(configuration, "timeout queue") == "timeout queue 500ms"
    assert line(configuration, "timeout client 2000ms")
    assert line(configuration, "http-request wait-for-body") == "http-request wait-for-body time 2000ms if call"
    assert line(configuration, "timeout server 7") == "timeout server 74000ms"
    assert "10 s, and was ended" in configuration


def test_the_longest_limits_fit_haproxy_s_clock() -> None:
    week = str(pod_settings.WEEK_SECONDS)
    longest = max(map(int, re.findall(r"(\d+)ms", configured(wait_limit=week, run_limit=week, body_limit=week))))
    assert longest < 2**31


def test_haproxy_takes_in_more_than_may_wait_so_that_the_rest_hears_why() -> None:
    configuration = configured(queue_max="9000", gateway_slots="100")
    assert int(line(configuration, "maxconn ").split()[1]) >= 9000 + 100 + 1000
    assert "queue(pods),sub(2) ge 9000" in configuration


@pytest.mark.parametrize(("queue_max", "calls"), [("1", 1), ("2000", 1), ("2001", 2), ("65535", 33)])
def test_the_classes_of_order_do_for_a_whole_queue(queue_max: str, calls: int) -> None:
    assert f"mod({calls}) " in configured(queue_max=queue_max)


def test_an_address_of_ipv6_is_written_as_haproxy_reads_it() -> None:
    assert line(configured(host="::"), "bind [") == "bind [::]:8080 backlog 4096"


def test_there_is_a_priority_only_where_the_operator_names_a_header() -> None:
    assert "req.hdr(X-Priority)" in configured(gateway_priority_header="X-Priority")
    assert "add(2037),neg" not in configured()


def test_the_configuration_is_written_where_only_its_owner_reads(tmp_path: Path) -> None:
    settings = load({"PERCORE_RUN_DIR": str(tmp_path / "run")})
    path = render.write(settings, "gw-1")
    assert path.read_text() == render.configuration(settings, "gw-1")
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0


def test_it_takes_a_descriptor_for_each_caller_and_one_more_for_each_call_that_runs() -> None:
    settings: Settings = load({"PERCORE_QUEUE_MAX": "9000", "PERCORE_GATEWAY_SLOTS": "1000"})
    assert render.descriptors(settings) >= 9000 + 2 * 1000
