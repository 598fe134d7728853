"""Celery or RQ with Redis, for ``bench.stored_calls``: ``PYTHON bench/task_queues.py celery|rq REDIS_PORT FOLDER TASKS``.

Runs in an environment of its own, which has these packages and not percore. Prints one JSON object.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

AT_ONCE = 16
TURNS = 200
WARM = 5
PAYLOAD = "x" * 1000
TASKS = """
import os, time

def begun(payload):
    return time.time()

if os.environ["TASK_QUEUE"] == "celery":
    from celery import Celery
    redis = f"redis://127.0.0.1:{os.environ['TASK_REDIS']}/0"
    app = Celery("tasks", broker=redis, backend=redis)
    app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)
    task = app.task(name="begun")(begun)
"""


def celery(_port: str) -> tuple[Callable[[], Any], Callable[[Any], float], list[str]]:
    """Return a function that sends a task, a function that waits for its result, and the command of a worker."""
    tasks = importlib.import_module("tasks")

    command = ["-m", "celery", "-A", "tasks", "worker", "--concurrency", "1", "--loglevel", "ERROR"]
    return lambda: tasks.task.delay(PAYLOAD), lambda sent: float(sent.get(timeout=30)), command


def rq_(port: str) -> tuple[Callable[[], Any], Callable[[Any], float], list[str]]:
    """Return the same as ``celery`` for RQ, whose worker forks for each task."""
    rq, redis, tasks = map(importlib.import_module, ("rq", "redis", "tasks"))
    queue = rq.Queue(connection=redis.Redis(port=int(port)))

    def result(job: Any) -> float:
        return float(job.latest_result(timeout=30).return_value)

    return (
        lambda: queue.enqueue(tasks.begun, PAYLOAD),
        result,
        ["-m", "rq.cli", "worker", "--url", f"redis://127.0.0.1:{port}", "--quiet"],
    )


def main(kind: str, port: str, folder: str, count: str) -> None:
    """Measure and print."""
    os.environ.update(TASK_QUEUE=kind, TASK_REDIS=port)
    (Path(folder) / "tasks.py").write_text(TASKS)
    sys.path.insert(0, folder)
    send, wait, arguments = {"celery": celery, "rq": rq_}[kind](port)
    environ = {**os.environ, "PYTHONPATH": folder}
    command, quiet = [sys.executable, *arguments], subprocess.DEVNULL
    worker = subprocess.Popen(command, cwd=folder, env=environ, stdout=quiet, stderr=quiet)
    try:
        begins, results = [], []
        for turn in range(TURNS + WARM):
            sent = time.time()
            begun = wait(send())
            if turn >= WARM:
                begins.append(begun - sent)
                results.append(time.time() - sent)
    finally:
        worker.kill()
        worker.wait()
    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for each in [pool.submit(send) for _ in range(int(count))]:
            each.result()
    rate = int(count) / (time.perf_counter() - began)
    print(json.dumps({"rate": rate, "begin": statistics.median(begins), "result": statistics.median(results)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
