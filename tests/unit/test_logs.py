"""The log without a reader: a full pipe holds up neither a call nor the end of the process."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from percore import logs
from percore.logs import BackgroundWriter, StandardError

F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", 1031)
PIPE_BYTES = 4096
ENOUGH_SECONDS = 20.0
"""How long a test waits for an event that should happen at once. Only a fault takes so long."""


class Reader:
    """The reader of the log, over a pipe that holds one page. It reads only when the test calls its methods."""

    def __init__(self) -> None:
        self._fd, self.end = os.pipe()
        fcntl.fcntl(self.end, F_SETPIPE_SZ, PIPE_BYTES)

    def wait_until_it_is_written_to(self) -> None:
        assert select.select([self._fd], [], [], ENOUGH_SECONDS)[0], "nothing was written"

    def lines(self, count: int) -> list[dict[str, Any]]:
        """Read so many lines."""
        data = b""
        while data.count(b"\n") < count:
            self.wait_until_it_is_written_to()
            data += os.read(self._fd, 65536)
        assert data.endswith(b"\n")
        return [json.loads(line) for line in data.splitlines()]

    def read(self) -> bytes:
        return os.read(self._fd, 65536)

    def has_more(self) -> bool:
        return bool(select.select([self._fd], [], [], 0)[0])

    def leave(self) -> None:
        """Close the pipe, so that a writer gets an error."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Lost:
    """Counts lost lines, from any thread."""

    def __init__(self) -> None:
        self.count = 0
        self.some = threading.Event()
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.count += 1
        self.some.set()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Return a reader of standard error. It replaces pytest's own."""
    found = Reader()
    monkeypatch.setattr(logs, "FD_STANDARD_ERROR", found.end)
    yield found
    found.leave()
    os.close(found.end)


@pytest.fixture
def lost() -> Lost:
    return Lost()


NewWriter = Callable[[int], BackgroundWriter]


@pytest.fixture
def new_writer(reader: Reader, lost: Lost) -> Iterator[NewWriter]:
    """Return a function that makes a writer with a bound.

    All writers end before the pipe is closed, because the number of its descriptor may be used again.
    """
    writers: list[BackgroundWriter] = []
    before = set(threading.enumerate())

    def new(most: int) -> BackgroundWriter:
        writers.append(BackgroundWriter(lost, most))
        return writers[-1]

    yield new
    reader.leave()
    for writer in writers:
        writer.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(ENOUGH_SECONDS)


def in_time(work: Callable[[], None]) -> float:
    """Call ``work``, which must not block; return how long it took, in seconds."""
    began = time.monotonic()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(ENOUGH_SECONDS)
    assert not thread.is_alive(), "it blocks"
    return time.monotonic() - began


