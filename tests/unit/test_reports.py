"""Workers' reports, over a real unix socket, from the worker's end to the status server's state."""

import errno
import json
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from percore.status.event_receiver import EventReceiver
from percore.status.workers import Workers, WorkerState
from percore.worker.report import Reporter
from percore.worker_metrics import WorkerMetrics


class StatusFixture:
    def __init__(self, state_dir: Path) -> None:
        self.metrics = WorkerMetrics()
        self.workers = Workers(self.metrics)
        self.receiver = EventReceiver(state_dir / "events.sock", self.workers)

    def take_in(self, turns: int = 5) -> None:
        for _ in range(turns):
            self.receiver.receive(seconds=0.02)

    def close(self) -> None:
        self.receiver.close()


CATALOG = {
    "models": [{"name": "m", "version": 1, "platform": "x" * 300_000, "signatures": {}, "labels": [], "load_seconds": 1.0}]
}


def test_a_report_arrives_however_large_the_catalog_is(tmp_path: Path) -> None:
    status, reporter = StatusFixture(tmp_path), Reporter(tmp_path / "events.sock")
    reporter.reconnect()
    reporter.loaded(CATALOG)
    for _ in range(20):
        reporter.reconnect()
        status.take_in()
    reporter.started()
    status.take_in()
    assert status.workers.states() == {WorkerState.BUSY: 1}
    status.close()
    reporter.close()


def test_a_status_server_that_comes_back_learns_the_present_state(tmp_path: Path) -> None:
    first, reporter = StatusFixture(tmp_path), Reporter(tmp_path / "events.sock")
    reporter.reconnect()
    reporter.loaded({"models": []})
    reporter.started()
    first.take_in()
    first.close()
    reporter.count_event("client-disconnect", state="executing")  # notices that the status server is gone
    reporter.reconnect()
    second = StatusFixture(tmp_path)
    reporter.reconnect()
    second.take_in()
    assert second.workers.states() == {WorkerState.BUSY: 1}
    assert second.workers.slot() == "taken"
    second.close()
    reporter.close()


def test_without_a_status_server_reports_cost_nothing_and_raise_nothing(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "events.sock")
    reporter.reconnect()
    reporter.started()
    reporter.finished("m", "200", 1.0)


def test_after_a_status_server_was_frozen_it_gets_the_present_state(tmp_path: Path) -> None:
    status, reporter = StatusFixture(tmp_path), Reporter(tmp_path / "events.sock")
    reporter.reconnect()
    reporter.loaded({"models": []})
    for _ in range(40_000):
        reporter.started()
        reporter.finished("m", "200", 1.0)
    reporter.started()  # is lost
    for _ in range(200):
        status.take_in(turns=1)
        reporter.reconnect()
    assert status.workers.states() == {WorkerState.BUSY: 1}
    assert status.metrics.registry.get_sample_value("percore_worker_restarts_total", {"reason": "crashed"}) == 0
    status.close()
    reporter.close()


def test_the_end_of_a_connection_is_the_end_of_the_worker(tmp_path: Path) -> None:
    status, reporter = StatusFixture(tmp_path), Reporter(tmp_path / "events.sock")
    reporter.reconnect()
    reporter.started()
    status.take_in()
    assert status.workers.states() == {WorkerState.BUSY: 1}
    reporter.close()
    status.take_in()
    assert not status.workers.states()
    assert status.metrics.registry.get_sample_value("percore_worker_restarts_total", {"reason": "crashed"}) == 1
    status.close()


@pytest.mark.parametrize("line", [b'{"event": 7', b"[]", b'{"event":"hello"}', b'{"event":"hello","worker":1,"catalog":7}'])
def test_a_malformed_report_closes_only_its_own_connection(tmp_path: Path, line: bytes) -> None:
    status, reporter = StatusFixture(tmp_path), Reporter(tmp_path / "events.sock")
    reporter.reconnect()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(5)
        stranger.connect(str(tmp_path / "events.sock"))
        stranger.sendall(line + b"\n")
        status.take_in()
        assert stranger.recv(1) == b""
    assert status.workers.states() == {WorkerState.LOADING: 1}
    status.close()
    reporter.close()


def test_a_worker_that_cannot_be_accepted_is_accepted_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, reporter = StatusFixture(tmp_path), Reporter(tmp_path / "events.sock")
    reporter.reconnect()
    full = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(socket.socket, "accept", Mock(side_effect=full))
    status.take_in(1)
    monkeypatch.undo()
    status.take_in()
    assert status.workers.states() == {WorkerState.LOADING: 1}
    status.close()
    reporter.close()


def test_if_a_vital_thread_fails_the_process_ends(capfd: pytest.CaptureFixture[str]) -> None:
    program = """
import time
from percore import logs, threads
logs.configure("info")
threads.start_vital("mine", lambda: 1 / 0)
time.sleep(60)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == 1
    line = json.loads(capfd.readouterr().err)
    assert (line["level"], line["message"]) == ("error", "the thread mine failed; the process ends")
    assert "ZeroDivisionError" in line["trace"]
