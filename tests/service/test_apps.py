"""A user's WSGI app, on one machine and in the worker of a pod alone: the same calls get the same answers."""

import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from harness.service import ROOT, Service, answer_of, eventually

MODULE = "tests.service.apps"
"""Its `application` is the app."""
APP = f"{MODULE}:app"
ALL = len(os.sched_getaffinity(0))
"""All cores for one call, so that there is one worker."""
NOT_OF_THE_APP = {"Date", "Server", "Connection", "X-Request-ID", "Server-Timing", "Transfer-Encoding", "Content-Length"}


@pytest.fixture(scope="module")
def machine() -> Iterator[Service]:
    service = Service(gateway_health_paths="/health")
    service.commands = [["serve", MODULE]]
    with service.ready(workers=2):
        yield service


@pytest.fixture(scope="module")
def pod() -> Iterator[Service]:
    with Service(pod=True, app=APP) as service:
        yield service.ready()


@pytest.fixture(params=["machine", "pod"])
def service(request: pytest.FixtureRequest) -> Service:
    found: Service = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    """The same app under plain Gunicorn; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "--bind",
            f"fd://{listener.fileno()}",
            "--no-control-socket",
            "--log-level",
            "error",
            APP,
        ]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[listener.fileno()])
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.terminate()
            process.wait(30)


REQUESTS: dict[str, Callable[[str], requests.Response]] = {
    "page": lambda url: requests.get(f"{url}/", timeout=30),
    "head": lambda url: requests.head(f"{url}/", timeout=30),
    "environ": lambda url: requests.get(f"{url}/seen/a%20b/%E2%82%AC?x=1&y=%2F&x=2", timeout=30),
    "https proxy": lambda url: requests.get(f"{url}/seen", headers={"X-Forwarded-Proto": "https"}, timeout=30),
    "form": lambda url: requests.post(f"{url}/seen", data={"a": "b"}, timeout=30),
    "put": lambda url: requests.put(f"{url}/seen", data=b"abc", timeout=30),
    "patch": lambda url: requests.patch(f"{url}/seen", json={"a": 1}, timeout=30),
    "delete": lambda url: requests.delete(f"{url}/seen", timeout=30),
    "options": lambda url: requests.options(f"{url}/sleep/0.1", timeout=30),
    "cookies": lambda url: requests.get(f"{url}/cookies", cookies={"two": "of the client"}, timeout=30),
    "empty": lambda url: requests.get(f"{url}/status/204", timeout=30),
    "not modified": lambda url: requests.get(f"{url}/status/304", timeout=30),
    "reason phrase": lambda url: requests.get(f"{url}/phrase", timeout=30),
    "redirect": lambda url: requests.get(f"{url}/moved", headers={"Host": "example.org"}, allow_redirects=False, timeout=30),
    "no route": lambda url: requests.get(f"{url}/nowhere", timeout=30),
    "wrong method": lambda url: requests.post(f"{url}/who", timeout=30),
    "abort": lambda url: requests.get(f"{url}/forbidden", timeout=30),
    "its own 500": lambda url: requests.get(f"{url}/fails", timeout=30),
    "upload": lambda url: requests.post(f"{url}/upload", data={"a": "b"}, files={"f": ("name.txt", "x" * 3000)}, timeout=30),
    "chunks": lambda url: requests.post(f"{url}/echo", data=iter([b"one", b"two"]), timeout=30),
    "file": lambda url: requests.get(f"{url}/file", timeout=30),
    "part of a file": lambda url: requests.get(f"{url}/file", headers={"Range": "bytes=5-24"}, timeout=30),
    "large": lambda url: requests.get(f"{url}/large/30000000", timeout=60),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_an_answer_is_the_same_as_under_plain_gunicorn(name: str, service: Service, plain: str) -> None:
    expected, found = REQUESTS[name](plain), REQUESTS[name](service.url(""))
    assert (found.status_code, found.reason) == (expected.status_code, expected.reason)
    if "seen" in found.request.path_url:
        assert _comparable(found.json()) == _comparable(expected.json())
    else:
        assert found.content == expected.content
    assert _passed(found) == _passed(expected)
    if name == "head":
        assert found.headers["Content-Length"] == expected.headers["Content-Length"]
    assert found.headers["X-Request-ID"]
    assert "run;dur=" in found.headers["Server-Timing"]


def _comparable(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out values that must differ: percore's port, the id of the call, and values of the connection."""
    environ = {key: value for key, value in document["environ"].items() if key != "SERVER_PORT"}
    headers = [name for name in document["headers"] if name not in ("x-request-id", "connection")]
    return {**document, "environ": environ, "headers": headers}


