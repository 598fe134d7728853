"""Safety against power loss: the gateway flushes data to the disk before it confirms it. The test traces its system calls."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from harness.service import FAULTY, Service, eventually

CALLS = "openat,pwrite64,write,writev,sendto,sendmsg,fsync,fdatasync"


@contextlib.contextmanager
def traced(pid: int, path: Path) -> Iterator[None]:
    """Trace the writes of all threads of a process.

    The lines have the order in which the system calls began; ``-y`` names the files.
    """
    command = ["strace", "-f", "-y", "-s", "40000", "-e", f"trace={CALLS}", "-o", str(path), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        first = process.stderr.readline()
        if "attached" not in first:
            process.wait(10)
            pytest.skip(f"strace may not trace here: {first.strip()}")
        yield
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def flushed_between(lines: list[str], what: str) -> bool:
    """Return whether the write-ahead log was flushed after ``what`` was written to it and before it was sent to a socket."""
    in_log = [place for place, line in enumerate(lines) if "-wal>" in line and "pwrite64(" in line and what in line]
    sent = [
        place
        for place, line in enumerate(lines)
        if re.search(r"(write|writev|sendto|sendmsg)\(\d+<[^>]*socket:", line) and what in line
    ]
    assert in_log, f"{what} was never stored"
    assert sent, f"{what} was never sent"
    began: dict[str, int] = {}
    for place, line in enumerate(lines[: sent[0]]):
        thread = line.split()[0]
        if re.search(r"\bf(data)?sync\(\d+<[^>]*-wal>", line):
            began[thread] = place
            if "unfinished" in line:
                continue
        elif not re.search(r"<\.\.\. f(data)?sync resumed>", line):
            continue
        if began.get(thread, -1) > in_log[0] and line.rstrip().endswith("= 0"):
            return True
    return False


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_call_is_on_the_disk_before_its_receipt_and_its_result_before_it_can_be_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with Service(handler=FAULTY).ready() as service:
        with traced(service.gateway, trace):
            body = {"inputs": {"sleep": 1.0}}
            receipt = service.post("/v1/models/default:predict", body, headers={"Prefer": "respond-async"})
            assert receipt.status_code == 202
            result = requests.get(
                service.url(f"{receipt.headers['Location']}/result"), headers={"Prefer": "wait=30"}, timeout=60
            )
            assert result.json()["outputs"]["sleep"] == 1.0
            eventually(lambda: "outputs" in trace.read_text(errors="replace"))
        lines = trace.read_text(errors="replace").splitlines()
    assert flushed_between(lines, receipt.json()["id"])
    assert flushed_between(lines, "outputs")
    # SQLite's names for temporary files. A pod whose file system is read-only has no folder for them.
    assert not [line for line in lines if "etilqs_" in line]