def stall(writer: BackgroundWriter, reader: Reader) -> None:
    """Fill the pipe.

    After this, the writer cannot write until the reader reads.
    """
    for _ in range(2):  # the first fills more than half of the pipe, and the writer waits with the second
        writer.write_call({"number": -1, "filler": "x" * (PIPE_BYTES * 2 // 3)})
    reader.wait_until_it_is_written_to()
    ends = time.monotonic() + ENOUGH_SECONDS
    while not writer._lines.empty() and time.monotonic() < ends:
        time.sleep(0.01)


def test_a_caller_is_not_held_up_by_a_reader_that_stalls_and_lines_over_the_bound_are_counted_as_lost(
    reader: Reader, lost: Lost, new_writer: NewWriter
) -> None:
    writer = new_writer(100)
    stall(writer, reader)

    def write() -> None:
        for number in range(350):
            writer.write_call({"number": number})

    in_time(write)
    assert lost.count == 250
    found = [line["number"] for line in reader.lines(102)]
    assert found == [-1, -1, *range(100)], "those that came first are written, in their order"
    assert not reader.has_more()


def test_records_of_the_logging_module_keep_the_same_bound(reader: Reader, lost: Lost, new_writer: NewWriter) -> None:
    writer = new_writer(10)
    logger = logging.Logger("percore.test")
    logger.addHandler(writer)
    stall(writer, reader)

    def write() -> None:
        for number in range(25):
            logger.warning("record %d", number)

    in_time(write)
    assert lost.count == 15
    found = reader.lines(12)[2:]
    assert [(line["message"], line["level"]) for line in found] == [(f"record {number}", "warning") for number in range(10)]


def test_after_a_stall_lines_are_written_again(reader: Reader, lost: Lost, new_writer: NewWriter) -> None:
    writer = new_writer(5)
    stall(writer, reader)
    for number in range(8):
        writer.write_call({"number": number})
    reader.lines(7)
    writer.write_call({"number": 100})
    assert [line["number"] for line in reader.lines(1)] == [100]
    assert lost.count == 3


def test_closing_writes_the_lines_that_are_left(reader: Reader, lost: Lost, new_writer: NewWriter) -> None:
    writer = new_writer(100)
    for number in range(10):
        writer.write_call({"number": number})
    in_time(writer.close)
    # This needs no wait: all lines were in the pipe when close() returned.
    assert reader.has_more()
    assert [line["number"] for line in reader.lines(10)] == list(range(10))
    assert lost.count == 0


@pytest.mark.parametrize("queued", [0, 500])
def test_closing_ends_in_bounded_time_though_the_reader_stalls(reader: Reader, new_writer: NewWriter, queued: int) -> None:
    writer = new_writer(100)
    stall(writer, reader)
    for number in range(queued):
        writer.write_call({"number": number})
    assert in_time(writer.close) < 3.0


def test_if_the_reader_closes_the_pipe_lines_are_lost_and_the_writer_goes_on(
    reader: Reader, lost: Lost, new_writer: NewWriter
) -> None:
    writer = new_writer(100)
    reader.leave()
    writer.write_call({"number": 1})
    assert lost.some.wait(ENOUGH_SECONDS)
    lost.some.clear()
    writer.write_call({"number": 2})
    assert lost.some.wait(ENOUGH_SECONDS), "the writer has ended"
    assert lost.count == 2


FAILS = """
import sys, threading
from percore import logs
logs.{configure}
class Fails:
    def __del__(self): 1 / 0
Fails()
threading.Thread(target=lambda: 1 / 0, name="helper").start()
threading.Thread(target=sys.exit).start()
1 / 0
"""


@pytest.mark.parametrize("configure", ['configure("info")', 'configure_background("info", lambda: None)'])
def test_an_uncaught_exception_is_a_line_of_json_in_every_thread(configure: str) -> None:
    program = FAILS.replace("{configure}", configure)
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=20)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    ignored = "ignored an exception in Fails.__del__"
    assert [line["message"] for line in lines] == [ignored, "thread helper failed", "the process failed"]
    assert all("ZeroDivisionError" in line["trace"] for line in lines)


def records(handler: StandardError, *messages: str) -> None:
    logger = logging.Logger("percore.test")
    logger.addHandler(handler)
    for message in messages:
        logger.warning(message)


def test_without_a_thread_a_reader_that_stalls_costs_one_wait_and_later_lines_are_dropped(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "PATIENCE_SECONDS", 0.3)
    handler = StandardError()
    long = "x" * (PIPE_BYTES * 2 // 3)
    records(handler, long)
    assert 0.2 < in_time(lambda: records(handler, long)) < 2, "it waits for the reader"
    assert in_time(lambda: records(handler, *["lost"] * 50)) < 2, "one wait for all"
    found: list[dict[str, Any]] = []

    def write_on() -> None:
        while not found:
            records(handler, "last")
            time.sleep(0.01)

    writing = threading.Thread(target=write_on)
    writing.start()
    data = b""
    while b'"last"' not in data:
        reader.wait_until_it_is_written_to()
        data += reader.read()
    found += [json.loads(line) for line in data.splitlines() if line.endswith(b"}")]
    writing.join()
    messages = [line["message"] for line in found]
    assert messages[0] == long
    counted = re.fullmatch(r"lines of the log that were lost because it was read too slowly: (\d+)", messages[1])
    assert counted is not None
    assert int(counted[1]) >= 51
    assert messages[-1] == "last"


def test_if_the_reader_has_left_lines_are_lost_without_an_error(reader: Reader) -> None:
    reader.leave()
    handler = StandardError()
    assert in_time(lambda: records(handler, *["lost"] * 100)) < 1


@pytest.mark.parametrize("sent", ["x" * 100_000, "\n" * 50_000, "é" * 20_000])
def test_a_line_fits_into_one_piece_of_a_pipe(reader: Reader, sent: str) -> None:
    """Longer ones come in pieces, between which other processes write."""
    try:
        raise ValueError(sent)
    except ValueError:
        record = logging.makeLogRecord({"msg": sent, "exc_info": sys.exc_info(), "levelname": "ERROR"})
    handler = StandardError()
    handler.emit(record)
    data = reader.read()
    assert len(data) <= select.PIPE_BUF
    line = json.loads(data)
    assert line["message"].startswith(sent[:100])
    assert line["message"].endswith("...")
    assert line["trace"].startswith("...")