def _passed(answer: requests.Response) -> list[tuple[str, str]]:
    """Return the headers of the app, with each cookie.

    ``Allow`` is sorted, because Flask makes it from a set, whose order differs from process to process.
    """
    pairs = [
        (name.title(), str(sorted(value.split(", "))) if name == "Allow" else value)
        for name, value in answer.raw.headers.items()
    ]
    ours = {name.title() for name in NOT_OF_THE_APP}
    return sorted(pair for pair in pairs if pair[0] not in ours)


def test_the_app_is_imported_in_the_thread_that_serves_it(service: Service) -> None:
    assert requests.get(service.url("/who"), timeout=30).json()["same_thread"] is True


def test_a_stream_comes_as_it_is_made(service: Service, tmp_path: Path) -> None:
    end = tmp_path / "end"
    with requests.get(service.url("/stream"), params={"until": str(end)}, stream=True, timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines) == b"first"
        assert "run;dur" not in answer.headers.get("Server-Timing", "")
        end.touch()
        assert list(lines) == [b"last"]


def test_a_stream_that_breaks_is_seen_to_be_cut(service: Service) -> None:
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(service.url("/breaks"), timeout=30)


def test_an_app_that_exits_is_500_and_its_worker_goes_on(service: Service) -> None:
    answer = requests.get(service.url("/exits"), timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (500, "handler-failed")
    assert requests.get(service.url("/"), timeout=30).status_code == 200


def test_percores_own_paths_are_answered_without_the_app(service: Service) -> None:
    before = len(service.runs())
    for path in ("/-/ready", "/-/live", "/%2d/ready"):
        answer = requests.get(service.url(path), timeout=30)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert requests.get(service.url("/-/nothing"), timeout=30).json()["code"] == "not-found"
    assert requests.get(service.url("/"), timeout=30).status_code == 200
    eventually(lambda: len(service.runs()) > before)
    assert len(service.runs()) == before + 1, "one call: the page"


def test_every_call_has_a_line_and_its_route_is_the_metrics_label(service: Service) -> None:
    for path in ("/sleep/0.001", "/sleep/0.002"):
        assert requests.get(service.url(path), headers={"X-Request-ID": f"id-of-{path[-1]}"}, timeout=30).status_code == 200
    lines = eventually(lambda: [line for line in service.runs() if line["request_id"].startswith("id-of")][1:])
    assert lines[0]["model"] == "/sleep/<float:seconds>"
    eventually(lambda: service.metric("percore_calls_total", model="/sleep/<float:seconds>", code="200") >= 2)
    assert service.metric("percore_model_info", model="app", platform="wsgi_app") == 1


# --- one machine: queued calls, and the ways in which a call ends


def test_calls_share_no_core(machine: Service) -> None:
    with ThreadPoolExecutor(11) as pool:
        answers = list(pool.map(lambda _: machine.post("/burn?seconds=0.2"), range(11)))
    assert [each.status_code for each in answers] == [200] * 11
    spans = sorted((each.json()["pid"], each.json()["began"], each.json()["ended"]) for each in answers)
    for (pid, _, ended), (next_pid, began, _) in itertools.pairwise(spans):
        assert pid != next_pid or ended <= began
    assert len({pid for pid, _, _ in spans}) > 1


def test_a_health_path_never_reaches_a_worker(machine: Service) -> None:
    before = machine.metric("percore_calls_total")
    assert requests.get(machine.url("/health"), timeout=30).json() == {"status": "ok"}
    assert machine.metric("percore_calls_total") == before
    assert not [line for line in machine.calls() if line["path"] == "/health"]


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def test_a_get_over_the_run_timeout_is_504_and_a_get_whose_client_leaves_ends_its_worker() -> None:
    with Service(app=APP, run_timeout=1) as service:
        service.ready(workers=2)
        answer = requests.get(service.url("/sleep/60.0"), timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (504, "run-timeout")
        eventually(lambda: service.metric("percore_calls_total", code="504", model="/sleep/<float:seconds>") == 1)
    with Service(app=APP) as service:
        service.ready(workers=2)
        with service.connect() as connection:
            connection.sendall(get("/sleep/60.0"))
            service.until(executing=1)
        eventually(lambda: service.metric("percore_worker_restarts_total", reason="client-disconnect") == 1)
        service.until(executing=0, queued=0)


def test_a_get_is_queued_and_leaves_the_queue_with_its_client(tmp_path: Path) -> None:
    with Service(app=APP, cores_per_call=ALL) as service:
        service.ready()
        running, queued, left = service.connect(), service.connect(), service.connect()
        running.sendall(get(f"/wait?until={tmp_path / 'end'}"))
        service.until(executing=1, queued=0)
        queued.sendall(get("/who"))
        left.sendall(get("/who"))
        service.until(executing=1, queued=2)
        left.close()
        service.until(executing=1, queued=1)
        (tmp_path / "end").touch()
        assert answer_of(running)[0] == 200
        status, headers, _ = answer_of(queued)
        assert status == 200
        assert headers["server-timing"].startswith("queue;dur=")
        eventually(lambda: service.metric("percore_gateway_client_disconnects_total", state="queued") == 1)


def test_a_worker_that_dies_is_502_and_the_next_call_is_served() -> None:
    with Service(app=APP, cores_per_call=ALL) as service:
        service.ready()
        with service.connect() as connection:
            connection.sendall(get("/sleep/60.0"))
            service.until(executing=1)
            os.kill(service.workers[0], signal.SIGKILL)
            assert answer_of(connection)[0] == 502
        assert requests.get(service.url("/"), timeout=60).status_code == 200


# --- an app that cannot be loaded


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_module:app", "cannot start: app no_such_module:app: there is no module 'no_such_module'"),
        (
            "tests.service.apps:nothing",
            "cannot start: app tests.service.apps:nothing: module 'tests.service.apps' has no 'nothing'",
        ),
        ("tests.service.apps:fails_to_make()", "raised FileNotFoundError: no such weights"),
        ("tests.service.app_that_dies:app", "workers ended while they loaded, and none was ever ready"),
    ],
)
def test_an_app_that_cannot_be_loaded_ends_the_service_with_one_line(target: str, said: str) -> None:
    with Service(app=target, cores_per_call=ALL) as service:
        eventually(lambda: service.processes[0].poll() is not None, 60)
        assert service.processes[0].returncode == 78
        assert [line for line in service.log() if line["level"] == "critical" and said in line["message"]]


def test_no_probe_is_ready_before_a_worker_has_loaded_the_app(tmp_path: Path) -> None:
    release = tmp_path / "release"
    service = Service(app="tests.service.app_that_waits:app", cores_per_call=ALL)
    service.environ["APP_WAITS_FOR"] = str(release)
    with service:
        eventually(lambda: service.log("gateway listens"), 60)
        assert requests.get(service.url("/-/ready"), timeout=30).status_code == 503
        assert requests.get(service.url("/-/live"), timeout=30).status_code == 200
        release.touch()
        eventually(lambda: requests.get(service.url("/-/ready"), timeout=30).status_code == 200, 60)


def test_functions_that_the_app_registered_with_atexit_run_when_its_worker_ends(tmp_path: Path) -> None:
    with Service(app="tests.service.apps:app", cores_per_call=ALL).ready(workers=1) as service:
        path = tmp_path / "ended"
        assert requests.post(service.url("/at-exit"), params={"path": str(path)}, timeout=30).status_code == 200
        service.processes[0].send_signal(signal.SIGTERM)
        assert service.processes[0].wait(30) == 0
        assert path.read_text() == "ended"
