"""Starts the servers that are measured on free ports, and ends all their processes: Gunicorn with a plain application, and
percore.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import client
from bench.setups import Setup
from harness.service import MODELS, ROOT, Service, free_port

START_SECONDS = 150.0
HOLD_SECONDS = 0.1


@contextlib.contextmanager
def repository(*names: str) -> Iterator[Path]:
    """Yield a model repository that holds some of the demo models only."""
    with tempfile.TemporaryDirectory(prefix="percore-bench-") as folder:
        for name in names:
            (Path(folder) / name).symlink_to(MODELS / name)
        yield Path(folder)


@contextlib.contextmanager
def gunicorn(setup: Setup, application: str, log: Path) -> Iterator[int]:
    """Serve one of ``bench.baseline``'s applications; yield the port once every worker has answered."""
    with gunicorn_process(setup, application, log) as (port, _):
        yield port


@contextlib.contextmanager
def gunicorn_process(setup: Setup, application: str, log: Path) -> Iterator[tuple[int, int]]:
    """Do the same; yield the port and the arbiter's process id."""
    port = free_port()
    options = ["--bind", f"{client.HOST}:{port}", "--no-control-socket", *setup.arguments]
    environ = {**os.environ, "BASELINE_MODEL": str(MODELS / "burn" / "1"), "BASELINE_THREADS": "1" if setup.one_thread else "0"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        command = [sys.executable, "-m", "gunicorn", *options, f"bench.baseline:{application}()"]
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for_workers(port, setup.workers, process)
        yield port, process.pid
    finally:
        # Kill its process group: a worker inside TensorFlow does not react to any other signal.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_workers(port: int, workers: int, process: subprocess.Popen[bytes]) -> None:
    """Return when so many different workers have answered, so that loading is not counted as a call's time."""
    ends, pids, lock = time.monotonic() + START_SECONDS, set[int](), threading.Lock()
    message = client.request(f"/healthz?hold={HOLD_SECONDS}")

    def look() -> None:
        with contextlib.suppress(OSError):
            pid = client.ask(port, message, timeout=max(1.0, ends - time.monotonic())).json()["pid"]
            with lock:
                pids.add(pid)

    while len(pids) < workers:
        if time.monotonic() > ends or process.poll() is not None:
            raise TimeoutError(f"{len(pids)} of {workers} workers answered within {START_SECONDS:.0f} s")
        with ThreadPoolExecutor(workers) as pool:
            for _ in range(workers):
                pool.submit(look)
        time.sleep(HOLD_SECONDS)


@contextlib.contextmanager
def percore(workers: int, **settings: Any) -> Iterator[Service]:
    """Serve with percore; yield it once every worker is free."""
    with Service(**settings) as service:
        yield service.ready(workers)


def cores_of(service: Service) -> dict[int, int]:
    """Return the core of each of percore's workers, by process: each is pinned to its own."""
    return {pid: min(os.sched_getaffinity(pid)) for pid in service.workers}
