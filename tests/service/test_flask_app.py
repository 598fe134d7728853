"""The most common app, unchanged: a Flask view calls `model.predict` of a Keras model that is loaded at import."""

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from sklearn.datasets import load_digits

from demo.try_it import SEVEN
from harness.service import READY_SECONDS, ROOT, Service, eventually

CALLS = 11
IMAGES = 1000
"""Images of one call. They take so long that calls overlap."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "digits.keras"
    subprocess.run([sys.executable, "-m", "demo.flask_model", str(path)], cwd=ROOT, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def plain(model: Path) -> Iterator[str]:
    """The app under plain Gunicorn; its address."""
    environ = {**os.environ, "DEMO_MODEL": str(model)}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "--bind",
            f"fd://{listener.fileno()}",
            "--timeout",
            "300",
            "--no-control-socket",
        ]
        process = subprocess.Popen([*command, "demo.flask_app:app"], cwd=ROOT, env=environ, pass_fds=[listener.fileno()])
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/predict"
        finally:
            process.terminate()
            process.wait(30)


def test_eleven_calls_at_once_get_correct_answers_and_no_two_share_a_worker_at_a_time(model: Path, plain: str) -> None:
    pixels, _ = load_digits(return_X_y=True)
    requested = [{"images": [SEVEN, *pixels[number : number + IMAGES].tolist()]} for number in range(CALLS)]
    expected = [requests.post(plain, json=each, timeout=READY_SECONDS).json()["digits"] for each in requested]
    assert {each[0] for each in expected} == {7}
    assert len({tuple(each) for each in expected}) == CALLS, "all answers differ, so a mixed-up answer would be found"

    service = Service(app="tests.service.timed_app:app")
    service.environ["DEMO_MODEL"] = str(model)
    with service.ready(workers=2), ThreadPoolExecutor(CALLS) as pool:
        answers = list(pool.map(lambda each: service.post("/predict", each, timeout=300), requested))
        assert [each.status_code for each in answers] == [200] * CALLS
        assert [each.json()["digits"] for each in answers] == expected
        eventually(lambda: service.metric("percore_calls_total", code="200", model="/predict") == CALLS)
        assert "graph mode" not in service.log_path.read_text()

    spans = sorted((each.headers["X-Pid"], float(each.headers["X-Began"]), float(each.headers["X-Ended"])) for each in answers)
    assert len({pid for pid, _, _ in spans}) > 1
    for (pid, _, ended), (next_pid, began, _) in itertools.pairwise(spans):
        assert pid != next_pid or ended <= began
