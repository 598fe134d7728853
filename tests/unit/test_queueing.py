import math
import random
import statistics
from pathlib import Path

import pytest

from bench import queueing, waits
from tools import blocks


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8, 0.95])
def test_one_server_and_equal_calls_wait_as_pollaczek_and_khinchine_say(load: float) -> None:
    assert queueing.equal_runs(1, load).mean == pytest.approx(load / (2 * (1 - load)), rel=1e-9)


def test_with_one_server_the_share_of_long_waits_is_that_of_the_known_formula() -> None:
    none, one = 0.5, 0.5 * (math.exp(0.5) - 1)
    assert queueing.equal_runs(1, 0.5).long == pytest.approx(1 - none - one, rel=1e-9)


def test_erlang_s_formula_gives_the_values_of_its_tables() -> None:
    """Three servers with a load of two Erlang: 4/9 of the calls wait. For a single server the waits are those of M/M/1."""
    found = queueing.exponential_runs(3, 2 / 3)
    assert found.mean == pytest.approx(4 / 9)
    assert found.long == pytest.approx(4 / 9 * math.exp(-1))
    assert queueing.exponential_runs(1, 0.9).mean == pytest.approx(9.0)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.7), (4, 0.8), (11, 0.9)])
def test_equal_calls_wait_as_a_long_simulation_of_the_queue_does(servers: int, load: float) -> None:
    chance, at, arrivals = random.Random(1), 0.0, []
    for _ in range(60_000):
        at += chance.expovariate(servers * load)
        arrivals.append(at)
    waited = queueing.ideal_waits(arrivals, servers, 1.0)
    expected = queueing.equal_runs(servers, load)
    assert statistics.mean(waited) == pytest.approx(expected.mean, rel=0.1)
    assert statistics.mean(wait > 1 for wait in waited) == pytest.approx(expected.long, abs=0.02)


def test_an_ideal_queue_serves_the_first_call_on_the_first_free_server() -> None:
    assert queueing.ideal_waits([0.0, 0.0, 0.5, 0.6, 5.0], 2, 2.0) == [0.0, 0.0, 1.5, 1.4, 0.0]


def test_the_load_at_which_so_many_wait_long_is_found() -> None:
    for servers in (1, 8):
        assert queueing.equal_runs(servers, queueing.load_for_share(servers, 0.05)).long == pytest.approx(0.05, abs=0.001)


def test_arrivals_are_the_same_in_every_run_and_typical_of_the_long_run() -> None:
    found = waits.arrivals(0.9, 2, 45.0)
    assert found == waits.arrivals(0.9, 2, 45.0) == sorted(found)
    mean = statistics.mean(queueing.ideal_waits(found, 2, waits.RUN_SECONDS)) / waits.RUN_SECONDS
    assert mean == pytest.approx(queueing.equal_runs(2, 0.9).mean, rel=0.02)


def test_the_wait_of_a_call_is_its_time_without_its_run() -> None:
    run = waits.RUN_SECONDS
    timed = [(0.0, run, run), (0.0, 2 * run, run), (0.0, 3.5 * run, run)]
    assert waits.summarised(0.5, timed) == waits.Load(0.5, 3, 1.167, 0.333)


def test_the_measured_waits_stand_beside_those_of_the_formula(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "waits.json"
    path.write_text(
        '{"machine": "a box, Linux", "workers": 2, "run": 0.2, "loads": [{"load": 0.5, "calls": 7, "mean": 0.61, "long": 0.2}]}'
    )
    monkeypatch.setattr(blocks, "WAITS", path)
    text = blocks.measured()
    assert text.startswith("2 workers, 0.2 s a call, on a box:")
    assert text.endswith("| 50 % | 7 | 0.18 | 0.61 | 4 % | 20 % |")


def test_the_rule_s_table_has_the_measured_rows_of_both_kinds_of_calls() -> None:
    heads, _, *rows = [line.strip("| ").split(" | ") for line in blocks.rule().splitlines()]
    assert [row[0].split(":")[0] for row in rows] == ["**percore**", "2 x cores", "4 x cores", "11 sync workers"]
    assert {len(row) for row in rows} == {len(heads)}
