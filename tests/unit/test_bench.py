import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench import alone, bursts, client, pictures, report, restarts, results, setups, timeline
from bench.alone import Alone
from bench.bulk import Bulk
from bench.bursts import Burst
from bench.calls import Call, ideal, most_at_once, quantile, summarise
from bench.costs import Cost, Costs
from bench.empty import EmptyCall, EmptyCallRow
from bench.footprint import Footprint, Probe, Process, Start
from bench.gateway import GatewayCosts, Way
from bench.setups import Setup
from tools.svg import FAILED, MARGIN, PALETTE, WAITING, tick_step

SVG = "{http://www.w3.org/2000/svg}"


def one_after_another(count: int, *, cores: int = 2, run: float = 3.0) -> list[Call]:
    return [
        Call(0.0, (index // cores + 1) * run, started=index // cores * run, run=run, core=index % cores)
        for index in range(count)
    ]


def all_at_once(count: int, run: float) -> list[Call]:
    return [Call(0.0, run, started=0.0, run=run, core=index % 2) for index in range(count)]


# --- statistics


def test_the_ideal_is_as_many_rounds_as_the_cores_need() -> None:
    assert ideal(11, 2, 3.0) == 18.0
    assert ideal(11, 4, 3.0) == 9.0
    assert ideal(11, 16, 3.0) == 3.0


def test_calls_that_have_a_core_each_take_as_long_as_one_alone() -> None:
    found = summarise(one_after_another(11), alone=3.0, best=18.0)
    assert (found.run_mean, found.run_max, found.first, found.last, found.makespan) == (1.0, 1.0, 3.0, 18.0, 1.0)
    assert (found.failed, found.failures) == (0, "")


def test_calls_that_share_cores_all_take_longer() -> None:
    found = summarise(all_at_once(11, run=18.0), alone=3.0, best=18.0)
    assert (found.run_mean, found.first, found.makespan) == (6.0, 18.0, 1.0)


def test_failed_calls_count_in_no_mean_and_leave_no_makespan() -> None:
    failed = Call(0.0, 1.0, failure="socket hang up")
    found = summarise([*one_after_another(2), failed, failed, replace(failed, failure="status 500")], alone=3.0, best=3.0)
    assert (found.run_mean, found.last, found.makespan) == (1.0, 3.0, None)
    assert (found.failed, found.failures) == (3, "2 x socket hang up, 1 x status 500")


def test_if_every_call_failed_there_is_no_mean_and_no_makespan() -> None:
    found = summarise([Call(0.0, 1.0, failure="socket hang up")], alone=3.0, best=3.0)
    assert (found.run_mean, found.first, found.makespan, found.failed) == (None, None, None, 1)


def test_quantiles_lie_between_neighbours() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([5.0], 0.99) == 5.0
    assert quantile(list(map(float, range(101))), 0.99) == 99.0


def test_calls_one_after_another_do_not_count_as_running_at_once() -> None:
    late = [replace(call, run=3.002) for call in one_after_another(11)]
    assert most_at_once(late) == 2
    assert most_at_once(all_at_once(10, run=18.0)) == 10
    assert most_at_once([Call(0.0, 1.0, failure="socket hang up")]) == 0


# --- set-ups


def test_gunicorn_is_asked_for_threads_connections_or_neither() -> None:
    named = {setup.name: " ".join(setup.arguments) for setup in setups.common(2)}
    assert named["1 worker x 10 threads"] == "--workers 1 --worker-class gthread --timeout 3600 --threads 10"
    assert named["gevent 8 x 8"] == "--workers 8 --worker-class gevent --timeout 3600 --worker-connections 8"
    assert named["2 x cores: 4 sync workers"] == "--workers 4 --worker-class sync --timeout 3600"


def test_a_set_up_that_equals_another_here_is_skipped_and_says_so() -> None:
    marked = setups.mark_skipped([Setup("11 sync workers", "sync", 11), Setup("1 x cores: 11 sync workers", "sync", 11)])
    assert [setup.skipped for setup in marked] == ["", "here the same as 11 sync workers"]


def test_default_threads_and_one_thread_are_two_set_ups() -> None:
    marked = setups.mark_skipped(setups.with_both_thread_counts(setups.common(2)))
    assert len(marked) == 16
    assert not any(setup.skipped for setup in marked)
    assert len({setup.slug for setup in marked}) == 16


def test_a_set_up_that_would_swap_is_skipped() -> None:
    marked = setups.mark_skipped(setups.common(2), free_megabytes=6000)
    assert [setup.name for setup in marked if setup.skipped] == ["gevent 16 x 16"]


# --- calibration and the client


def test_the_number_of_steps_is_found_by_trials_that_grow() -> None:
    trials = []

    def timed(steps: int) -> float:
        trials.append(steps)
        return steps / 10_000

    assert alone.calibrated(timed, 2.5) == 25_000
    assert trials[:3] == [100, 200, 400]


def test_a_request_is_whole_http() -> None:
    assert client.request("/healthz") == b"GET /healthz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    message = client.request("/x", b"{}", X_Request_ID="7")
    assert message.startswith(b"POST /x HTTP/1.1\r\n")
    assert b"\r\nX-Request-ID: 7\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}" in message


def test_an_answer_that_ends_early_is_a_hang_up() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    assert client.parse(memoryview(whole)).json() == {}
    for cut in (b"", whole[:-1]):
        with pytest.raises(ConnectionResetError):
            client.parse(memoryview(cut))


def test_run_is_read_from_server_timing() -> None:
    assert bursts.run_seconds("queue;dur=12.000, run;dur=2500.000") == 2.5
    assert bursts.run_seconds("run;dur=0.500") == 0.0005


def test_times_count_from_the_first_call_sent() -> None:
    timed = [client.Timed(100.5, 104.0, None, ""), client.Timed(100.0, 101.0, None, "socket hang up")]
    answered, failed = bursts.relative(timed, lambda _: (101.0, 2.5, 1))
    assert answered == Call(0.5, 4.0, 1.0, 2.5, 1)
    assert failed == Call(0.0, 1.0, failure="socket hang up")


# --- timelines


def drawn(*panels: timeline.Panel, width: int = 760) -> ElementTree.Element:
    return ElementTree.fromstring(timeline.draw([panels], timeline.span(panels), width=width))


def bars(svg: ElementTree.Element) -> list[ElementTree.Element]:
    return [each for each in svg.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]


def test_a_call_is_a_light_bar_while_it_waits_and_a_strong_one_while_it_runs() -> None:
    svg = drawn(timeline.Panel("percore", "", one_after_another(3), 6.0))
    found = [(bar.get("fill"), float(bar.get("width", "0"))) for bar in bars(svg)]
    assert [colour for colour, _ in found] == [PALETTE[0], PALETTE[1], WAITING, PALETTE[0]]
    assert len({width for _, width in found}) == 1
    assert bars(svg)[-1].findtext(f"{SVG}title") == "waited 3.00 s, ran 3.00 s on core 0"


def test_a_failed_call_shows_its_error_and_the_legend_has_failures_only_if_there_are_some() -> None:
    svg = drawn(timeline.Panel("x", "", [Call(0.0, 2.0, failure="socket hang up")], 6.0))
    (bar,) = bars(svg)
    assert (bar.get("fill"), bar.findtext(f"{SVG}title")) == (FAILED, "socket hang up")
    assert "fails" in [each.text for each in svg.iter(f"{SVG}text")]
    assert "fails" not in [each.text for each in drawn(timeline.Panel("x", "", one_after_another(2), 3.0)).iter(f"{SVG}text")]


def test_nothing_is_drawn_beyond_the_picture() -> None:
    svg = drawn(*(timeline.Panel("a & b", "<c>", one_after_another(11), 18.0) for _ in range(2)), width=1000)
    height = float(svg.get("height", "0"))
    for group in svg.iter(f"{SVG}g"):
        left, top = map(float, re.findall(r"[\d.]+", group.get("transform", "")))
        for bar in group.iter(f"{SVG}rect"):
            assert left + float(bar.get("x", "0")) + float(bar.get("width", "0")) <= 1000 - MARGIN + 0.1
            assert top + float(bar.get("y", "0")) + float(bar.get("height", "0")) < height


def test_an_axis_has_round_ticks_and_at_most_ten() -> None:
    assert [tick_step(seconds) for seconds in (3, 18.4, 28, 100, 5000)] == [1, 2, 5, 10, 600]
    assert tick_step(60_000) == 6000


def test_the_worst_set_up_slows_calls_most_with_the_default_threads() -> None:
    worst = Burst(Setup("11 sync workers", "sync", 11), all_at_once(11, 18.0))
    others = [
        Burst(setups.percore(2), one_after_another(11)),
        Burst(Setup("1 worker x 10 threads", "gthread", 1, 10), all_at_once(11, 9.0)),
        Burst(Setup("1 worker x 10 threads", "gthread", 1, 10, one_thread=True), all_at_once(11, 27.0)),
        Burst(Setup("gevent 16 x 16", "gevent", 16, 16), error="3 of 16 workers answered"),
    ]
    assert pictures.worst_setup([*others, worst], 3.0, 18.0) is worst
    assert pictures.worst_setup(others[:1], 3.0, 18.0) is None


# --- the report


def whole() -> results.Results:
    cost = [Cost("parse the head", 61.2)]
    return results.Results(
        machine="a machine",
        cores=2,
        sleep=1.0,
        alone=Alone(27_000, 3.0, (3.0, 3.1, 2.9)),
        cpu=[
            Burst(setups.percore(2), one_after_another(11)),
            Burst(Setup("11 sync workers", "sync", 11), all_at_once(11, 18.0)),
            Burst(Setup("4 x cores: 11 sync workers", "sync", 11, skipped="here the same as 11 sync workers")),
            Burst(Setup("gevent 16 x 16", "gevent", 16, 16), error="3 of 16 workers answered within 150 s"),
        ],
        io=[Burst(Setup("11 sync workers", "sync", 11), all_at_once(11, 1.0))],
        empty=EmptyCall([EmptyCallRow("percore", 0.0004, 0.0006, 2500.0, 9000)], Costs(340.0, cost, cost)),
        gateway=GatewayCosts(
            [
                Way("the pod directly", [0.0003, 0.0004, 0.0005, 0.0006], 900, 0.05),
                Way("through the gateway", [0.0006, 0.0007, 0.0009, 0.0012], 800, 0.06),
            ],
            1800.0,
            0.0004,
            0.012,
        ),
        bulk=[Bulk("binary", 16.8, 0.05, 0.0006, 640.0)],
        footprint=Footprint(
            [Start("digits", 4.8)],
            [Process("supervisor", 17.0, 11.0), Process("arbiter", 25.0, 14.0)],
            [Process("worker 0", 590.0, 410.0)],
            [Probe("/readyz", 0.001, 0.005, 0.006, 88)],
        ),
    )


def test_results_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bench") / "results.json"
    whole().write(path)
    assert results.read(path) == whole()
    assert json.loads(path.read_text())["cpu"][0]["calls"][0]["run"] == 3.0


def test_every_table_is_in_the_report_with_as_many_cells_in_each_row() -> None:
    text = report.document(whole())
    for section in (
        "Calls that compute",
        "calls that wait",
        "An empty call",
        "The gateway",
        "A large tensor",
        "Footprint",
    ):
        assert section in text
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| **percore** | one | 1.00 x | 1.00 x | 3.0 s | 18.0 s | 1.00 x | 2 | 0 |" in text
    assert "| 11 sync workers | default | 6.00 x | 6.00 x | 18.0 s | 18.0 s | 1.00 x | 11 | 0 |" in text
    assert "here the same as 11 sync workers" in text
    assert "did not start: 3 of 16 workers answered within 150 s" in text
    assert "| an empty call, one at a time | calls | p10 | p50 | p90 | p99 | 16 MB of float32, binary, echoed |" in text
    assert "| the pod directly | 900 | 0.300 ms | 0.400 ms | 0.500 ms | 0.600 ms | 50 ms |" in text
    assert "| through the gateway | 800 | 0.600 ms | 0.700 ms | 0.900 ms | 1.200 ms | 60 ms |" in text
    assert "| **together** | 42 MB | 25 MB |" in text


def test_missing_measurements_are_not_reported() -> None:
    text = report.document(results.Results("a machine", 2, 1.0))
    assert "##" not in text
    assert pictures.all_of(results.Results("a machine", 2, 1.0)) == {}


def test_the_readme_s_pair_of_pictures_has_one_scale() -> None:
    found = pictures.all_of(whole())
    assert set(found) == {"timeline.svg", "trouble.svg", "cure.svg"}
    ticks = {name: re.findall(r">(\d+) s<", found[name]) for name in ("trouble.svg", "cure.svg")}
    assert ticks["trouble.svg"] == ticks["cure.svg"] != []


def test_the_page_of_restarts_has_a_row_for_each_server_with_median_and_tail() -> None:
    rows = [
        restarts.Row("percore", 1, 3.9, [0.2, 0.3, 0.9], [0.4], [0.5], 470.6),
        restarts.Row("Flask and Gunicorn", 1, 2.4, [2.2], [22.9], [2.3], 356.0),
    ]
    page = restarts.document(rows, 40, "2 cores")
    assert "| **percore** | 1 | 3.9 s | 0.30 s, 0.89 s | 0.40 s, 0.40 s | 0.50 s, 0.50 s | 471 MB |" in page
    assert "| Flask and Gunicorn | 1 | 2.4 s | 2.20 s, 2.20 s | 22.90 s, 22.90 s | 2.30 s, 2.30 s | 356 MB |" in page
    assert "measured 40 times for percore, and 8 times if one measurement takes seconds" in page
